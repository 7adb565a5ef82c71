//! Names and keys that targets and seeds share: a seed's signature holds in the target.

use berth_api::ids::{ControllerId, NodeId, TenantId};

/// Seed of the key that signs tasks.
pub const TASK_KEY_SEED: [u8; 32] = [7; 32];
/// Seed of the key that mints tokens.
pub const ROOT_KEY_SEED: [u8; 32] = [8; 32];
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
