//! `power-cut`: the node that runs the controller loses its power ten times while tenants are made as
//! fast as it answers. What it acknowledged is written down here, outside of the node, and is there
//! after each cut, at the place that was told; programs that are not ours accept the log.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_controller_store::LogHead;
use berth_ledger::keys::SigningKey;
use berth_ledger::note::{KeyName, Vkey};
use serde_json::{Value, json};

use crate::foreign_verifiers::{Verifier, at_hand};
use crate::lab::host::Host as _;
use crate::lab::node::{NodeSpec, RootDisk, run_folder};
use crate::lab::scenario::Context;
use crate::lab::site::{Site, text};
use crate::published_log::PublishedLog;
use crate::simulated_agent::http_client;

/// How often the power goes.
const CUTS: usize = 10;
/// Callers who make tenants at the same time.
const CALLERS: usize = 4;
/// Acknowledged changes of one life before the power goes.
const ACKNOWLEDGED: usize = 60;
/// Entries that are asked for at once.
const PAGE: usize = 1000;
/// Where the controller keeps the ledger's key.
const LEDGER_KEY: &str = "/var/lib/berth/controller/keys/ledger.key";

/// What was acknowledged: tenants, and where their entries are.
type Record = BTreeMap<String, u64>;

/// Runs the scenario.
///
/// # Errors
/// The first thing that was acknowledged and is not there, or a verifier that rejects the log.
pub(crate) fn run(context: &Context) -> Result<()> {
    let verifiers = at_hand();
    ensure!(
        !verifiers.is_empty(),
        "no foreign verifier is there: `cargo xtask test --tier ledger` makes them"
    );
    let folder = run_folder("power-cut-disk");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let root = folder.join("root.raw");
    context.node.copy_disk(&root)?;
    let result = cuts(context, &root, &verifiers);
    std::fs::remove_file(&root).context("removing the root disk")?;
    result
}

fn boot(context: &Context, root: &Path) -> Result<Site> {
    let spec = NodeSpec {
        root: RootDisk::Kept(root.to_owned()),
        ..NodeSpec::default()
    };
    Site::boot_with("power-cut", context, spec)
}

fn cuts(context: &Context, root: &Path, verifiers: &[Verifier]) -> Result<()> {
    let mut record = Record::new();
    let mut site = boot(context, root)?;
    for cut in 1..=CUTS {
        let load = Load::on(&site, cut)?;
        record.extend(load.told.iter().take(ACKNOWLEDGED));
        site.node.cut_power();
        record.extend(load.rest()?);
        site = boot(context, root)?;
        let looked = look(&site, &record, verifiers).inspect_err(|_| site.node.collect());
        let entries = looked.with_context(|| format!("after power cut {cut}"))?;
        (context.say)(&format!(
            "  cut {cut}: {} acknowledged changes are there, {entries} entries verify",
            record.len()
        ));
    }
    Ok(())
}

/// Callers that make tenants until the power goes.
struct Load {
    callers: Vec<JoinHandle<()>>,
    told: Receiver<(String, u64)>,
}

impl Load {
    fn on(site: &Site, life: usize) -> Result<Self> {
        let url = url_of(site)?;
        let (tell, told) = channel();
        let callers = (0..CALLERS).map(|caller| {
            let (url, token, tell) = (url.clone(), site.admin_token.clone(), tell.clone());
            std::thread::spawn(move || {
                let names = (0..).map(|number| format!("t-{life}-{caller}-{number}"));
                let made = names.map_while(|name| {
                    let index = create(&url, &token, &name)?;
                    Some((name, index))
                });
                for acknowledged in made {
                    if tell.send(acknowledged).is_err() {
                        return;
                    }
                }
            })
        });
        Ok(Self {
            callers: callers.collect(),
            told,
        })
    }

    /// What else was acknowledged before the power went.
    fn rest(self) -> Result<Record> {
        for caller in self.callers {
            ensure!(caller.join().is_ok(), "a caller panicked");
        }
        Ok(self.told.into_iter().collect())
    }
}

/// Where the node's controller answers, seen from here.
fn url_of(site: &Site) -> Result<String> {
    let port = site.node.channel()?.forward(9221)?;
    Ok(format!("http://127.0.0.1:{port}"))
}

/// Make a tenant; the place of its entry once that is acknowledged.
fn create(url: &str, token: &str, name: &str) -> Option<u64> {
    let body = json!({
        "tenant_id": name, "display_name": name, "max_vms": 1,
        "storage_quota_gb": 1, "api_rate_limit_rpm": 60,
    });
    let request = http_client().post(format!("{url}/v1/tenants"));
    let mut answer = request
        .header("authorization", format!("Bearer {token}"))
        .send_json(body)
        .ok()?;
    let made: Value = answer.body_mut().read_json().ok()?;
    (answer.status() == 201).then(|| made["audit_index"].as_u64())?
}

/// Everything that was acknowledged is there once, where it was said to be; and the log that has it is
/// sound to strangers. How many entries there are.
fn look(site: &Site, record: &Record, verifiers: &[Verifier]) -> Result<u64> {
    let url = url_of(site)?;
    let mut found = Record::new();
    let mut since = 0;
    loop {
        let path =
            format!("/v1/audit/entries?event_type=TENANT_CREATED&since_index={since}&limit={PAGE}");
        let request = http_client().get(format!("{url}{path}"));
        let mut answer = request
            .header("authorization", format!("Bearer {}", site.admin_token))
            .call()?;
        // A page of a thousand entries is larger than what is read by default.
        let page: Value = answer
            .body_mut()
            .with_config()
            .limit(64 << 20)
            .read_json()?;
        let items = page["items"].as_array().context("a page of entries")?;
        for entry in items {
            let index = entry["index"].as_u64().context("an entry's index")?;
            let body: Value = serde_json::from_str(&text(entry, "body")?)?;
            let twice = found.insert(text(&body, "tenant_id")?, index);
            ensure!(twice.is_none(), "entry {index} is there twice: {body:#}");
            since = index + 1;
        }
        if items.len() < PAGE {
            break;
        }
    }
    for (name, index) in record {
        ensure!(
            found.get(name) == Some(index),
            "{name} was acknowledged as entry {index} and is at {:?}",
            found.get(name)
        );
    }
    verified(site, &url, verifiers)
}

fn verified(site: &Site, url: &str, verifiers: &[Verifier]) -> Result<u64> {
    let folder = tempfile::tempdir()?;
    let key = log_key(site)?;
    let log = PublishedLog::fetch(url, &site.admin_token, key, folder.path())?;
    for verifier in verifiers {
        let verdict = verifier.log(&log);
        ensure!(verdict.is_accepted(), "{}: {verdict:?}", verifier.name);
    }
    site.node.check(
        "systemctl stop berth-controller.socket berth-controller && \
         setpriv --reuid=berth-controller --regid=berth-controller --clear-groups \
         berth-controller verify-ledger && systemctl start berth-controller.socket berth-controller",
    )?;
    site.wait_ready()?;
    Ok(log.size)
}

/// The log's key by another way than the log: as its operator has it.
fn log_key(site: &Site) -> Result<Vkey> {
    let seed = STANDARD.decode(site.node.check(&format!("cat {LEDGER_KEY}"))?.trim())?;
    let key = SigningKey::from_seed(&seed)?.public();
    let head = site.expect(200, &site.admin_token, "GET", "/v1/audit/head", None)?;
    Ok(LogHead::vkey_of(
        KeyName::new(&text(&head, "origin")?)?,
        &key,
    ))
}
