//! What is remembered of tokens between requests: which count no longer, which were seen, when each
//! was last used. The database is the truth; this is what of it every request needs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use berth_api::ids::{TenantId, TokenId};
use berth_controller_store::{Revoked, TokenUse};
use berth_token::{Grant, Revocations, SubjectKey};

use crate::api_error::ApiError;
use crate::app::App;

/// How often the times of last use are written.
pub(crate) const WRITE_USES: Duration = Duration::from_secs(10);
/// How far the clocks of two controllers on one database may differ, and how long a commit may take,
/// in milliseconds.
const OVERLAP_MS: i64 = 60_000;
/// Tokens whose last use waits to be written, and derived tokens that are known.
const MAX_REMEMBERED: usize = 65_536;

type Key = (Option<TenantId>, TokenId);

/// Tokens as this process knows them.
#[derive(Debug)]
pub(crate) struct TokenBook {
    revocations: RwLock<Revocations>,
    /// When the revocations were last read, in milliseconds since the epoch.
    read_at_ms: AtomicI64,
    uses: Mutex<HashMap<Key, i64>>,
    derived: Mutex<HashMap<Key, i64>>,
}

impl TokenBook {
    /// A book that holds what was read from the database just now.
    pub(crate) fn new(revoked: Vec<(Option<TenantId>, Revoked)>) -> Self {
        let book = Self {
            revocations: RwLock::default(),
            read_at_ms: AtomicI64::new(now_ms()),
            uses: Mutex::default(),
            derived: Mutex::default(),
        };
        for (tenant, revoked) in revoked {
            book.revoke(tenant, &revoked);
        }
        book
    }

    /// From here on it opens nothing. Called once the revocation is on disk.
    pub(crate) fn revoke(&self, tenant: Option<TenantId>, revoked: &Revoked) {
        let mut set = self
            .revocations
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match revoked {
            Revoked::Link(id) => set.add_link(tenant, *id),
            // What the database holds was a key when it was written.
            Revoked::Holder(key) => {
                if let Ok(key) = SubjectKey::from_base64url(key) {
                    set.add_holder(tenant, key);
                }
            }
            Revoked::Before(second) => set.raise_epoch(tenant, *second),
        }
    }

    /// Whether a token counts no longer.
    pub(crate) fn refuses(&self, grant: &Grant) -> bool {
        self.with(|set| set.refuse(grant))
    }

    /// Read something of what is revoked.
    pub(crate) fn with<T>(&self, read: impl FnOnce(&Revocations) -> T) -> T {
        read(
            &self
                .revocations
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// A token was used.
    pub(crate) fn used(&self, grant: &Grant) {
        let Some(id) = grant.token_ids.last() else {
            return;
        };
        let mut uses = lock(&self.uses);
        let key = (grant.tenant.clone(), *id);
        // A use that is not written down is better than memory without bound.
        if uses.len() < MAX_REMEMBERED || uses.contains_key(&key) {
            uses.insert(key, now_ms());
        }
    }

    fn take_uses(&self) -> Vec<TokenUse> {
        lock(&self.uses)
            .drain()
            .map(|((tenant_id, token_id), at_ms)| TokenUse {
                token_id,
                tenant_id,
                at_ms,
            })
            .collect()
    }

    /// Whether a token was issued, or is derived and its first use was written down, as far as this
    /// process knows.
    pub(crate) fn knows(&self, grant: &Grant) -> bool {
        match grant.token_ids.split_last() {
            None | Some((_, [])) => true,
            Some((id, _)) => lock(&self.derived).contains_key(&(grant.tenant.clone(), *id)),
        }
    }

    /// A derived token's first use is on disk.
    pub(crate) fn learn_derived(&self, grant: &Grant) {
        let Some(id) = grant.token_ids.last() else {
            return;
        };
        let mut derived = lock(&self.derived);
        if derived.len() >= MAX_REMEMBERED {
            let now_s = now_ms() / 1000;
            derived.retain(|_, expires_at| *expires_at > now_s);
        }
        // What is forgotten is asked of the database again, which writes nothing twice.
        if derived.len() >= MAX_REMEMBERED {
            derived.clear();
        }
        derived.insert((grant.tenant.clone(), *id), grant.expires_at);
    }
}

/// Learn what other controllers on this database have revoked. How old that may be is `follow`'s to judge.
pub(crate) async fn refresh(app: &App) -> Result<(), ApiError> {
    let read_at_ms = now_ms();
    let last_read_ms = app.tokens.read_at_ms.load(Ordering::Relaxed);
    let since_ms = last_read_ms.saturating_sub(OVERLAP_MS);
    let revoked = app.read(move |db| db.revocations_since(since_ms)).await?;
    for (tenant, revoked) in revoked {
        app.tokens.revoke(tenant, &revoked);
    }
    app.tokens.read_at_ms.store(read_at_ms, Ordering::Relaxed);
    Ok(())
}

/// Write down when tokens were last used. Lost uses are no harm, and the failure is logged.
pub(crate) async fn write_uses(app: &App) {
    let uses = app.tokens.take_uses();
    if !uses.is_empty() {
        drop(app.write(move |tx| tx.note_token_uses(&uses)).await);
    }
}

/// Keep the book for as long as the controller serves. Others' revocations come by `follow`.
pub(crate) async fn keep(app: std::sync::Arc<App>) {
    let mut writes = tokio::time::interval(WRITE_USES);
    loop {
        tokio::select! {
            _ = writes.tick() => write_uses(&app).await,
            () = app.stopped() => return write_uses(&app).await,
        }
    }
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
