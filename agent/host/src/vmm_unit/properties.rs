//! The sandbox of one VMM unit, as the properties of `StartTransientUnit`.
//!
//! Data only. Every option here is one that systemd 252 takes for a transient unit. The VMM refuses to
//! run where these leave it more than it needs, so a change here is a change for
//! `vmm/process/src/jail`. What is absent is absent for a reason: `SystemCallFilter=` because the
//! VMM's own filter, set before the guest runs, is narrower than any group of systemd's;
//! `PrivateUsers=` because `DynamicUser=` already leaves the process without a privilege to map; and
//! whatever shapes `/dev`, `/proc` or `/sys` because there is none: naming one of them puts it there.

use std::os::fd::OwnedFd;
use std::path::Path;

use zbus::Variant;

use super::{STOP_SECONDS, UnitSpec, VMM_OVERHEAD_MIB, VMM_OVERHEAD_TASKS, slice_name};

/// One property: name and value.
pub(super) type Property = (&'static str, Variant<'static>);

/// Where the program lies in its unit's root.
const PROGRAM: &str = "/berth-vmm";
const MIB: u64 = 1024 * 1024;
/// Bytes of a device's memory for which the kernel keeps one byte of tables on the unit's account: it maps
/// such memory by pages of 4 KiB, 8 bytes each, once for the process and once for KVM or the IOMMU.
const DEVICE_MEMORY_PER_TABLE_BYTE: u64 = 4096 / 8 / 2;

/// All properties of a VMM's unit, whose root is the folder `empty`.
pub(super) fn properties(unit: &UnitSpec, empty: &Path, stdin: OwnedFd) -> Vec<Property> {
    let mut all = service(unit, stdin);
    all.extend(limits(unit));
    all.extend(sandbox());
    all.extend(root(unit, empty));
    all
}

fn service(unit: &UnitSpec, stdin: OwnedFd) -> Vec<Property> {
    let exec_start = vec![(PROGRAM.to_owned(), vec![PROGRAM.to_owned()], false)];
    let identity = [
        format!("BERTH_VM_ID={}", unit.vm_id),
        format!("BERTH_TENANT_ID={}", unit.tenant_id),
        format!("BERTH_GENERATION={}", unit.generation),
    ];
    let journal_fields: Vec<Vec<u8>> = [
        format!("VM_ID={}", unit.vm_id),
        format!("TENANT_ID={}", unit.tenant_id),
        format!("GENERATION={}", unit.generation),
    ]
    .into_iter()
    .map(String::into_bytes)
    .collect();
    vec![
        (
            "Description",
            Variant::from(format!("berth VM {} of {}", unit.name, unit.tenant_id)),
        ),
        ("Slice", Variant::from(slice_name(&unit.tenant_id))),
        ("Type", Variant::from("exec")),
        ("ExecStart", Variant::from(exec_start)),
        (
            "StandardInputFileDescriptor",
            Variant::from(zbus::Fd::from(stdin)),
        ),
        ("StandardOutput", Variant::from("journal")),
        ("StandardError", Variant::from("journal")),
        ("SyslogIdentifier", Variant::from("berth-vmm")),
        ("LogExtraFields", Variant::from(journal_fields)),
        ("Environment", Variant::from(identity.to_vec())),
        // The exit status stays readable until the agent clears the unit.
        ("RemainAfterExit", Variant::from(true)),
        // A guest's reset and a requested stop are no failures of the service.
        (
            "SuccessExitStatus",
            Variant::from((vec![10_i32, 11], Vec::<i32>::new())),
        ),
        ("KillMode", Variant::from("mixed")),
        (
            "TimeoutStopUSec",
            Variant::from(STOP_SECONDS.saturating_mul(1_000_000)),
        ),
    ]
}

