//! The subcommands that work on the state directory without serving.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use berth_api::ids::{ControllerId, TenantId, TokenId};
use berth_api::rest::AuditActor;
use berth_controller_store::{Cause, Database, Keys, NewEvent, NewTokenRecord, Store};
use berth_ledger::keys::SigningKey;
use berth_token::{MAX_DELEGATIONS, NewLink, RootKey, Scope, ScopeSet, SubjectKey};
use serde::Serialize;

use crate::anchor::Anchor;
use crate::config::Config;
use crate::keys::{self, KeyRing, private_folder, write_once};
use crate::ledger_key_changes;
use crate::single_tenant::{self, SingleTenant};

/// How long the first administrator token is valid, in days.
const FIRST_TOKEN_DAYS: u16 = 365;
const SECONDS_PER_DAY: i64 = 86_400;

/// The controller's state directory, what is where in it, and its database.
#[derive(Clone, Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    database: Database,
}

impl StateDir {
    pub(crate) fn new(path: PathBuf, database: Database) -> Self {
        Self { path, database }
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn keys(&self) -> PathBuf {
        self.path.join("keys")
    }

    fn admin_token(&self) -> PathBuf {
        self.file("admin.token")
    }

    /// A file beside the database.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where the newest checkpoint is kept.
    pub(crate) fn anchor(&self, config: &Config) -> Anchor {
        let path = config.ledger.anchor.clone();
        Anchor::at(path.unwrap_or_else(|| self.path.join("anchor").join("checkpoint")))
    }

    /// Read the keys and open the database.
    pub(crate) fn open(&self) -> anyhow::Result<(KeyRing, Store)> {
        let keys = KeyRing::read(&self.keys())?;
        let signing = Keys {
            ledger: SigningKey::from_seed(keys.ledger.seed())?,
            task: SigningKey::from_seed(keys.task.seed())?,
        };
        let previous = keys.previous_ledger.as_ref();
        let previous = previous.map(|key| SigningKey::from_seed(key.seed()));
        let store = Store::open_overlapping(&self.database, signing, previous.transpose()?)?;
        Ok((keys, store))
    }
}

/// Options of `init`.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct InitOptions {
    /// Also make the tenant `default`, a token of its administrator and a join token, for those who share
    /// with nobody; what has expired of it is made anew
    #[arg(long)]
    single_tenant: bool,
    /// Say what there is as JSON
    #[arg(long)]
    json: bool,
}

/// What `init` says.
#[derive(Debug, Serialize)]
struct Ready<'s> {
    controller_id: ControllerId,
    state_dir: &'s Path,
    admin_token_file: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<SingleTenant>,
}

