//! What there is, counted for whoever watches the controller.
//!
//! Read only. The numbers are those of one moment; nothing is decided by them.

use std::collections::BTreeMap;

use berth_api::slot::SlotState;
use berth_controller_core::liveness::Liveness;
use berth_controller_core::quota::QuotaScope;

use crate::error::StoreError;
use crate::rows::parsed;
use crate::slots::SlotFilter;
use crate::store::Db;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// VMs that are not deleted, by tenant and state.
    pub vms: BTreeMap<(String, String), u64>,
    /// VMs that should have left their state by now, by state.
    pub overdue_vms: BTreeMap<String, u64>,
    /// Slots by class and state.
    pub slots: BTreeMap<(String, SlotState), u64>,
    /// Nodes by what is heard of them.
    pub nodes: BTreeMap<&'static str, u64>,
    /// Tasks that no host has answered, by kind.
    pub pending_tasks: BTreeMap<String, u64>,
    /// Quotas of tenants that are not deleted.
    pub quotas: Vec<QuotaGauge>,
}

/// One resource of one tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaGauge {
    /// Whose.
    pub tenant: String,
    /// Of what, such as `vms` or `slots.gpu.h100`.
    pub resource: String,
    /// How much the tenant may have at this moment; `None` if there is no ceiling.
    pub limit: Option<u64>,
    /// How much it has.
    pub used: u64,
}

impl Db<'_> {
    /// Count what there is.
    pub fn gauges(&self) -> Result<Gauges, StoreError> {
        let mut gauges = Gauges {
            vms: self.grouped(
                "SELECT tenant_id, state, COUNT(*) FROM vm WHERE state <> 'deleted'
                 GROUP BY tenant_id, state",
                |row| Ok((row.get(0)?, row.get(1)?)),
                2,
            )?,
            overdue_vms: self.overdue_by_state()?,
            pending_tasks: self.grouped(
                "SELECT kind, COUNT(*) FROM (SELECT kind FROM task WHERE state = 'pending'
                 UNION ALL SELECT kind FROM slot_task WHERE state = 'pending') AS pending
                 GROUP BY kind",
                |row| row.get(0),
                1,
            )?,
            quotas: self.quota_gauges()?,
            ..Gauges::default()
        };
        let every_slot = SlotFilter {
            limit: u32::MAX,
            ..SlotFilter::default()
        };
        for slot in self.slots(&every_slot)? {
            *gauges.slots.entry((slot.class, slot.state)).or_default() += 1;
        }
        let mut syncs = self.conn.prepare_cached("SELECT last_sync_at FROM node")?;
        for last in syncs.query_map([], |row| row.get::<_, Option<i64>>(0))? {
            let liveness = Liveness::judge(last?, self.now);
            *gauges.nodes.entry(liveness.as_str()).or_default() += 1;
        }
        Ok(gauges)
    }

    fn overdue_by_state(&self) -> Result<BTreeMap<String, u64>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT state, COUNT(*) FROM vm
             WHERE state_deadline IS NOT NULL AND state_deadline < ?1 GROUP BY state",
        )?;
        let rows = select.query_map((self.now,), |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn grouped<K: Ord>(
        &self,
        sql: &str,
        key: impl Fn(&crate::sql::Row<'_>) -> crate::sql::Result<K>,
        count_at: usize,
    ) -> Result<BTreeMap<K, u64>, StoreError> {
        let mut select = self.conn.prepare_cached(sql)?;
        let rows = select.query_map([], |row| Ok((key(row)?, row.get(count_at)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn quota_gauges(&self) -> Result<Vec<QuotaGauge>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT tenant_id FROM tenant WHERE deleted_at IS NULL ORDER BY tenant_id",
        )?;
        let tenants: Vec<String> = select
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let mut gauges = Vec::new();
        for tenant in tenants {
            let scope = QuotaScope {
                tenant: parsed(&tenant, "tenant id")?,
                project: None,
            };
            gauges.extend(
                self.counters(&scope)?
                    .into_iter()
                    .map(|counter| QuotaGauge {
                        tenant: tenant.clone(),
                        resource: counter.resource.name(),
                        limit: counter.limit,
                        used: counter.used,
                    }),
            );
        }
        Ok(gauges)
    }
}
