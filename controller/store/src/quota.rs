//! Ceilings and charges. The conditional update in [`WriteTx::charge`] is the gate: it holds for any
//! number of controllers, whatever anybody read before.
//!
//! Each charge stands against two rows: the tenant's own, whose scope is empty, and its project's.

use std::collections::BTreeMap;

use berth_api::ids::{ProjectId, TenantId, VmId};
use berth_api::rest::{QuotaOverride, UsageReport};
use berth_controller_core::quota::{
    Ceilings, Counter, QuotaDenied, QuotaScope, Resource, admit, crossed,
};
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::storable;
use crate::ledger::{Cause, NewEvent};
use crate::rows::rfc3339;
use crate::sql::{Value, params_from_iter};
use crate::store::Db;
use crate::tenants::object;
use crate::writer::WriteTx;

const MS_PER_DAY: i64 = 86_400_000;

/// What can be charged in scope `''` and in scope `?2`: what is charged now, and the ceiling. What is counted
/// by day starts anew each day; `?4` is today.
const CHARGEABLE: &str = "SELECT scope, resource,
    CASE WHEN resource = 'creates_per_day' AND day <> ?4 THEN 0 ELSE used END,
    CASE WHEN override_until > ?3 THEN override_ceiling ELSE ceiling END
    FROM quota WHERE tenant_id = ?1 AND scope IN ('', ?2)";

const COUNTERS: &str = "SELECT resource,
    CASE WHEN override_until > ?3 THEN override_ceiling ELSE ceiling END,
    CASE WHEN resource = 'creates_per_day' AND day <> ?4 THEN 0
      WHEN resource = 'tokens' THEN used - (SELECT COUNT(*) FROM token_charge t
        WHERE t.tenant_id = quota.tenant_id AND (?2 = '' OR t.project_id = ?2) AND t.expires_at <= ?3)
      ELSE used END
    FROM quota WHERE tenant_id = ?1 AND scope = ?2";

/// Amounts by resource.
pub(crate) type Amounts = BTreeMap<Resource, u64>;

/// What a VM takes while it is not stopped.
pub(crate) fn running_amounts(vcpus: u32, memory_mb: u64) -> Amounts {
    Amounts::from([
        (Resource::RunningVms, 1),
        (Resource::Vcpus, vcpus.into()),
        (Resource::MemoryMb, memory_mb),
    ])
}

/// Another ceiling for a while.
#[derive(Clone, Debug)]
pub struct NewOverride {
    /// The ceiling.
    pub limit: u64,
    /// Until when, milliseconds since the epoch.
    pub until: i64,
    /// Why.
    pub reason: String,
}

fn scope_text(project: Option<&ProjectId>) -> &str {
    project.map_or("", ProjectId::as_str)
}

/// That a charge reached a share of a ceiling.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    project: Option<String>,
    resource: String,
    percent: u64,
    used: u64,
    limit: u64,
}

/// What is charged for a resource in a scope now, and the ceiling; by scope and the resource's name.
type Chargeable = BTreeMap<(String, String), (u64, Option<u64>)>;

