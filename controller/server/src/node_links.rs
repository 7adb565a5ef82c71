//! Waking the long polls of nodes, and remembering what each run of an agent was sent.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use berth_api::agent::SignedEnvelope;
use berth_api::ids::{AgentInstanceId, NodeId, TaskId};
use tokio::sync::watch;

/// An unanswered task is sent again to the same run of an agent after this long.
pub(crate) const RESEND_AFTER: Duration = Duration::from_secs(10);

/// How long a node's poll is held open that may be held for `asked`. It is for each node another part of
/// that, from three fifths on: a fleet that came back at one moment would otherwise come at one moment
/// for ever, and a create would wait behind all of it.
pub(crate) fn patience(node: NodeId, asked: Duration) -> Duration {
    const PARTS: u32 = 1000;
    let mut hasher = DefaultHasher::new();
    node.hash(&mut hasher);
    let less = u32::try_from(hasher.finish() % 400).unwrap_or(0);
    asked * (PARTS - less) / PARTS
}

/// One node's side of the desk.
#[derive(Debug)]
pub(crate) struct NodeLink {
    work: watch::Sender<u64>,
    sent: Mutex<Sent>,
}

#[derive(Debug, Default)]
struct Sent {
    /// The run of the agent that speaks.
    run: Option<AgentInstanceId>,
    /// Its newest long poll.
    listener: u64,
    at: HashMap<TaskId, Instant>,
}

/// The links of all nodes that have spoken or been given work since the start.
#[derive(Debug, Default)]
pub(crate) struct NodeLinks {
    links: Mutex<HashMap<NodeId, Arc<NodeLink>>>,
}

impl NodeLinks {
    /// The link of a node.
    pub(crate) fn of(&self, node: NodeId) -> Arc<NodeLink> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let link = links.entry(node).or_insert_with(|| {
            Arc::new(NodeLink {
                work: watch::Sender::new(0),
                sent: Mutex::default(),
            })
        });
        Arc::clone(link)
    }

    /// Let every long poll look again.
    pub(crate) fn wake_all(&self) {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        for link in links.values() {
            link.work
                .send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// Tell a node's long poll that there is work.
    pub(crate) fn wake(&self, node: NodeId) {
        self.of(node)
            .work
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl NodeLink {
    /// See every wake from here on.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.work.subscribe()
    }

    /// A sync was taken in. A long poll ends the earlier ones, as its agent has turned away from
    /// them; one that only tells leaves the long poll beside it alone.
    pub(crate) fn begin(&self, run: AgentInstanceId, seq: u64, listens: bool) {
        let mut sent = self.lock();
        if sent.run != Some(run) {
            *sent = Sent {
                run: Some(run),
                ..Sent::default()
            };
        }
        if listens && seq > sent.listener {
            sent.listener = seq;
            drop(sent);
            self.work
                .send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// Of the unanswered tasks, those that this run of the agent was not sent lately. They count as
    /// sent from here on. `None` if a newer long poll has begun: it shall have them.
    pub(crate) fn due(
        &self,
        run: AgentInstanceId,
        listener: Option<u64>,
        tasks: Vec<(TaskId, SignedEnvelope)>,
    ) -> Option<Vec<(TaskId, SignedEnvelope)>> {
        let now = Instant::now();
        let mut sent = self.lock();
        let turned_away = listener.is_some_and(|seq| seq < sent.listener);
        if sent.run != Some(run) || turned_away {
            return None;
        }
        sent.at
            .retain(|_, at| now.duration_since(*at) < RESEND_AFTER);
        let due = tasks
            .into_iter()
            .filter(|(id, _)| sent.at.insert(*id, now).is_none())
            .collect();
        Some(due)
    }

    /// A task that was due did not fit into the answer. It is due again at once.
    pub(crate) fn put_back(&self, task: TaskId) {
        self.lock().at.remove(&task);
    }

    fn lock(&self) -> MutexGuard<'_, Sent> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_of_a_fleet_that_begin_at_one_moment_end_at_many() {
        let asked = Duration::from_secs(25);
        let mut ends = HashMap::<u64, u32>::new();
        for _ in 0..1000 {
            let node = NodeId::generate();
            let held = patience(node, asked);
            assert_eq!(held, patience(node, asked));
            assert!(held > Duration::from_secs(15) && held <= asked, "{held:?}");
            *ends.entry(held.as_secs()).or_default() += 1;
        }
        let most = ends.into_values().max().unwrap();
        assert!(most < 200, "{most} of 1000 polls end in one second");
        assert_eq!(patience(NodeId::generate(), Duration::ZERO), Duration::ZERO);
    }
}
