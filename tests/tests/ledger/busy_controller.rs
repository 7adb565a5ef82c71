//! A real controller whose log is filled over HTTP: tenants and hosts ask it all at once, until it has
//! as many entries as are wanted and not one more.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, ensure};
use berth_api::ids::SlotId;
use berth_controller_store::LogHead;
use berth_ledger::keys::SigningKey;
use berth_ledger::note::KeyName;
use berth_tests::load::client::Caller;
use berth_tests::load::served::{Served, State, StoreKind, new_tenant, new_token};
use berth_tests::published_log::PublishedLog;
use berth_tests::simulated_agent::{Host, SimulatedAgent};
use berth_tests::workspace::program_beside_test;
use hyper::Method;
use serde_json::json;
use tokio::runtime::Handle;

/// Tenants that ask at the same time.
const TENANTS: usize = 8;
/// Hosts that report at the same time.
const HOSTS: usize = 4;
/// Slots of each host: as many as one report may bring.
const SLOTS: usize = 1000;
/// Entries that are left to a single host, so that what is on its way never makes too many.
const RESERVE: u64 = 10_000;

/// The log of so many entries, as its controller gives it to the public.
pub(crate) fn log_of(size: u64, folder: &Path) -> Result<PublishedLog> {
    let state = State::init(
        &program_beside_test("berth-controller")?,
        StoreKind::Sqlite,
        &std::env::temp_dir(),
    )?;
    let served = state.serve()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(fill(&served, size))?;
    let head = runtime.block_on(head(&served.admin()?))?;
    let origin = KeyName::new(head["origin"].as_str().context("an origin")?)?;
    // By another way than the log: from the operator's own file.
    let key = LogHead::vkey_of(origin, &state.key("ledger.key")?.public());
    let token = std::fs::read_to_string(state.folder().join("admin.token"))?;
    let log = PublishedLog::fetch(served.url(), &token, key, folder)?;
    served.stop()?;
    Ok(log)
}

pub(crate) async fn head(admin: &Caller) -> Result<serde_json::Value> {
    admin.expect(200, Method::GET, "/v1/audit/head", None).await
}

/// Entries that there are now. What was answered last is shown some moments later, unless somebody asks
/// for more than is shown.
pub(crate) async fn length(admin: &Caller) -> Result<u64> {
    let beyond = "/v1/audit/proof/inclusion?index=1000000000";
    let (status, _) = admin.send(Method::GET, beyond, None).await?;
    ensure!(status == 404, "an entry that is not there: {status}");
    head(admin).await?["size"].as_u64().context("a size")
}

async fn fill(served: &Served<'_>, size: u64) -> Result<()> {
    let admin = served.admin()?;
    let enough = Arc::new(AtomicBool::new(false));
    let tenants: Vec<_> = (0..TENANTS)
        .map(|number| tokio::spawn(ask(admin.clone(), number, Arc::clone(&enough))))
        .collect();
    let mut hosts = Vec::new();
    for number in 0..HOSTS {
        let host = enrolled(&admin, number).await?;
        hosts.push(report(host, &admin, size - RESERVE, &enough));
    }
    let mut last = None;
    for host in hosts {
        let ended = tokio::task::spawn_blocking(move || host.join()).await?;
        last = Some(ended.map_err(|_| anyhow::anyhow!("a host panicked"))??);
    }
    for tenant in tenants {
        tenant.await??;
    }
    let mut last = last.context("a host")?;
    loop {
        let missing = size.checked_sub(length(&admin).await?);
        let missing = missing.context("the log is longer than was wanted")?;
        if missing == 0 {
            return Ok(());
        }
        let changed = usize::try_from(missing)?.min(SLOTS);
        last = tokio::task::spawn_blocking(move || change(&mut last, changed).map(|()| last))
            .await??;
    }
}

/// Tokens that are issued, creates that no host has room for, and what a reader may not do.
async fn ask(admin: Caller, number: usize, enough: Arc<AtomicBool>) -> Result<()> {
    let id = format!("tenant-{number}");
    let tenant = new_tenant(&admin, &id).await?;
    let (reader, _) = new_token(&admin, &id, "vm.read").await?;
    let reader = tenant.with_token(&reader);
    let vm = json!({ "name": "large", "image": "debian-12", "memory_mb": 1 << 20 });
    while !enough.load(Ordering::Acquire) {
        let holder = SigningKey::generate()?.public().to_base64();
        let token =
            json!({ "subject_pubkey": holder, "scope": "vm.read", "expires_in_seconds": 60 });
        tenant
            .expect(201, Method::POST, "/v1/tokens", Some(&token))
            .await?;
        // Before the first host has told of its image, nobody can ever have such a VM.
        let (status, _) = tenant.send(Method::POST, "/v1/vms", Some(&vm)).await?;
        ensure!(matches!(status, 422 | 503), "a large VM: {status}");
        reader
            .expect(403, Method::POST, "/v1/vms", Some(&vm))
            .await?;
    }
    Ok(())
}

pub(crate) async fn enrolled(admin: &Caller, number: usize) -> Result<SimulatedAgent> {
    let issued = admin
        .expect(201, Method::POST, "/v1/nodes/join-tokens", Some(&json!({})))
        .await?;
    let token = issued["token"].as_str().context("a join token")?.to_owned();
    let name = format!("node-{number}");
    tokio::task::spawn_blocking(move || {
        let mut agent = SimulatedAgent::enroll(&token, Host::new(&name, 1 << 14))?;
        let first = agent.slots.add("nvme");
        let pattern = agent.slots.slots[&first].clone();
        for number in 1..SLOTS {
            let mut slot = pattern.clone();
            slot.slot_id = SlotId::generate();
            slot.name = format!("slot-{number}");
            agent.slots.slots.insert(slot.slot_id, slot);
        }
        agent.settle()?;
        Ok(agent)
    })
    .await?
}

/// Report over and over that every slot has got other devices, until the log is long enough.
fn report(
    mut host: SimulatedAgent,
    admin: &Caller,
    limit: u64,
    enough: &Arc<AtomicBool>,
) -> JoinHandle<Result<SimulatedAgent>> {
    let (admin, enough, runtime) = (admin.clone(), Arc::clone(enough), Handle::current());
    std::thread::spawn(move || {
        // Whatever ends it, the tenants end as well.
        let mut reports = || -> Result<()> {
            while !enough.load(Ordering::Acquire) && runtime.block_on(length(&admin))? < limit {
                change(&mut host, SLOTS)?;
            }
            Ok(())
        };
        let ended = reports();
        enough.store(true, Ordering::Release);
        ended.map(|()| host)
    })
}

/// One report in which so many slots have other devices than before: one entry for each.
pub(crate) fn change(host: &mut SimulatedAgent, slots: usize) -> Result<()> {
    for slot in host.slots.slots.values_mut().take(slots) {
        slot.generation += 1;
        for device in &mut slot.devices {
            let serial = format!("serial-{}", slot.generation);
            let serials = &mut device.identity.serials;
            serials.insert("nvme_serial".to_owned(), serial);
        }
    }
    host.settle()
}
