//! The ledger's table: append in the transaction of the change, read, verify.

use berth_api::ids::{EventId, NodeId, TenantId, VmId};
use berth_api::rest::{AuditActor, AuditBody, AuditEntry, AuditHead, AuditRequest};
use berth_ledger::chain::{self, Head, VerifyError};
use berth_ledger::keys::PublicKey;
use serde_json::{Map, Value};

use crate::error::StoreError;
use crate::rows::rfc3339;
use crate::sql::{
    Connection, OptionalExtension as _, Row, SqlError, Value as SqlValue, params_from_iter,
};
use crate::store::Db;
use crate::writer::WriteTx;

const COLUMNS: &str = "idx, body, prev_hash, hash, signature";

/// Why the stored ledger does not verify.
#[derive(Debug, thiserror::Error)]
pub enum VerifyLedgerError {
    /// An entry is not what was signed.
    #[error(transparent)]
    Entry(#[from] VerifyError),
    /// It could not be read.
    #[error("the ledger could not be read")]
    Read(#[from] SqlError),
}

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
    /// Such as `TENANT_CREATED`.
    pub event_type: &'static str,
    /// Whose namespace it touches.
    pub tenant_id: Option<TenantId>,
    /// The VM that it touches.
    pub vm_id: Option<VmId>,
    /// The node that it touches.
    pub node_id: Option<NodeId>,
    /// `accepted`, `denied`, `failed` or `completed`.
    pub outcome: &'static str,
    /// Error code of a denial or failure.
    pub code: Option<String>,
    /// Everything else.
    pub detail: Map<String, Value>,
}

/// Which entries to read.
#[derive(Clone, Debug, Default)]
pub struct EntryFilter {
    /// Only this tenant's.
    pub tenant_id: Option<TenantId>,
    /// Only this type.
    pub event_type: Option<String>,
    /// Only this VM's.
    pub vm_id: Option<VmId>,
    /// From this index on.
    pub since_index: u64,
    /// At most so many.
    pub limit: u32,
}

impl WriteTx<'_> {
    /// Append an entry; its index. It is on disk when the change is, and not otherwise.
    pub fn append(&mut self, event: NewEvent, cause: &Cause) -> Result<u64, StoreError> {
        let body = AuditBody {
            event_id: EventId::generate(),
            time: rfc3339(self.now),
            event_type: event.event_type.to_owned(),
            tenant_id: event.tenant_id,
            actor: cause.actor.clone(),
            request: cause.request.clone(),
            vm_id: event.vm_id,
            node_id: event.node_id,
            outcome: event.outcome.to_owned(),
            code: event.code,
            detail: event.detail,
        };
        let body = serde_json::to_string(&body).map_err(|_| StoreError::Unstorable {
            what: "ledger entry",
        })?;
        let (entry, next) = chain::append(&self.keys.ledger, &self.head, body);
        self.db
            .conn
            .prepare_cached(
                "INSERT INTO ledger_event (idx, body, prev_hash, hash, signature) VALUES (?1, ?2, ?3, ?4, ?5)",
            )
            .and_then(|mut insert| {
                insert.execute((
                    entry.index,
                    &entry.body,
                    &entry.prev_hash,
                    &entry.hash,
                    &entry.signature,
                ))
            })
            .map_err(StoreError::Ledger)?;
        self.head = next;
        Ok(entry.index)
    }
}

impl Db<'_> {
    /// Entries in their order.
    pub fn entries(&self, filter: &EntryFilter) -> Result<Vec<AuditEntry>, StoreError> {
        let mut sql = format!("SELECT {COLUMNS} FROM ledger_event WHERE idx >= ?");
        let mut values = vec![SqlValue::Integer(
            i64::try_from(filter.since_index).unwrap_or(i64::MAX),
        )];
        let texts = [
            (
                "tenant_id",
                filter.tenant_id.as_ref().map(ToString::to_string),
            ),
            ("event_type", filter.event_type.clone()),
            ("vm_id", filter.vm_id.map(|id| id.to_string())),
        ];
        for (column, text) in texts {
            if let Some(text) = text {
                sql.push_str(&format!(" AND {column} = ?"));
                values.push(SqlValue::Text(text));
            }
        }
        sql.push_str(" ORDER BY idx LIMIT ?");
        values.push(SqlValue::Integer(filter.limit.into()));
        let mut select = self.conn.prepare_cached(&sql)?;
        let entries = select
            .query_map(params_from_iter(values), entry_of)?
            .collect::<Result<_, _>>()?;
        Ok(entries)
    }

    /// Where the ledger ends.
    pub fn audit_head(&self, key: &PublicKey) -> Result<AuditHead, StoreError> {
        Ok(chain::published_head(&stored_head(self.conn)?, key))
    }

    /// Check every entry from the first to the last; how many there are.
    pub fn verify_ledger(&self, key: &PublicKey) -> Result<u64, VerifyLedgerError> {
        let sql = format!("SELECT {COLUMNS} FROM ledger_event ORDER BY idx");
        let mut select = self.conn.prepare_cached(&sql)?;
        let mut head = Head::default();
        for entry in select.query_map([], entry_of)? {
            head = chain::verify_next(key, &head, &entry?)?;
        }
        Ok(head.size)
    }
}

fn entry_of(row: &Row<'_>) -> crate::sql::Result<AuditEntry> {
    Ok(AuditEntry {
        index: row.get(0)?,
        body: row.get(1)?,
        prev_hash: row.get(2)?,
        hash: row.get(3)?,
        signature: row.get(4)?,
    })
}

fn last_entry(conn: &Connection) -> crate::sql::Result<Option<AuditEntry>> {
    let sql = format!("SELECT {COLUMNS} FROM ledger_event ORDER BY idx DESC LIMIT 1");
    conn.query_row(&sql, [], entry_of).optional()
}

/// The head as stored, unchecked.
pub(crate) fn stored_head(conn: &Connection) -> crate::sql::Result<Head> {
    match last_entry(conn)? {
        None => Ok(Head::default()),
        Some(entry) => chain::head_after(&entry).map_err(|_| SqlError::Column {
            column: "hash".to_owned(),
        }),
    }
}

/// Check the last entry's hash and signature, and that none is missing before it.
pub(crate) fn check_end(conn: &Connection, key: &PublicKey) -> Result<(), VerifyLedgerError> {
    let Some(entry) = last_entry(conn)? else {
        return Ok(());
    };
    chain::verify_entry(key, &entry)?;
    let count: u64 = conn.query_row("SELECT COUNT(*) FROM ledger_event", [], |row| row.get(0))?;
    let head = chain::head_after(&entry)?;
    if count != head.size {
        return Err(VerifyError::Head {
            found: count,
            expected: head.size,
        }
        .into());
    }
    Ok(())
}
