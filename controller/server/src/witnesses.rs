//! Other parties' witnesses: each newest checkpoint is put before them, and what they cosign goes below it.
//!
//! In rounds, all of them about the same checkpoint, so that a quorum can come together on a log that
//! grows all the time. A witness that is away is told of and asked again. One that has seen what this
//! log does not have is the end of signing: the database went back in time, or there are two of it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_api::rest::WitnessStatus;
use berth_controller_store::{Store, StoreError};
use berth_ledger::checkpoint::SignedCheckpoint;
use berth_ledger::merkle::Hash;
use berth_ledger::note::{KeyKind, Note, SignatureLine, Vkey};
use berth_ledger::witness::{AddCheckpoint, Answer, ReadAnswerError, read_answer};
use serde::Deserialize;

use crate::https_client::client;

/// How long a witness may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer that is read, in bytes.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;
/// How often one request is made with another old size before the round goes on without the witness.
const TRIES: u32 = 3;

/// `[[ledger.witnesses]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WitnessConfig {
    /// Where it takes checkpoints: `add-checkpoint` is below.
    url: String,
    /// Its verifier key.
    key: String,
    /// PEM of the authority that vouches for its certificate; needed for https.
    ca: Option<PathBuf>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Witnesses {
    all: Vec<Arc<Witness>>,
    /// So many must have cosigned what others are shown.
    quorum: usize,
}

#[derive(Debug)]
struct Witness {
    url: String,
    vkey: Vkey,
    http: ureq::Agent,
    state: Mutex<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// The size that it was asked to go on from last.
    old_size: u64,
    cosigned_size: Option<u64>,
    cosigned_at: Option<u64>,
    problem: Option<&'static str>,
}

/// What a round came to.
#[derive(Debug)]
pub(crate) struct Round {
    /// The cosignatures of the checkpoint.
    pub(crate) lines: Vec<SignatureLine>,
    /// The witnesses that have seen what this log does not have, by their keys, and what each has seen.
    pub(crate) contradictions: Vec<(String, String)>,
    /// The keys of those that have cosigned.
    pub(crate) cosigners: Vec<String>,
    /// Somebody has to be asked again.
    pub(crate) is_incomplete: bool,
}

