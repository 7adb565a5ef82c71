//! The conversation with the controller: two lanes of syncs, until the process ends.
//!
//! One lane *listens*: a long poll after the other, so that a task arrives at once. The other one
//! *tells*: whenever there is news, a sync that the controller answers without waiting. Telling does
//! not interrupt listening, because a poll that is abandoned may have been given tasks already. Both
//! say the same in full, so either alone is enough. Failures are retried with a jittered, growing
//! pause, so that a thousand agents do not come back at once.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use berth_agent_host::capacity;
use berth_agent_host::service_manager::DescriptorStore;
use berth_agent_host::vm_files::VmFiles;
use berth_agent_host::vmm_unit::VmmUnits;
use berth_api::agent::{
    LONG_POLL_SECONDS, PROTOCOL_VERSION, SYNC_PAYLOAD_TYPE, SyncReply, SyncRequest,
};
use berth_api::ids::AgentInstanceId;
use berth_ledger::envelope::seal;
use berth_ledger::keys::SigningKey;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::time::Instant;

use crate::agent::Agent;
use crate::clock;
use crate::controller::{CallError, Controller};
use crate::host::blocking;
use crate::launch::in_one_line;
use crate::node::Node;

/// What a call may take beyond the time that the controller may hold it.
const CALL_MARGIN: Duration = Duration::from_secs(15);
/// Pause after the first failure.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause between failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Pause when the controller answers at once and has nothing new to say.
const NOTHING_NEW_PAUSE: Duration = Duration::from_secs(1);

/// The HTTP status of a sync that the controller has seen a later one of.
const OVERTAKEN: u16 = 409;

/// Quick answers without news that are taken for a coincidence: a task that crossed its own result.
const EMPTY_ANSWERS_IN_A_ROW: u32 = 3;

/// What keeps one lane from asking too often.
#[derive(Debug)]
struct Pace {
    pause: Duration,
    empty_answers: u32,
    was_overtaken: bool,
}

/// Why a sync brought no reply.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// The other lane's later sync reached the controller first. What this one said is said again by
    /// the next.
    Overtaken,
    /// Anything else, in one line.
    Other(String),
}

impl Pace {
    fn new() -> Self {
        Self {
            pause: FIRST_PAUSE,
            empty_answers: 0,
            was_overtaken: false,
        }
    }

    fn answered(&mut self) {
        (self.pause, self.was_overtaken) = (FIRST_PAUSE, false);
    }

    /// How long to wait before the next try. Lanes cross by chance; what is refused again and again
    /// is another agent with this node's key, and must not keep the controller busy.
    fn failed(&mut self, failure: &Failure) -> Duration {
        let is_overtaken = *failure == Failure::Overtaken;
        let was_overtaken = std::mem::replace(&mut self.was_overtaken, is_overtaken);
        if is_overtaken && !was_overtaken {
            self.pause = FIRST_PAUSE;
            return Duration::ZERO;
        }
        let pause = self.pause;
        self.pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        pause
    }
}

/// One run of the agent.
#[derive(Debug)]
struct AgentRun {
    instance: AgentInstanceId,
    next_seq: AtomicU64,
}

/// What the loop needs beside the agent.
#[derive(Debug)]
pub struct SyncLoop {
    /// Where to.
    pub controller: Controller,
    /// Who we are.
    pub node: Node,
    /// Our key.
    pub key: Arc<SigningKey>,
    /// Our version.
    pub agent_version: String,
    /// The agent's folder, for its free space.
    pub state_dir: PathBuf,
}

impl SyncLoop {
    /// Sync until the future is dropped.
    pub async fn run<U: VmmUnits, F: VmFiles, S: DescriptorStore>(self, agent: &Agent<U, F, S>) {
        let run = AgentRun {
            instance: AgentInstanceId::generate(),
            next_seq: AtomicU64::new(0),
        };
        tokio::join!(self.listen(agent, &run), self.tell(agent, &run));
    }

    async fn listen<U: VmmUnits, F: VmFiles, S: DescriptorStore>(
        &self,
        agent: &Agent<U, F, S>,
        run: &AgentRun,
    ) {
        let mut pace = Pace::new();
        loop {
            self.sync_once(agent, run, LONG_POLL_SECONDS, &mut pace)
                .await;
        }
    }

    async fn tell<U: VmmUnits, F: VmFiles, S: DescriptorStore>(
        &self,
        agent: &Agent<U, F, S>,
        run: &AgentRun,
    ) {
        let mut news = agent.news();
        let mut pace = Pace::new();
        while news.changed().await.is_ok() {
            while !self.sync_once(agent, run, 0, &mut pace).await {}
        }
    }

