//! Every reason not to give a slot away, on hosts that are drawn in code.

use berth_api::ids::SlotId;
use berth_api::pci::{PciClass, PciId};
use berth_api::slot::{DeviceIdentity, serial_kind};

use super::*;
use crate::slot::approval::{Wish, propose, setting};
use crate::slot::snapshot::{AcsControl, ConfigFacts, Function, HostSnapshot, HostUse, IommuFacts};

pub(crate) fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

const ALL_ACS: AcsControl = AcsControl {
    source_validation: true,
    request_redirect: true,
    completion_redirect: true,
    upstream_forwarding: true,
};

/// A function under construction.
#[derive(Clone)]
pub(crate) struct Draft(Function);

fn function(at: &str, class: u32) -> Draft {
    let at = address(at);
    Draft(Function {
        address: at,
        identity: DeviceIdentity {
            vendor: PciId(0x1b36),
            device: PciId(0x0010),
            subsystem_vendor: PciId(0x1af4),
            subsystem: PciId(0x1100),
            class: PciClass(class),
            path: String::new(),
            serials: BTreeMap::new(),
        },
        parent: None,
        iommu_group: None,
        driver: None,
        driver_override: None,
        numa_node: None,
        reset_methods: vec!["flr".to_owned()],
        bars: Vec::new(),
        link: None,
        config: ConfigFacts {
            answers: true,
            has_msi: true,
            port_kind: Some(0),
            ..ConfigFacts::default()
        },
        uses: Vec::new(),
        settings: BTreeMap::new(),
    })
}

pub(crate) fn drive(at: &str, serial: &str) -> Draft {
    function(at, 0x01_08_02)
        .serial(serial_kind::NVME_SERIAL, serial)
        .serial(serial_kind::NVME_MODEL, "model")
        .setting(setting::NVME_FIRMWARE, "1.0")
        .driver("nvme")
}

fn port(at: &str, kind: u8, acs: Option<AcsControl>) -> Draft {
    let mut port = function(at, 0x06_04_00).driver("pcieport");
    port.0.config.port_kind = Some(kind);
    port.0.config.acs = acs;
    port.0.config.acs_capable = acs.map(|_| ALL_ACS);
    port
}

impl Draft {
    pub(crate) fn below(mut self, parent: &str) -> Self {
        self.0.parent = Some(address(parent));
        self
    }

    fn change(mut self, change: impl FnOnce(&mut Function)) -> Self {
        change(&mut self.0);
        self
    }

    fn group(self, number: u32) -> Self {
        self.change(|f| f.iommu_group = Some(number))
    }

    fn driver(self, driver: &str) -> Self {
        self.change(|f| f.driver = Some(driver.to_owned()))
    }

    fn serial(self, kind: &str, value: &str) -> Self {
        self.change(|f| {
            f.identity.serials.insert(kind.to_owned(), value.to_owned());
        })
    }

    fn setting(self, name: &str, value: &str) -> Self {
        self.change(|f| {
            f.settings.insert(name.to_owned(), value.to_owned());
        })
    }

    fn used(self, used: HostUse) -> Self {
        self.change(|f| f.uses.push(used))
    }
}

/// A host under construction: each function without a group gets one of its own, and each a path.
#[derive(Default)]
pub(crate) struct Host(Vec<Draft>, Vec<(u64, u64, String)>);

impl Host {
    pub(crate) fn with(mut self, draft: Draft) -> Self {
        self.0.retain(|other| other.0.address != draft.0.address);
        self.0.push(draft);
        self
    }

