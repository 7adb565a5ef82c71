//! The ledger's entries: append in the transaction of the change, find, read.
//!
//! An entry's body is written once and given out byte for byte; what the tree commits to is its
//! leaf. What a batch of changes appends is kept until its end and written at once: where it is written
//! between the changes, each of them has copies made of the pages that the one before has just changed.
//! Sealing a batch of entries into the tree is [`crate::log`]'s.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_api::ids::{EventId, NodeId, SlotId, TenantId, TokenId, VmId};
use berth_api::rest::{AuditActor, AuditBody, AuditEntry, AuditObject, AuditRequest};
use berth_ledger::keys::PublicKey;
use berth_ledger::leaf::{Commitment, Leaf, LeafKind, Nonce};
use berth_ledger::merkle::{Hash, leaf_hash};
use berth_ledger::tenant_view::{FIRST_SEQUENCE, NO_PREVIOUS};
use serde_json::{Map, Value};

use crate::error::StoreError;
use crate::rows::rfc3339;
use crate::sql::{
    Connection, OptionalExtension as _, Row, Value as SqlValue, ValueRef, params_from_iter,
};
use crate::store::Db;
use crate::writer::WriteTx;

/// Longest body that is written: what a person can still read, and far from what a reader's memory
/// could be filled with.
const MAX_BODY_BYTES: usize = 256 * 1024;

/// Who and what is behind a change.
#[derive(Clone, Debug)]
pub struct Cause {
    /// Who.
    pub actor: AuditActor,
    /// The request, if one was made.
    pub request: Option<AuditRequest>,
}

impl Cause {
    /// The controller by itself.
    #[must_use]
    pub fn controller() -> Self {
        Self {
            actor: AuditActor {
                kind: "controller".to_owned(),
                token_id: None,
                subject_key: None,
            },
            request: None,
        }
    }

    /// A node's report.
    #[must_use]
    pub fn node(key: &PublicKey, request: Option<AuditRequest>) -> Self {
        Self {
            actor: AuditActor {
                kind: "node".to_owned(),
                token_id: None,
                subject_key: Some(key.to_base64()),
            },
            request,
        }
    }
}

/// A caller's request as a cause.
#[must_use]
pub fn request_cause(actor: AuditActor, request: AuditRequest) -> Cause {
    Cause {
        actor,
        request: Some(request),
    }
}

/// What a new entry says beyond its cause.
#[derive(Clone, Debug, Default)]
pub struct NewEvent {
    /// Shared by entries of one event for several parties; a new one unless given.
    pub event_id: Option<EventId>,
    /// Such as `TENANT_CREATED`.
    pub event_type: &'static str,
    /// Whose namespace it touches.
    pub tenant_id: Option<TenantId>,
    /// The project inside it.
    pub project_id: Option<String>,
    /// What it is about, where no other field says so.
    pub object: Option<AuditObject>,
    /// The VM that it touches.
    pub vm_id: Option<VmId>,
    /// The node that it touches.
    pub node_id: Option<NodeId>,
    /// The slots that it touches.
    pub slot_ids: Vec<SlotId>,
    /// `accepted`, `denied`, `failed` or `completed`.
    pub outcome: &'static str,
    /// Error code of a denial or failure.
    pub code: Option<String>,
    /// Status of the answer, where it is known before it is given.
    pub http_status: Option<u16>,
    /// How long the work took, where it is over.
    pub duration_ms: Option<u64>,
    /// Everything else.
    pub detail: Map<String, Value>,
}

/// Which entries to read. All that is given must hold.
#[derive(Clone, Debug, Default)]
pub struct EntryFilter {
    /// Only this tenant's.
    pub tenant_id: Option<TenantId>,
    /// Only this type.
    pub event_type: Option<String>,
    /// Only this VM's.
    pub vm_id: Option<VmId>,
    /// Only this node's.
    pub node_id: Option<NodeId>,
    /// Only this slot's.
    pub slot_id: Option<SlotId>,
    /// Only with this outcome.
    pub outcome: Option<String>,
    /// Only under this token.
    pub token_id: Option<TokenId>,
    /// From this index on.
    pub since_index: u64,
    /// From this time on, in milliseconds since the epoch.
    pub since_ms: Option<i64>,
    /// Below this index; the end of the log unless given.
    pub until_index: Option<u64>,
    /// At most so many.
    pub limit: u32,
}

