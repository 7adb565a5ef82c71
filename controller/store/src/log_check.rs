//! Whether the stored log is what was signed: its end when a database is opened, all of it on demand.

use std::collections::HashMap;

use berth_api::rest::AuditBody;
use berth_ledger::keys::PublicKey;
use berth_ledger::merkle::{Frontier, Hash, root_from_nodes};
use berth_ledger::tenant_view::{FIRST_SEQUENCE, NO_PREVIOUS};

use crate::ledger::{COLUMNS, EPOCH_STREAM, StoredEntry, stored_entry, stream_of, terms_of};
use crate::log::{LogError, LogFault, LogHead, check_entry, stored_head};
use crate::log_tree::TreeNodes;
use crate::sql::Connection;
use crate::store::Db;

/// Entries at the end of the log that are looked at whenever a database is opened: those that a
/// failing disk or a cut write can have spoiled last.
const END_ENTRIES: u64 = 256;

/// Check the head's checkpoint, the nodes that lead to its root, and the last entries.
pub(crate) fn check_end(conn: &Connection, keys: &[PublicKey]) -> Result<LogHead, LogError> {
    let head = stored_head(conn)?;
    head.checkpoint(keys)?;
    let nodes = TreeNodes::of(conn, head.epoch);
    if root_from_nodes(head.size, |node| nodes.read(node))? != head.root {
        let size = head.size;
        return Err(LogFault::Root { size }.into());
    }
    let start = head.size.saturating_sub(END_ENTRIES);
    let mut tree = Frontier::load(start, |node| nodes.read(node))?;
    walk(conn, &head, start, |entry| {
        check_entry(&mut tree, |node| nodes.read(node), &entry)
    })?;
    ends_at(&tree, &head)?;
    Ok(head)
}

impl Db<'_> {
    /// Check every entry from the first to the last; how many there are. `progress` is told now and
    /// then how many were right so far, and of how many.
    pub fn verify_log(
        &self,
        key: &PublicKey,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<u64, LogError> {
        let head = stored_head(self.conn)?;
        head.checkpoint(std::slice::from_ref(key))?;
        let nodes = TreeNodes::of(self.conn, head.epoch);
        let mut tree = Frontier::new();
        let mut streams = HashMap::new();
        walk(self.conn, &head, 0, |entry| {
            check_entry(&mut tree, |node| nodes.read(node), &entry)?;
            self.check_body(&head, &mut streams, &entry)?;
            if entry.index % 10_000 == 0 {
                progress(entry.index, head.size);
            }
            Ok(())
        })?;
        ends_at(&tree, &head)?;
        Ok(head.size)
    }

    /// What the tree does not say: that streams have no gaps, and that filters find what they should.
    fn check_body(
        &self,
        head: &LogHead,
        streams: &mut HashMap<String, (u64, Hash)>,
        entry: &StoredEntry,
    ) -> Result<(), LogError> {
        let index = entry.index;
        let body: AuditBody =
            serde_json::from_str(&entry.body).map_err(|_| LogFault::Body { index })?;
        let is_beginning = index == 0 && entry.stream == EPOCH_STREAM;
        if !is_beginning {
            let (seq, prev) = match streams.get(&entry.stream) {
                Some((last, hash)) => (last.saturating_add(1), *hash),
                None => (FIRST_SEQUENCE, NO_PREVIOUS),
            };
            let is_next = body.tenant_seq == seq && entry.seq == seq;
            let builds_on = body.prev == prev.to_string();
            if !is_next || !builds_on || stream_of(body.tenant_id.as_ref()) != entry.stream {
                return Err(LogFault::Stream { index }.into());
            }
            let hash = Hash::of_bytes(entry.body.as_bytes());
            streams.insert(entry.stream.clone(), (seq, hash));
        }
        let wanted = terms_of(&body);
        let mut known = self.conn.prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM ledger_term WHERE epoch = ?1 AND term = ?2 AND idx = ?3)",
        )?;
        for term in &wanted {
            if !known.query_row((head.epoch, term, index), |row| row.get::<_, bool>(0))? {
                return Err(LogFault::Terms { index }.into());
            }
        }
        Ok(())
    }
}

fn walk(
    conn: &Connection,
    head: &LogHead,
    start: u64,
    mut visit: impl FnMut(StoredEntry) -> Result<(), LogError>,
) -> Result<(), LogError> {
    let sql =
        format!("SELECT {COLUMNS} FROM ledger_entry WHERE epoch = ?1 AND idx >= ?2 ORDER BY idx");
    let mut select = conn.prepare_cached(&sql)?;
    for entry in select.query_map((head.epoch, start), stored_entry)? {
        visit(entry?)?;
    }
    Ok(())
}

fn ends_at(tree: &Frontier, head: &LogHead) -> Result<(), LogFault> {
    if tree.size() != head.size {
        return Err(LogFault::End {
            found: tree.size(),
            expected: head.size,
        });
    }
    if tree.root() != head.root {
        return Err(LogFault::Root { size: head.size });
    }
    Ok(())
}