    pub(crate) fn snapshot(mut self) -> HostSnapshot {
        let named: Vec<PciAddress> = self.0.iter().filter_map(|draft| draft.0.parent).collect();
        for parent in named {
            if !self.0.iter().any(|draft| draft.0.address == parent) {
                self = self.with(port(&parent.to_string(), 4, Some(ALL_ACS)));
            }
        }
        let mut snapshot = HostSnapshot {
            iommu: IommuFacts {
                units: vec!["dmar0".to_owned()],
                interrupt_remapping: Some(true),
                unsafe_interrupts_allowed: Some(false),
                no_iommu_mode: Some(false),
                kernel_command_line: vec!["intel_iommu=on".to_owned()],
            },
            ..HostSnapshot::default()
        };
        for (number, Draft(mut function)) in (100..).zip(self.0) {
            let group = *function.iommu_group.get_or_insert(number);
            let group = snapshot.groups.entry(group).or_default();
            group.members.insert(function.address);
            group.reserved_regions.clone_from(&self.1);
            snapshot.functions.insert(function.address, function);
        }
        let paths: Vec<(PciAddress, String)> = snapshot
            .functions
            .keys()
            .map(|at| (*at, path(&snapshot, *at)))
            .collect();
        for (at, path) in paths {
            snapshot.functions.get_mut(&at).unwrap().identity.path = path;
        }
        snapshot
    }
}

fn path(snapshot: &HostSnapshot, at: PciAddress) -> String {
    let above = snapshot
        .functions
        .get(&at)
        .and_then(|function| function.parent)
        .map_or_else(|| "pci0000:00".to_owned(), |parent| path(snapshot, parent));
    format!("{above}/{:02x}.{:x}", at.device, at.function)
}

fn approve(snapshot: &HostSnapshot, addresses: &[&str]) -> Approval {
    let addresses: Vec<PciAddress> = addresses.iter().map(|at| address(at)).collect();
    let wish = Wish {
        slot_id: SlotId::generate(),
        name: "slot-1".to_owned(),
        class: "nvme".to_owned(),
        approved_at: "2026-01-02T03:04:05Z".to_owned(),
    };
    propose(snapshot, &addresses, wish).unwrap()
}

const DRIVE: &str = "0000:01:00.0";

fn good_drive() -> Draft {
    drive(DRIVE, "S1").below("0000:00:01.0")
}

fn good_host() -> Host {
    Host::default().with(good_drive())
}

#[track_caller]
fn judge_now(snapshot: &HostSnapshot, addresses: &[&str]) -> Vec<SlotProblem> {
    judge_slot(snapshot, &approve(snapshot, addresses), &Beside::default()).findings
}

/// The slot of `addresses` has exactly this one finding, with all these words in it.
#[track_caller]
fn found(host: Host, addresses: &[&str], code: SlotProblemCode, words: &[&str]) {
    let findings = judge_now(&host.snapshot(), addresses);
    has_one(&findings, code, words);
}

#[track_caller]
fn has_one(findings: &[SlotProblem], code: SlotProblemCode, words: &[&str]) {
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert_eq!(findings[0].code, code, "{findings:#?}");
    for word in words {
        assert!(findings[0].message.contains(word), "{word}: {findings:#?}");
    }
}

#[track_caller]
fn fit(host: Host, addresses: &[&str]) {
    assert_eq!(judge_now(&host.snapshot(), addresses), []);
}

#[test]
fn a_drive_alone_behind_a_root_port_is_fit() {
    fit(good_host(), &[DRIVE]);
    assert_eq!(judge_host(&good_host().snapshot()), []);
}

#[test]
fn where_a_slot_is_found_is_told() {
    let snapshot = good_host().snapshot();
    let judgement = judge_slot(&snapshot, &approve(&snapshot, &[DRIVE]), &Beside::default());
    assert_eq!(judgement.addresses(), Some(vec![address(DRIVE)]));
    assert_eq!(judgement.devices[0].iommu_group, Some(100));
}

// Case 1: a foreign device in the group.

#[test]
fn case_1_a_foreign_function_in_the_group_is_named_with_its_driver() {
    let host = Host::default().with(good_drive().group(1)).with(
        drive("0000:01:00.1", "S2")
            .below("0000:00:01.0")
            .group(1)
            .change(|f| f.config.is_multifunction = true),
    );
    let findings = judge_now(&host.snapshot(), &[DRIVE]);
    assert!(findings.iter().any(|finding| {
        finding.code == SlotProblemCode::IommuGroupUnsafe
            && finding
                .message
                .contains("0000:01:00.1 (driver nvme) is in IOMMU group 1")
    }));
}

