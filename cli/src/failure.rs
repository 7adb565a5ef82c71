//! Everything that can end a command early, and the exit code that goes with it.
//!
//! Owns the texts and codes for people and for scripts. It prints nothing; `screen` does.

use std::io;
use std::path::{Path, PathBuf};

use berth_agent_core::slot::approval::{ProposeError, RenderApprovalError};
use berth_api::rest::ErrorCode;
use berth_inventory::ReadHostError;
use berth_ledger::audit::VerifyLogError;
use berth_ledger::bundle::VerifyBundleError;
use berth_ledger::checkpoint::OpenCheckpointError;
use berth_ledger::keys::{GenerateKeyError, ReadKeyError};
use berth_ledger::passport::VerifyPassportError;
use berth_ledger::receipt::{ChainFault, ReceiptError};
use serde_json::{Value, json};

use crate::ledger::verify::EntryFault;

/// What a command's exit code says; every command ends with one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Anything without its own code.
    Error,
    /// The command line, or a value on it, is wrong.
    Usage,
    /// No such object, or somebody else's.
    NotFound,
    /// The token is missing, bad or not allowed to do this.
    Denied,
    /// A ceiling of the tenant is reached.
    Quota,
    /// No node can take it.
    Capacity,
    /// It did not happen in time.
    Timeout,
    /// The object is in the way or in another state.
    Conflict,
}

