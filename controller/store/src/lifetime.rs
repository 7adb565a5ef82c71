//! VMs that end by themselves: at a time that their tenant set, or once they have stopped. The order is
//! the one that a tenant's own deletion gives; its entry says that the controller gave it, and why.

use berth_api::ids::{NodeId, VmId};
use berth_api::rest::StateReason;

use crate::error::StoreError;
use crate::rows::{parsed, parsed_option};
use crate::store::Db;
use crate::writer::WriteTx;

/// VMs that one change ends, so that nobody waits for it long.
const ENDED_AT_ONCE: u32 = 64;

const EXPIRED: &str =
    "FROM vm WHERE expires_at IS NOT NULL AND desired_state <> 'deleted' AND expires_at <= ?1";

/// VMs whose deletion was ordered.
#[derive(Clone, Debug, Default)]
pub struct EndedVms {
    /// Which.
    pub vms: Vec<VmId>,
    /// The nodes that have work now.
    pub wake: Vec<NodeId>,
}

impl Db<'_> {
    /// Whether the time of some VM is over that nobody has ended.
    pub fn has_expired_vms(&self) -> Result<bool, StoreError> {
        Ok(self
            .conn
            .prepare_cached(&format!("SELECT EXISTS (SELECT 1 {EXPIRED})"))?
            .query_row([self.now], |row| row.get(0))?)
    }
}

impl WriteTx<'_> {
    /// Order the deletion of VMs whose time is over, some at a time.
    pub fn end_expired_vms(&mut self) -> Result<EndedVms, StoreError> {
        let sql = format!(
            "SELECT vm_id, node_id {EXPIRED} ORDER BY expires_at, vm_id LIMIT {ENDED_AT_ONCE}"
        );
        let found: Vec<(String, Option<String>)> = self
            .conn
            .prepare_cached(&sql)?
            .query_map([self.now], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let mut ended = EndedVms::default();
        for (vm_id, node) in found {
            let vm_id = parsed(&vm_id, "VM id")?;
            let Some(mut stored) = self.stored_vm(vm_id)? else {
                continue;
            };
            let reason = StateReason {
                code: "ttl_expired".to_owned(),
                message: "its time to live is over".to_owned(),
            };
            self.end_by_itself(&mut stored, reason)?;
            ended.vms.push(vm_id);
            ended.wake.extend(parsed_option::<NodeId>(node, "node id")?);
        }
        Ok(ended)
    }
}

/// When a VM ends that lives so long from now on, in milliseconds since the epoch.
pub(crate) fn expiry_ms(now: i64, ttl_s: u64) -> i64 {
    let ttl_ms = i64::try_from(ttl_s).map_or(i64::MAX, |ttl_s| ttl_s.saturating_mul(1000));
    now.saturating_add(ttl_ms)
}