/// Make what is missing. Repeatable: what exists stays as it is.
pub(crate) fn init(
    state: &StateDir,
    config: &Config,
    options: &InitOptions,
) -> anyhow::Result<ExitCode> {
    private_folder(state.path())?;
    KeyRing::ensure(&state.keys())?;
    let id = Store::init(&state.database)?;
    if !state.admin_token().exists() {
        let (keys, store) = state.open()?;
        let token = mint_operator(&keys, &store, FIRST_TOKEN_DAYS, Scope::PlatformAdmin)?;
        write_once(&state.admin_token(), token.as_bytes())?;
    }
    let ready = Ready {
        controller_id: id,
        state_dir: state.path(),
        admin_token_file: state.admin_token(),
        tenant: options
            .single_tenant
            .then(|| single_tenant::ensure(state, config))
            .transpose()?,
    };
    if options.json {
        say(&serde_json::to_string_pretty(&ready)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!(
        "controller {id} is ready in {}\nadministrator token: {}",
        state.path().display(),
        ready.admin_token_file.display()
    ))?;
    if let Some(tenant) = &ready.tenant {
        say(&tenant.to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Mint one more operator's token and print it.
pub(crate) fn admin_token(state: &StateDir, days: u16, scope: Scope) -> anyhow::Result<ExitCode> {
    let (keys, store) = state.open()?;
    say(&mint_operator(&keys, &store, days, scope)?)?;
    Ok(ExitCode::SUCCESS)
}

/// The holder of an operator's token is a key that nobody keeps: it is a bearer token.
fn mint_operator(keys: &KeyRing, store: &Store, days: u16, scope: Scope) -> anyhow::Result<String> {
    mint(keys, store, None, days, scope)
}

/// As an operator's; of a tenant if one is named.
pub(crate) fn mint(
    keys: &KeyRing,
    store: &Store,
    tenant: Option<TenantId>,
    days: u16,
    scope: Scope,
) -> anyhow::Result<String> {
    let holder = SubjectKey::from_bytes(SigningKey::generate()?.public().as_bytes())?;
    let now = jiff::Timestamp::now().as_second();
    let link = NewLink {
        token_id: TokenId::generate(),
        tenant: tenant.clone(),
        holder,
        scopes: ScopeSet::new([scope])?,
        resources: None,
        not_before: now,
        expires_at: now.saturating_add(i64::from(days) * SECONDS_PER_DAY),
        delegations: MAX_DELEGATIONS,
        requires_pop: false,
    };
    let token = RootKey::new(&keys.token, store.controller_id())?.mint(&link)?;
    let record = NewTokenRecord {
        token_id: link.token_id,
        tenant_id: tenant,
        scope: link.scopes.to_texts(),
        resources: None,
        requires_pop: false,
        subject_pubkey: holder.to_base64url(),
        label: Some("administrator".to_owned()),
        issued_at_s: link.not_before,
        expires_at_s: link.expires_at,
        vm_id: None,
    };
    let cause = at_the_console();
    store.write(move |tx| tx.record_token(&record, &cause))??;
    Ok(token)
}

/// Whoever may enter the state directory.
pub(crate) fn at_the_console() -> Cause {
    Cause {
        actor: AuditActor {
            kind: "operator".to_owned(),
            token_id: None,
            subject_key: None,
        },
        request: None,
    }
}

/// Make a new root key for tokens; the old one's tokens count until it is dropped.
pub(crate) fn rotate_token_key(state: &StateDir) -> anyhow::Result<ExitCode> {
    let (_, store) = state.open()?;
    keys::rotate_token_key(&state.keys(), |old, new| {
        let detail = [
            ("old", old.to_base64().into()),
            ("new", new.to_base64().into()),
        ];
        record_rotation(&store, "token", detail)
    })?;
    say(
        "The new root key of tokens is in use once the controller was restarted. Tokens of the old \
         one count until `berth-controller keys drop-token` and another restart.",
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Drop the root key before this one.
pub(crate) fn drop_token_key(state: &StateDir) -> anyhow::Result<ExitCode> {
    let (_, store) = state.open()?;
    let dropped = keys::drop_token_key(&state.keys(), |old| {
        record_rotation(&store, "token", [("dropped", old.to_base64().into())])
    })?;
    say(if dropped {
        "The old root key is gone. Its tokens count no longer once the controller was restarted."
    } else {
        "There is no root key before this one."
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Make a new key for the ledger's log. From the next entry on both sign, and what is written of that is
/// the first entry so signed.
pub(crate) fn rotate_ledger_key(state: &StateDir) -> anyhow::Result<ExitCode> {
    let is_new = keys::change_ledger_key(&state.keys())?;
    let (keys, store) = state.open()?;
    let old = keys
        .previous_ledger
        .context("the new key and the old one are the same")?;
    let new = keys.ledger.public();
    // One that broke off between the files and the entry is finished here.
    if !is_new && ledger_key_changes::is_recorded(&store, &new)? {
        bail!(
            "the ledger's key before this one still signs: `berth-controller keys drop-ledger` first"
        );
    }
    let now = jiff::Timestamp::now().as_second();
    let statement = ledger_key_changes::seal_change(&old, &new, now)?;
    let detail = [
        ("old", old.public().to_base64().into()),
        ("new", new.to_base64().into()),
        (ledger_key_changes::MEMBER, serde_json::to_value(statement)?),
    ];
    record_rotation(&store, "ledger", detail)?;
    say(
        "Once the controller was restarted the ledger is signed by the new key and by the old one. Hosts \
         follow by themselves. Give the new one to everybody else who knows the old one (`berthctl --json ledger head` has both), then \
         `berth-controller keys drop-ledger` and another restart.",
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Let the ledger be signed by its new key alone.
pub(crate) fn drop_ledger_key(state: &StateDir) -> anyhow::Result<ExitCode> {
    let (keys, store) = state.open()?;
    let Some(old) = keys.previous_ledger else {
        say("There is no key of the ledger before this one.")?;
        return Ok(ExitCode::SUCCESS);
    };
    let old = old.public().to_base64();
    record_rotation(&store, "ledger", [("dropped", old.into())])?;
    keys::drop_ledger_key(&state.keys())?;
    say("The ledger is signed by its new key alone once the controller was restarted.")?;
    Ok(ExitCode::SUCCESS)
}

fn record_rotation<const N: usize>(
    store: &Store,
    key: &str,
    detail: [(&str, serde_json::Value); N],
) -> anyhow::Result<()> {
    let event = NewEvent {
        event_type: "KEY_ROTATED",
        outcome: "completed",
        detail: [("key", key.to_owned())]
            .into_iter()
            .map(|(name, text)| (name, text.into()))
            .chain(detail)
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        ..NewEvent::default()
    };
    let cause = at_the_console();
    store.write(move |tx| tx.append(event, &cause))?;
    Ok(())
}

/// Check every ledger entry. How far it is goes to standard error, if a person looks there.
pub(crate) fn verify_ledger(state: &StateDir) -> anyhow::Result<ExitCode> {
    let keys = KeyRing::read(&state.keys())?;
    let is_watched = std::io::stderr().is_terminal();
    let progress = |done: u64, all: u64| {
        if is_watched {
            // Nothing depends on it.
            drop(write!(std::io::stderr(), "\r{done} of {all} entries"));
        }
    };
    let entries = Store::inspect(&state.database, |db| {
        Ok(db.verify_log(&keys.ledger.public(), progress))
    })?;
    match entries {
        Ok(count) => {
            say(&format!("the ledger verifies: {count} entries"))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            say_error(&anyhow::Error::new(error).context("the ledger does not verify"));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Begin the next log, which says what is known of the one that ends.
pub(crate) fn new_epoch(
    state: &StateDir,
    config: &Config,
    reason: &str,
) -> anyhow::Result<ExitCode> {
    let anchor = state.anchor(config);
    let (_, store) = state.open()?;
    let last_known = anchor.read()?;
    let head = store.begin_epoch(last_known.as_deref(), reason)?;
    anchor.write(&head.note)?;
    say(&format!(
        "the ledger is {} from here on; the old one keeps what it has",
        head.origin_text()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Count everything that has a counter again.
pub(crate) fn check(state: &StateDir) -> anyhow::Result<ExitCode> {
    let differences = Store::inspect(&state.database, |db| db.check())?;
    if differences.is_empty() {
        say("every counter agrees with its rows")?;
        return Ok(ExitCode::SUCCESS);
    }
    for difference in &differences {
        say(&format!(
            "{}: the counter says {}, its rows say {}",
            difference.counter, difference.stored, difference.counted
        ))?;
    }
    Ok(ExitCode::FAILURE)
}

/// Print the API's document as it is.
pub(crate) fn say_document(document: &str) -> anyhow::Result<ExitCode> {
    say(document.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout().lock(), "{text}").context("could not write to standard output")
}

/// An error with its causes, on standard error.
pub(crate) fn say_error(error: &anyhow::Error) {
    let mut text = String::from("berth-controller");
    for cause in error.chain() {
        text.push_str(": ");
        text.push_str(&cause.to_string());
    }
    // There is nowhere left to complain if standard error is closed.
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}