fn limits(unit: &UnitSpec) -> Vec<Property> {
    let device_memory = unit.device_memory_bytes.unwrap_or(0);
    let memory_max = unit
        .memory_mib
        .saturating_add(VMM_OVERHEAD_MIB)
        .saturating_mul(MIB)
        .saturating_add(device_memory / DEVICE_MEMORY_PER_TABLE_BYTE);
    let tasks_max = u64::from(unit.vcpus.saturating_add(VMM_OVERHEAD_TASKS));
    let mut limits = vec![
        ("MemoryMax", Variant::from(memory_max)),
        ("TasksMax", Variant::from(tasks_max)),
        ("LimitCORE", Variant::from(0_u64)),
        ("LimitCORESoft", Variant::from(0_u64)),
    ];
    if unit.device_memory_bytes.is_some() {
        limits.push(("LimitMEMLOCK", Variant::from(memory_max)));
        limits.push(("LimitMEMLOCKSoft", Variant::from(memory_max)));
    }
    limits
}

/// A root with nothing in it but the program and folders that systemd mounts on: `empty` is theirs.
/// `TemporaryFileSystem=/` has no effect in systemd 252 together with `DynamicUser=`.
fn root(unit: &UnitSpec, empty: &Path) -> Vec<Property> {
    let executable = unit.executable.to_string_lossy().into_owned();
    let program = vec![(executable, PROGRAM.to_owned(), false, 0_u64)];
    vec![
        (
            "RootDirectory",
            Variant::from(empty.to_string_lossy().into_owned()),
        ),
        ("MountAPIVFS", Variant::from(false)),
        ("BindReadOnlyPaths", Variant::from(program)),
    ]
}

fn sandbox() -> Vec<Property> {
    let mut all: Vec<Property> = [
        "DynamicUser",
        "NoNewPrivileges",
        "PrivateNetwork",
        "PrivateTmp",
        "PrivateIPC",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectClock",
        "LockPersonality",
        "MemoryDenyWriteExecute",
        "RestrictRealtime",
        "RestrictSUIDSGID",
    ]
    .into_iter()
    .map(|name| (name, Variant::from(true)))
    .collect();
    all.extend([
        ("CapabilityBoundingSet", Variant::from(0_u64)),
        ("AmbientCapabilities", Variant::from(0_u64)),
        ("ProtectSystem", Variant::from("strict")),
        ("ProtectHome", Variant::from("yes")),
        ("DevicePolicy", Variant::from("closed")),
        ("KeyringMode", Variant::from("private")),
        ("UMask", Variant::from(0o077_u32)),
        // An allow-list with nothing in it: no address family at all. The inherited socket works.
        (
            "RestrictAddressFamilies",
            Variant::from((true, Vec::<String>::new())),
        ),
        ("RestrictNamespaces", Variant::from(0_u64)),
        (
            "SystemCallArchitectures",
            Variant::from(vec!["native".to_owned()]),
        ),
    ]);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_has_room_for_the_tables_of_its_devices_memory() {
        let mut unit = UnitSpec {
            vm_id: berth_api::ids::VmId::generate(),
            tenant_id: "acme".parse().unwrap(),
            name: "web".to_owned(),
            generation: 1,
            executable: "/berth-vmm".into(),
            memory_mib: 512,
            vcpus: 1,
            device_memory_bytes: None,
        };
        let limit = |unit: &UnitSpec, wanted: &str| {
            let limits = limits(unit);
            let found = limits.into_iter().find(|(name, _)| *name == wanted);
            found.map(|(_, value)| format!("{value:?}"))
        };
        let bytes = |mib: u64| Some(format!("{:?}", Variant::from(mib * MIB)));
        assert_eq!(limit(&unit, "MemoryMax"), bytes(512 + VMM_OVERHEAD_MIB));
        assert_eq!(limit(&unit, "LimitMEMLOCK"), None);
        unit.device_memory_bytes = Some(256 << 30);
        let with_tables = bytes(512 + VMM_OVERHEAD_MIB + 1024);
        assert_eq!(limit(&unit, "MemoryMax"), with_tables);
        assert_eq!(limit(&unit, "LimitMEMLOCK"), with_tables);
    }
}