/// An entry as stored.
#[derive(Clone, Debug)]
pub(crate) struct StoredEntry {
    pub(crate) index: u64,
    pub(crate) stream: String,
    pub(crate) seq: u64,
    pub(crate) at: i64,
    pub(crate) body: String,
    pub(crate) nonce: Nonce,
    pub(crate) leaf: Vec<u8>,
}

pub(crate) const COLUMNS: &str = "idx, stream, seq, at, body, nonce, leaf";

impl WriteTx<'_> {
    /// Append an entry; its index. It is on disk when the change is, and not otherwise.
    pub fn append(&mut self, event: NewEvent, cause: &Cause) -> Result<u64, StoreError> {
        self.append_kind(LeafKind::Event, event, cause)
    }

    pub(crate) fn append_kind(
        &mut self,
        kind: LeafKind,
        event: NewEvent,
        cause: &Cause,
    ) -> Result<u64, StoreError> {
        let index = self.log.next_index();
        let event = self.with_facts(event, cause)?;
        let (stream, seq, prev) = match kind {
            LeafKind::Event => self.place_in_stream(event.tenant_id.as_ref())?,
            LeafKind::EpochStart => (EPOCH_STREAM.to_owned(), 0, NO_PREVIOUS),
        };
        let body = body_of(event, cause, seq, prev, self.log.at);
        let terms = terms_of(&body);
        let text = serde_json::to_string(&body).map_err(|_| unstorable())?;
        if text.len() > MAX_BODY_BYTES {
            return Err(unstorable());
        }
        let (nonce, leaf) = self.leaf(kind, &stream, seq, &text)?;
        let entry = StoredEntry {
            index,
            stream,
            seq,
            at: self.log.at,
            body: text,
            nonce,
            leaf: leaf.to_bytes().to_vec(),
        };
        self.log.append(Appended { entry, terms });
        Ok(index)
    }

    fn leaf(
        &self,
        kind: LeafKind,
        stream: &str,
        seq: u64,
        body: &str,
    ) -> Result<(Nonce, Leaf), StoreError> {
        let time_ms = u64::try_from(self.log.at).unwrap_or(0);
        match kind {
            LeafKind::Event => {
                let nonce = Nonce::generate().map_err(|_| unstorable())?;
                let tag = self.log.head.view_key(stream).tag(seq);
                let commitment = Commitment::of(&nonce, body.as_bytes());
                Ok((nonce, Leaf::of_event(time_ms, tag, commitment)))
            }
            LeafKind::EpochStart => {
                let leaf = Leaf::of_epoch_start(time_ms, body.as_bytes());
                Ok((Nonce([0; 32]), leaf))
            }
        }
    }

    /// The place of the next entry of a tenant, or of the platform, and the digest of the body before.
    fn place_in_stream(
        &self,
        tenant: Option<&TenantId>,
    ) -> Result<(String, u64, Hash), StoreError> {
        let stream = stream_of(tenant).to_owned();
        let last = match self.log.last_of(&stream) {
            Some(entry) => Some((entry.seq, Hash::of_bytes(entry.body.as_bytes()))),
            None => self.last_stored_of(&stream)?,
        };
        Ok(match last {
            Some((seq, prev)) => (stream, seq.saturating_add(1), prev),
            None => (stream, FIRST_SEQUENCE, NO_PREVIOUS),
        })
    }

    fn last_stored_of(&self, stream: &str) -> Result<Option<(u64, Hash)>, StoreError> {
        Ok(self
            .conn
            .prepare_cached(
                "SELECT seq, body FROM ledger_entry WHERE epoch = ?1 AND stream = ?2
                 ORDER BY seq DESC LIMIT 1",
            )?
            .query_row((self.log.head.epoch, stream), |row| {
                let body: String = row.get(1)?;
                Ok((row.get(0)?, Hash::of_bytes(body.as_bytes())))
            })
            .optional()?)
    }
}

/// An entry of the running transaction, and what it can be found by.
#[derive(Debug)]
pub(crate) struct Appended {
    pub(crate) entry: StoredEntry,
    terms: Vec<String>,
}