    /// One sync, and what follows from it. Returns whether the controller was reached; if it was
    /// not, the pause is over.
    async fn sync_once<U: VmmUnits, F: VmFiles, S: DescriptorStore>(
        &self,
        agent: &Agent<U, F, S>,
        run: &AgentRun,
        wait_seconds: u64,
        pace: &mut Pace,
    ) -> bool {
        let request = self.request(agent, run, wait_seconds).await;
        let asked = Instant::now();
        match self.call(&request).await {
            Ok(reply) => {
                pace.answered();
                tracing::debug!(
                    wait_seconds,
                    tasks = reply.tasks.len(),
                    acknowledged = reply.acknowledged.len(),
                    took_ms = asked.elapsed().as_millis(),
                    "sync answered"
                );
                self.watch_log(agent, request.as_ref().ok(), &reply).await;
                agent.acknowledge(&reply.acknowledged, &reply.acknowledged_receipts);
                let taken = agent.take(&reply.tasks, &reply.seeds).await;
                let taken = taken.saturating_add(agent.take_slot_tasks(&reply.slot_tasks));
                let news = taken > 0
                    || !reply.acknowledged.is_empty()
                    || !reply.acknowledged_receipts.is_empty();
                // A controller that does not hold the poll, or repeats what is at work already,
                // must not keep this host busy.
                if wait_seconds == 0 || news || asked.elapsed() >= NOTHING_NEW_PAUSE {
                    pace.empty_answers = 0;
                } else {
                    pace.empty_answers = pace.empty_answers.saturating_add(1);
                }
                if pace.empty_answers >= EMPTY_ANSWERS_IN_A_ROW {
                    tokio::time::sleep(NOTHING_NEW_PAUSE).await;
                }
                true
            }
            Err(failure) => {
                if let Failure::Other(error) = &failure {
                    tracing::warn!(NODE_ID = %self.node.node_id, "sync failed: {error}");
                } else {
                    tracing::debug!("a sync was overtaken by a later one");
                }
                tokio::time::sleep(jittered(pace.failed(&failure))).await;
                false
            }
        }
    }

    /// Judge what the reply shows of the ledger, before anything else that it says is done.
    async fn watch_log<U: VmmUnits, F: VmFiles, S: DescriptorStore>(
        &self,
        agent: &Agent<U, F, S>,
        request: Option<&SyncRequest>,
        reply: &SyncReply,
    ) {
        let log = Arc::clone(&agent.host().log);
        let asked = request.and_then(|request| request.log.seen.clone());
        let offer = reply.checkpoint.clone();
        let has_turned = blocking(move || log.take(asked.as_ref(), offer.as_ref())).await;
        if has_turned {
            // The controller hears of it at once, not with the next long poll.
            agent.host_changed();
        }
    }

    async fn call(&self, request: &Result<SyncRequest, String>) -> Result<SyncReply, Failure> {
        let request = request
            .as_ref()
            .map_err(|why| Failure::Other(why.clone()))?;
        let envelope = seal(&self.key, SYNC_PAYLOAD_TYPE, request)
            .map_err(|error| Failure::Other(error.to_string()))?;
        let longest = Duration::from_secs(request.wait_seconds) + CALL_MARGIN;
        let answer = self.controller.sync(&envelope, longest).await;
        answer.map_err(|error| match &error {
            CallError::Refused { status, .. } if *status == OVERTAKEN => Failure::Overtaken,
            CallError::Refused { .. }
            | CallError::Unreachable { .. }
            | CallError::TimedOut { .. }
            | CallError::Reply { .. } => Failure::Other(in_one_line(&error)),
        })
    }

    async fn request<U: VmmUnits, F: VmFiles, S: DescriptorStore>(
        &self,
        agent: &Agent<U, F, S>,
        run: &AgentRun,
        wait_seconds: u64,
    ) -> Result<SyncRequest, String> {
        let images = agent.host().images.clone();
        let state_dir = self.state_dir.clone();
        let log = Arc::clone(&agent.host().log);
        let (images, capacity, log) =
            blocking(move || (images.list(), capacity::capacity(&state_dir), log.report())).await;
        let report = agent.report();
        Ok(SyncRequest {
            protocol_version: PROTOCOL_VERSION,
            node_id: self.node.node_id,
            node_epoch: self.node.node_epoch,
            agent_instance_id: run.instance,
            boot_id: agent.host().boot_id.clone(),
            seq: run.next_seq.fetch_add(1, Ordering::Relaxed),
            agent_version: self.agent_version.clone(),
            clock: clock::now(),
            wait_seconds,
            results: report.results,
            vms: report.vms,
            slots: report.slots,
            receipts: report.receipts,
            images: images.map_err(|error| in_one_line(&error))?,
            capacity: capacity.map_err(|error| in_one_line(&error))?,
            log,
        })
    }
}

/// Between half of a pause and the whole of it.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [255];
    if SystemRandom::new().fill(&mut byte).is_err() {
        return pause;
    }
    let [byte] = byte;
    pause / 2 + (pause / 2).mul_f64(f64::from(byte) / 255.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_that_was_overtaken_is_sent_again_at_once_and_no_faster_than_others_after_that() {
        let mut pace = Pace::new();
        let silence = Failure::Other("no answer".to_owned());
        // The controller was away for a while, and both lanes reach it at the same moment.
        for _ in 0..8 {
            pace.failed(&silence);
        }
        assert_eq!(pace.failed(&silence), LONGEST_PAUSE);
        assert_eq!(pace.failed(&Failure::Overtaken), Duration::ZERO);
        assert_eq!(pace.failed(&Failure::Overtaken), FIRST_PAUSE);
        assert_eq!(pace.failed(&Failure::Overtaken), FIRST_PAUSE * 2);
        pace.answered();
        assert_eq!(pace.failed(&Failure::Overtaken), Duration::ZERO);
        assert_eq!(pace.failed(&silence), FIRST_PAUSE);
    }

    #[test]
    fn a_jittered_pause_is_between_its_half_and_its_whole() {
        for _ in 0..1000 {
            let pause = jittered(Duration::from_secs(8));
            assert!((4.0..=8.0).contains(&pause.as_secs_f64()), "{pause:?}");
        }
    }
}
