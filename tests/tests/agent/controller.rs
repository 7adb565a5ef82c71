//! A controller that does what its test tells it: HTTP by hand, on a loopback port of its own.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use berth_api::agent::{
    CheckpointOffer, ENROLL_PAYLOAD_TYPE, EnrollReply, EnrollRequest, SYNC_PAYLOAD_TYPE,
    SignedEnvelope, SyncReply, SyncRequest, TaskResult, TreeHead,
};
use berth_api::ids::{AgentInstanceId, NodeId, TaskId};
use berth_ledger::envelope::open_self_signed;
use berth_ledger::keys::SigningKey;
use berth_ledger::model::ModelLog;

/// Longest wait for an agent.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longest time that a sync is held, if the agent allows more: a test waits for the one after it.
const LONGEST_HOLD: Duration = Duration::from_secs(2);

pub(crate) struct Controller {
    pub(crate) port: u16,
    pub(crate) node_id: NodeId,
    pub(crate) task_key: SigningKey,
    tasks: Arc<Tasks>,
    syncs: Receiver<SyncRequest>,
    pub(crate) enrolments: Receiver<EnrollRequest>,
    /// What it shows; none, and it shows nothing.
    pub(crate) log: Arc<Mutex<Option<ModelLog>>>,
    /// What it says of the log's keys.
    pub(crate) key_changes: Arc<Mutex<Vec<SignedEnvelope>>>,
}

/// The seed of the log's key.
pub(crate) const LOG_KEY: u8 = 5;

/// A log of so many entries, the same ones each time.
pub(crate) fn log_of(entries: u32) -> ModelLog {
    log_by(LOG_KEY, entries)
}

/// The same log, signed by the key of this seed.
pub(crate) fn log_by(seed: u8, entries: u32) -> ModelLog {
    let mut log = ModelLog::new("ledger.example/test/e1", seed);
    for number in 0..entries {
        log.append(&number.to_be_bytes());
    }
    log
}

/// What waits for the agent.
#[derive(Default)]
struct Tasks {
    waiting: Mutex<Vec<Waiting>>,
    changed: Condvar,
}

/// A task that was not answered yet, and the run of the agent that was sent it.
struct Waiting {
    task_id: TaskId,
    envelope: SignedEnvelope,
    sent_to: Option<AgentInstanceId>,
}

struct Desk {
    log: Arc<Mutex<Option<ModelLog>>>,
    key_changes: Arc<Mutex<Vec<SignedEnvelope>>>,
    reply: EnrollReply,
    tasks: Arc<Tasks>,
    syncs: Sender<SyncRequest>,
    enrolments: Sender<EnrollRequest>,
}

impl Controller {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let task_key = SigningKey::generate().unwrap();
        let node_id = NodeId::generate();
        let tasks = Arc::new(Tasks::default());
        let (syncs, heard_syncs) = channel();
        let (enrolments, heard_enrolments) = channel();
        let log = log_of(3);
        let ledger_key = log.vkey().public_key().to_base64();
        let log = Arc::new(Mutex::new(Some(log)));
        let key_changes = Arc::default();
        let desk = Arc::new(Desk {
            log: Arc::clone(&log),
            key_changes: Arc::clone(&key_changes),
            reply: EnrollReply {
                node_id,
                node_epoch: 1,
                task_public_keys: vec![task_key.public().to_base64()],
                ledger_public_key: ledger_key,
            },
            tasks: Arc::clone(&tasks),
            syncs,
            enrolments,
        });
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let desk = Arc::clone(&desk);
                std::thread::spawn(move || while desk.serve(&stream).is_some() {});
            }
        });
        Self {
            port,
            node_id,
            task_key,
            tasks,
            syncs: heard_syncs,
            enrolments: heard_enrolments,
            log,
            key_changes,
        }
    }

    pub(crate) fn show(&self, log: Option<ModelLog>) {
        *self.log.lock().unwrap() = log;
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn send(&self, task_id: TaskId, envelope: SignedEnvelope) {
        self.tasks.waiting.lock().unwrap().push(Waiting {
            task_id,
            envelope,
            sent_to: None,
        });
        self.tasks.changed.notify_all();
    }

    pub(crate) fn next_sync(&self) -> SyncRequest {
        self.syncs.recv_timeout(PATIENCE).expect("the agent syncs")
    }

    /// A sync that has come already.
    pub(crate) fn try_next_sync(&self) -> Option<SyncRequest> {
        self.syncs.try_recv().ok()
    }

    /// Wait for a task's result.
    pub(crate) fn result(&self, task_id: TaskId) -> TaskResult {
        loop {
            let found = self.next_sync().results.into_iter();
            if let Some(result) = found.into_iter().find(|r| r.task_id == task_id) {
                return result;
            }
        }
    }
}

