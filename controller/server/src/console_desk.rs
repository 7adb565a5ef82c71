//! Console reads in flight: asked for by a tenant, answered by a node, kept nowhere.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_api::agent::{SignedEnvelope, TaskOutcome, TaskResult};
use berth_api::ids::{NodeId, TaskId};
use tokio::sync::oneshot;

/// Most reads that wait for one node; more would only fill its long poll.
const MAX_PER_NODE: usize = 32;

#[derive(Debug)]
struct Read {
    node: NodeId,
    envelope: SignedEnvelope,
    answer: oneshot::Sender<TaskOutcome>,
}

/// The reads that wait.
#[derive(Debug, Default)]
pub(crate) struct ConsoleDesk {
    reads: Mutex<HashMap<TaskId, Read>>,
}

/// A read that is withdrawn when its reader goes away.
#[derive(Debug)]
pub(crate) struct WaitingRead<'d> {
    desk: &'d ConsoleDesk,
    task: TaskId,
    /// Where the answer comes.
    pub(crate) answer: oneshot::Receiver<TaskOutcome>,
}

impl Drop for WaitingRead<'_> {
    fn drop(&mut self) {
        self.desk.lock().remove(&self.task);
    }
}

impl ConsoleDesk {
    /// Put a read on the desk; `None` when too many wait for that node.
    pub(crate) fn ask(
        &self,
        node: NodeId,
        task: TaskId,
        envelope: SignedEnvelope,
    ) -> Option<WaitingRead<'_>> {
        let (sender, answer) = oneshot::channel();
        let mut reads = self.lock();
        if reads.values().filter(|read| read.node == node).count() >= MAX_PER_NODE {
            return None;
        }
        reads.insert(
            task,
            Read {
                node,
                envelope,
                answer: sender,
            },
        );
        Some(WaitingRead {
            desk: self,
            task,
            answer,
        })
    }

    /// What waits for a node.
    pub(crate) fn waiting(&self, node: NodeId) -> Vec<(TaskId, SignedEnvelope)> {
        self.lock()
            .iter()
            .filter(|(_, read)| read.node == node)
            .map(|(id, read)| (*id, read.envelope.clone()))
            .collect()
    }

    /// Hand a node's answers to their readers. A node answers its own reads alone.
    pub(crate) fn answer(&self, node: NodeId, results: &[TaskResult]) {
        let mut reads = self.lock();
        for result in results {
            if reads
                .get(&result.task_id)
                .is_some_and(|read| read.node == node)
                && let Some(read) = reads.remove(&result.task_id)
            {
                // The reader may have given up; then nobody wants the bytes.
                drop(read.answer.send(result.outcome.clone()));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, Read>> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