#[test]
fn case_1_being_bound_to_vfio_is_no_excuse_for_a_foreign_member() {
    found(
        good_host().with(good_drive().group(1)).with(
            drive("0000:02:00.0", "S2")
                .below("0000:00:02.0")
                .group(1)
                .driver("vfio-pci"),
        ),
        &[DRIVE],
        SlotProblemCode::IommuGroupUnsafe,
        &["0000:02:00.0 (driver vfio-pci)", "group 1"],
    );
}

#[test]
fn case_1_all_members_in_one_slot_are_fit() {
    fit(
        Host::default()
            .with(good_drive().group(1))
            .with(drive("0000:01:00.1", "S2").below("0000:00:01.0").group(1)),
        &[DRIVE, "0000:01:00.1"],
    );
}

#[test]
fn case_1_a_bridge_of_the_path_may_be_in_the_group() {
    fit(
        Host::default()
            .with(good_drive().group(1))
            .with(port("0000:00:01.0", 4, Some(ALL_ACS)).group(1)),
        &[DRIVE],
    );
}

#[test]
fn case_1_a_bridge_that_is_not_of_the_path_is_foreign() {
    found(
        Host::default()
            .with(good_drive().group(1))
            .with(port("0000:00:02.0", 4, Some(ALL_ACS)).group(1)),
        &[DRIVE],
        SlotProblemCode::IommuGroupUnsafe,
        &["0000:00:02.0 (driver pcieport)"],
    );
}

#[test]
fn case_1_what_shares_a_conventional_bus_is_foreign_even_in_another_group() {
    let behind = |at: &str, class| function(at, class).below("0000:01:00.0");
    let host = || {
        Host::default()
            .with(port("0000:01:00.0", 7, None).below("0000:00:01.0"))
            .with(behind("0000:02:01.0", 0x03_80_00))
            .with(behind("0000:02:02.0", 0xff_00_00).driver("edu"))
    };
    found(
        host(),
        &["0000:02:01.0"],
        SlotProblemCode::IommuGroupUnsafe,
        &["0000:02:02.0 (driver edu)", "0000:01:00.0"],
    );
    fit(host(), &["0000:02:01.0", "0000:02:02.0"]);
}

#[test]
fn a_member_that_the_host_does_not_show_is_foreign() {
    let mut snapshot = good_host().snapshot();
    snapshot
        .groups
        .get_mut(&100)
        .unwrap()
        .members
        .insert(address("0000:07:00.0"));
    has_one(
        &judge_now(&snapshot, &[DRIVE]),
        SlotProblemCode::IommuGroupUnsafe,
        &["0000:07:00.0 (unknown)"],
    );
}

// Case 2: isolation weaker than the group says.

/// Root port, upstream port, two downstream ports with a drive each, every one in its own group.
fn switch(acs: Option<AcsControl>) -> Host {
    Host::default()
        .with(port("0000:01:00.0", 5, None).below("0000:00:01.0"))
        .with(port("0000:02:00.0", 6, acs).below("0000:01:00.0"))
        .with(port("0000:02:01.0", 6, acs).below("0000:01:00.0"))
        .with(drive("0000:03:00.0", "S1").below("0000:02:00.0"))
        .with(drive("0000:04:00.0", "S2").below("0000:02:01.0"))
}

#[test]
fn case_2_drives_below_a_switch_without_acs_are_one_slot_or_none() {
    found(
        switch(None),
        &["0000:03:00.0"],
        SlotProblemCode::IommuGroupUnsafe,
        &[
            "0000:04:00.0 (driver nvme)",
            "0000:02:00.0 (driver pcieport)",
        ],
    );
    fit(switch(None), &["0000:03:00.0", "0000:04:00.0"]);
    fit(switch(Some(ALL_ACS)), &["0000:03:00.0"]);
}

#[test]
fn case_2_each_of_the_four_services_is_needed_on_a_switch() {
    for missing in 0..4 {
        let mut acs = ALL_ACS;
        let bit = match missing {
            0 => &mut acs.source_validation,
            1 => &mut acs.request_redirect,
            2 => &mut acs.completion_redirect,
            _ => &mut acs.upstream_forwarding,
        };
        *bit = false;
        found(
            switch(Some(acs)),
            &["0000:03:00.0"],
            SlotProblemCode::IommuGroupUnsafe,
            &["0000:04:00.0"],
        );
    }
}