impl Desk {
    /// Answer one request; `None` when the connection is over.
    fn serve(&self, stream: &TcpStream) -> Option<()> {
        let (path, body) = read_request(stream)?;
        let envelope: SignedEnvelope = serde_json::from_slice(&body).unwrap();
        let reply = match path.as_str() {
            "/v1/agent/enroll" => {
                let (key, request) =
                    open_self_signed::<EnrollRequest>(ENROLL_PAYLOAD_TYPE, &envelope).unwrap();
                assert_eq!(key.to_base64(), request.node_public_key);
                self.enrolments.send(request).ok()?;
                serde_json::to_vec(&self.reply)
            }
            "/v1/agent/sync" => serde_json::to_vec(&self.sync(&envelope)?),
            other => panic!("the agent calls {other}"),
        };
        write_reply(stream, &reply.unwrap())
    }

    /// Hold the call until there is something to say.
    fn sync(&self, envelope: &SignedEnvelope) -> Option<SyncReply> {
        let (_, request) = open_self_signed::<SyncRequest>(SYNC_PAYLOAD_TYPE, envelope).unwrap();
        let acknowledged: Vec<TaskId> = request.results.iter().map(|r| r.task_id).collect();
        let clock = request.clock;
        let hold = Duration::from_secs(request.wait_seconds).min(LONGEST_HOLD);
        let run = Some(request.agent_instance_id);
        let seen = request.log.seen.clone();
        self.syncs.send(request).ok()?;
        let mut waiting = self.tasks.waiting.lock().unwrap();
        waiting.retain(|task| !acknowledged.contains(&task.task_id));
        let (mut waiting, _) = self
            .tasks
            .changed
            .wait_timeout_while(waiting, hold, |tasks| {
                acknowledged.is_empty() && tasks.iter().all(|task| task.sent_to == run)
            })
            .unwrap();
        let due = waiting.iter_mut().filter(|task| task.sent_to != run);
        let tasks = due
            .map(|task| {
                task.sent_to = run;
                task.envelope.clone()
            })
            .collect();
        Some(SyncReply {
            tasks,
            seeds: Vec::new(),
            slot_tasks: Vec::new(),
            acknowledged_receipts: Vec::new(),
            acknowledged,
            controller_time: clock,
            checkpoint: self.offer(seen.as_ref()),
        })
    }

    /// The log as it is by now, proved as well as can be.
    fn offer(&self, seen: Option<&TreeHead>) -> Option<CheckpointOffer> {
        let log = self.log.lock().unwrap();
        let log = log.as_ref()?;
        let from = seen.map_or(0, |seen| seen.size);
        let proof = if (1..=log.size()).contains(&from) {
            log.consistency(from, log.size())
        } else {
            Vec::new()
        };
        Some(CheckpointOffer {
            note: log.note(log.size()).to_string(),
            consistency: proof.iter().map(|hash| hash.to_base64()).collect(),
            key_changes: self.key_changes.lock().unwrap().clone(),
        })
    }
}

fn read_request(stream: &TcpStream) -> Option<(String, Vec<u8>)> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, body))
}

fn write_reply(mut stream: &TcpStream, body: &[u8]) -> Option<()> {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body).ok()
}
