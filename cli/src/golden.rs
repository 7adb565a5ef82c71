//! What people and scripts read, word for word: help, tables, error texts.
//!
//! The files are in `tests/golden`; `BERTH_BLESS=1 cargo test -p berth-cli` writes them anew.

use std::path::Path;

use clap::CommandFactory as _;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::command::slot::{receipts, remote};
use crate::command::{
    catalogue, explain, ledger, node, person, project, service_account, tenant, token, vm,
};
use crate::failure::{Failure, Refusal};
use crate::ledger::filter::ReadEntry;
use crate::table::{Style, Table};

#[track_caller]
fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("BERTH_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        golden == text,
        "{} differs; BERTH_BLESS=1 writes it anew. It would be:\n{text}",
        path.display()
    );
}

/// The help of a command and of all below it; the global options are the same everywhere and
/// stand in the first alone.
fn helps(command: &mut clap::Command, text: &mut String) {
    for sub in command.get_subcommands_mut() {
        if sub.get_name() == "help" {
            continue;
        }
        text.push_str(&format!("\n$ {} --help\n", sub.get_bin_name().unwrap()));
        let help = help(sub);
        let (own, _global) = help.split_once("\nGlobal options:\n").unwrap();
        text.push_str(own);
        helps(sub, text);
    }
}