impl Exit {
    /// As the process ends with it.
    #[must_use]
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Error => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Denied => 4,
            Self::Quota => 5,
            Self::Capacity => 6,
            Self::Timeout => 7,
            Self::Conflict => 8,
        }
    }
}

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command line asks for something that cannot be.
    #[error("{sentence}")]
    Usage {
        /// What is wrong with it.
        sentence: String,
        /// What to type instead.
        remedy: String,
    },
    /// The controller refused.
    #[error("{}", .0.sentence())]
    Refused(Box<Refusal>),
    /// Nothing listens there.
    #[error("no controller answers at {url}")]
    NotReachable {
        /// Where it was tried.
        url: String,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The connection broke, or what came back is not HTTP.
    #[error("the request to {url} failed")]
    Transport {
        /// Where it was tried.
        url: String,
        /// What the client library said.
        #[source]
        cause: Box<ureq::Error>,
    },
    /// The controller accepted the connection and then said nothing.
    #[error("the controller at {url} did not answer in time")]
    NoAnswer {
        /// Where it was tried.
        url: String,
    },
    /// A reply that is not what the API promises.
    #[error("the controller's reply to {request} is not understood")]
    Reply {
        /// Method and path.
        request: String,
        /// What is wrong with it.
        #[source]
        cause: serde_json::Error,
    },
    /// No token was found anywhere.
    #[error("no token was found")]
    NoToken {
        /// Where it was looked for.
        tried: String,
    },
    /// What was found is not a token.
    #[error("the token from {origin} is not one line of printable characters")]
    MalformedToken {
        /// Where it came from.
        origin: String,
    },
    /// A wait's time was over.
    #[error("{what} is {state}, not {wanted}, after {seconds} s")]
    WaitTimeout {
        /// Which VM.
        what: String,
        /// Where it stands.
        state: String,
        /// What was waited for.
        wanted: String,
        /// How long.
        seconds: u64,
    },
    /// What was waited for cannot come any more.
    #[error("{what} will not become {wanted}: {reason}")]
    WaitHopeless {
        /// Which VM.
        what: String,
        /// What was waited for.
        wanted: String,
        /// Why not.
        reason: String,
    },
    /// The ledger is not what it says.
    #[error(transparent)]
    Ledger(#[from] EntryFault),
    /// An export of the ledger is not what it says.
    #[error("the export does not verify")]
    Bundle(#[source] VerifyBundleError),
    /// It could not be read.
    #[error("the export could not be read")]
    ReadBundle(#[source] io::Error),
    /// A published log is not what its checkpoint says.
    #[error("the published log does not verify")]
    PublishedLog(#[source] Box<VerifyLogError<io::Error>>),
    /// The ledger's checkpoint is not signed by the key.
    #[error("the ledger's checkpoint is not believed")]
    Checkpoint(#[source] OpenCheckpointError),
    /// The ledger is signed by another key than the caller knows.
    #[error("the ledger shows the key {shown}, not {pinned}")]
    LedgerKey {
        /// From the controller.
        shown: String,
        /// From the caller.
        pinned: String,
    },
    /// A receipt does not show what it should.
    #[error("{} shows nothing", path.display())]
    Receipt {
        /// Its file.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: ReceiptError,
    },
    /// A passport does not show what it should.
    #[error("{} does not show that the VM's slots were clean", path.display())]
    Passport {
        /// Its file.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: VerifyPassportError,
    },
    /// Receipts contradict each other.
    #[error("the receipts do not form a chain")]
    ReceiptChain(#[source] ChainFault),
    /// A text that should be a public key.
    #[error("`{text}` is not a public key")]
    PublicKey {
        /// What was given.
        text: String,
        /// Why not.
        #[source]
        cause: ReadKeyError,
    },
    /// A file that should hold a private key.
    #[error("{} is not the private key of a token's holder: {problem}", path.display())]
    PrivateKey {
        /// Which.
        path: PathBuf,
        /// Why not.
        problem: &'static str,
    },
    /// A text that should be a token.
    #[error("that is not a token")]
    NotAToken(#[source] berth_token::VerifyError),
    /// A token that cannot be narrowed like that.
    #[error(transparent)]
    Derive(#[from] berth_token::DeriveError),
    /// No key could be made.
    #[error("no key could be made")]
    GenerateKey(#[source] GenerateKeyError),
    /// A file or folder of the caller.
    #[error("{doing} {} failed", path.display())]
    File {
        /// Such as `writing`.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// Standard output is closed or full.
    #[error("writing the output failed")]
    Output(#[from] io::Error),
    /// The host is not fit; the report was printed.
    #[error("{count} of the host's checks failed")]
    HostUnfit {
        /// How many.
        count: usize,
    },
    /// Something stands against slots; the report was printed.
    #[error("{count} of what was looked at cannot be rented out")]
    SlotUnfit {
        /// How many.
        count: usize,
    },
    /// A tenant was shown something of another; the report was printed.
    #[error("{count} answers show a tenant something of another")]
    NotIsolated {
        /// How many.
        count: usize,
    },
    /// This host has no such slot.
    #[error("this host has no slot {name:?}, and it is no address of a device")]
    NoSuchSlot {
        /// What was asked for.
        name: String,
    },
    /// Another approval is in the way.
    #[error("the slot cannot be approved: {reason}")]
    SlotTaken {
        /// Which, and how.
        reason: String,
    },
    /// Only this host's owner may do it.
    #[error("only root can decide what this host rents out")]
    NotRoot,
    /// The answer was no.
    #[error("nothing was changed")]
    Declined,
    /// What was to be a slot cannot be one.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// What was to be approved cannot be written.
    #[error(transparent)]
    Render(#[from] RenderApprovalError),
    /// This host cannot be looked at.
    #[error(transparent)]
    ReadHost(#[from] ReadHostError),
}

/// An HTTP reply outside 2xx.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// HTTP status.
    pub(crate) status: u16,
    /// Method and path.
    pub(crate) request: String,
    /// The body, an `ErrorBody` by promise; `null` if it is no JSON.
    pub(crate) body: Value,
}

impl Refusal {
    /// A text member of the body.
    #[must_use]
    pub(crate) fn member(&self, name: &str) -> Option<&str> {
        self.body.get(name).and_then(Value::as_str)
    }

    /// The code, if this program knows it.
    #[must_use]
    pub(crate) fn code(&self) -> Option<ErrorCode> {
        serde_json::from_value(self.body.get("code")?.clone()).ok()
    }

    fn sentence(&self) -> String {
        self.member("error").map_or_else(
            || format!("{} was answered with HTTP {}", self.request, self.status),
            str::to_owned,
        )
    }

    fn exit(&self) -> Exit {
        match (self.status, self.code()) {
            (_, Some(ErrorCode::PlacementImpossible | ErrorCode::NoCapacity)) => Exit::Capacity,
            (400 | 413 | 415, _) => Exit::Usage,
            (401 | 403, _) => Exit::Denied,
            (404, _) => Exit::NotFound,
            (408 | 504, _) => Exit::Timeout,
            (409 | 412, _) => Exit::Conflict,
            (429, _) => Exit::Quota,
            _ => Exit::Error,
        }
    }
}

impl Failure {
    /// The exit code that goes with it.
    #[must_use]
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Usage { .. }
            | Self::PublicKey { .. }
            | Self::NotAToken(_)
            | Self::Derive(_)
            | Self::Propose(_) => Exit::Usage,
            Self::NoSuchSlot { .. } => Exit::NotFound,
            Self::SlotTaken { .. } => Exit::Conflict,
            Self::Refused(refusal) => refusal.exit(),
            Self::NoToken { .. }
            | Self::MalformedToken { .. }
            | Self::PrivateKey { .. }
            | Self::NotRoot => Exit::Denied,
            Self::WaitTimeout { .. } | Self::NoAnswer { .. } => Exit::Timeout,
            Self::NotReachable { .. }
            | Self::Transport { .. }
            | Self::Reply { .. }
            | Self::WaitHopeless { .. }
            | Self::Ledger(_)
            | Self::Checkpoint(_)
            | Self::Bundle(_)
            | Self::PublishedLog(_)
            | Self::ReadBundle(_)
            | Self::LedgerKey { .. }
            | Self::Receipt { .. }
            | Self::Passport { .. }
            | Self::ReceiptChain(_)
            | Self::GenerateKey(_)
            | Self::File { .. }
            | Self::Output(_)
            | Self::HostUnfit { .. }
            | Self::SlotUnfit { .. }
            | Self::NotIsolated { .. }
            | Self::Declined
            | Self::Render(_)
            | Self::ReadHost(_) => Exit::Error,
        }
    }

    /// A code for scripts: the controller's own, or one for what failed here.
    #[must_use]
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Usage { .. } => "usage",
            Self::Refused(refusal) => refusal.member("code").unwrap_or("unknown"),
            Self::NotReachable { .. } => "not_reachable",
            Self::Transport { .. } => "transport",
            Self::NoAnswer { .. } => "no_answer",
            Self::Reply { .. } => "reply_not_understood",
            Self::NoToken { .. } => "no_token",
            Self::MalformedToken { .. } => "malformed_token",
            Self::WaitTimeout { .. } => ErrorCode::WaitTimeout.as_str(),
            Self::WaitHopeless { .. } => "wait_hopeless",
            Self::Ledger(_) => "ledger_broken",
            Self::Checkpoint(_) => "ledger_checkpoint",
            Self::Bundle(_) => "ledger_export",
            Self::PublishedLog(_) => "published_log",
            Self::ReadBundle(_) => "file",
            Self::LedgerKey { .. } => "ledger_key",
            Self::Receipt { .. } => "receipt",
            Self::Passport { .. } => "passport",
            Self::ReceiptChain(_) => "receipt_chain",
            Self::PublicKey { .. } => "public_key",
            Self::PrivateKey { .. } => "private_key",
            Self::NotAToken(_) => "not_a_token",
            Self::Derive(_) => "cannot_derive",
            Self::GenerateKey(_) => "generate_key",
            Self::File { .. } => "file",
            Self::Output(_) => "output",
            Self::HostUnfit { .. } => "host_unfit",
            Self::SlotUnfit { .. } => "slot_unfit",
            Self::NotIsolated { .. } => "not_isolated",
            Self::NoSuchSlot { .. } => "no_such_slot",
            Self::SlotTaken { .. } => "slot_taken",
            Self::NotRoot => "not_root",
            Self::Declined => "declined",
            Self::Propose(_) => "cannot_propose",
            Self::Render(_) => "cannot_render",
            Self::ReadHost(_) => "cannot_read_host",
        }
    }

    /// What to do about it; empty if there is nothing to say.
    #[must_use]
    pub(crate) fn remedy(&self) -> String {
        match self {
            Self::Usage { remedy, .. } => remedy.clone(),
            Self::Refused(refusal) => refusal
                .member("detail")
                .unwrap_or("That is not how a controller refuses; see whether the URL is one's.")
                .to_owned(),
            Self::NotReachable { .. } => {
                "Start it (`systemctl start berth-controller.socket`) or name another with --url \
                 or BERTH_URL."
                    .to_owned()
            }
            Self::Transport { .. } | Self::NoAnswer { .. } => {
                "See whether the URL is a controller's; if it is, look into its journal \
                 (`journalctl -u berth-controller`)."
                    .to_owned()
            }
            Self::Reply { .. } => {
                "Compare the versions: `berthctl --version` and `berthctl api GET /v1/version`."
                    .to_owned()
            }
            Self::NoToken { tried } => {
                format!("Looked in {tried}. Ask an administrator for a token.")
            }
            Self::MalformedToken { .. } => {
                "Put the token there as it was issued, and nothing else.".to_owned()
            }
            Self::WaitTimeout { .. } => {
                "It goes on without you; wait longer with --timeout or look with `vm show`."
                    .to_owned()
            }
            Self::WaitHopeless { .. } => {
                "See `berthctl vm show` and `berthctl vm console`.".to_owned()
            }
            Self::ReadBundle(_) => "Export it again.".to_owned(),
            Self::Ledger(_) | Self::Checkpoint(_) | Self::Bundle(_) | Self::PublishedLog(_) => {
                "Keep a copy of the database and tell whoever audits this controller.".to_owned()
            }
            Self::LedgerKey { .. } => {
                "Do not trust this controller's ledger until somebody explains the change of key."
                    .to_owned()
            }
            Self::Receipt { .. } => {
                "Do not take the slot for wiped; ask the host's owner for the receipt as the host \
                 keeps it, in /var/lib/berth/agent/slots."
                    .to_owned()
            }
            Self::Passport { .. } => {
                "Do not take the slots for wiped. Get the file anew with `berthctl vm passport`, and \
                 the log's key from elsewhere than the file."
                    .to_owned()
            }
            Self::ReceiptChain(_) => {
                "See whether receipts are missing; if none is, the slot was handed on as it was."
                    .to_owned()
            }
            Self::PublicKey { .. } => {
                "Give 32 bytes in standard base64, as `berthctl ledger head` prints them."
                    .to_owned()
            }
            Self::PrivateKey { .. } => {
                "Name the right one with --holder-key or BERTH_HOLDER_KEY; `berthctl token keygen` makes one, and \
                 a token is then issued to its public half."
                    .to_owned()
            }
            Self::NotAToken(_) => {
                "Give it whole, as it was issued or derived: `v4.public.…`.".to_owned()
            }
            Self::Derive(_) => {
                "See what the parent allows with `berthctl token inspect`.".to_owned()
            }
            Self::HostUnfit { .. } => "Each failed line says what to do.".to_owned(),
            Self::SlotUnfit { .. } => "Each line that is not fit says what to do.".to_owned(),
            Self::NotIsolated { .. } => {
                "Stop serving tenants, keep the ledger, and report it as a defect.".to_owned()
            }
            Self::NoSuchSlot { .. } | Self::Propose(_) => {
                "See `berthctl slot check` and `berthctl slot candidates`.".to_owned()
            }
            Self::SlotTaken { .. } => {
                "Take the other approval back first: `berthctl slot unapprove`.".to_owned()
            }
            Self::NotRoot => "Run it as root, on the host itself.".to_owned(),
            Self::Declined
            | Self::Render(_)
            | Self::ReadHost(_)
            | Self::GenerateKey(_)
            | Self::File { .. }
            | Self::Output(_) => String::new(),
        }
    }

    /// For a file or folder, what was done with it.
    pub(crate) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |cause| Self::File { doing, path, cause }
    }

    /// Whether it is only the reader of our output having gone away.
    #[must_use]
    pub(crate) fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(cause) if cause.kind() == io::ErrorKind::BrokenPipe)
    }

    /// For `--json`: the controller's body as it came, or the same members for a failure here.
    #[must_use]
    pub(crate) fn to_json(&self) -> Value {
        if let Self::Refused(refusal) = self
            && refusal.body.is_object()
        {
            return refusal.body.clone();
        }
        json!({
            "code": self.code(),
            "error": chain(self),
            "detail": self.remedy(),
        })
    }

    /// For people: the sentence, the causes, the remedy, and what to quote when asking for help.
    #[must_use]
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("error: {}\n", chain(self));
        if let Self::Refused(refusal) = self {
            text.push_str(&refusal.details());
        }
        let remedy = self.remedy();
        if !remedy.is_empty() {
            text.push_str(&format!("  {remedy}\n"));
        }
        text.push_str(&format!("  code: {}", self.code()));
        if let Self::Refused(refusal) = self
            && let Some(id) = refusal.member("request_id")
        {
            text.push_str(&format!("   request: {id}"));
        }
        text.push('\n');
        text
    }
}

impl Refusal {
    /// The body's own lists, one line each: fields, reasons, the scope that is missing.
    fn details(&self) -> String {
        let mut text = String::new();
        for list in ["fields", "reasons"] {
            let members = self.body.get(list).and_then(Value::as_object);
            for (name, value) in members.into_iter().flatten() {
                let value = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                text.push_str(&format!("  {name}: {value}\n"));
            }
        }
        if let Some(scope) = self.member("required_scope") {
            text.push_str(&format!("  required scope: {scope}\n"));
        }
        text
    }
}

/// A sentence with the causes behind it.
fn chain(failure: &Failure) -> String {
    let mut text = failure.to_string();
    let mut cause = std::error::Error::source(failure);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, body: Value) -> Failure {
        Failure::Refused(Box::new(Refusal {
            status,
            request: "POST /v1/vms".to_owned(),
            body,
        }))
    }

    #[test]
    fn every_error_code_has_its_exit_code() {
        for code in ErrorCode::ALL {
            let exit = refusal(code.status(), json!({ "code": code.as_str() })).exit();
            let expected = match code {
                ErrorCode::InvalidRequest
                | ErrorCode::UnknownField
                | ErrorCode::InvalidTenantId
                | ErrorCode::TenantMismatch
                | ErrorCode::FieldImmutable
                | ErrorCode::ShapeNotSupported
                | ErrorCode::PayloadTooLarge
                | ErrorCode::UnsupportedMediaType => Exit::Usage,
                ErrorCode::Unauthorized
                | ErrorCode::InvalidToken
                | ErrorCode::TokenExpired
                | ErrorCode::TokenRevoked
                | ErrorCode::PermissionDenied
                | ErrorCode::TenantSuspended
                | ErrorCode::SlotClassNotAllowed
                | ErrorCode::SlotNotApproved => Exit::Denied,
                ErrorCode::NotFound => Exit::NotFound,
                ErrorCode::WaitTimeout | ErrorCode::NodeTimeout => Exit::Timeout,
                ErrorCode::AlreadyExists
                | ErrorCode::TenantExists
                | ErrorCode::InvalidState
                | ErrorCode::TenantNotEmpty
                | ErrorCode::ClaimConflict
                | ErrorCode::OperationInProgress
                | ErrorCode::Protected
                | ErrorCode::PreconditionFailed
                | ErrorCode::IdempotencyConflict
                | ErrorCode::IdempotencyInProgress => Exit::Conflict,
                ErrorCode::PlacementImpossible | ErrorCode::NoCapacity => Exit::Capacity,
                ErrorCode::QuotaExceeded | ErrorCode::RateLimited => Exit::Quota,
                ErrorCode::MethodNotAllowed
                | ErrorCode::RevisionGone
                | ErrorCode::IommuGroupUnsafe
                | ErrorCode::DeviceIdentityChanged
                | ErrorCode::Internal
                | ErrorCode::NodeError
                | ErrorCode::AuditUnavailable
                | ErrorCode::IdentityUnavailable
                | ErrorCode::NodeUnreachable
                | ErrorCode::Starting => Exit::Error,
            };
            assert_eq!(exit, expected, "{}", code.as_str());
        }
    }

    #[test]
    fn a_refusal_shows_its_sentence_fields_remedy_code_and_request() {
        let failure = refusal(
            400,
            json!({
                "code": "invalid_request",
                "error": "Invalid request: 1 field is out of bounds",
                "detail": "Correct the fields.",
                "fields": { "memory_mb": "at least 128" },
                "request_id": "req_1",
            }),
        );
        assert_eq!(
            failure.to_text(),
            "error: Invalid request: 1 field is out of bounds\n  memory_mb: at least 128\n  \
             Correct the fields.\n  code: invalid_request   request: req_1\n"
        );
    }

    #[test]
    fn a_code_from_a_newer_controller_is_shown_and_judged_by_its_status() {
        let failure = refusal(409, json!({ "code": "novel", "error": "No" }));
        assert_eq!((failure.exit(), failure.code()), (Exit::Conflict, "novel"));
    }

    #[test]
    fn an_answer_without_an_error_body_is_still_a_sentence() {
        let failure = refusal(502, Value::Null);
        assert!(
            failure
                .to_text()
                .starts_with("error: POST /v1/vms was answered with HTTP 502\n")
        );
        assert_eq!(failure.to_json()["code"], "unknown");
    }

    #[test]
    fn causes_are_part_of_the_sentence() {
        let failure = Failure::NotReachable {
            url: "http://127.0.0.1:1".to_owned(),
            cause: io::Error::from(io::ErrorKind::ConnectionRefused),
        };
        assert!(failure.to_text().starts_with(
            "error: no controller answers at http://127.0.0.1:1: connection refused\n"
        ));
    }
}
