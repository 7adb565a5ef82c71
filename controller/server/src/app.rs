//! What all requests share.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use berth_api::ids::{NodeId, TokenId};
use berth_controller_store::{Db, Store, StoreError, WriteTx};
use berth_ledger::keys::SigningKey;
use berth_token::{RootKey, TokenVerifier};
use tokio::sync::{oneshot, watch};

use crate::api_error::ApiError;
use crate::console_desk::ConsoleDesk;
use crate::ledger_desk::LedgerDesk;
use crate::node_links::NodeLinks;
use crate::rates::Rates;
use crate::streams::Streams;
use crate::tiers::Tiers;

/// Denials of one source that are written down: one in this time.
const DENIAL_SAMPLE: Duration = Duration::from_secs(1);
/// Sources whose last denial is remembered.
const MAX_DENIAL_SOURCES: usize = 4096;

/// The service, shared by all requests.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) store: Arc<Store>,
    pub(crate) root_key: RootKey,
    pub(crate) verifier: TokenVerifier,
    pub(crate) task_key: SigningKey,
    pub(crate) public_url: String,
    pub(crate) rates: Rates,
    pub(crate) tiers: Tiers,
    pub(crate) links: NodeLinks,
    pub(crate) console: ConsoleDesk,
    pub(crate) streams: Streams,
    pub(crate) ledger: LedgerDesk,
    revoked: RwLock<HashSet<TokenId>>,
    vms_changed: watch::Sender<u64>,
    stopping: watch::Sender<bool>,
    denials: Mutex<HashMap<IpAddr, Instant>>,
}

/// What an [`App`] is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) store: Arc<Store>,
    pub(crate) ledger: LedgerDesk,
    pub(crate) root_key: RootKey,
    pub(crate) task_key: SigningKey,
    pub(crate) public_url: String,
    pub(crate) tiers: Tiers,
    pub(crate) revoked: HashSet<TokenId>,
}

impl App {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            store: parts.store,
            ledger: parts.ledger,
            verifier: parts.root_key.verifier(),
            root_key: parts.root_key,
            task_key: parts.task_key,
            public_url: parts.public_url,
            rates: Rates::new(),
            tiers: parts.tiers,
            links: NodeLinks::default(),
            console: ConsoleDesk::default(),
            streams: Streams::default(),
            revoked: RwLock::new(parts.revoked),
            vms_changed: watch::Sender::new(0),
            stopping: watch::Sender::new(false),
            denials: Mutex::default(),
        }
    }

    /// Read from the database, off the async threads.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Db<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let store = Arc::clone(&self.store);
        let outcome = tokio::task::spawn_blocking(move || store.read(read)).await;
        outcome
            .map_err(|_| ApiError::internal())?
            .map_err(|error| ApiError::store(&error))
    }

    /// Change the database; the answer comes once it is on disk.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut WriteTx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (sender, receiver) = oneshot::channel();
        self.store.submit(change, move |result| {
            // The request may have been given up; the change stands all the same.
            drop(sender.send(result));
        });
        let result = receiver.await;
        self.ledger.moved();
        match result {
            Ok(result) => result.map_err(|error| ApiError::store(&error)),
            Err(_) => Err(ApiError::store(&StoreError::Stopped)),
        }
    }

    pub(crate) fn is_revoked(&self, token: TokenId) -> bool {
        self.revoked
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&token)
    }

    /// From here on the tokens open nothing. Called once their revocation is on disk.
    pub(crate) fn revoke(&self, tokens: impl IntoIterator<Item = TokenId>) {
        self.revoked
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(tokens);
    }

    /// Some VM is not what it was: look again, you who wait; and the nodes that have work.
    pub(crate) fn vms_changed(&self, wake: impl IntoIterator<Item = NodeId>) {
        self.vms_changed
            .send_modify(|count| *count = count.wrapping_add(1));
        for node in wake {
            self.links.wake(node);
        }
    }

    pub(crate) fn watch_vms(&self) -> watch::Receiver<u64> {
        self.vms_changed.subscribe()
    }

    /// End long polls and waits.
    pub(crate) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Returns once [`App::stop`] was called.
    pub(crate) async fn stopped(&self) {
        let mut stopping = self.stopping.subscribe();
        // An error means that the sender is gone, which is a stop as well.
        drop(stopping.wait_for(|stopping| *stopping).await);
    }

    /// Whether a denial of this source is to be written down, or was one just now.
    pub(crate) fn samples_denial(&self, source: IpAddr) -> bool {
        let now = Instant::now();
        let mut denials = self.denials.lock().unwrap_or_else(PoisonError::into_inner);
        if denials.len() >= MAX_DENIAL_SOURCES {
            denials.retain(|_, at| now.duration_since(*at) < DENIAL_SAMPLE);
        }
        let lately = denials
            .get(&source)
            .is_some_and(|at| now.duration_since(*at) < DENIAL_SAMPLE);
        if !lately && denials.len() < MAX_DENIAL_SOURCES {
            denials.insert(source, now);
        }
        !lately
    }
}