fn help(command: &mut clap::Command) -> String {
    let help = command.render_long_help().to_string();
    help.lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

#[test]
fn help_is_as_published() {
    for mut program in [crate::Berthctl::command(), crate::ServiceFs::command()] {
        program.build();
        let mut text = help(&mut program);
        helps(&mut program, &mut text);
        check(&format!("help-{}.txt", program.get_name()), &text);
    }
}

fn from<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn of(table: &Table) -> String {
    table.render(Style::default()) + "\n"
}

const NODE: &str = "node_01kb000000000000000000000a";
const VM: &str = "vm_01kb000000000000000000000b";
const SLOT: &str = "slot_01kb000000000000000000000f";
const TOKEN: &str = "tok_01kb000000000000000000000c";
const OPERATION: &str = "op_01kb000000000000000000000d";
const TIME: &str = "2026-11-22T05:52:47.123Z";

fn a_tenant() -> Value {
    json!({ "tenant_id": "acme-corp", "display_name": "Acme Corporation", "max_vms": 10,
        "storage_quota_gb": 100, "api_rate_limit_rpm": 600, "created_at": TIME, "revision": 1,
        "audit_index": 0, "a_member_from_the_future": true })
}

fn a_project() -> Value {
    json!({ "tenant_id": "acme-corp", "project_id": "web", "display_name": "Web",
        "department": "sales", "labels": {}, "quotas": { "vms": 4, "slots.nvme": 1 },
        "created_at": TIME, "revision": 2, "audit_index": 7 })
}

fn an_account() -> Value {
    json!({ "tenant_id": "acme-corp", "account_id": "ci", "project_id": "web",
        "display_name": "Build server", "subject_pubkey": "c3ViamVjdA", "disabled": true,
        "roles": { "web": "editor", "db": "viewer" }, "created_at": TIME, "revision": 3,
        "audit_index": 9 })
}

fn a_vm(state: &str) -> Value {
    json!({ "id": VM, "name": "web-1", "tenant_id": "acme-corp", "state": state,
        "state_reason": { "code": "vmm_exit", "message": "the VMM ended by signal 9" },
        "state_since": TIME, "desired_state": "running", "generation": 1, "vcpus": 2,
        "memory_mb": 1024, "disk_gb": 4, "image": "debian-12", "node_id": NODE,
        "slots": [{ "slot_id": SLOT, "class": "nvme", "state": "unapproved",
            "claim_id": "claim_01kb000000000000000000000g",
            "problem": { "code": "iommu_group_unsafe", "message": "shares its group" } }],
        "labels": { "tier": "web", "zone": "a" }, "created_at": TIME, "operation": OPERATION })
}

fn a_node() -> Value {
    json!({ "id": NODE, "name": "rack1-3", "state": "ready", "liveness": "online", "last_heartbeat": TIME,
        "boot_id": "6b1f7a2e-8a55-4a40-9a56-0a4e0d7d5a11", "agent_version": "0.1.0", "vcpus": 64,
        "memory_mb": 524_288, "disk_mb": 4_194_304, "memory_used_mb": 1024, "kvm": true, "vms": 1,
        "max_vms_per_node": 40, "cordoned_at": null, "reserved": true, "dedicated_to": "acme-corp",
        "zone": "north", "labels": { "disk": "fast" }, "revision": 3,
        "slots": { "gpu.h100": { "free": 2 }, "nvme": { "free": 3, "in_use": 1 } } })
}

fn a_plan() -> Value {
    json!({ "outcome": "refused", "disk_gb": 4, "charges": { "vms": 1, "vcpus": 2 },
        "node_id": null, "zone": null, "slots": [],
        "refusal": { "status": 503, "code": "no_capacity", "error": "all nodes are full",
            "detail": "Try again later.", "reasons": { "memory_taken": 1, "slots.nvme.claimed": 2 },
            "quota": null },
        "nodes": 3,
        "candidates": [
            { "node_id": NODE, "name": "rack1-3", "fits": true, "rejection": null,
                "score": { "reserved": true, "group_vms": 1, "dedicated": true, "numa_local": false,
                    "memory_left_mb": 512 } },
            { "node_id": NODE, "name": "rack1-4", "fits": false, "rejection": "memory_taken",
                "reasons": { "memory_taken": 1 }, "score": null },
            { "node_id": NODE, "name": "rack1-5", "fits": false, "rejection": "slots",
                "reasons": { "slots.nvme.claimed": 2 }, "score": null },
        ] })
}

fn an_entry(index: u64, event_type: &str, vm: Option<&str>, code: Option<&str>) -> ReadEntry {
    let body = json!({ "event_id": "ev_01kb000000000000000000000e", "time": TIME,
        "event_type": event_type, "tenant_id": "acme-corp", "tenant_seq": 1, "prev": "",
        "actor": { "kind": "operator", "token_id": TOKEN, "subject_key": null },
        "request": null, "vm_id": vm, "node_id": null,
        "outcome": if code.is_some() { "denied" } else { "completed" }, "code": code });
    let entry: berth_api::rest::AuditEntry = from(json!({ "index": index,
        "body": body.to_string(), "nonce": "", "leaf": "", "leaf_hash": "" }));
    entry.into()
}

#[test]
fn tenants_and_tokens_are_shown_as_published() {
    let record = json!({ "token_id": TOKEN, "tenant_id": "acme-corp",
        "scope": ["service:tenant-admin"], "subject_pubkey": "c3ViamVjdA", "label": null,
        "issued_at": TIME, "expires_at": TIME, "revoked_at": TIME });
    let issued = json!({ "token": "v4.public.example", "token_id": TOKEN,
        "tenant_id": "acme-corp", "scope": ["service:tenant-admin"],
        "subject_pubkey": "c3ViamVjdA", "issued_at": TIME, "expires_at": TIME });
    let operator = json!({ "tenant_id": null, "token_id": TOKEN,
        "scope": ["service:platform-admin"], "expires_at": TIME });
    let ada = json!({ "id": "person_01kb000000000000000000000j", "tenant_id": "acme-corp",
        "issuer": "https://login.example", "subject": "248289761001", "display_name": "Ada",
        "scope": ["vm.read", "vm.control"], "require_pop": false, "created_at": TIME,
        "audit_index": 11 });
    let member = json!({ "project_id": "web", "account_id": "ci", "role": "editor" });
    let text = [
        tenant::list_table(&[from(a_tenant())]),
        tenant::object_table(&from(a_tenant())),
        token::list_table(&[from(record)]),
        token::issued_table(&from(issued)),
        catalogue::me_table(&from(operator)),
        project::list_table(&[from(a_project())]),
        project::object_table(&from(a_project())),
        service_account::list_table(&[from(an_account())]),
        service_account::object_table(&from(an_account())),
        project::members_table(&[from(member.clone())]),
        service_account::member_table(&from(member)),
        person::list_table(&[from(ada.clone())]),
        person::object_table(&from(ada)),
    ];
    check(
        "tables-tenant.txt",
        &text.iter().map(of).collect::<String>(),
    );
}

#[test]
fn vms_and_nodes_are_shown_as_published() {
    let operation = json!({ "id": OPERATION, "vm_id": VM, "kind": "create", "state": "failed",
        "phase": "starting", "error": { "code": "image_missing", "message": "no such image" },
        "created_at": TIME });
    let join = json!({ "token": "berth-join.example", "expires_at": TIME,
        "install_command": "berth-agent join berth-join.example" });
    let usage = json!({ "tenant_id": "acme-corp", "project_id": null, "quotas": {},
        "over_limit": true, "period_end": TIME,
        "items": [
            { "resource": "vms", "limit": 10, "used": 10, "reserved": 1, "remaining": 0 },
            { "resource": "vcpus", "limit": 4, "used": 8, "remaining": 0, "over_limit": true },
            { "resource": "memory_mb", "limit": null, "used": 512, "remaining": null },
        ] });
    let small = json!({ "name": "small", "vcpus": 1, "memory_mb": 2048, "disk_gb": 20 });
    let medium = json!({ "name": "medium", "vcpus": 2, "memory_mb": 4096, "disk_gb": 40,
        "price": { "amount": "29.00", "currency": "EUR", "per": "month" } });
    let text = [
        vm::list_table(&[from(a_vm("running")), from(a_vm("failed"))]),
        vm::object_table(&from(a_vm("failed"))),
        vm::placement::plan_table(&from(a_plan())),
        catalogue::operation_table(&from(operation)),
        node::list_table(&[from(a_node())]),
        node::object_table(&from(a_node())),
        node::join_token_table(&from(join)),
        catalogue::image_table(&[from(json!({ "name": "debian-12", "min_disk_gb": 2 }))]),
        catalogue::size_table(&[from(small), from(medium)]),
        catalogue::usage_table(&from(usage)),
    ];
    check("tables-vm.txt", &text.iter().map(of).collect::<String>());
}

fn a_slot() -> Value {
    json!({ "id": SLOT, "name": "nvme-0", "class": "nvme", "node_id": NODE, "state": "quarantined",
        "host_state": "free", "claimable": false, "obstacle": "quarantined", "problem": null,
        "progress_percent": null,
        "admission": { "at": TIME, "by": TOKEN, "holds": true },
        "quarantine": { "at": TIME, "by": TOKEN, "reason": "smells of smoke" },
        "wipe_required": true,
        "claim": { "claim_id": "claim_01kb000000000000000000000g", "vm_id": VM,
            "tenant_id": "acme-corp", "fencing_epoch": 3, "claimed_at": TIME, "charged": false },
        "generation": 12, "fencing_epoch": 3, "reported_at": TIME, "pending_task": null,
        "devices": [{ "kind": "nvme", "address": "0000:01:00.0", "iommu_group": 12, "numa_node": 0,
            "identity": { "vendor": "1b36", "device": "0010", "subsystem_vendor": "1af4",
                "subsystem": "1100", "class": 67_586, "path": "pci0000:00/01.0/00.0",
                "serials": {} } }] })
}

#[test]
fn slots_are_shown_as_published() {
    let free = json!({ "state": "free", "claimable": true, "obstacle": null, "quarantine": null,
        "claim": null, "admission": null, "wipe_required": false });
    let mut other = a_slot();
    for (member, value) in free.as_object().unwrap() {
        other[member] = value.clone();
    }
    let receipt = json!({ "receipt_id": "rcpt_01kb000000000000000000000h", "slot_id": SLOT,
        "vm_id": VM, "kind": "wipe", "at": TIME, "generation": 11, "sha256": "00", "audit_index": 7,
        "node_id": NODE, "node_public_key": "a2V5",
        "envelope": { "payloadType": "", "payload": "", "signatures": [] } });
    let class = json!({ "class": "nvme", "available": "1-3", "free": 2, "total": 8,
        "price": { "amount": "0.12", "currency": "EUR", "per": "hour" } });
    let of_tenant = json!({ "class": "gpu.h100", "available": "4+" });
    let text = [
        remote::list_table(&[from(a_slot()), from(other)]),
        remote::object_table(&from(a_slot())),
        remote::classes_table(&[from(of_tenant), from(class)]),
        receipts::table(&[from(receipt)]),
    ];
    check("tables-slot.txt", &text.iter().map(of).collect::<String>());
}

#[test]
fn ledger_entries_are_shown_as_published() {
    let mut unreadable = an_entry(2, "FROM_THE_FUTURE", None, None);
    unreadable.body = None;
    let table = ledger::entry_table(&[
        an_entry(0, "TENANT_CREATED", None, None),
        an_entry(1, "VM_CREATE_DENIED", Some(VM), Some("quota_exceeded")),
        unreadable,
    ]);
    check("tables-ledger.txt", &of(&table));
}

#[test]
fn errors_are_shown_as_published() {
    let refused = |status, body| {
        Failure::Refused(Box::new(Refusal {
            status,
            request: "POST /v1/vms".to_owned(),
            body,
        }))
    };
    let failures = [
        refused(
            429,
            json!({ "code": "quota_exceeded", "request_id": "req_01kb000000000000000000000f",
                "error": "Quota exceeded: tenant acme-corp may have 10 VMs and has 10",
                "detail": "Delete a VM or ask your administrator to raise max_vms." }),
        ),
        refused(
            422,
            json!({ "code": "placement_impossible", "request_id": "req_01kb000000000000000000000f",
                "error": "Placement impossible: no node can take this VM",
                "detail": "Ask for less.", "reasons": { "image_missing": 2, "no_kvm": 1 } }),
        ),
        refused(
            403,
            json!({ "code": "permission_denied", "request_id": "req_01kb000000000000000000000f",
                "error": "Permission denied", "detail": "Use another token.",
                "required_scope": "service:platform-admin" }),
        ),
        Failure::NoToken {
            tried: "--token, BERTH_TOKEN, /root/.config/berth/token".to_owned(),
        },
        Failure::WaitTimeout {
            what: VM.to_owned(),
            state: "provisioning".to_owned(),
            wanted: "running".to_owned(),
            seconds: 300,
        },
        Failure::Ledger(crate::ledger::verify::EntryFault::Unreadable {
            index: 7,
            field: "leaf",
        }),
    ];
    let text: String = failures
        .iter()
        .map(|failure| {
            format!(
                "{}exit code {}\n\n",
                failure.to_text(),
                failure.exit().code()
            )
        })
        .collect();
    check("errors.txt", &text);
}

#[test]
fn the_list_of_codes_is_as_published() {
    check(
        "explain.txt",
        &explain::list_table().render(Style::default()),
    );
}
