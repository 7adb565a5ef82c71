//! The measurements themselves.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use berth_api::ids::{TenantId, TokenId, VmId};
use berth_controller_core::placement::{Decision, Demand, Wishes};
use berth_controller_store::Store;
use berth_token::{Scope, TokenVerifier};
use hyper::Method;
use serde_json::{Value, json};

use super::{CreateRate, Growth, OfStore, Options, TokenCheck};
use crate::load::client::Caller;
use crate::load::fleet::{Conduct, Fleet};
use crate::load::latency::{Latencies, Percentiles};
use crate::load::pace::{self, Pace, Paced};
use crate::load::process::{cpu_time, peak_memory_mib};
use crate::load::served::{Served, State, StoreKind, new_tenant, new_token};
use crate::progress::say;

/// Most creates that are unanswered at once before a rate counts as not borne.
const MOST_OPEN: usize = 2000;
/// Tenants among whom creates are shared out.
const TENANTS: usize = 8;
/// Agents that live while creates are counted.
const IDLE_AGENTS: usize = 100;
/// Single creates per second: far from any limit.
const SINGLE_RATE: u32 = 20;
/// Requests per second with and without a token.
const TOKEN_RATE: u32 = 500;
/// Tokens that are checked by themselves, and revoked ones beside them.
const CHECKS: usize = 20_000;
const REVOKED: usize = 10_000;
/// Placement decisions at each number of rows.
const DECISIONS: usize = 2_000;
/// Between two questions whether all tasks are answered.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// Creates on their way while rows are filled up.
const FILLERS: usize = 64;
/// So long after the last create every agent must have its task.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) async fn measure(options: &Options, store: StoreKind) -> Result<OfStore> {
    let (creates, token) = rates(options, store).await?;
    let growth = growth(options, store).await?;
    Ok(OfStore {
        store,
        creates,
        token,
        growth,
    })
}

/// Callers of several tenants, in turn.
#[derive(Clone, Debug)]
struct Creators {
    tenants: Arc<[Caller]>,
    next: Arc<AtomicU64>,
}

impl Creators {
    async fn new(admin: &Caller) -> Result<Self> {
        let mut tenants = Vec::new();
        for number in 0..TENANTS {
            tenants.push(new_tenant(admin, &format!("load-{number}")).await?);
        }
        Ok(Self {
            tenants: tenants.into(),
            next: Arc::default(),
        })
    }

    /// One create with a name of its own; the VM.
    fn create(&self) -> impl Future<Output = Result<VmId, String>> + Send + 'static {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let turn = usize::try_from(number).unwrap_or(0) % TENANTS;
        let tenant = self.tenants.get(turn).cloned();
        async move {
            let tenant = tenant.ok_or_else(|| "no tenant".to_owned())?;
            let name = format!("load-{number}");
            let body = json!({ "name": name, "image": "debian-12", "memory_mb": 128 });
            let bytes = tenant
                .attempt(201, Method::POST, "/v1/vms", Some(&body))
                .await?;
            let vm: Value = serde_json::from_slice(&bytes).map_err(|_| "not JSON".to_owned())?;
            let id = vm["id"].as_str().and_then(|text| text.parse().ok());
            id.ok_or_else(|| "a VM without an id".to_owned())
        }
    }
}

/// Run paced requests, with the controller's processor time for each answer in microseconds.
async fn charged<F>(
    served: &Served<'_>,
    pace: Pace,
    send: impl Fn(u64) -> F,
) -> Result<(Paced, f64)>
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let before = cpu_time(served.pid())?;
    let paced = pace::run(pace, send).await;
    let used = cpu_time(served.pid())?.saturating_sub(before);
    let answers = u32::try_from(paced.wanted.max(1)).unwrap_or(u32::MAX);
    let each = used.as_secs_f64() * 1e6 / f64::from(answers);
    Ok((paced, each))
}

