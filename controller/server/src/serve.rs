//! `serve`: open everything, listen, tell systemd, serve until told to stop.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use berth_controller_store::Store;
use berth_token::RootKey;
use object_store::local::LocalFileSystem;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

use crate::anchor::AnchorError;
use crate::app::{App, Parts};
use crate::config::{Config, PublishConfig};
use crate::identity::IdentityProvider;
use crate::ledger_desk::LedgerDesk;
use crate::listener::{self, DEFAULT_LISTEN, ListenError};
use crate::offline::{StateDir, say_error};
use crate::prices::ClassPrices;
use crate::publisher::Publisher;
use crate::sizes::Sizes;
use crate::tiers::Tiers;
use crate::tls::{Tls, TlsError, TlsFiles};
use crate::witnesses::Witnesses;
use crate::{
    door, expiry, follow, http, ledger_key_changes, logging, overdue, recount, token_book,
};

/// `EX_CONFIG` of sysexits.h: a restart would not help.
const EXIT_CONFIG: u8 = 78;
/// How long open requests may take to end after a stop was asked for.
const STOP_PATIENCE: Duration = Duration::from_secs(4);

/// Options of `serve`.
#[derive(clap::Args, Debug)]
pub(crate) struct ServeOptions {
    /// Address to listen on when systemd passes no socket; port 0 picks a free one.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Write the bound port into this file once the API answers.
    #[arg(long)]
    port_file: Option<PathBuf>,
}

/// Serve until SIGTERM or SIGINT.
pub(crate) fn run(
    state: &StateDir,
    config: Config,
    options: &ServeOptions,
) -> anyhow::Result<ExitCode> {
    logging::install()?;
    let (tiers, sizes, class_prices) = match offer_of(&config) {
        Ok(offer) => offer,
        Err(error) => {
            say_error(&error);
            return Ok(ExitCode::from(EXIT_CONFIG));
        }
    };
    let identity = match identity_of(&config) {
        Ok(identity) => identity,
        Err(error) => {
            say_error(&error);
            return Ok(ExitCode::from(EXIT_CONFIG));
        }
    };
    let default = DEFAULT_LISTEN.parse().context("the default address")?;
    let wanted = options.listen.or(config.listen).unwrap_or(default);
    let tls = match tls_of(&config) {
        Ok(tls) => tls,
        Err(error) => {
            say_error(&error.into());
            return Ok(ExitCode::from(EXIT_CONFIG));
        }
    };
    let listener = match listener::open(wanted, tls.is_some()) {
        Ok(listener) => listener,
        Err(error @ ListenError::NotLoopback { .. }) => {
            say_error(&error.into());
            return Ok(ExitCode::from(EXIT_CONFIG));
        }
        Err(error @ ListenError::Bind { .. }) => return Err(error.into()),
    };
    let scheme = if tls.is_some() { "https" } else { "http" };
    let address = listener.local_addr()?;
    let (keys, store) = state.open()?;
    let store = Arc::new(store);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    // Before the anchor is made from this database.
    let publisher = match runtime.block_on(publisher_of(config.publish.as_ref(), &store)) {
        Ok(publisher) => publisher,
        Err(error) => {
            say_error(&error);
            return Ok(ExitCode::from(EXIT_CONFIG));
        }
    };
    let anchor = state.anchor(&config);
    let witnesses = match Witnesses::open(&config.ledger.witnesses, config.ledger.witness_quorum) {
        Ok(witnesses) => witnesses,
        Err(error) => {
            say_error(&error);
            return Ok(ExitCode::from(EXIT_CONFIG));
        }
    };
    let ledger = match LedgerDesk::open(Arc::clone(&store), anchor, witnesses) {
        Ok(ledger) => ledger,
        Err(error) => {
            say_error(&error.into());
            return Ok(ExitCode::from(EXIT_CONFIG));
        }
    };
    let app = Arc::new(App::new(Parts {
        root_key: RootKey::new(&keys.token, store.controller_id())?,
        previous_token_key: keys.previous_token.map(|key| key.public()),
        revoked: store.read(|db| db.revocations_since(0))?,
        ledger_key_changes: ledger_key_changes::of(&store)?,
        rate_limits: config.rate_limits,
        task_key: keys.task,
        public_url: config
            .public_url
            .unwrap_or_else(|| format!("{scheme}://{address}")),
        tiers,
        sizes,
        class_prices,
        identity,
        store,
        ledger,
        publisher,
    }));
    let served = runtime.block_on(serve(app, listener, tls, options.port_file.as_deref()));
    // Reads still on blocking threads hold nothing that a kill could harm.
    runtime.shutdown_background();
    match served {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // A restart would be refused for the same reason.
        Err(error) if error.is::<AnchorError>() => {
            say_error(&error);
            Ok(ExitCode::from(EXIT_CONFIG))
        }
        Err(error) => Err(error),
    }
}