#[test]
fn case_2_a_root_port_without_acs_joins_everything_below_it() {
    let host = || switch(Some(ALL_ACS)).with(port("0000:00:01.0", 4, None));
    found(
        host(),
        &["0000:03:00.0"],
        SlotProblemCode::IommuGroupUnsafe,
        &["0000:04:00.0", "0000:00:01.0"],
    );
    fit(host(), &["0000:03:00.0", "0000:04:00.0"]);
}

#[test]
fn case_2_a_root_port_without_acs_joins_its_sibling_ports() {
    let host = Host::default()
        .with(port("0000:00:01.0", 4, None))
        .with(port("0000:00:01.1", 4, Some(ALL_ACS)))
        .with(good_drive())
        .with(drive("0000:02:00.0", "S2").below("0000:00:01.1"));
    found(
        host,
        &[DRIVE],
        SlotProblemCode::IommuGroupUnsafe,
        &["0000:02:00.0"],
    );
}

#[test]
fn case_2_a_root_port_need_not_redirect_what_it_cannot_route() {
    let only_validation = AcsControl {
        source_validation: true,
        ..AcsControl::default()
    };
    let root = |capable| {
        Host::default()
            .with(port("0000:00:01.0", 4, Some(only_validation)).change(|f| {
                f.config.acs_capable = Some(capable);
            }))
            .with(good_drive())
            .with(
                drive("0000:01:00.1", "S2")
                    .below("0000:00:01.0")
                    .change(|f| {
                        f.config.acs = Some(ALL_ACS);
                    }),
            )
            .with(good_drive().change(|f| f.config.acs = Some(ALL_ACS)))
    };
    fit(root(only_validation), &[DRIVE]);
    found(
        root(ALL_ACS),
        &[DRIVE],
        SlotProblemCode::IommuGroupUnsafe,
        &["0000:01:00.1"],
    );
}

#[test]
fn case_2_functions_of_one_device_without_acs_are_one_slot() {
    let host = |acs: Option<AcsControl>| {
        Host::default()
            .with(good_drive().change(|f| f.config.acs = acs))
            .with(drive("0000:01:00.1", "S2").below("0000:00:01.0"))
    };
    found(
        host(None),
        &[DRIVE],
        SlotProblemCode::IommuGroupUnsafe,
        &["0000:01:00.1"],
    );
    fit(host(None), &[DRIVE, "0000:01:00.1"]);
    fit(host(Some(ALL_ACS)), &[DRIVE]);
}

#[test]
fn case_2_functions_beyond_the_eighth_belong_to_the_same_device() {
    found(
        good_host().with(drive("0000:01:01.0", "S2").below("0000:00:01.0")),
        &[DRIVE],
        SlotProblemCode::IommuGroupUnsafe,
        &["0000:01:01.0"],
    );
}

#[test]
fn case_2_a_function_beside_an_upstream_port_reaches_what_is_below() {
    let mut host = switch(Some(ALL_ACS));
    host = host.with(function("0000:01:00.1", 0x08_80_00).below("0000:00:01.0"));
    found(
        host,
        &["0000:03:00.0"],
        SlotProblemCode::IommuGroupUnsafe,
        &["0000:01:00.1"],
    );
}

#[test]
fn a_device_on_the_root_bus_is_apart_unless_it_has_other_functions() {
    let gpu = || function("0000:00:10.0", 0x03_80_00);
    fit(
        Host::default()
            .with(gpu())
            .with(function("0000:00:11.0", 0xff_00_00)),
        &["0000:00:10.0"],
    );
    found(
        Host::default()
            .with(gpu())
            .with(function("0000:00:10.1", 0x04_03_00).driver("snd_hda_intel")),
        &["0000:00:10.0"],
        SlotProblemCode::IommuGroupUnsafe,
        &["0000:00:10.1 (driver snd_hda_intel)"],
    );
}

