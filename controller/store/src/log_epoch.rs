//! Where logs begin: the first of a database, and the next one after an honest discontinuity.

use berth_api::ids::ControllerId;
use berth_ledger::keys::SigningKey;
use berth_ledger::leaf::LeafKind;
use berth_ledger::merkle::Hash;
use serde_json::{Value, json};

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::log::{LogError, LogFault, LogHead, OpenLog};
use crate::sql::{Connection, OptionalExtension as _};
use crate::store::{Db, KeySet};
use crate::tenants::object;
use crate::writer::WriteTx;

/// The epoch that every log begins with.
const FIRST_EPOCH: u64 = 1;
/// What the origins of logs begin with whose operator gave no name of their own. `.internal` is
/// reserved for private use.
const DEFAULT_DOMAIN: &str = "ledger.berth.internal";

/// Begin the first log of a database that has none. Repeatable. Entries of the chain that came
/// before the tree are kept and committed to by the first entry.
pub(crate) fn begin_first(
    conn: &Connection,
    keys: &KeySet,
    controller: ControllerId,
    now: i64,
) -> Result<(), LogError> {
    conn.begin_write()?;
    let begun = begin_if_none(conn, keys, controller, now);
    match begun {
        Ok(()) => Ok(conn.commit()?),
        Err(error) => {
            conn.abandon();
            Err(error)
        }
    }
}

fn begin_if_none(
    conn: &Connection,
    keys: &KeySet,
    controller: ControllerId,
    now: i64,
) -> Result<(), LogError> {
    let known: u64 = conn.query_row("SELECT COUNT(*) FROM ledger_head", [], |row| row.get(0))?;
    if known > 0 {
        return Ok(());
    }
    let mut head = LogHead {
        name: format!("{DEFAULT_DOMAIN}/{controller}"),
        epoch: FIRST_EPOCH,
        size: 0,
        root: Hash::of_empty_tree(),
        at: now,
        note: String::new(),
        view_secret: *SigningKey::generate().map_err(|_| LogFault::Key)?.seed(),
    };
    head.note = head.signed(keys)?;
    conn.execute(
        "INSERT INTO ledger_head (one, name, epoch, size, root, at, note, view_secret)
         VALUES (1, ?1, ?2, 0, ?3, ?4, ?5, ?6)",
        (
            &head.name,
            head.epoch,
            head.root.0.as_slice(),
            head.at,
            &head.note,
            head.view_secret.as_slice(),
        ),
    )?;
    let chain: Option<(u64, String)> = conn
        .query_row(
            "SELECT idx + 1, hash FROM ledger_event ORDER BY idx DESC LIMIT 1",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    let Some((size, hash)) = chain else {
        return Ok(());
    };
    let mut tx = WriteTx {
        db: Db { conn, now },
        keys,
        log: OpenLog::begin(conn, now)?,
    };
    tx.append_beginning(json!({ "form": "chain", "size": size, "hash": hash }))
        .map_err(|cause| LogError::Beginning(Box::new(cause)))?;
    tx.log.seal(conn, keys)
}

impl WriteTx<'_> {
    /// The first entry of a log that others came before: which ones, as far as is known.
    fn append_beginning(&mut self, previous: Value) -> Result<(), StoreError> {
        let event = NewEvent {
            event_type: "LEDGER_EPOCH_BEGUN",
            outcome: "completed",
            detail: object(json!({ "previous": previous })),
            ..NewEvent::default()
        };
        self.append_kind(LeafKind::EpochStart, event, &Cause::controller())?;
        Ok(())
    }

    /// End this log and begin the next one, whose first entry carries the newest checkpoint that is
    /// known of the one that ends. Nothing may have been appended in this transaction.
    pub(crate) fn begin_next_log(
        &mut self,
        last_known: Option<&str>,
        reason: &str,
    ) -> Result<(), StoreError> {
        let unstorable = |_: LogFault| StoreError::Unstorable { what: "new log" };
        if self.log.len() > 0 {
            return Err(unstorable(LogFault::HeadMoved));
        }
        let old = self.log.head.clone();
        let mut head = LogHead {
            epoch: old.epoch.saturating_add(1),
            size: 0,
            root: Hash::of_empty_tree(),
            at: self.log.at,
            note: String::new(),
            ..old.clone()
        };
        head.note = head.signed(self.keys).map_err(unstorable)?;
        self.conn.execute(
            "UPDATE ledger_head SET epoch = ?1, size = 0, root = ?2, at = ?3, note = ?4
             WHERE epoch = ?5",
            (
                head.epoch,
                head.root.0.as_slice(),
                head.at,
                &head.note,
                old.epoch,
            ),
        )?;
        self.log.head = head;
        self.append_beginning(json!({
            "form": "log",
            "checkpoint": last_known.unwrap_or(&old.note),
            "kept_entries": old.size,
            "reason": reason,
        }))
    }
}
