//! Names and keys that targets and seeds share: a seed's signature holds in the target.

use berth_api::ids::{ControllerId, NodeId, TenantId};
use berth_ledger::keys::SigningKey;
use berth_token::{NewLink, RootKey, Scope, ScopeSet, SubjectKey};

/// Seed of the key that signs tasks.
pub const TASK_KEY_SEED: [u8; 32] = [7; 32];
/// Seed of the key that mints tokens.
pub const ROOT_KEY_SEED: [u8; 32] = [8; 32];
/// Seeds of the keys of those who hold a chain's links, the root link's first.
pub const HOLDER_SEEDS: [[u8; 32]; 4] = [[9; 32], [10; 32], [11; 32], [12; 32]];
/// The epoch of [`node_id`].
pub const NODE_EPOCH: u64 = 1;
/// The clock, in seconds since the epoch.
pub const NOW: i64 = 1_800_000_000;

/// The node that tasks are for.
///
/// # Panics
/// If this text is no id any more.
#[must_use]
pub fn node_id() -> NodeId {
    "node_01h455vb4pex5vsknk084sn02q"
        .parse()
        .expect("it is an id")
}

/// The owner of the VM that the agent knows.
///
/// # Panics
/// If this text is no id any more.
#[must_use]
pub fn tenant_id() -> TenantId {
    "acme".parse().expect("it is an id")
}

/// The controller that tokens are for.
///
/// # Panics
/// If this text is no id any more.
#[must_use]
pub fn controller_id() -> ControllerId {
    "ctl_01h455vb4pex5vsknk084sn02q"
        .parse()
        .expect("it is an id")
}

/// The key of one who holds a link.
///
/// # Panics
/// If this seed is no key any more.
#[must_use]
pub fn holder(seed: &[u8; 32]) -> SubjectKey {
    let key = SigningKey::from_seed(seed).expect("a seed is a key");
    SubjectKey::from_bytes(key.public().as_bytes()).expect("it is no small point")
}

/// A good token of a tenant's administrator, held by the first of [`HOLDER_SEEDS`].
///
/// # Panics
/// If it cannot be minted any more.
#[must_use]
pub fn root_token() -> String {
    let key = SigningKey::from_seed(&ROOT_KEY_SEED).expect("a seed is a key");
    let root = RootKey::new(&key, controller_id()).expect("the key can mint");
    root.mint(&NewLink {
        token_id: "tok_01h455vb4pex5vsknk084sn02q"
            .parse()
            .expect("it is an id"),
        tenant: Some(tenant_id()),
        holder: holder(&HOLDER_SEEDS[0]),
        scopes: ScopeSet::new([Scope::TenantAdmin]).expect("one scope is a set"),
        resources: None,
        not_before: NOW,
        expires_at: NOW + 60,
        delegations: 3,
        requires_pop: false,
    })
    .expect("the link is in order")
}