#[test]
fn bridges_that_run_in_a_circle_are_a_finding() {
    let host = Host::default().with(good_drive());
    let mut snapshot = host.snapshot();
    let approval = approve(&snapshot, &[DRIVE]);
    let root = snapshot
        .functions
        .get_mut(&address("0000:00:01.0"))
        .unwrap();
    root.parent = Some(address("0000:00:01.0"));
    let findings = judge_slot(&snapshot, &approval, &Beside::default()).findings;
    assert!(findings.iter().any(|f| f.message.contains("circle")));
}

#[test]
fn a_bridge_above_that_is_not_shown_is_a_finding() {
    let mut snapshot = good_host().snapshot();
    snapshot.functions.remove(&address("0000:00:01.0"));
    has_one(
        &judge_now(&snapshot, &[DRIVE]),
        SlotProblemCode::IommuGroupUnsafe,
        &["behind 0000:00:01.0"],
    );
}

#[test]
fn a_bridge_above_that_cannot_be_read_is_a_finding() {
    found(
        good_host().with(port("0000:00:01.0", 4, Some(ALL_ACS)).change(|f| {
            f.config.fault = Some("its capabilities run in a circle".to_owned());
        })),
        &[DRIVE],
        SlotProblemCode::IommuGroupUnsafe,
        &["0000:00:01.0", "circle"],
    );
}

// Case 3: no IOMMU, no interrupt remapping, an override.

#[track_caller]
fn host_found(change: impl FnOnce(&mut HostSnapshot), words: &[&str]) {
    let mut snapshot = good_host().snapshot();
    change(&mut snapshot);
    has_one(
        &judge_host(&snapshot),
        SlotProblemCode::IommuGroupUnsafe,
        words,
    );
}

#[test]
fn case_3_a_host_without_iommu_is_not_rentable() {
    host_found(|host| host.iommu.units.clear(), &["no IOMMU"]);
    host_found(|host| host.groups.clear(), &["no IOMMU"]);
}

#[test]
fn case_3_a_device_without_a_group_is_not_rentable() {
    let mut snapshot = good_host().snapshot();
    snapshot
        .functions
        .get_mut(&address(DRIVE))
        .unwrap()
        .iommu_group = None;
    has_one(
        &judge_now(&snapshot, &[DRIVE]),
        SlotProblemCode::IommuGroupUnsafe,
        &["no IOMMU group"],
    );
}

#[test]
fn case_3_a_host_without_interrupt_remapping_is_not_rentable() {
    host_found(
        |host| host.iommu.interrupt_remapping = Some(false),
        &["not remapped"],
    );
    host_found(
        |host| host.iommu.interrupt_remapping = None,
        &["Nothing tells"],
    );
}

#[test]
fn case_3_unsafe_interrupts_make_a_host_not_rentable() {
    host_found(
        |host| host.iommu.unsafe_interrupts_allowed = Some(true),
        &["allow_unsafe_interrupts"],
    );
    for word in [
        "vfio_iommu_type1.allow_unsafe_interrupts=1",
        "vfio-iommu-type1.allow-unsafe-interrupts=Y",
        "vfio_iommu_type1.allow_unsafe_interrupts",
    ] {
        host_found(
            |host| {
                host.iommu.unsafe_interrupts_allowed = None;
                host.iommu.kernel_command_line.push(word.to_owned());
            },
            &["allow_unsafe_interrupts"],
        );
    }
}

#[test]
fn case_3_mode_without_iommu_makes_a_host_not_rentable() {
    host_found(
        |host| host.iommu.no_iommu_mode = Some(true),
        &["without an IOMMU"],
    );
}

#[test]
fn case_3_an_acs_override_makes_a_host_not_rentable() {
    for word in [
        "pcie_acs_override=downstream,multifunction",
        "intremap=nosid",
    ] {
        host_found(
            |host| host.iommu.kernel_command_line.push(word.to_owned()),
            &[word],
        );
    }
}

#[test]
fn memory_that_firmware_keeps_open_is_a_finding() {
    let regions = |kind: &str| Host(vec![good_drive()], vec![(0x1000, 0x1fff, kind.to_owned())]);
    found(
        regions("direct"),
        &[DRIVE],
        SlotProblemCode::IommuGroupUnsafe,
        &["0x1000-0x1fff", "RMRR"],
    );
    fit(regions("direct-relaxable"), &[DRIVE]);
    fit(regions("msi"), &[DRIVE]);
}

