//! What would become of a VM: the same checks and the same placement as when it is made, and nothing
//! that stays.

use std::collections::BTreeMap;

use berth_api::ids::TenantId;
use berth_api::rest::NodeVerdict;
use berth_controller_core::placement::Placement;
use berth_controller_core::quota::Resource;
use berth_controller_core::shape::Shape;

use crate::error::StoreError;
use crate::store::Db;
use crate::vm_create::CreateVmDenied;

/// What would become of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedVm {
    /// Its root disk, in GiB; `None` if the request is refused before that is known.
    pub disk_gb: Option<u32>,
    /// What it would be charged for.
    pub charges: BTreeMap<String, u64>,
    /// Where it would go, `None` if it would wait for a node that is silent; or why it is refused.
    pub outcome: Result<Option<Placement>, CreateVmDenied>,
    /// The zone of the node where it would go.
    pub zone: Option<String>,
    /// How many nodes there are, and what is said of the first of them; for operators, if asked for.
    pub verdicts: Option<(u32, Vec<NodeVerdict>)>,
}

impl PlannedVm {
    fn refused_early(denied: CreateVmDenied) -> Self {
        Self {
            disk_gb: None,
            charges: BTreeMap::new(),
            outcome: Err(denied),
            zone: None,
            verdicts: None,
        }
    }
}

impl Db<'_> {
    /// What would become of a request now: where the VM would go, with nothing charged or stored.
    /// `is_explained`: with what is said of each node, which is operators' to know.
    pub fn plan_vm(
        &self,
        tenant: &TenantId,
        shape: &Shape,
        is_explained: bool,
    ) -> Result<PlannedVm, StoreError> {
        let wanted = match self.wanted(tenant, shape)? {
            Ok(wanted) => wanted,
            Err(denied) => return Ok(PlannedVm::refused_early(denied)),
        };
        let mut admitted = self.would_admit(tenant, &shape.project, &wanted.amounts)?;
        let mut charges: BTreeMap<String, u64> = wanted
            .amounts
            .iter()
            .map(|(resource, amount)| (resource.name(), *amount))
            .collect();
        if shape.guest_token {
            charges.insert(Resource::Tokens.name(), 1);
            if admitted.is_ok() {
                admitted = self.would_admit_token(tenant)?;
            }
        }
        let outcome = match admitted {
            Ok(()) => self.place_now(tenant, shape, &wanted)?,
            Err(denied) => Err(denied.into()),
        };
        let zone = match &outcome {
            Ok(Some(placement)) => self.node(placement.node_id)?.and_then(|node| node.zone),
            Ok(None) | Err(_) => None,
        };
        let verdicts = if is_explained {
            let demand = wanted.demand(tenant, shape);
            Some(self.node_verdicts(wanted.image_or_none(), &demand)?)
        } else {
            None
        };
        Ok(PlannedVm {
            disk_gb: Some(wanted.disk_gb),
            charges,
            outcome,
            zone,
            verdicts,
        })
    }
}