/// Where the log is published. A copy that is newer than the database keeps it from being served; one that
/// cannot be read does not.
async fn publisher_of(
    config: Option<&PublishConfig>,
    store: &Arc<Store>,
) -> anyhow::Result<Option<Publisher>> {
    let Some(config) = config else {
        return Ok(None);
    };
    let folder = LocalFileSystem::new_with_prefix(&config.folder).with_context(|| {
        let folder = config.folder.display();
        format!("[publish] folder: {folder} must be a folder that the service may enter")
    })?;
    // A checkpoint must not survive a power cut that what it covers does not survive.
    let folder = folder.with_fsync(true).with_automatic_cleanup(true);
    let every = Duration::from_secs(u64::from(config.every_seconds.max(1)));
    let publisher = Publisher::new(Arc::new(folder), every);
    match publisher.check(store).await {
        Err(error) if error.is_rollback() => return Err(error.into()),
        Err(error) => {
            let cause = anyhow::Error::new(error);
            tracing::error!("the published log could not be read: {cause:#}");
        }
        Ok(()) => {}
    }
    Ok(Some(publisher))
}

/// Follow the ledger's desk with the public copy.
async fn publish(app: Arc<App>) {
    if let Some(publisher) = &app.publisher {
        publisher.run(&app.store, || app.ledger.shown()).await;
    }
}

/// Who says who people are, if the settings name anybody.
fn identity_of(config: &Config) -> anyhow::Result<Option<IdentityProvider>> {
    let named = config.identity_provider.as_ref();
    named
        .map(IdentityProvider::open)
        .transpose()
        .context("[identity_provider]")
}

/// What tenants can have by name, and what it costs.
fn offer_of(config: &Config) -> anyhow::Result<(Tiers, Sizes, ClassPrices)> {
    Ok((
        Tiers::new(config.tiers.clone(), config.default_tier.clone())?,
        Sizes::new(config.sizes.clone())?,
        ClassPrices::new(config.slot_classes.clone())?,
    ))
}

/// The identity that the settings or systemd's credentials name, if any.
fn tls_of(config: &Config) -> Result<Option<Arc<Tls>>, TlsError> {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let files = TlsFiles::find(
        config.tls_certificate.clone(),
        config.tls_key.clone(),
        credentials.as_deref(),
    )?;
    Ok(files.map(Tls::open).transpose()?.map(Arc::new))
}

async fn serve(
    app: Arc<App>,
    listener: std::net::TcpListener,
    tls: Option<Arc<Tls>>,
    port_file: Option<&Path>,
) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let address = listener.local_addr()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let router = http::router(Arc::clone(&app));
    let mut server = tokio::spawn(door::serve(listener, tls.clone(), router, Arc::clone(&app)));
    if let Some(path) = port_file {
        listener::write_port_file(path, address)
            .with_context(|| format!("could not write {}", path.display()))?;
    }
    notify(&[NotifyState::Ready]);
    tracing::info!(%address, controller = %app.store.controller_id(), "serving");
    let watchdog = tokio::spawn(feed_watchdog(Arc::clone(&app)));
    let follower = tokio::spawn(follow::follow(Arc::clone(&app)));
    let overdue = tokio::spawn(overdue::watch(Arc::clone(&app)));
    let expiry = tokio::spawn(expiry::watch(Arc::clone(&app)));
    let book = tokio::spawn(token_book::keep(Arc::clone(&app)));
    let recount = tokio::spawn(recount::every_day(Arc::clone(&app)));
    let shown = Arc::clone(&app);
    let mut ledger = tokio::spawn(async move { shown.ledger.run().await });
    let publication = tokio::spawn(publish(Arc::clone(&app)));
    let asking = Arc::clone(&app);
    let witnesses = tokio::spawn(async move { asking.ledger.ask_witnesses().await });
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => renew(tls.as_deref()),
            ended = &mut server => {
                ended?;
                anyhow::bail!("the HTTP server ended by itself");
            }
            ended = &mut ledger => {
                return Err(ended?.into());
            }
        }
    }
    notify(&[NotifyState::Stopping]);
    tracing::info!("stopping");
    watchdog.abort();
    follower.abort();
    overdue.abort();
    expiry.abort();
    recount.abort();
    ledger.abort();
    publication.abort();
    witnesses.abort();
    app.stop();
    match tokio::time::timeout(STOP_PATIENCE, &mut server).await {
        Ok(ended) => ended?,
        Err(_) => {
            tracing::warn!("some requests did not end in time");
            server.abort();
        }
    }
    // It ends with the stop, after its last write.
    book.await?;
    Ok(())
}

/// Read certificate and key anew, as SIGHUP asks for.
fn renew(tls: Option<&Tls>) {
    match tls.map(Tls::renew) {
        None => tracing::info!("nothing to read anew: there is no certificate"),
        Some(Ok(())) => tracing::info!("certificate and key were read anew"),
        Some(Err(error)) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "certificate and key could not be read; the old ones go on"
            );
        }
    }
}

/// Tell systemd that we live, for as long as the database answers.
async fn feed_watchdog(app: Arc<App>) {
    let mut microseconds = 0;
    if !sd_notify::watchdog_enabled(false, &mut microseconds) {
        return;
    }
    let mut ticks = tokio::time::interval(Duration::from_micros(microseconds / 3));
    loop {
        ticks.tick().await;
        let store = Arc::clone(&app.store);
        // Not by the way that changes take: where a witness has ended those, a restart would not help.
        let written = tokio::task::spawn_blocking(move || store.write(|_| Ok(()))).await;
        if matches!(written, Ok(Ok(()))) {
            notify(&[NotifyState::Watchdog]);
        }
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, state) {
        tracing::warn!(%error, "could not tell systemd");
    }
}