// Case 4: the host uses it.

#[test]
fn case_4_a_used_drive_is_refused_with_what_uses_it() {
    for how in ["mounted on /srv", "swap", "held by dm-0"] {
        found(
            Host::default().with(good_drive().used(HostUse::Block {
                device: "nvme0n1p1".to_owned(),
                how: how.to_owned(),
            })),
            &[DRIVE],
            SlotProblemCode::DeviceInUse,
            &["0000:01:00.0 (driver nvme)", "nvme0n1p1", how],
        );
    }
}

#[test]
fn each_other_use_by_the_host_is_refused() {
    for (used, word) in [
        (
            HostUse::Boot {
                device: "nvme0n1".to_owned(),
            },
            "own system",
        ),
        (
            HostUse::Route {
                interface: "eth0".to_owned(),
            },
            "eth0",
        ),
        (HostUse::Console, "console"),
        (HostUse::ManagementController, "management controller"),
    ] {
        found(
            Host::default().with(good_drive().used(used)),
            &[DRIVE],
            SlotProblemCode::DeviceInUse,
            &[word],
        );
    }
}

#[test]
fn a_foreign_process_with_the_device_open_is_a_finding_and_our_own_is_not() {
    let snapshot = Host::default()
        .with(good_drive().used(HostUse::VfioUser { pid: 77 }))
        .snapshot();
    has_one(
        &judge_now(&snapshot, &[DRIVE]),
        SlotProblemCode::ForeignUser,
        &["process 77"],
    );
    let beside = Beside {
        own_processes: BTreeSet::from([77]),
        ..Beside::default()
    };
    let judgement = judge_slot(&snapshot, &approve(&snapshot, &[DRIVE]), &beside);
    assert_eq!(judgement.findings, []);
}

// Case 5: no reset, or none that is told.

#[test]
fn case_5_a_device_without_a_reset_is_not_rentable() {
    found(
        Host::default().with(good_drive().change(|f| f.reset_methods.clear())),
        &[DRIVE],
        SlotProblemCode::ResetFailed,
        &["0000:01:00.0 (driver nvme)", "reset_method"],
    );
}

// Case 6: asleep, or not answering.

#[test]
fn case_6_a_device_that_does_not_answer_is_not_rentable() {
    found(
        Host::default().with(good_drive().change(|f| f.config.answers = false)),
        &[DRIVE],
        SlotProblemCode::ResetFailed,
        &["all ones"],
    );
}

#[test]
fn case_6_a_device_asleep_is_not_rentable_unless_vfio_put_it_to_sleep() {
    let asleep = || good_drive().change(|f| f.config.power_state = Some(3));
    found(
        Host::default().with(asleep()),
        &[DRIVE],
        SlotProblemCode::ResetFailed,
        &["D3hot"],
    );
    fit(Host::default().with(asleep().driver("vfio-pci")), &[DRIVE]);
}

#[test]
fn a_device_whose_config_space_is_in_doubt_is_not_rentable() {
    found(
        Host::default().with(good_drive().change(|f| {
            f.config.fault = Some("64 bytes of it could be read".to_owned());
        })),
        &[DRIVE],
        SlotProblemCode::IommuGroupUnsafe,
        &["64 bytes"],
    );
}

#[test]
fn a_device_with_line_interrupts_alone_is_not_rentable() {
    found(
        Host::default().with(good_drive().change(|f| f.config.has_msi = false)),
        &[DRIVE],
        SlotProblemCode::IommuGroupUnsafe,
        &["MSI"],
    );
}

#[test]
fn a_physical_function_with_virtual_ones_on_is_not_rentable() {
    let on = |count| good_drive().change(|f| f.config.virtual_functions = Some(count));
    found(
        Host::default().with(on(2)),
        &[DRIVE],
        SlotProblemCode::BindFailed,
        &["2 virtual functions", "sriov_numvfs"],
    );
    fit(Host::default().with(on(0)), &[DRIVE]);
}

