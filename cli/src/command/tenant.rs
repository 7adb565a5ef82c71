//! `berthctl tenant`: the namespaces and their ceilings.

use std::collections::BTreeMap;

use berth_api::rest::{CreateTenant, SuspendTenant, Tenant};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::client::Path;
use crate::failure::Failure;
use crate::session::Session;
use crate::table::{Cell, Table, Tone, optional};

/// What can be done with tenants.
#[derive(Subcommand, Debug)]
pub(crate) enum TenantCommand {
    /// Make a tenant; its id is never changed and never used again
    Create {
        /// 1 to 63 lower-case letters, digits and inner hyphens
        tenant_id: String,
        /// Name for people [default: the id]
        #[arg(long)]
        display_name: Option<String>,
        /// VMs that may exist at once
        #[arg(long, value_name = "N")]
        max_vms: u32,
        /// Storage of all disks together, in GB
        #[arg(long, value_name = "GB")]
        storage_quota_gb: u32,
        /// Requests per minute
        #[arg(long, value_name = "N")]
        api_rate_limit_rpm: u32,
        /// Slots of a class that may be held at once; may be repeated. Of other classes none
        #[arg(long = "slot-limit", value_name = "CLASS=N", value_parser = parse_slot_limit)]
        slot_limits: Vec<(String, u32)>,
        #[command(flatten)]
        ceilings: Ceilings,
    },
    /// List all tenants
    List {
        /// At most this many
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
    },
    /// Show one tenant
    Show {
        /// Its id
        tenant_id: String,
    },
    /// Change a tenant's name or ceilings; lowering one below its use stops nothing
    Update {
        /// Its id
        tenant_id: String,
        #[command(flatten)]
        changes: TenantChanges,
    },
    /// Suspend a tenant: it can look, stop and delete, and nothing else
    Suspend {
        /// Its id
        tenant_id: String,
        /// Have its running VMs power off
        #[arg(long)]
        stop_vms: bool,
    },
    /// End a tenant's suspension
    Resume {
        /// Its id
        tenant_id: String,
    },
    /// Delete a tenant that owns nothing any more
    Delete {
        /// Its id
        tenant_id: String,
    },
}

/// Where ceilings come from, and those that a tier may set.
#[derive(Args, Debug)]
pub(crate) struct Ceilings {
    /// A tier of the controller's settings, for the ceilings that are not given
    #[arg(long)]
    tier: Option<String>,
    /// VMs that may be other than stopped at once
    #[arg(long, value_name = "N")]
    max_running_vms: Option<u32>,
    /// vCPUs of VMs that are not stopped
    #[arg(long, value_name = "N")]
    max_vcpus: Option<u32>,
    /// Memory of VMs that are not stopped, in MiB
    #[arg(long, value_name = "MIB")]
    max_memory_mb: Option<u64>,
    /// VMs accepted in one day, in UTC
    #[arg(long, value_name = "N")]
    max_creates_per_day: Option<u32>,
}

/// What can be changed; at least one must be given.
#[derive(Args, Debug)]
pub(crate) struct TenantChanges {
    /// Name for people
    #[arg(long)]
    display_name: Option<String>,
    /// VMs that may exist at once
    #[arg(long, value_name = "N")]
    max_vms: Option<u32>,
    /// Storage of all disks together, in GB
    #[arg(long, value_name = "GB")]
    storage_quota_gb: Option<u32>,
    /// Requests per minute
    #[arg(long, value_name = "N")]
    api_rate_limit_rpm: Option<u32>,
    /// Slots of a class that may be held at once; may be repeated. Takes the place of all slot limits:
    /// a class that is not named, or has 0, may not be used
    #[arg(long = "slot-limit", value_name = "CLASS=N", value_parser = parse_slot_limit)]
    slot_limits: Vec<(String, u32)>,
    #[command(flatten)]
    ceilings: Ceilings,
}

impl TenantChanges {
    fn to_json(&self) -> Result<Value, Failure> {
        let members = [
            (
                "display_name",
                self.display_name.as_ref().map(|name| json!(name)),
            ),
            ("max_vms", self.max_vms.map(Value::from)),
            ("storage_quota_gb", self.storage_quota_gb.map(Value::from)),
            (
                "api_rate_limit_rpm",
                self.api_rate_limit_rpm.map(Value::from),
            ),
            (
                "slot_limits",
                (!self.slot_limits.is_empty()).then(|| limits_of(&self.slot_limits)),
            ),
            ("tier", self.ceilings.tier.as_ref().map(|tier| json!(tier))),
            (
                "max_running_vms",
                self.ceilings.max_running_vms.map(Value::from),
            ),
            ("max_vcpus", self.ceilings.max_vcpus.map(Value::from)),
            (
                "max_memory_mb",
                self.ceilings.max_memory_mb.map(Value::from),
            ),
            (
                "max_creates_per_day",
                self.ceilings.max_creates_per_day.map(Value::from),
            ),
        ];
        let given: Map<String, Value> = members
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect();
        if given.is_empty() {
            return Err(Failure::Usage {
                sentence: "nothing was given that could be changed".to_owned(),
                remedy: "Give a name, a tier or a ceiling; `--help` lists them.".to_owned(),
            });
        }
        Ok(Value::Object(given))
    }
}