async fn rates(options: &Options, store: StoreKind) -> Result<(Vec<CreateRate>, TokenCheck)> {
    let state = State::init(&options.program, store, &options.under)?;
    let served = state.serve()?;
    let admin = served.admin()?;
    let lasts = Duration::from_secs(options.seconds);
    say(&format!("{}: the check of a token", store.name()));
    let token = token_check(&state, &served, &admin, lasts).await?;
    let fleet = Fleet::start(&admin, IDLE_AGENTS, Conduct::Idle).await?;
    let creators = Creators::new(&admin).await?;
    // Connections and caches first.
    pace::run(Pace::new(100, Duration::from_secs(2), MOST_OPEN), |_| {
        let create = creators.create();
        async move { create.await.map(drop) }
    })
    .await;
    let mut measured = Vec::new();
    for rate in &options.rates {
        let pace = Pace::new(*rate, lasts, MOST_OPEN);
        let (paced, cpu_us) = charged(&served, pace, |_| {
            let create = creators.create();
            async move { create.await.map(drop) }
        })
        .await?;
        say(&format!(
            "{}: {rate} creates/s planned, {:.0}/s accepted, p99 {:.1} ms, {} unsent, {:?}",
            store.name(),
            paced.wanted_per_s,
            paced.latency.p99_ms,
            paced.unsent,
            paced.unwanted
        ));
        let is_borne = paced.is_borne();
        measured.push(CreateRate { paced, cpu_us });
        if !is_borne {
            break;
        }
    }
    served.stop()?;
    fleet.end();
    sound(&state)?;
    Ok((measured, token))
}

/// Counters and ledger are what they should be after all that, or no figure counts.
fn sound(state: &State) -> Result<()> {
    for subcommand in ["check", "verify-ledger"] {
        crate::command::capture(state.command().arg(subcommand))?;
    }
    Ok(())
}

async fn token_check(
    state: &State,
    served: &Served<'_>,
    admin: &Caller,
    lasts: Duration,
) -> Result<TokenCheck> {
    let reader = new_tenant(admin, "reader").await?;
    let (token, _) = new_token(admin, "reader", "vm.create").await?;
    let verifier = TokenVerifier::new(state.key("token.key")?.public(), state.controller_id());
    let check = checks(&verifier, &token)?;
    let pace = Pace::new(TOKEN_RATE, lasts, MOST_OPEN);
    let ask = |caller: &Caller, path: &'static str| {
        let caller = caller.clone();
        async move { caller.attempt(200, Method::GET, path, None).await.map(drop) }
    };
    let stranger = Caller::stranger(served.url());
    // In this order, as the first one also opens the connections.
    let (_, _) = charged(served, pace, |_| ask(&stranger, "/v1/version")).await?;
    let (without, without_cpu_us) =
        charged(served, pace, |_| ask(&stranger, "/v1/version")).await?;
    let (with_token, with_token_cpu_us) = charged(served, pace, |_| ask(&reader, "/v1/me")).await?;
    Ok(TokenCheck {
        check,
        revoked: REVOKED,
        with_token,
        with_token_cpu_us,
        without,
        without_cpu_us,
    })
}

/// What the gate does with a token, without the request around it.
fn checks(verifier: &TokenVerifier, token: &str) -> Result<Percentiles> {
    let revoked: HashSet<TokenId> = (0..REVOKED).map(|_| TokenId::generate()).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let now = i64::try_from(now.as_secs())?;
    let mut times = Latencies::default();
    for _ in 0..CHECKS {
        let begun = Instant::now();
        let grant = verifier.verify(token, now)?;
        let may = grant.scopes.covers(Scope::VmCreate)
            && !grant.token_ids.iter().any(|id| revoked.contains(id));
        times.record(begun.elapsed());
        ensure!(may, "a good token was refused");
    }
    Ok(times.percentiles())
}

async fn growth(options: &Options, store: StoreKind) -> Result<Vec<Growth>> {
    if options.rows.is_empty() {
        return Ok(Vec::new());
    }
    let state = State::init(&options.program, store, &options.under)?;
    let served = state.serve()?;
    let admin = served.admin()?;
    say(&format!(
        "{}: {} agents enrol",
        store.name(),
        options.agents
    ));
    let mut fleet = Fleet::start(&admin, options.agents, Conduct::Obedient).await?;
    let creators = Creators::new(&admin).await?;
    let mut measured = Vec::new();
    let mut there = 0;
    for rows in &options.rows {
        say(&format!("{}: up to {rows} VMs", store.name()));
        fill(&creators, &mut fleet, rows.saturating_sub(there)).await?;
        until_all_answered(&admin).await?;
        let lasts = Duration::from_secs(options.seconds);
        let (creates, share) = shares(&creators, &mut fleet, lasts).await?;
        there = (*rows).max(there) + usize::try_from(creates.wanted)?;
        let decision = decisions(&state).await?;
        say(&format!(
            "{}: {there} VMs: decision p99 {:.3} ms, create p99 {:.1} ms, share p50 {:.1} ms, p99 {:.1} ms",
            store.name(),
            decision.p99_ms,
            creates.latency.p99_ms,
            share.p50_ms,
            share.p99_ms
        ));
        measured.push(Growth {
            rows: there,
            agents: options.agents,
            decision,
            creates,
            share,
            peak_memory_mib: peak_memory_mib(served.pid())?,
        });
    }
    served.stop()?;
    fleet.end();
    sound(&state)?;
    Ok(measured)
}