/// Write down what a batch of changes appended.
pub(crate) fn insert_entries(
    conn: &Connection,
    epoch: u64,
    appended: &[Appended],
) -> crate::sql::Result<()> {
    let epoch = ValueRef::Integer(storable(epoch));
    let rows: Vec<_> = appended
        .iter()
        .map(|Appended { entry, .. }| {
            [
                epoch,
                ValueRef::Integer(storable(entry.index)),
                ValueRef::Text(&entry.stream),
                ValueRef::Integer(storable(entry.seq)),
                ValueRef::Integer(entry.at),
                ValueRef::Text(&entry.body),
                ValueRef::Blob(&entry.nonce.0),
                ValueRef::Blob(&entry.leaf),
            ]
        })
        .collect();
    conn.insert_all(
        "INSERT INTO ledger_entry (epoch, idx, stream, seq, at, body, nonce, leaf)",
        &rows,
    )?;
    let mut terms: Vec<_> = appended
        .iter()
        .flat_map(|Appended { entry, terms }| terms.iter().map(|term| (term.as_str(), entry.index)))
        .collect();
    // In the order of their table: neighbours are written one after the other.
    terms.sort_unstable();
    let rows: Vec<_> = terms
        .into_iter()
        .map(|(term, index)| {
            let index = ValueRef::Integer(storable(index));
            [epoch, ValueRef::Text(term), index]
        })
        .collect();
    conn.insert_all("INSERT INTO ledger_term (epoch, term, idx)", &rows)
}

fn unstorable() -> StoreError {
    StoreError::Unstorable {
        what: "ledger entry",
    }
}

fn body_of(event: NewEvent, cause: &Cause, seq: u64, prev: Hash, at: i64) -> AuditBody {
    AuditBody {
        event_id: event.event_id.unwrap_or_else(EventId::generate),
        time: rfc3339(at),
        event_type: event.event_type.to_owned(),
        tenant_id: event.tenant_id,
        tenant_seq: seq,
        prev: prev.to_string(),
        project_id: event.project_id,
        actor: cause.actor.clone(),
        request: cause.request.clone(),
        object: event.object,
        vm_id: event.vm_id,
        node_id: event.node_id,
        slot_ids: event.slot_ids,
        outcome: event.outcome.to_owned(),
        code: event.code,
        http_status: event.http_status,
        duration_ms: event.duration_ms,
        detail: event.detail,
    }
}

/// Where the first entry of a log stands that others came before. It is of no tenant's sequence and
/// not of the platform's: everybody may read it.
pub(crate) const EPOCH_STREAM: &str = "/epoch";

/// The stream of a tenant; the platform's own is the empty one, which is no tenant's id.
pub(crate) fn stream_of(tenant: Option<&TenantId>) -> &str {
    tenant.map_or("", TenantId::as_str)
}

/// What an entry can be found by. Computed from the body that the tree commits to, and checked
/// against it by [`Db::verify_log`], so a filter cannot say anything else.
pub(crate) fn terms_of(body: &AuditBody) -> Vec<String> {
    let mut terms = vec![
        term("type", &body.event_type),
        term("outcome", &body.outcome),
    ];
    terms.extend(
        body.tenant_id
            .as_ref()
            .map(|id| term("tenant", id.as_str())),
    );
    terms.extend(body.actor.token_id.map(|id| term("token", &id.to_string())));
    terms.extend(body.vm_id.map(|id| id.to_string()));
    terms.extend(body.node_id.map(|id| id.to_string()));
    terms.extend(body.slot_ids.iter().map(ToString::to_string));
    terms.sort();
    terms.dedup();
    terms
}

fn term(kind: &str, value: &str) -> String {
    format!("{kind}={value}")
}

impl EntryFilter {
    /// Rarest first: the first one is walked, the others are looked up.
    fn terms(&self) -> Vec<String> {
        let mut terms = Vec::new();
        terms.extend(self.slot_id.map(|id| id.to_string()));
        terms.extend(self.vm_id.map(|id| id.to_string()));
        terms.extend(self.node_id.map(|id| id.to_string()));
        terms.extend(self.token_id.map(|id| term("token", &id.to_string())));
        terms.extend(
            self.tenant_id
                .as_ref()
                .map(|id| term("tenant", id.as_str())),
        );
        terms.extend(self.event_type.as_ref().map(|kind| term("type", kind)));
        terms.extend(self.outcome.as_ref().map(|word| term("outcome", word)));
        terms
    }
}