fn parse_slot_limit(text: &str) -> Result<(String, u32), String> {
    let parts = text.split_once('=');
    match parts.and_then(|(class, count)| Some((class, count.parse().ok()?))) {
        Some((class, count)) if !class.is_empty() => Ok((class.to_owned(), count)),
        _ => Err("write it as CLASS=N, such as nvme=4".to_owned()),
    }
}

fn limits_of(limits: &[(String, u32)]) -> Value {
    limits
        .iter()
        .cloned()
        .collect::<BTreeMap<_, _>>()
        .into_iter()
        .collect()
}

/// Run one of them.
pub(crate) fn run(session: &mut Session, command: TenantCommand) -> Result<(), Failure> {
    let path = |id: &str| Path::of(&["v1", "tenants", id]);
    let reply = match command {
        TenantCommand::Create {
            tenant_id,
            display_name,
            max_vms,
            storage_quota_gb,
            api_rate_limit_rpm,
            slot_limits,
            ceilings,
        } => {
            let body = json!(CreateTenant {
                display_name: display_name.unwrap_or_else(|| tenant_id.clone()),
                tenant_id,
                max_vms,
                storage_quota_gb,
                api_rate_limit_rpm,
                slot_limits: slot_limits.into_iter().collect(),
                tier: ceilings.tier,
                max_running_vms: ceilings.max_running_vms,
                max_vcpus: ceilings.max_vcpus,
                max_memory_mb: ceilings.max_memory_mb,
                max_images: None,
                max_tokens: None,
                max_creates_per_day: ceilings.max_creates_per_day,
                allowed_images: None,
                allowed_actions: None,
                email: None,
                labels: BTreeMap::new(),
            });
            session
                .client
                .post(Path::of(&["v1", "tenants"]), Some(&body))?
        }
        TenantCommand::List { limit } => {
            let items = session.client.list(&Path::of(&["v1", "tenants"]), limit)?;
            return session.show_list(&items, list_table);
        }
        TenantCommand::Show { tenant_id } => session.client.get(path(&tenant_id))?,
        TenantCommand::Update { tenant_id, changes } => session
            .client
            .patch(path(&tenant_id), &changes.to_json()?)?,
        TenantCommand::Suspend {
            tenant_id,
            stop_vms,
        } => {
            let path = Path::of(&["v1", "tenants", &tenant_id, "suspend"]);
            let body = json!(SuspendTenant { stop_vms });
            session.client.post(path, Some(&body))?
        }
        TenantCommand::Resume { tenant_id } => {
            let path = Path::of(&["v1", "tenants", &tenant_id, "resume"]);
            session.client.post(path, None)?
        }
        TenantCommand::Delete { tenant_id } => {
            session.client.delete(path(&tenant_id))?;
            let gone = json!({ "tenant_id": tenant_id, "deleted": true });
            return session.screen.say(&gone, &format!("deleted {tenant_id}"));
        }
    };
    session.show(&reply, object_table)
}

/// Many tenants.
#[must_use]
pub(crate) fn list_table(tenants: &[Tenant]) -> Table {
    let mut table = Table::new(&["TENANT", "NAME", "MAX VMS", "STORAGE GB", "RPM", "CREATED"]);
    for tenant in tenants {
        table.row([
            (&tenant.tenant_id).into(),
            (&tenant.display_name).into(),
            tenant.max_vms.into(),
            tenant.storage_quota_gb.into(),
            tenant.api_rate_limit_rpm.into(),
            (&tenant.created_at).into(),
        ]);
    }
    table
}

/// One tenant.
#[must_use]
pub(crate) fn object_table(tenant: &Tenant) -> Table {
    Table::of_object([
        ("tenant", (&tenant.tenant_id).into()),
        ("display name", (&tenant.display_name).into()),
        ("max VMs", tenant.max_vms.into()),
        ("storage quota GB", tenant.storage_quota_gb.into()),
        ("API requests per minute", tenant.api_rate_limit_rpm.into()),
        ("slots", slot_limits(&tenant.slot_limits)),
        (
            "tier",
            optional((!tenant.tier.is_empty()).then_some(&tenant.tier)),
        ),
        ("max running VMs", optional(tenant.max_running_vms)),
        ("max vCPUs", optional(tenant.max_vcpus)),
        ("max memory MiB", optional(tenant.max_memory_mb)),
        ("max creates per day", optional(tenant.max_creates_per_day)),
        ("suspended since", suspension(tenant)),
        ("created", (&tenant.created_at).into()),
        ("revision", tenant.revision.into()),
        ("ledger entry", tenant.audit_index.into()),
    ])
}

fn suspension(tenant: &Tenant) -> Cell {
    match &tenant.suspended_at {
        Some(since) => Cell::toned(since, Tone::Bad),
        None => optional(None::<String>),
    }
}

fn slot_limits(limits: &BTreeMap<String, u32>) -> Cell {
    let texts: Vec<String> = limits
        .iter()
        .map(|(class, count)| format!("{class}={count}"))
        .collect();
    optional((!texts.is_empty()).then(|| texts.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_limit_is_a_class_and_a_number() {
        assert_eq!(
            parse_slot_limit("gpu.h100=4"),
            Ok(("gpu.h100".to_owned(), 4))
        );
        for wrong in ["nvme", "nvme=", "=4", "nvme=x", "nvme=-1", ""] {
            assert!(parse_slot_limit(wrong).is_err(), "{wrong}");
        }
    }
}
