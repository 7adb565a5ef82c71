//! What the store's own tests begin with: a database in a folder that goes with them, and plain tenants.

use std::collections::BTreeMap;
use std::path::PathBuf;

use berth_controller_core::quota::Ceilings;
use berth_ledger::keys::SigningKey;

use crate::store::{Keys, Store};
use crate::tenants::{NewTenant, TenantProfile};

/// Always the same.
pub(crate) fn keys() -> Keys {
    Keys {
        ledger: SigningKey::from_seed(&[1; 32]).unwrap(),
        task: SigningKey::from_seed(&[2; 32]).unwrap(),
    }
}

pub(crate) fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let path = database_in(&folder);
    Store::init(&path).unwrap();
    let store = Store::open(&path, keys()).unwrap();
    (folder, store)
}

fn database_in(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("berth.db")
}

/// A tenant with a ceiling for VMs and room for whatever they hold.
pub(crate) fn new_tenant(id: &str, max_vms: u32) -> NewTenant {
    NewTenant {
        tenant_id: id.parse().unwrap(),
        display_name: id.to_owned(),
        max_vms,
        storage_quota_gb: 1000,
        api_rate_limit_rpm: 1,
        slot_limits: BTreeMap::new(),
        ceilings: Ceilings::new(),
        profile: TenantProfile::default(),
    }
}