impl Db<'_> {
    /// Entries in their order.
    pub fn entries(&self, filter: &EntryFilter) -> Result<Vec<AuditEntry>, StoreError> {
        let found = self.stored_entries(filter)?;
        Ok(found.iter().map(StoredEntry::shown).collect())
    }

    pub(crate) fn stored_entries(
        &self,
        filter: &EntryFilter,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        let head = self.log_head()?;
        let since = match filter.since_ms {
            Some(at) => filter.since_index.max(self.first_at(&head, at)?),
            None => filter.since_index,
        };
        let until = filter.until_index.unwrap_or(head.size).min(head.size);
        let epoch = SqlValue::Integer(storable(head.epoch));
        let mut terms = filter.terms().into_iter().map(SqlValue::Text);
        let (mut sql, mut values) = match terms.next() {
            Some(first) => (
                "SELECT e.idx, e.stream, e.seq, e.at, e.body, e.nonce, e.leaf FROM ledger_term t
                 JOIN ledger_entry e ON e.epoch = t.epoch AND e.idx = t.idx
                 WHERE t.epoch = ? AND t.term = ? AND t.idx >= ? AND t.idx < ?"
                    .to_owned(),
                vec![epoch.clone(), first],
            ),
            None => (
                format!(
                    "SELECT {COLUMNS} FROM ledger_entry e WHERE e.epoch = ? AND e.idx >= ? AND e.idx < ?"
                ),
                vec![epoch.clone()],
            ),
        };
        values.push(SqlValue::Integer(storable(since)));
        values.push(SqlValue::Integer(storable(until)));
        for further in terms {
            sql.push_str(
                " AND EXISTS (SELECT 1 FROM ledger_term o
                 WHERE o.epoch = ? AND o.term = ? AND o.idx = e.idx)",
            );
            values.extend([epoch.clone(), further]);
        }
        // Terms find quickly; whose an entry is, its own row says.
        if let Some(tenant) = &filter.tenant_id {
            sql.push_str(" AND e.stream = ?");
            values.push(SqlValue::Text(tenant.to_string()));
        }
        sql.push_str(" ORDER BY e.idx LIMIT ?");
        values.push(SqlValue::Integer(filter.limit.into()));
        let mut select = self.conn.prepare_cached(&sql)?;
        let entries = select
            .query_map(params_from_iter(values), stored_entry)?
            .collect::<Result<_, _>>()?;
        Ok(entries)
    }

    /// The first entry that is not older than a time. Times never fall along the log.
    fn first_at(&self, head: &crate::log::LogHead, at: i64) -> Result<u64, StoreError> {
        let (mut low, mut high) = (0, head.size);
        let mut time_of = self
            .conn
            .prepare_cached("SELECT at FROM ledger_entry WHERE epoch = ?1 AND idx = ?2")?;
        while low < high {
            let middle = low + (high - low) / 2;
            let found: i64 = time_of.query_row((head.epoch, middle), |row| row.get(0))?;
            if found < at {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}

pub(crate) fn storable(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) fn stored_entry(row: &Row<'_>) -> crate::sql::Result<StoredEntry> {
    let nonce: Vec<u8> = row.get(5)?;
    Ok(StoredEntry {
        index: row.get(0)?,
        stream: row.get(1)?,
        seq: row.get(2)?,
        at: row.get(3)?,
        body: row.get(4)?,
        // A nonce of another length opens no commitment, which is what a check then finds.
        nonce: Nonce(nonce.try_into().unwrap_or_default()),
        leaf: row.get(6)?,
    })
}

impl StoredEntry {
    fn shown(&self) -> AuditEntry {
        AuditEntry {
            index: self.index,
            body: self.body.clone(),
            nonce: Hash(self.nonce.0).to_string(),
            leaf: STANDARD.encode(&self.leaf),
            leaf_hash: leaf_hash(&self.leaf).to_string(),
        }
    }

    /// Whether the leaf commits to this body, of this time.
    pub(crate) fn is_committed(&self) -> bool {
        let time_ms = u64::try_from(self.at);
        Leaf::parse(&self.leaf).is_ok_and(|leaf| {
            leaf.commitment == Commitment::of(&self.nonce, self.body.as_bytes())
                && Ok(leaf.time_ms) == time_ms
        })
    }
}