impl Db<'_> {
    /// Ceilings and charges of a tenant or of a project, in the order of [`Resource`]: a class of
    /// slots only where it may be used or is charged.
    pub fn counters(&self, scope: &QuotaScope) -> Result<Vec<Counter>, StoreError> {
        let mut select = self.conn.prepare_cached(COUNTERS)?;
        let rows = select
            .query_map(
                (
                    scope.tenant.as_str(),
                    scope_text(scope.project.as_ref()),
                    self.now,
                    self.today(),
                ),
                |row| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?)),
            )?
            .collect::<Result<Vec<_>, _>>()?;
        let mut counters = rows
            .into_iter()
            .map(|(name, limit, used)| {
                let resource = resource_of(&name)?;
                Ok(Counter {
                    resource,
                    limit,
                    used,
                })
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        counters.retain(|counter| {
            let is_of_slots = matches!(counter.resource, Resource::Slots(_));
            !is_of_slots || counter.limit != Some(0) || counter.used > 0
        });
        counters.sort_by(|a, b| a.resource.cmp(&b.resource));
        Ok(counters)
    }

    /// Ceilings as they were set, without overrides.
    pub(crate) fn ceilings(&self, scope: &QuotaScope) -> Result<Ceilings, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT resource, ceiling FROM quota WHERE tenant_id = ?1 AND scope = ?2",
        )?;
        let rows = select.query_map(
            (scope.tenant.as_str(), scope_text(scope.project.as_ref())),
            |row| Ok((row.get::<_, String>(0)?, row.get(1)?)),
        )?;
        rows.map(|row| {
            let (name, ceiling) = row?;
            Ok((resource_of(&name)?, ceiling))
        })
        .collect()
    }

    /// How much of each charge is for VMs that were accepted and have not run yet.
    fn reserved(&self, scope: &QuotaScope) -> Result<BTreeMap<String, u64>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT c.resource, CAST(SUM(c.amount) AS BIGINT) FROM vm JOIN charge c ON c.vm_id = vm.vm_id
             WHERE vm.tenant_id = ?1 AND (?2 = '' OR vm.project_id = ?2)
             AND vm.state IN ('pending', 'scheduling', 'provisioning')
             GROUP BY c.resource",
        )?;
        let rows = select.query_map(
            (scope.tenant.as_str(), scope_text(scope.project.as_ref())),
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// What a tenant or a project is charged for; `None` if there is no such tenant or project.
    pub fn usage(&self, scope: &QuotaScope) -> Result<Option<UsageReport>, StoreError> {
        let is_there = match &scope.project {
            None => self.tenant_standing(&scope.tenant)?.is_some(),
            Some(project) => self.has_project(&scope.tenant, project)?,
        };
        if !is_there {
            return Ok(None);
        }
        let reserved = self.reserved(scope)?;
        let counters = self.counters(scope)?;
        let items: Vec<_> = counters
            .iter()
            .map(|counter| {
                let on_the_way = reserved.get(&counter.resource.name());
                counter.to_usage(on_the_way.copied().unwrap_or(0))
            })
            .collect();
        Ok(Some(UsageReport {
            tenant_id: scope.tenant.clone(),
            project_id: scope.project.clone(),
            quotas: items
                .iter()
                .map(|item| (item.resource.clone(), item.limit))
                .collect(),
            over_limit: items.iter().any(|item| item.over_limit),
            overrides: match &scope.project {
                None => self.quota_overrides(&scope.tenant)?,
                Some(_) => Vec::new(),
            },
            period_end: self.period_end(),
            items,
        }))
    }

    /// What would be refused, in the order of resources; nothing is charged.
    pub(crate) fn would_admit(
        &self,
        tenant: &TenantId,
        project: &ProjectId,
        amounts: &Amounts,
    ) -> Result<Result<(), QuotaDenied>, StoreError> {
        for project in [None, Some(project)] {
            let scope = QuotaScope {
                tenant: tenant.clone(),
                project: project.cloned(),
            };
            for counter in self.counters(&scope)? {
                let requested = amounts.get(&counter.resource).copied().unwrap_or(0);
                if let Err(mut denied) = admit(&scope, counter, requested) {
                    denied.counted = self.counted(&scope, &denied.counter.resource)?;
                    return Ok(Err(*denied));
                }
            }
        }
        Ok(Ok(()))
    }

    /// What is charged for a resource, by the states of the VMs that it is for.
    fn counted(
        &self,
        scope: &QuotaScope,
        resource: &Resource,
    ) -> Result<BTreeMap<String, u64>, StoreError> {
        let (sql, what) = if let Resource::Slots(class) = resource {
            (
                "SELECT vm.state, COUNT(*) FROM claim c JOIN vm ON vm.vm_id = c.vm_id
                 WHERE c.tenant_id = ?1 AND (?2 = '' OR c.project_id = ?2) AND c.class = ?3
                 AND c.charged = 1 GROUP BY vm.state",
                class.clone(),
            )
        } else {
            (
                "SELECT vm.state, CAST(SUM(c.amount) AS BIGINT) FROM vm JOIN charge c ON c.vm_id = vm.vm_id
                 WHERE vm.tenant_id = ?1 AND vm.state <> 'deleted'
                 AND (?2 = '' OR vm.project_id = ?2) AND c.resource = ?3
                 GROUP BY vm.state",
                resource.name(),
            )
        };
        let mut select = self.conn.prepare_cached(sql)?;
        let rows = select.query_map(
            (
                scope.tenant.as_str(),
                scope_text(scope.project.as_ref()),
                what,
            ),
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Days since the epoch in UTC.
    fn today(&self) -> i64 {
        self.now.div_euclid(MS_PER_DAY)
    }

    /// When the day ends that is counted, RFC 3339.
    fn period_end(&self) -> String {
        rfc3339(self.today().saturating_add(1).saturating_mul(MS_PER_DAY))
    }

    /// Overrides of a tenant's ceilings that hold now, in the order of their resources' names.
    fn quota_overrides(&self, tenant: &TenantId) -> Result<Vec<QuotaOverride>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT resource, override_ceiling, override_until, override_reason FROM quota
             WHERE tenant_id = ?1 AND scope = '' AND override_until > ?2 ORDER BY resource",
        )?;
        let rows = select.query_map((tenant.as_str(), self.now), |row| {
            Ok(QuotaOverride {
                resource: row.get(0)?,
                limit: row.get(1)?,
                expires_at: rfc3339(row.get(2)?),
                reason: row.get::<_, Option<String>>(3)?.unwrap_or_default(),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn resource_of(name: &str) -> Result<Resource, StoreError> {
    Resource::of_name(name).ok_or(StoreError::Corrupt {
        what: "resource's name",
    })
}

impl WriteTx<'_> {
    /// Charge all amounts or none. The marks that are passed are the caller's to note, once it is sure
    /// that the charge stays.
    pub(crate) fn charge(
        &mut self,
        tenant: &TenantId,
        project: &ProjectId,
        amounts: &Amounts,
    ) -> Result<Result<Vec<Mark>, QuotaDenied>, StoreError> {
        let chargeable = self.chargeable(tenant, project)?;
        let mut marks = Vec::new();
        for (resource, amount) in amounts.iter().filter(|(_, amount)| **amount > 0) {
            for scope in ["", project.as_str()] {
                let key = (scope.to_owned(), resource.name());
                let after = chargeable.get(&key).and_then(|(used, limit)| {
                    let after = used.checked_add(*amount)?;
                    // Without a ceiling the end is what the database can count.
                    let most = limit.unwrap_or(i64::MAX.unsigned_abs());
                    (after <= most).then_some((*used, after, *limit))
                });
                let Some((used, after, limit)) = after else {
                    return self.why_denied(tenant, project, resource, *amount).map(Err);
                };
                let reached = limit.and_then(|limit| Some((limit, crossed(limit, used, after)?)));
                marks.extend(reached.map(|(limit, percent)| Mark {
                    project: (!scope.is_empty()).then(|| scope.to_owned()),
                    resource: resource.name(),
                    percent,
                    used: after,
                    limit,
                }));
            }
        }
        self.add_charges(tenant, project, amounts)?;
        Ok(Ok(marks))
    }

    /// Write down which shares of ceilings are reached.
    pub(crate) fn note_marks(
        &mut self,
        tenant: &TenantId,
        marks: Vec<Mark>,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        for mark in marks {
            self.append(
                NewEvent {
                    event_type: "QUOTA_THRESHOLD_CROSSED",
                    tenant_id: Some(tenant.clone()),
                    outcome: "completed",
                    detail: object(json!({
                        "project_id": mark.project,
                        "resource": mark.resource,
                        "percent": mark.percent,
                        "used": mark.used,
                        "limit": mark.limit,
                    })),
                    ..NewEvent::default()
                },
                cause,
            )?;
        }
        Ok(())
    }

    fn chargeable(&self, tenant: &TenantId, project: &ProjectId) -> Result<Chargeable, StoreError> {
        let asked = (tenant.as_str(), project.as_str(), self.now, self.today());
        Ok(self
            .conn
            .prepare_cached(CHARGEABLE)?
            .query_map(asked, |row| {
                Ok(((row.get(0)?, row.get(1)?), (row.get(2)?, row.get(3)?)))
            })?
            .collect::<Result<_, _>>()?)
    }

    /// Charge what was found to fit, in one statement: nobody else writes in between.
    fn add_charges(
        &mut self,
        tenant: &TenantId,
        project: &ProjectId,
        amounts: &Amounts,
    ) -> Result<(), StoreError> {
        let mut values = vec![
            Value::Text(tenant.to_string()),
            Value::Text(project.to_string()),
            Value::Integer(self.today()),
        ];
        let (mut sums, mut resources) = (String::new(), String::new());
        for (resource, amount) in amounts.iter().filter(|(_, amount)| **amount > 0) {
            let is_by_day = *resource == Resource::CreatesPerDay;
            let used = if is_by_day {
                "CASE WHEN day = ?3 THEN used ELSE 0 END"
            } else {
                "used"
            };
            let comma = if resources.is_empty() { "" } else { ", " };
            values.push(Value::Text(resource.name()));
            let name = values.len();
            values.push(Value::Integer(storable(*amount)));
            let amount = values.len();
            sums.push_str(&format!(" WHEN ?{name} THEN {used} + ?{amount}"));
            resources.push_str(&format!("{comma}?{name}"));
        }
        if resources.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "UPDATE quota SET used = CASE resource{sums} END,
             day = CASE WHEN resource = 'creates_per_day' THEN ?3 ELSE day END
             WHERE tenant_id = ?1 AND scope IN ('', ?2) AND resource IN ({resources})"
        );
        self.conn
            .prepare_cached(&sql)?
            .send(params_from_iter(values))?;
        Ok(())
    }

    fn why_denied(
        &self,
        tenant: &TenantId,
        project: &ProjectId,
        resource: &Resource,
        amount: u64,
    ) -> Result<QuotaDenied, StoreError> {
        let asked = Amounts::from([(resource.clone(), amount)]);
        match self.would_admit(tenant, project, &asked)? {
            Err(denied) => Ok(denied),
            Ok(()) => Err(StoreError::Corrupt {
                what: "quota of a project",
            }),
        }
    }

    /// Give charges back, of VMs that came to nothing or take this no longer.
    pub(crate) fn uncharge(
        &mut self,
        tenant: &TenantId,
        project: &ProjectId,
        amounts: &Amounts,
    ) -> Result<(), StoreError> {
        for (resource, amount) in amounts {
            self.uncharge_in(tenant, &["", project.as_str()], resource, *amount)?;
        }
        Ok(())
    }

    fn uncharge_in(
        &mut self,
        tenant: &TenantId,
        scopes: &[&str],
        resource: &Resource,
        amount: u64,
    ) -> Result<(), StoreError> {
        for scope in scopes {
            self.conn
                .prepare_cached(
                    "UPDATE quota SET used = used - ?4
                     WHERE tenant_id = ?1 AND scope = ?2 AND resource = ?3",
                )?
                .send((tenant.as_str(), *scope, resource.name(), amount))?;
        }
        Ok(())
    }

    /// Write down what a VM was charged for.
    pub(crate) fn note_charges(
        &mut self,
        tenant: &TenantId,
        project: &ProjectId,
        vm_id: VmId,
        amounts: &Amounts,
    ) -> Result<(), StoreError> {
        let mut sql =
            "INSERT INTO charge (tenant_id, project_id, vm_id, resource, amount) VALUES".to_owned();
        let mut values = vec![
            Value::Text(tenant.to_string()),
            Value::Text(project.to_string()),
            Value::Text(vm_id.to_string()),
        ];
        let fixed = values.len();
        for (resource, amount) in amounts {
            // Slots are counted by their claims, creates by the VMs themselves.
            if matches!(resource, Resource::Slots(_) | Resource::CreatesPerDay) {
                continue;
            }
            let comma = if values.len() > fixed { "," } else { "" };
            values.push(Value::Text(resource.name()));
            values.push(Value::Integer(storable(*amount)));
            let last = values.len();
            sql.push_str(&format!("{comma} (?1, ?2, ?3, ?{}, ?{last})", last - 1));
        }
        if values.len() > fixed {
            self.conn
                .prepare_cached(&sql)?
                .send(params_from_iter(values))?;
        }
        Ok(())
    }

    /// Whether a VM is charged as one that is not stopped.
    pub(crate) fn is_charged_as_running(&self, vm_id: VmId) -> Result<bool, StoreError> {
        Ok(self
            .conn
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM charge WHERE vm_id = ?1 AND resource = 'running_vms')",
            )?
            .query_row([vm_id.to_string()], |row| row.get(0))?)
    }

    /// End what a VM is charged for: of these resources, or of all.
    pub(crate) fn end_charges(
        &mut self,
        tenant: &TenantId,
        vm_id: VmId,
        of: Option<&[Resource]>,
    ) -> Result<(), StoreError> {
        let rows: Vec<(String, String, u64)> = self
            .conn
            .prepare_cached("SELECT project_id, resource, amount FROM charge WHERE vm_id = ?1")?
            .query_map([vm_id.to_string()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?
            .collect::<Result<_, _>>()?;
        for (project, name, amount) in rows {
            let resource = resource_of(&name)?;
            if of.is_some_and(|of| !of.contains(&resource)) {
                continue;
            }
            self.uncharge_in(tenant, &["", &project], &resource, amount)?;
            self.conn
                .prepare_cached("DELETE FROM charge WHERE vm_id = ?1 AND resource = ?2")?
                .send((vm_id.to_string(), &name))?;
        }
        Ok(())
    }

    /// Charge a VM as one that is not stopped, unless it is charged so.
    pub(crate) fn charge_as_running(
        &mut self,
        vm: &berth_api::rest::Vm,
        cause: &Cause,
    ) -> Result<Result<(), QuotaDenied>, StoreError> {
        if self.is_charged_as_running(vm.id)? {
            return Ok(Ok(()));
        }
        let amounts = running_amounts(vm.vcpus, vm.memory_mb);
        let marks = match self.charge(&vm.tenant_id, &vm.project_id, &amounts)? {
            Ok(marks) => marks,
            Err(denied) => return Ok(Err(denied)),
        };
        self.note_charges(&vm.tenant_id, &vm.project_id, vm.id, &amounts)?;
        self.note_marks(&vm.tenant_id, marks, cause)?;
        Ok(Ok(()))
    }

    /// Charge a VM as one that is not stopped, whatever its owner's ceilings: its host says that it
    /// runs, and what runs is charged.
    pub(crate) fn charge_what_runs(&mut self, vm: &berth_api::rest::Vm) -> Result<(), StoreError> {
        if self.is_charged_as_running(vm.id)? {
            return Ok(());
        }
        let amounts = running_amounts(vm.vcpus, vm.memory_mb);
        for (resource, amount) in &amounts {
            self.conn
                .prepare_cached(
                    "UPDATE quota SET used = used + ?4
                     WHERE tenant_id = ?1 AND scope IN ('', ?2) AND resource = ?3",
                )?
                .send((
                    vm.tenant_id.as_str(),
                    vm.project_id.as_str(),
                    resource.name(),
                    amount,
                ))?;
        }
        self.note_charges(&vm.tenant_id, &vm.project_id, vm.id, &amounts)
    }

    /// Set ceilings of a tenant or a project. A class of slots that is new gets its rows, in every
    /// project too.
    pub(crate) fn set_ceilings(
        &mut self,
        scope: &QuotaScope,
        ceilings: &Ceilings,
        is_own: bool,
    ) -> Result<(), StoreError> {
        for (resource, ceiling) in ceilings {
            self.conn
                .prepare_cached(
                    "INSERT INTO quota (tenant_id, scope, resource, ceiling, is_own, used)
                     VALUES (?1, ?2, ?3, ?4, ?5, 0)
                     ON CONFLICT (tenant_id, scope, resource)
                     DO UPDATE SET ceiling = excluded.ceiling, is_own = excluded.is_own",
                )?
                .send((
                    scope.tenant.as_str(),
                    scope_text(scope.project.as_ref()),
                    resource.name(),
                    ceiling,
                    i64::from(is_own),
                ))?;
        }
        self.fill_projects(&scope.tenant)
    }

    /// Give every project a row for each resource of its tenant.
    pub(crate) fn fill_projects(&mut self, tenant: &TenantId) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO quota (tenant_id, scope, resource, ceiling, is_own, used)
                 SELECT q.tenant_id, p.project_id, q.resource, NULL, 0, 0
                 FROM quota q JOIN project p ON p.tenant_id = q.tenant_id
                 WHERE q.tenant_id = ?1 AND q.scope = ''
                 ON CONFLICT (tenant_id, scope, resource) DO NOTHING",
            )?
            .send([tenant.as_str()])?;
        Ok(())
    }

    /// Let another ceiling hold for a tenant until `until` (milliseconds since the epoch); `None` ends
    /// the one that holds. `false` if the tenant has no such resource.
    pub fn override_quota(
        &mut self,
        tenant: &TenantId,
        resource: &Resource,
        new: Option<&NewOverride>,
        cause: &Cause,
    ) -> Result<bool, StoreError> {
        let changed = self
            .conn
            .prepare_cached(
                "UPDATE quota SET override_ceiling = ?3, override_until = ?4, override_reason = ?5
                 WHERE tenant_id = ?1 AND scope = '' AND resource = ?2
                 AND tenant_id IN (SELECT tenant_id FROM tenant WHERE deleted_at IS NULL)",
            )?
            .execute((
                tenant.as_str(),
                resource.name(),
                new.map(|new| new.limit),
                new.map(|new| new.until),
                new.map(|new| &new.reason),
            ))?;
        if changed == 0 {
            return Ok(false);
        }
        let event_type = match new {
            Some(_) => "QUOTA_OVERRIDE_SET",
            None => "QUOTA_OVERRIDE_ENDED",
        };
        self.append(
            NewEvent {
                event_type,
                tenant_id: Some(tenant.clone()),
                outcome: "completed",
                detail: object(json!({
                    "resource": resource.name(),
                    "limit": new.map(|new| new.limit),
                    "expires_at": new.map(|new| rfc3339(new.until)),
                    "reason": new.map(|new| &new.reason),
                })),
                ..NewEvent::default()
            },
            cause,
        )?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
