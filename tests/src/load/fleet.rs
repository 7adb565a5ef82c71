//! Many simulated agents at once, each with its own key and its own long poll.
//!
//! Every agent is a [`SimulatedAgent`] in a thread of its own, which waits nearly always: what is
//! loaded is the controller. The fleet tells when each agent learned of each VM.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use berth_api::agent::LONG_POLL_SECONDS;
use berth_api::ids::VmId;
use hyper::Method;
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::client::Caller;
use crate::simulated_agent::{Host, SimulatedAgent};

/// Hosts that enrol at the same time.
const ENROL_TOGETHER: usize = 8;
/// Stack of an agent's thread, in bytes: it does little.
const STACK: usize = 512 << 10;
/// Between two words of an idle agent.
const BEAT: Duration = Duration::from_secs(10);
/// After a sync that failed, an agent waits so long.
const PAUSE: Duration = Duration::from_millis(200);

/// What the agents of a fleet do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conduct {
    /// They say every few seconds that they live, and leave their tasks lying.
    Idle,
    /// They wait for tasks in a long poll and carry them out at once.
    Obedient,
}

/// Agents that sync until the fleet is dropped.
#[derive(Debug)]
pub struct Fleet {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    heard: UnboundedReceiver<(VmId, Instant)>,
}

/// A host with room for as many VMs as there may be.
fn host(number: usize) -> Host {
    let mut host = Host::new(&format!("node-{number}"), 1 << 34);
    host.capacity.vcpus = 1 << 24;
    host.capacity.disk_mib = 1 << 36;
    host
}

impl Fleet {
    /// Enrol so many hosts and let them run.
    ///
    /// # Errors
    /// If a host cannot be enrolled or does not sync.
    pub async fn start(admin: &Caller, size: usize, conduct: Conduct) -> Result<Self> {
        let mut tokens = Vec::with_capacity(size);
        for _ in 0..size {
            let issued = admin
                .expect(201, Method::POST, "/v1/nodes/join-tokens", Some(&json!({})))
                .await?;
            let token = issued["token"].as_str().context("a join token")?;
            tokens.push(token.to_owned());
        }
        let agents = tokio::task::spawn_blocking(move || enrol(&tokens)).await??;
        let stop = Arc::new(AtomicBool::new(false));
        let (tell, heard) = unbounded_channel();
        let mut threads = Vec::with_capacity(size);
        for agent in agents {
            let (stop, tell) = (Arc::clone(&stop), tell.clone());
            let thread = std::thread::Builder::new().stack_size(STACK);
            threads.push(thread.spawn(move || live(agent, conduct, &tell, &stop))?);
        }
        Ok(Self {
            stop,
            threads,
            heard,
        })
    }

    /// The next VM that an agent was told to make, and when it knew.
    pub async fn heard(&mut self) -> Option<(VmId, Instant)> {
        self.heard.recv().await
    }

    /// Forget what was heard up to now.
    pub fn forget(&mut self) {
        while self.heard.try_recv().is_ok() {}
    }

    /// Have the agents end after their present sync, and wait for that. A controller that is stopped
    /// first ends them at once.
    pub fn end(mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // One that panicked has said so on standard error.
            drop(thread.join());
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn enrol(tokens: &[String]) -> Result<Vec<SimulatedAgent>> {
    let next = AtomicUsize::new(0);
    let enrolled = Mutex::new(Vec::with_capacity(tokens.len()));
    std::thread::scope(|scope| {
        let enrolling: Vec<_> = (0..ENROL_TOGETHER)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let Some(token) = tokens.get(number) else {
                            return Ok(());
                        };
                        let mut agent = SimulatedAgent::enroll(token, host(number))?;
                        agent.sync(0)?;
                        let mut enrolled = enrolled.lock().unwrap_or_else(PoisonError::into_inner);
                        enrolled.push(agent);
                    }
                })
            })
            .collect();
        for thread in enrolling {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("enrolling panicked"))??;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(enrolled
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner))
}

fn live(
    mut agent: SimulatedAgent,
    conduct: Conduct,
    tell: &UnboundedSender<(VmId, Instant)>,
    stop: &AtomicBool,
) {
    agent.tell_creates = Some(tell.clone());
    while !stop.load(Ordering::Acquire) {
        let synced = match conduct {
            Conduct::Obedient => agent.sync(LONG_POLL_SECONDS).map(drop),
            Conduct::Idle => {
                std::thread::park_timeout(BEAT);
                let request = agent.next_sync(0);
                agent
                    .seal(&request)
                    .and_then(|sealed| agent.send(&sealed))
                    .map(drop)
            }
        };
        if synced.is_err() {
            std::thread::sleep(PAUSE);
        }
    }
}
