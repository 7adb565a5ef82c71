//! What all requests share.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use berth_api::agent::SignedEnvelope;
use berth_api::ids::{NodeId, TenantId};
use berth_controller_store::{Db, Revoked, Store, StoreError, WriteTx};
use berth_ledger::keys::{PublicKey, SigningKey};
use berth_token::{RootKey, TokenVerifier};
use tokio::sync::{oneshot, watch};

use crate::api_error::ApiError;
use crate::console_desk::ConsoleDesk;
use crate::follow::Freshness;
use crate::identity::IdentityProvider;
use crate::ledger_desk::LedgerDesk;
use crate::metrics::Metrics;
use crate::node_links::NodeLinks;
use crate::prices::ClassPrices;
use crate::publisher::Publisher;
use crate::rates::{RateLimits, Rates};
use crate::sizes::Sizes;
use crate::streams::Streams;
use crate::tiers::Tiers;
use crate::token_book::{self, TokenBook};
use crate::turns::Turns;

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
    pub(crate) sizes: Sizes,
    pub(crate) class_prices: ClassPrices,
    pub(crate) identity: Option<IdentityProvider>,
    pub(crate) links: NodeLinks,
    pub(crate) console: ConsoleDesk,
    pub(crate) freshness: Freshness,
    pub(crate) streams: Streams,
    pub(crate) turns: Turns,
    pub(crate) ledger: LedgerDesk,
    pub(crate) publisher: Option<Publisher>,
    /// How the ledger's key came to be the one that it is, for hosts that know an older one.
    pub(crate) ledger_key_changes: Vec<SignedEnvelope>,
    pub(crate) tokens: TokenBook,
    pub(crate) metrics: Metrics,
    vms_changed: watch::Sender<u64>,
    stopping: watch::Sender<bool>,
    denials: Mutex<HashMap<IpAddr, Instant>>,
}

/// What an [`App`] is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) store: Arc<Store>,
    pub(crate) ledger: LedgerDesk,
    pub(crate) publisher: Option<Publisher>,
    pub(crate) root_key: RootKey,
    pub(crate) task_key: SigningKey,
    pub(crate) public_url: String,
    pub(crate) tiers: Tiers,
    pub(crate) sizes: Sizes,
    pub(crate) class_prices: ClassPrices,
    pub(crate) identity: Option<IdentityProvider>,
    /// The root key before this one, for as long as its tokens count.
    pub(crate) previous_token_key: Option<PublicKey>,
    pub(crate) revoked: Vec<(Option<TenantId>, Revoked)>,
    pub(crate) rate_limits: RateLimits,
    pub(crate) ledger_key_changes: Vec<SignedEnvelope>,
}

impl App {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            store: parts.store,
            verifier: parts
                .root_key
                .verifier()
                .with_previous(parts.previous_token_key),
            ledger: parts.ledger,
            publisher: parts.publisher,
            root_key: parts.root_key,
            task_key: parts.task_key,
            public_url: parts.public_url,
            rates: Rates::new(parts.rate_limits),
            tiers: parts.tiers,
            sizes: parts.sizes,
            class_prices: parts.class_prices,
            identity: parts.identity,
            links: NodeLinks::default(),
            console: ConsoleDesk::default(),
            freshness: Freshness::new(),
            ledger_key_changes: parts.ledger_key_changes,
            tokens: TokenBook::new(parts.revoked),
            metrics: Metrics::new(),
            streams: Streams::default(),
            turns: Turns::default(),
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
        if !self.freshness.is_enough() {
            return Err(ApiError::revocations_unknown());
        }
        if self.ledger.is_contradicted() {
            return Err(ApiError::ledger_contradicted());
        }
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

    /// Whether another controller changed the database since this was last asked.
    pub(crate) async fn have_others_written(&self) -> Result<bool, ApiError> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || store.have_others_written())
            .await
            .map_err(|_| ApiError::internal())?
            .map_err(|error| ApiError::store(&error))
    }

    /// Take in what another controller may have changed: revocations, and news for all who wait.
    pub(crate) async fn catch_up(&self) -> Result<(), ApiError> {
        token_book::refresh(self).await?;
        self.vms_changed([]);
        self.links.wake_all();
        Ok(())
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
