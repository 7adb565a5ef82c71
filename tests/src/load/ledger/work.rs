//! The measurements themselves.

use std::process::Stdio;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_controller_store::{Cause, Keys, NewEvent, Store, StoreError};
use hyper::Method;
use serde_json::json;

use super::{Growth, OfStore, Options};
use crate::load::latency::{Latencies, Percentiles};
use crate::load::pace::rate;
use crate::load::process::{forget_peak, peak_memory_mib};
use crate::load::served::{State, StoreKind};
use crate::progress::say;

/// Changes whose entries are watched for.
const COVERED: u64 = 200;
/// Between two looks at the published head, and at a process's memory.
const LOOK: Duration = Duration::from_millis(5);
/// So long after a change its entry must be covered.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn measure(options: &Options, kind: StoreKind) -> Result<OfStore> {
    let state = State::init(&options.program, kind, &options.under)?;
    let lasts = Duration::from_secs(options.seconds);
    let mut growth = Vec::new();
    for entries in &options.entries {
        say(&format!("{}: up to {entries} entries", kind.name()));
        let mut at = written(&state, *entries, options.callers, lasts)?;
        let (took, memory) = verified(&state)?;
        at.verified_per_s = rate(at.entries, took);
        at.verify_memory_mib = memory;
        say(&format!(
            "{}: {} entries: {:.0}/s alone, {:.0}/s together, {:.0}/s verified in {:.0} MiB",
            kind.name(),
            at.entries,
            at.alone_per_s,
            at.together_per_s,
            at.verified_per_s,
            memory
        ));
        growth.push(at);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(OfStore {
        store: kind,
        callers: options.callers,
        growth,
        covered: runtime.block_on(covered(&state))?,
    })
}

fn event() -> NewEvent {
    let detail = [
        ("name", json!("load")),
        ("vcpus", json!(2)),
        ("memory_mb", json!(2048)),
        ("image", json!("debian-12")),
    ];
    NewEvent {
        event_type: "VM_CREATE_ACCEPTED",
        tenant_id: "load".parse().ok(),
        outcome: "accepted",
        detail: detail
            .map(|(name, value)| (name.to_owned(), value))
            .into_iter()
            .collect(),
        ..NewEvent::default()
    }
}

/// Fill the log up to a length, then measure commits one by one and by many callers.
fn written(state: &State, entries: u64, callers: u32, lasts: Duration) -> Result<Growth> {
    let own = std::process::id();
    let keys = Keys {
        ledger: state.key("ledger.key")?,
        task: state.key("task.key")?,
    };
    let store = Store::open(state.open_database()?, keys)?;
    let append = || store.write(|tx| tx.append(event(), &Cause::controller()));
    let length = append()? + 1;
    // A kernel without this counts from the process's start, which is only more.
    drop(forget_peak(own));
    together(&store, callers, |done| {
        done >= entries.saturating_sub(length)
    })?;
    let mut alone = Latencies::default();
    let begun = Instant::now();
    let mut last = 0;
    while begun.elapsed() < lasts {
        let each = Instant::now();
        last = append()?;
        alone.record(each.elapsed());
    }
    let alone = alone.percentiles();
    let alone_per_s = rate(alone.count, begun.elapsed());
    let begun = Instant::now();
    let many = together(&store, callers, |_| begun.elapsed() >= lasts)?;
    Ok(Growth {
        entries: last + 1 + many.count,
        alone_per_s,
        alone,
        together_per_s: rate(many.count, begun.elapsed()),
        together: many,
        verified_per_s: 0.0,
        verify_memory_mib: 0.0,
        write_memory_mib: peak_memory_mib(own)?,
    })
}

type Answer = (Instant, Result<u64, StoreError>);

/// So many callers, each of whom asks again as soon as it has its answer, until `enough` of the number
/// of answers.
fn together(store: &Store, callers: u32, enough: impl Fn(u64) -> bool) -> Result<Percentiles> {
    let (answer, answers) = channel::<Answer>();
    let ask = |answer: Sender<Answer>| {
        let asked = Instant::now();
        store.submit(
            |tx| tx.append(event(), &Cause::controller()),
            move |result| {
                // The one who counts waits for every answer.
                drop(answer.send((asked, result)));
            },
        );
    };
    let (mut times, mut done, mut open) = (Latencies::default(), 0, 0_u32);
    while open < callers && !enough(done + u64::from(open)) {
        ask(answer.clone());
        open += 1;
    }
    while open > 0 {
        let (asked, result) = answers.recv().context("an answer")?;
        result?;
        times.record(asked.elapsed());
        done += 1;
        open -= 1;
        if !enough(done + u64::from(open)) {
            ask(answer.clone());
            open += 1;
        }
    }
    Ok(times.percentiles())
}

/// `berth-controller verify-ledger`: how long it takes, and the most memory it has, in MiB.
fn verified(state: &State) -> Result<(Duration, f64)> {
    let begun = Instant::now();
    let mut child = state
        .command()
        .arg("verify-ledger")
        .stdout(Stdio::null())
        .spawn()
        .context("starting verify-ledger")?;
    let mut memory = 0.0_f64;
    loop {
        // The kernel keeps the peak, so that nothing is missed between two looks but the very end.
        if let Ok(peak) = peak_memory_mib(child.id()) {
            memory = memory.max(peak);
        }
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "verify-ledger ended with {status}");
            return Ok((begun.elapsed(), memory));
        }
        std::thread::sleep(LOOK);
    }
}

/// From the answer to a change until the published head of a running controller covers its entry.
async fn covered(state: &State) -> Result<Percentiles> {
    let served = state.serve()?;
    let admin = served.admin()?;
    let mut times = Latencies::default();
    for number in 0..COVERED {
        let body = json!({
            "tenant_id": format!("covered-{number}"),
            "display_name": "Load",
            "max_vms": 1,
            "storage_quota_gb": 1,
            "api_rate_limit_rpm": 60,
        });
        let made = admin
            .expect(201, Method::POST, "/v1/tenants", Some(&body))
            .await?;
        let answered = Instant::now();
        let index = made["audit_index"].as_u64().context("the entry's index")?;
        loop {
            let head = admin
                .expect(200, Method::GET, "/v1/audit/head", None)
                .await?;
            if head["size"].as_u64().context("the log's size")? > index {
                break;
            }
            ensure!(
                answered.elapsed() < PATIENCE,
                "entry {index} is not covered"
            );
            tokio::time::sleep(LOOK).await;
        }
        times.record(answered.elapsed());
    }
    served.stop()?;
    Ok(times.percentiles())
}