#[test]
fn virtual_functions_are_rentable_one_by_one_while_the_host_has_the_physical_one() {
    let virtual_ = |at: &str| {
        function(at, 0x02_00_00).below("0000:00:01.0").change(|f| {
            f.config.physical_function = Some(address("0000:01:00.0"));
        })
    };
    let host = |driver: &str| {
        Host::default()
            .with(
                function("0000:01:00.0", 0x02_00_00)
                    .below("0000:00:01.0")
                    .driver(driver),
            )
            .with(virtual_("0000:01:10.0"))
            .with(virtual_("0000:01:10.1"))
    };
    fit(host("ixgbe"), &["0000:01:10.0"]);
    found(
        host("vfio-pci"),
        &["0000:01:10.0"],
        SlotProblemCode::IommuGroupUnsafe,
        &["0000:01:00.0 (driver vfio-pci)"],
    );
}

// Case 10: another device, or the same one changed.

/// Approves the good drive and judges it on another host.
#[track_caller]
fn later(host: Host, beside: &Beside) -> Vec<SlotProblem> {
    let approval = approve(&good_host().snapshot(), &[DRIVE]);
    judge_slot(&host.snapshot(), &approval, beside).findings
}

#[test]
fn case_10_a_missing_device_is_told_with_its_place() {
    has_one(
        &later(Host::default(), &Beside::default()),
        SlotProblemCode::DeviceMissing,
        &["pci0000:00/01.0/00.0", DRIVE],
    );
}

#[test]
fn case_10_a_device_that_moved_is_missing_and_its_new_place_is_told() {
    has_one(
        &later(
            Host::default().with(drive("0000:05:00.0", "S1").below("0000:00:05.0")),
            &Beside::default(),
        ),
        SlotProblemCode::DeviceMissing,
        &["0000:05:00.0", "pci0000:00/05.0/00.0"],
    );
}

#[test]
fn case_10_another_bus_number_is_the_same_device() {
    let renumbered = Host::default().with(drive("0000:09:00.0", "S1").below("0000:00:01.0"));
    assert_eq!(later(renumbered, &Beside::default()), []);
}

#[test]
fn case_10_each_part_of_the_identity_counts() {
    type Change = fn(&mut DeviceIdentity);
    let changes: [(Change, &str); 5] = [
        (|id| id.vendor = PciId(1), "vendor 0001"),
        (|id| id.device = PciId(1), "device 0001"),
        (|id| id.subsystem_vendor = PciId(1), "subsystem vendor 0001"),
        (|id| id.subsystem = PciId(1), "subsystem 0001"),
        (|id| id.class = PciClass(0x02_00_00), "class 020000"),
    ];
    for (change, word) in changes {
        let host = Host::default().with(good_drive().change(|f| change(&mut f.identity)));
        has_one(
            &later(host, &Beside::default()),
            SlotProblemCode::DeviceIdentityChanged,
            &[word, "0000:01:00.0"],
        );
    }
}

#[test]
fn case_10_another_serial_at_the_same_address_is_another_device() {
    has_one(
        &later(
            Host::default().with(drive(DRIVE, "S2").below("0000:00:01.0")),
            &Beside::default(),
        ),
        SlotProblemCode::DeviceIdentityChanged,
        &["nvme_serial", "S2", "S1"],
    );
}

fn behind_vfio() -> Host {
    Host::default().with(good_drive().driver("vfio-pci").change(|f| {
        f.identity.serials.clear();
        f.settings.clear();
    }))
}

fn said(values: &[(&str, &str)]) -> Beside {
    let said = values
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Beside {
        identified: BTreeMap::from([(address(DRIVE), said)]),
        ..Beside::default()
    }
}

#[test]
fn case_10_a_drive_behind_vfio_is_judged_by_what_it_says() {
    let whole = [
        (serial_kind::NVME_SERIAL, "S1"),
        (serial_kind::NVME_MODEL, "model"),
        (setting::NVME_FIRMWARE, "1.0"),
    ];
    assert_eq!(later(behind_vfio(), &Beside::default()), []);
    assert_eq!(later(behind_vfio(), &said(&whole)), []);
    for (index, code) in [
        (0, SlotProblemCode::DeviceIdentityChanged),
        (1, SlotProblemCode::DeviceIdentityChanged),
        (2, SlotProblemCode::DeviceSettingsChanged),
    ] {
        let mut other = whole;
        other[index].1 = "other";
        has_one(&later(behind_vfio(), &said(&other)), code, &["other"]);
        let silent: Vec<(&str, &str)> = whole
            .into_iter()
            .filter(|pair| *pair != whole[index])
            .collect();
        has_one(
            &later(behind_vfio(), &said(&silent)),
            code,
            &["not shown any more"],
        );
    }
}