/// Why a witness has not cosigned.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("the witness does not answer")]
    Unreachable(#[source] Box<ureq::Error>),
    #[error("the witness's answer is none")]
    Answer(#[source] ReadAnswerError),
    #[error("the witness has been shown a newer checkpoint already")]
    Behind,
    #[error("the witness has seen {size} entries of this log, and there are fewer")]
    RolledBack { size: u64 },
    #[error("the witness has seen another history of this log")]
    Forked,
    #[error("the ledger could not be read")]
    Store(#[source] StoreError),
    #[error("the log has no proof from {from} entries on")]
    NoProof { from: u64 },
}

impl AskError {
    fn word(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Answer(_) => "refuses",
            Self::Behind => "ahead",
            Self::RolledBack { .. } => "rolled_back",
            Self::Forked => "forked",
            Self::Store(_) | Self::NoProof { .. } => "no_proof",
        }
    }
}

impl Witnesses {
    /// As the settings name them.
    pub(crate) fn open(settings: &[WitnessConfig], quorum: usize) -> anyhow::Result<Self> {
        let mut all: Vec<Arc<Witness>> = Vec::new();
        for setting in settings {
            let witness = Witness::open(setting)
                .with_context(|| format!("[[ledger.witnesses]] {}", setting.url))?;
            ensure!(
                all.iter().all(|other| other.vkey != witness.vkey),
                "[[ledger.witnesses]] names the key {} twice",
                witness.vkey
            );
            all.push(Arc::new(witness));
        }
        ensure!(
            quorum <= all.len(),
            "[ledger] witness_quorum is {quorum}, and there are {} witnesses",
            all.len()
        );
        Ok(Self { all, quorum })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether one has this key.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.all
            .iter()
            .any(|witness| witness.vkey.to_string() == key)
    }

    /// Whether nothing may be shown that they have not cosigned.
    pub(crate) fn are_waited_for(&self) -> bool {
        self.quorum > 0
    }

    /// Whether so many cosignatures are enough to show a checkpoint.
    pub(crate) fn is_quorum(&self, cosignatures: usize) -> bool {
        cosignatures >= self.quorum
    }

    /// How each of them stands.
    pub(crate) fn status(&self) -> Vec<WitnessStatus> {
        self.all.iter().map(|witness| witness.status()).collect()
    }

    /// Put a checkpoint before all of them at once.
    pub(crate) async fn ask(&self, store: &Arc<Store>, signed: SignedCheckpoint) -> Round {
        let signed = Arc::new(signed);
        let asked: Vec<_> = self
            .all
            .iter()
            .map(|witness| {
                let (witness, store) = (Arc::clone(witness), Arc::clone(store));
                let signed = Arc::clone(&signed);
                tokio::task::spawn_blocking(move || {
                    let asked = witness.ask(&store, &signed);
                    witness.note(&asked, signed.checkpoint().size);
                    asked.map(|(line, _)| line)
                })
            })
            .collect();
        let mut round = Round {
            lines: Vec::new(),
            contradictions: Vec::new(),
            cosigners: Vec::new(),
            is_incomplete: false,
        };
        for (witness, answer) in self.all.iter().zip(asked) {
            let key = witness.vkey.to_string();
            match answer.await {
                Ok(Ok(line)) => {
                    round.lines.push(line);
                    round.cosigners.push(key);
                }
                Ok(Err(error @ (AskError::RolledBack { .. } | AskError::Forked))) => {
                    round.contradictions.push((key, error.to_string()));
                }
                Ok(Err(_)) | Err(_) => round.is_incomplete = true,
            }
        }
        round
    }
}

impl Witness {
    fn open(setting: &WitnessConfig) -> anyhow::Result<Self> {
        let vkey: Vkey = setting.key.parse().context("`key` is no verifier key")?;
        ensure!(
            vkey.kind() == KeyKind::Cosignature,
            "`key` is a log's key: give the one that `berth-witness keygen` printed"
        );
        ensure!(
            ["https://", "http://"]
                .iter()
                .any(|scheme| setting.url.starts_with(scheme)),
            "`url` must begin with http:// or https://"
        );
        let http = client(&setting.url, setting.ca.as_deref(), PATIENCE)?;
        Ok(Self {
            url: format!("{}/add-checkpoint", setting.url.trim_end_matches('/')),
            vkey,
            http,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> WitnessStatus {
        let state = self.state().clone();
        let at = state.cosigned_at.and_then(|at| i64::try_from(at).ok());
        WitnessStatus {
            name: self.vkey.name().to_string(),
            vkey: self.vkey.to_string(),
            cosigned_size: state.cosigned_size,
            cosigned_at: at
                .and_then(|at| jiff::Timestamp::from_second(at).ok())
                .map(|at| at.to_string()),
            problem: state.problem.map(str::to_owned),
        }
    }

    /// Blocks for as long as the witness takes.
    fn ask(
        &self,
        store: &Store,
        signed: &SignedCheckpoint,
    ) -> Result<(SignatureLine, u64), AskError> {
        let size = signed.checkpoint().size;
        let mut old_size = self.state().old_size.min(size);
        for _ in 0..TRIES {
            let request = AddCheckpoint {
                old_size,
                proof: proof(store, old_size, size)?,
                checkpoint: own_lines(signed),
            };
            let (status, body) = self.send(&request.to_string())?;
            match read_answer(status, &body, signed, &self.vkey).map_err(AskError::Answer)? {
                Answer::Cosigned { line, time_s } => return Ok((line, time_s)),
                Answer::OtherSize { size } => old_size = size,
                Answer::Forked => return Err(AskError::Forked),
                Answer::RolledBack { size } => return Err(is_behind(store, size)?),
            }
        }
        Err(AskError::Behind)
    }

    fn send(&self, body: &str) -> Result<(u16, String), AskError> {
        let failed = |error| AskError::Unreachable(Box::new(error));
        let mut answer = self.http.post(&self.url).send(body).map_err(failed)?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config().limit(MAX_ANSWER_BYTES);
        Ok((status, body.read_to_string().map_err(failed)?))
    }

    fn note(&self, asked: &Result<(SignatureLine, u64), AskError>, size: u64) {
        let mut state = self.state();
        let before = state.problem;
        match asked {
            Ok((_, time_s)) => {
                *state = State {
                    old_size: size,
                    cosigned_size: Some(size),
                    cosigned_at: Some(*time_s),
                    problem: None,
                };
                if before.is_some() {
                    tracing::info!(witness = %self.vkey.name(), "the witness cosigns again");
                }
            }
            Err(error) => {
                state.problem = Some(error.word());
                if before != state.problem {
                    let error: &(dyn std::error::Error + 'static) = error;
                    tracing::warn!(witness = %self.vkey.name(), error, "not cosigned");
                }
            }
        }
    }
}

/// What a larger size means: this process is not the newest of several on the database, or the
/// database went back.
fn is_behind(store: &Store, seen: u64) -> Result<AskError, AskError> {
    let head = store.read(|db| db.log_head()).map_err(AskError::Store)?;
    Ok(if head.size >= seen {
        AskError::Behind
    } else {
        AskError::RolledBack { size: seen }
    })
}

fn proof(store: &Store, from: u64, to: u64) -> Result<Vec<Hash>, AskError> {
    if from == 0 {
        return Ok(Vec::new());
    }
    store
        .read(|db| Ok(db.prove_consistency(from, to)))
        .map_err(AskError::Store)?
        .map_err(|_| AskError::NoProof { from })
}

/// The checkpoint with its log's signature alone.
fn own_lines(signed: &SignedCheckpoint) -> Note {
    let mut note = signed.note().clone();
    let origin = &signed.checkpoint().origin;
    note.retain(|line| &line.name == origin);
    note
}
