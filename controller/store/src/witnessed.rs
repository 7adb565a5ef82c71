//! What other parties' witnesses have said that a restart must not forget: the checkpoint that a quorum of
//! them has cosigned, and that one of them has seen what this log does not have.
//!
//! Nothing here is an entry: the log that would have to say it may be the wrong one.

use crate::error::StoreError;
use crate::rows::clock_ms;
use crate::sql::OptionalExtension as _;
use crate::store::Db;
use crate::writer::WriteTx;

impl Db<'_> {
    /// The newest checkpoint that was shown where a quorum is waited for: a signed note.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn shown_note(&self) -> Result<Option<String>, StoreError> {
        Ok(self
            .conn
            .prepare_cached("SELECT note FROM ledger_shown WHERE one = 1")?
            .query_row([], |row| row.get(0))
            .optional()?)
    }

    /// The witnesses that have seen what this log does not have, by their verifier keys, and what each has
    /// seen.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn contradictions(&self, origin: &str) -> Result<Vec<(String, String)>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT witness, reason FROM ledger_contradiction WHERE origin = ?1 ORDER BY witness",
        )?;
        let rows = select.query_map([origin], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl WriteTx<'_> {
    /// Keep the checkpoint that is shown next, unless a newer one of the same log is kept.
    ///
    /// # Errors
    /// If the database fails.
    pub fn keep_shown(&mut self, origin: &str, size: u64, note: &str) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO ledger_shown (one, origin, size, note) VALUES (1, ?1, ?2, ?3)
                 ON CONFLICT (one) DO UPDATE SET
                    origin = excluded.origin, size = excluded.size, note = excluded.note
                 WHERE ledger_shown.origin <> excluded.origin OR ledger_shown.size <= excluded.size",
            )?
            .send((origin, size, note))?;
        Ok(())
    }

    /// Nobody waits for a quorum: what is shown is the head.
    ///
    /// # Errors
    /// If the database fails.
    pub fn forget_shown(&mut self) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("DELETE FROM ledger_shown")?
            .send([])?;
        Ok(())
    }

    /// A witness has seen what this log does not have.
    ///
    /// # Errors
    /// If the database fails.
    pub fn keep_contradiction(
        &mut self,
        origin: &str,
        witness: &str,
        reason: &str,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO ledger_contradiction (origin, witness, reason, at)
                 VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (origin, witness) DO UPDATE SET reason = excluded.reason",
            )?
            .send((origin, witness, reason, clock_ms()))?;
        Ok(())
    }

    /// It has cosigned this log again.
    ///
    /// # Errors
    /// If the database fails.
    pub fn end_contradiction(&mut self, origin: &str, witness: &str) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("DELETE FROM ledger_contradiction WHERE origin = ?1 AND witness = ?2")?
            .send((origin, witness))?;
        Ok(())
    }
}
