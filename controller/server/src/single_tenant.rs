//! `init --single-tenant`: all that somebody needs who shares with nobody. It is one tenant like any other,
//! and every rule holds for it.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use berth_api::ids::TenantId;
use berth_controller_core::quota::Ceilings;
use berth_controller_store::{CreateTenantDenied, NewTenant, Store, TenantProfile};
use berth_token::{RootKey, Scope};
use serde::Serialize;

use crate::config::Config;
use crate::join_tokens::{self, Wanted};
use crate::keys::{KeyRing, write};
use crate::listener::DEFAULT_LISTEN;
use crate::offline::{StateDir, at_the_console, mint};
use crate::tiers::Tiers;

/// The one tenant.
const TENANT: &str = "default";
/// Its ceilings, which `berthctl tenant update` changes: no tenant is without.
const MAX_VMS: u32 = 1_000;
const STORAGE_QUOTA_GB: u32 = 100_000;
const API_RATE_LIMIT_RPM: u32 = 6_000;
/// How long its administrator's token is good: as long as a tenant's token can be.
const TOKEN_DAYS: u16 = 30;
/// A token that ends within this many seconds is made anew.
const RENEWED_BEFORE_S: i64 = 7 * 86_400;
/// How long a join token is good: as long as one can be.
const JOIN_TOKEN_S: u64 = 86_400;

/// What there is for the one tenant. The files hold secrets; this does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct SingleTenant {
    tenant_id: TenantId,
    token_file: PathBuf,
    join_token_file: PathBuf,
}

impl fmt::Display for SingleTenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "tenant: {}\nits administrator's token: {}\njoin token for a host: {}",
            self.tenant_id,
            self.token_file.display(),
            self.join_token_file.display()
        )
    }
}

/// Make what is missing of it, and what has expired. Repeatable.
pub(crate) fn ensure(state: &StateDir, config: &Config) -> anyhow::Result<SingleTenant> {
    let (keys, store) = state.open()?;
    let made = SingleTenant {
        tenant_id: TENANT.parse().context("the tenant's id")?,
        token_file: state.file("tenant.token"),
        join_token_file: state.file("join.token"),
    };
    ensure_tenant(&store, config, &made.tenant_id)?;
    ensure_token(&keys, &store, &made)?;
    ensure_join_token(&store, config, &made.join_token_file)?;
    Ok(made)
}

fn ensure_tenant(store: &Store, config: &Config, id: &TenantId) -> anyhow::Result<()> {
    let wanted = id.clone();
    if store.read(move |db| db.tenant(&wanted))?.is_some() {
        return Ok(());
    }
    let tiers = Tiers::new(config.tiers.clone(), config.default_tier.clone())?;
    let tier = tiers.named(None).context("the default tier")?;
    let new = NewTenant {
        tenant_id: id.clone(),
        display_name: "Default".to_owned(),
        max_vms: MAX_VMS,
        storage_quota_gb: STORAGE_QUOTA_GB,
        api_rate_limit_rpm: API_RATE_LIMIT_RPM,
        slot_limits: std::collections::BTreeMap::new(),
        ceilings: Ceilings::new(),
        profile: TenantProfile {
            tier: tier.clone(),
            ..TenantProfile::default()
        },
    };
    match store.write(move |tx| tx.create_tenant(new, &at_the_console()))? {
        Ok(_) | Err(CreateTenantDenied::Exists(_)) => Ok(()),
        Err(denied @ CreateTenantDenied::Tombstone(_)) => bail!("{denied}"),
    }
}

fn ensure_token(keys: &KeyRing, store: &Store, made: &SingleTenant) -> anyhow::Result<()> {
    let verifier = RootKey::new(&keys.token, store.controller_id())?.verifier();
    let now = jiff::Timestamp::now().as_second();
    let is_good = written(&made.token_file)?.is_some_and(|token| {
        let grant = verifier.verify(token.trim(), now);
        grant.is_ok_and(|grant| grant.expires_at.saturating_sub(now) > RENEWED_BEFORE_S)
    });
    if is_good {
        return Ok(());
    }
    let tenant = Some(made.tenant_id.clone());
    let token = mint(keys, store, tenant, TOKEN_DAYS, Scope::TenantAdmin)?;
    write(&made.token_file, token.as_bytes())
}

fn ensure_join_token(store: &Store, config: &Config, path: &Path) -> anyhow::Result<()> {
    let now = jiff::Timestamp::now().as_second();
    let end = written(path)?.and_then(|token| join_tokens::end_of(&token));
    if end.is_some_and(|end| end > now) {
        return Ok(());
    }
    let (new, issued) = join_tokens::fresh(Wanted {
        public_url: &public_url(config),
        node_name: None,
        owner: None,
        lifetime_s: JOIN_TOKEN_S,
    })?;
    store.write(move |tx| tx.add_join_token(&new, &at_the_console()))??;
    write(path, issued.token.as_bytes())
}

/// Where the controller will answer, as far as its settings tell.
fn public_url(config: &Config) -> String {
    let scheme = match config.tls_certificate {
        Some(_) => "https",
        None => "http",
    };
    config.public_url.clone().unwrap_or_else(|| {
        let address = config
            .listen
            .map_or_else(|| DEFAULT_LISTEN.to_owned(), |address| address.to_string());
        format!("{scheme}://{address}")
    })
}

fn written(path: &Path) -> anyhow::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("could not read {}", path.display())),
    }
}
