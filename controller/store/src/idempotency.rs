//! Answers that a repeated request gets again.

use crate::error::StoreError;
use crate::sql::OptionalExtension as _;
use crate::writer::WriteTx;

/// How long an answer is remembered.
const KEPT_MS: i64 = 24 * 3_600_000;
/// Old answers that one request clears away, so that no request pays for a whole day.
const FORGOTTEN_AT_ONCE: u32 = 8;

/// What makes two requests the same.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    /// The tenant, or the operator's word for itself.
    pub scope: String,
    /// Method and route pattern.
    pub route: String,
    /// As the client sent it.
    pub key: String,
    /// SHA-256 of path and body.
    pub digest: Vec<u8>,
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remembered {
    /// Nothing: go on.
    New,
    /// The same request was answered so.
    Same {
        /// HTTP status.
        status: u16,
        /// Body as it was.
        body: String,
    },
    /// The key came with another request.
    Other,
}

impl WriteTx<'_> {
    /// Look a key up.
    pub fn remembered(&self, key: &IdempotencyKey) -> Result<Remembered, StoreError> {
        let row: Option<(Vec<u8>, u16, String)> = self
            .conn
            .prepare_cached(
                "SELECT digest, status, body FROM idempotency
                 WHERE scope = ?1 AND route = ?2 AND key = ?3 AND created_at > ?4",
            )?
            .query_row(
                (&key.scope, &key.route, &key.key, self.now - KEPT_MS),
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .optional()?;
        Ok(match row {
            None => Remembered::New,
            Some((digest, status, body)) if digest == key.digest => {
                Remembered::Same { status, body }
            }
            Some(_) => Remembered::Other,
        })
    }

    /// Remember an answer, and forget a few old ones.
    pub fn remember(
        &mut self,
        key: &IdempotencyKey,
        status: u16,
        body: &str,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "DELETE FROM idempotency WHERE (scope, route, key) IN
                 (SELECT scope, route, key FROM idempotency WHERE created_at <= ?1 LIMIT ?2)",
            )?
            .send((self.now - KEPT_MS, FORGOTTEN_AT_ONCE))?;
        self.conn
            .prepare_cached(
                "INSERT INTO idempotency (scope, route, key, digest, status, body, created_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (scope, route, key) DO UPDATE SET digest = excluded.digest,
                 status = excluded.status, body = excluded.body, created_at = excluded.created_at",
            )?
            .send((
                &key.scope,
                &key.route,
                &key.key,
                &key.digest,
                status,
                body,
                self.now,
            ))?;
        Ok(())
    }
}