/// So many more VMs, as fast as they are accepted; all of them with their agents at the end.
async fn fill(creators: &Creators, fleet: &mut Fleet, count: usize) -> Result<()> {
    let left = Arc::new(AtomicU64::new(u64::try_from(count)?));
    let fillers: Vec<_> = (0..FILLERS)
        .map(|_| {
            let (creators, left) = (creators.clone(), Arc::clone(&left));
            tokio::spawn(async move {
                let take = |left: u64| left.checked_sub(1);
                while left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                    .is_ok()
                {
                    creators.create().await?;
                }
                Ok::<_, String>(())
            })
        })
        .collect();
    for filler in fillers {
        if let Err(refusal) = filler.await? {
            bail!("a create was refused: {refusal}");
        }
    }
    let mut known = HashSet::new();
    while known.len() < count {
        let heard = tokio::time::timeout(PATIENCE, fleet.heard()).await;
        let (vm_id, _) = heard
            .context("agents do not get their tasks")?
            .context("the fleet has ended")?;
        known.insert(vm_id);
    }
    Ok(())
}

/// Wait until the controller has taken in what all agents did: creates that come before that would be
/// measured behind what is left of those that filled the rows.
async fn until_all_answered(admin: &Caller) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let page = admin.attempt(200, Method::GET, "/metrics", None).await;
        let page = page.map_err(anyhow::Error::msg)?;
        let is_pending =
            |line: &str| line.starts_with("berth_pending_tasks{") && !line.ends_with(" 0");
        if !std::str::from_utf8(&page)?.lines().any(is_pending) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "agents' answers are not taken in"
        );
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Single creates, and from sending each to its agent's knowing of it.
async fn shares(
    creators: &Creators,
    fleet: &mut Fleet,
    lasts: Duration,
) -> Result<(Paced, Percentiles)> {
    fleet.forget();
    let sent: Arc<Mutex<HashMap<VmId, Instant>>> = Arc::default();
    let pace = Pace::new(SINGLE_RATE, lasts, MOST_OPEN);
    let paced = pace::run(pace, |_| {
        let (create, sent) = (creators.create(), Arc::clone(&sent));
        async move {
            let begun = Instant::now();
            let vm_id = create.await?;
            let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
            sent.insert(vm_id, begun);
            Ok(())
        }
    })
    .await;
    let mut sent = std::mem::take(&mut *sent.lock().unwrap_or_else(PoisonError::into_inner));
    let mut times = Latencies::default();
    while !sent.is_empty() {
        let heard = tokio::time::timeout(PATIENCE, fleet.heard()).await;
        let (vm_id, at) = heard
            .context("agents do not get their tasks")?
            .context("the fleet has ended")?;
        if let Some(begun) = sent.remove(&vm_id) {
            times.record(at.duration_since(begun));
        }
    }
    Ok((paced, times.percentiles()))
}

/// Placement decisions on the database beside its controller, as it is at this moment.
async fn decisions(state: &State) -> Result<Percentiles> {
    let database = state.open_database()?;
    let tenant: TenantId = "load-0".parse()?;
    let measured = tokio::task::spawn_blocking(move || {
        Store::inspect(database, |db| {
            let mut times = Latencies::default();
            let mut chosen = 0;
            for number in 0..DECISIONS {
                let demand = Demand {
                    tenant: tenant.clone(),
                    vcpus: 1 + u32::try_from(number % 8).unwrap_or(0),
                    memory_mib: 128,
                    disk_mib: 1024,
                    slots: Vec::new(),
                    wishes: Wishes::default(),
                };
                let begun = Instant::now();
                let decision = db.decide_placement("debian-12", &demand)?;
                times.record(begun.elapsed());
                chosen += usize::from(matches!(decision, Decision::Chosen(_)));
            }
            Ok((times.percentiles(), chosen))
        })
    });
    let (times, chosen) = measured.await??;
    ensure!(
        chosen == DECISIONS,
        "only {chosen} of {DECISIONS} decisions found a node"
    );
    Ok(times)
}