#[test]
fn a_serial_number_of_config_space_may_neither_go_nor_come() {
    let with_number =
        |value: &str| Host::default().with(good_drive().serial(serial_kind::PCIE_DSN, value));
    has_one(
        &later(with_number("1122334455667788"), &Beside::default()),
        SlotProblemCode::DeviceIdentityChanged,
        &["1122334455667788"],
    );
    let approval = approve(&with_number("1122334455667788").snapshot(), &[DRIVE]);
    has_one(
        &judge_slot(&good_host().snapshot(), &approval, &Beside::default()).findings,
        SlotProblemCode::DeviceIdentityChanged,
        &["pcie_dsn", "not shown any more"],
    );
}

#[test]
fn firmware_that_changed_since_the_approval_is_a_finding() {
    has_one(
        &later(
            Host::default().with(good_drive().setting(setting::NVME_FIRMWARE, "2.0")),
            &Beside::default(),
        ),
        SlotProblemCode::DeviceSettingsChanged,
        &["nvme_firmware", "2.0", "1.0"],
    );
}

#[test]
fn several_functions_that_match_are_refused() {
    let mut snapshot = good_host().snapshot();
    let mut twin = snapshot.functions[&address(DRIVE)].clone();
    twin.address = address("0000:02:00.0");
    snapshot.functions.insert(twin.address, twin);
    let approval = approve(&good_host().snapshot(), &[DRIVE]);
    has_one(
        &judge_slot(&snapshot, &approval, &Beside::default()).findings,
        SlotProblemCode::DeviceIdentityChanged,
        &["2 functions", "0000:02:00.0"],
    );
}

#[test]
fn a_drive_approved_without_its_serial_number_is_refused() {
    found(
        behind_vfio(),
        &[DRIVE],
        SlotProblemCode::DeviceIdentityChanged,
        &["no serial number"],
    );
}

#[test]
fn what_a_device_is_to_its_slot_follows_from_its_class() {
    let snapshot = good_host().snapshot();
    let mut approval = approve(&snapshot, &[DRIVE]);
    approval.devices[0].kind = berth_api::slot::DeviceKind::Other;
    has_one(
        &judge_slot(&snapshot, &approval, &Beside::default()).findings,
        SlotProblemCode::SlotNotApproved,
        &["not be wiped"],
    );
}

#[test]
fn storage_that_is_no_nvme_drive_and_bridges_are_never_slots() {
    for (class, code) in [
        (0x01_06_01, SlotProblemCode::WipeFailed),
        (0x01_08_03, SlotProblemCode::WipeFailed),
        (0x05_02_10, SlotProblemCode::WipeFailed),
        (0x06_01_00, SlotProblemCode::BindFailed),
    ] {
        found(
            Host::default().with(function(DRIVE, class).below("0000:00:01.0")),
            &[DRIVE],
            code,
            &[DRIVE],
        );
    }
}

#[test]
fn an_approval_that_names_no_device_or_one_twice_is_a_finding() {
    let snapshot = good_host().snapshot();
    let mut approval = approve(&snapshot, &[DRIVE]);
    approval.devices.push(approval.devices[0].clone());
    has_one(
        &judge_slot(&snapshot, &approval, &Beside::default())
            .findings
            .into_iter()
            .filter(|finding| finding.message.contains("twice"))
            .collect::<Vec<_>>(),
        SlotProblemCode::SlotNotApproved,
        &[DRIVE],
    );
    approval.devices.clear();
    has_one(
        &judge_slot(&snapshot, &approval, &Beside::default()).findings,
        SlotProblemCode::SlotNotApproved,
        &["names no device"],
    );
}
