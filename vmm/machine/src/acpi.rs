//! The guest's ACPI tables, hardware-reduced.
//!
//! Owns RSDP, XSDT, FADT, MADT, MCFG and DSDT as one block of bytes for the place that the layout
//! gives them. It describes only what [`crate::device_set`] builds. It may not touch memory.

use acpi_tables::aml::{
    self, AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed,
    Method, Name, Notify, OpRegion, OpRegionSpace, Package, ResourceTemplate, Return, Uuid,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as RegisterSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml::Path};
use berth_vmm_devices::power::{RESET_VALUE, SLEEP_TYPE_S5};
use berth_vmm_devices::power_button::STATUS_POWER_BUTTON;

use crate::layout;

const OEM_ID: [u8; 6] = *b"BERTH ";
const OEM_TABLE_ID: [u8; 8] = *b"BERTHVMM";
const OEM_REVISION: u32 = 1;
/// What the FADT calls the hypervisor.
const HYPERVISOR_ID: u64 = u64::from_le_bytes(*b"BERTHVMM");
/// `VGA Not Present` and `CMOS RTC Not Present` of IAPC_BOOT_ARCH; all other bits 0: no legacy
/// devices, no 8042.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 5;
/// The revision from which on AML integers have 64 bits.
const DSDT_REVISION: u8 = 2;
/// Tables begin at multiples of this.
const TABLE_ALIGN: usize = 16;
const RSDP_BYTES: usize = 36;

/// What the tables depend on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AcpiInput {
    /// Number of vCPUs; their APIC ids count from 0.
    pub vcpus: u8,
    /// Whether there is a serial port.
    pub serial: bool,
    /// Whether there is a pvpanic device.
    pub panic_device: bool,
    /// Where 64-bit BARs are beyond the guest's memory; empty without any.
    pub high_window: std::ops::Range<u64>,
}

/// Builds the block that starts with the RSDP at [`layout::ACPI`].
#[must_use]
pub fn tables(input: &AcpiInput) -> Vec<u8> {
    let base = layout::ACPI.start;
    let mut block = vec![0; RSDP_BYTES.next_multiple_of(TABLE_ALIGN)];
    let mut place = |table: &dyn Aml| {
        block.resize(block.len().next_multiple_of(TABLE_ALIGN), 0);
        let address = base + u64::try_from(block.len()).expect("lengths fit 64 bits");
        table.to_aml_bytes(&mut block);
        address
    };
    let dsdt = place(&dsdt(input));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(place(&fadt(dsdt)));
    xsdt.add_entry(place(&madt(input.vcpus)));
    xsdt.add_entry(place(&mcfg()));
    let xsdt = place(&xsdt);
    let mut rsdp = Vec::with_capacity(RSDP_BYTES);
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    block[..RSDP_BYTES].copy_from_slice(&rsdp);
    block
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let port = |port: u16| {
        GAS::new(
            RegisterSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            u64::from(port),
        )
    };
    let mut table = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::Headless)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    table.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    table.reset_reg = port(layout::RESET_PORT);
    table.reset_value = RESET_VALUE;
    table.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    table.sleep_status_reg = port(layout::SLEEP_STATUS_PORT);
    table.hypervisor_vendor_identity = HYPERVISOR_ID.into();
    table.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let local = u32::try_from(layout::LOCAL_APIC.start).expect("the local APIC is below 4 GiB");
    let mut table = MADT::new(
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
        LocalInterruptController::Address(local),
    );
    for vcpu in 0..vcpus {
        table.add_structure(ProcessorLocalApic::new(vcpu, vcpu, EnabledStatus::Enabled));
    }
    let ioapic = u32::try_from(layout::IOAPIC.start).expect("the I/O APIC is below 4 GiB");
    table.add_structure(IoApic::new(layout::IOAPIC_ID, ioapic, 0));
    table
}

fn mcfg() -> MCFG {
    let mut table = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.add_ecam(layout::ECAM.start, 0, 0, 0);
    table
}

/// The DSDT with its header, as bytes that are their own AML.
fn dsdt(input: &AcpiInput) -> Bytes {
    let mut table = Sdt::new(
        *b"DSDT",
        36,
        DSDT_REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    let mut code = Vec::new();
    let type_s5 = SLEEP_TYPE_S5;
    Name::new(
        Path::new("_S5_"),
        &Package::new(vec![&type_s5, &type_s5, &aml::ZERO, &aml::ZERO]),
    )
    .to_aml_bytes(&mut code);
    host_bridge(&mut code, &input.high_window);
    board_resources(&mut code);
    if input.serial {
        serial_port(&mut code);
    }
    if input.panic_device {
        panic_device(&mut code);
    }
    power_button(&mut code);
    table.append_slice(&code);
    Bytes(table.as_slice().to_vec())
}

struct Bytes(Vec<u8>);

impl Aml for Bytes {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// `\_SB.PC00`: bus 0, its memory windows, and the wish that the guest leaves BARs where they are.
fn host_bridge(code: &mut Vec<u8>, high_window: &std::ops::Range<u64>) {
    let first = u32::try_from(layout::PCI_WINDOW.start).expect("the window is below 4 GiB");
    let last = u32::try_from(layout::PCI_WINDOW.end - 1).expect("the window is below 4 GiB");
    let bus = AddressSpace::new_bus_number(0u16, 0u16);
    let window =
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None);
    let high = high_window.end.checked_sub(1).map(|last| {
        let first = high_window.start;
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None)
    });
    let mut resources: Vec<&dyn Aml> = vec![&bus, &window];
    resources.extend(high.iter().map(|high| high as &dyn Aml));
    let uuid = Uuid::new("E5C937D0-3553-4D7A-9117-EA4D19C3434D");
    // Functions 0 (which are there) and 5 (keep the boot configuration).
    let which = aml::BufferData::new(vec![0x21]);
    Device::new(
        Path::new("_SB_.PC00"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_ADR"), &aml::ZERO),
            &Name::new(Path::new("_SEG"), &aml::ZERO),
            &Name::new(Path::new("_UID"), &aml::ZERO),
            &Name::new(Path::new("_CCA"), &aml::ONE),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources)),
            &Method::new(
                Path::new("_DSM"),
                4,
                false,
                vec![
                    &aml::If::new(
                        &aml::Equal::new(&aml::Arg(0), &uuid),
                        vec![
                            &aml::If::new(
                                &aml::Equal::new(&aml::Arg(2), &aml::ZERO),
                                vec![&Return::new(&which)],
                            ),
                            &aml::If::new(
                                &aml::Equal::new(&aml::Arg(2), &5u8),
                                vec![&Return::new(&aml::ZERO)],
                            ),
                        ],
                    ),
                    &Return::new(&aml::BufferData::new(vec![0])),
                ],
            ),
        ],
    )
    .to_aml_bytes(code);
}

/// `\_SB.MBRD`: configuration space, which Linux uses only if a board device claims it.
fn board_resources(code: &mut Vec<u8>) {
    let start = u32::try_from(layout::ECAM.start).expect("ECAM is below 4 GiB");
    let bytes = u32::try_from(layout::ECAM.bytes()).expect("ECAM is small");
    Device::new(
        Path::new("_SB_.MBRD"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_UID"), &aml::ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(true, start, bytes)]),
            ),
        ],
    )
    .to_aml_bytes(code);
}

/// `\_SB.COM1`.
fn serial_port(code: &mut Vec<u8>) {
    Device::new(
        Path::new("_SB_.COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &aml::ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &Interrupt::new(true, true, false, false, u32::from(layout::COM1_PIN)),
                    &IO::new(layout::COM1_PORT, layout::COM1_PORT, 1, layout::COM1_PORTS),
                ]),
            ),
        ],
    )
    .to_aml_bytes(code);
}

/// `\_SB.PEVT`: Linux's `pvpanic-mmio` binds the name and takes the port from the resources.
fn panic_device(code: &mut Vec<u8>) {
    let port = layout::PANIC_PORT;
    Device::new(
        Path::new("_SB_.PEVT"),
        vec![
            &Name::new(Path::new("_HID"), &"QEMU0001"),
            &Name::new(Path::new("_UID"), &aml::ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&IO::new(port, port, 1, 1)]),
            ),
        ],
    )
    .to_aml_bytes(code);
}

/// `\_SB.PWRB` and `\_SB.GED`, whose status register says what an interrupt means.
fn power_button(code: &mut Vec<u8>) {
    let register = layout::EVENT_STATUS_PORT;
    Device::new(
        Path::new("_SB_.PWRB"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C")),
            &Name::new(Path::new("_UID"), &aml::ZERO),
        ],
    )
    .to_aml_bytes(code);
    Device::new(
        Path::new("_SB_.GED_"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &aml::ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&Interrupt::new(
                    true,
                    true,
                    false,
                    false,
                    u32::from(layout::EVENT_PIN),
                )]),
            ),
            &OpRegion::new(
                Path::new("EVST"),
                OpRegionSpace::SystemIO,
                &register,
                &aml::ONE,
            ),
            &aml::Field::new(
                Path::new("EVST"),
                aml::FieldAccessType::Byte,
                aml::FieldLockRule::NoLock,
                aml::FieldUpdateRule::WriteAsZeroes,
                vec![aml::FieldEntry::Named(*b"STAT", 8)],
            ),
            &Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![
                    &aml::Store::new(&aml::Local(0), &Path::new("STAT")),
                    &aml::And::new(&aml::Local(1), &aml::Local(0), &STATUS_POWER_BUTTON),
                    &aml::If::new(
                        &aml::Equal::new(&aml::Local(1), &STATUS_POWER_BUTTON),
                        vec![&Notify::new(&Path::new("\\_SB_.PWRB"), &0x80u8)],
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(code);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn u32_at(block: &[u8], offset: usize) -> usize {
        usize::try_from(u32::from_le_bytes(
            block[offset..offset + 4].try_into().unwrap(),
        ))
        .unwrap()
    }

    fn u64_at(block: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(block[offset..offset + 8].try_into().unwrap())
    }

    /// The table at a guest address, with its checksum verified.
    fn table(block: &[u8], address: u64) -> &[u8] {
        let start = usize::try_from(address - layout::ACPI.start).unwrap();
        let table = &block[start..start + u32_at(block, start + 4)];
        assert_eq!(sum(table), 0);
        table
    }

    #[test]
    fn every_table_is_reached_from_the_rsdp_and_has_a_right_checksum() {
        let block = tables(&AcpiInput {
            vcpus: 4,
            serial: true,
            panic_device: true,
            high_window: 4 << 30..512 << 30,
        });
        assert_eq!(&block[..8], b"RSD PTR ");
        assert_eq!(sum(&block[..20]), 0);
        assert_eq!(sum(&block[..36]), 0);
        let xsdt = table(&block, u64_at(&block, 24));
        let names: Vec<_> = xsdt[36..]
            .chunks(8)
            .map(|entry| table(&block, u64_at(entry, 0))[..4].to_vec())
            .collect();
        assert_eq!(names, [b"FACP", b"APIC", b"MCFG"]);
        let fadt = table(&block, u64_at(xsdt, 36));
        assert_eq!(fadt.len(), 276);
        assert_eq!(&table(&block, u64_at(fadt, 140))[..4], b"DSDT");
    }

    #[test]
    fn the_largest_machine_fits_its_place() {
        let block = tables(&AcpiInput {
            vcpus: 254,
            serial: true,
            panic_device: true,
            high_window: 4 << 30..512 << 30,
        });
        assert!(u64::try_from(block.len()).unwrap() <= layout::ACPI.bytes());
    }

    #[test]
    fn the_madt_lists_every_vcpu_and_the_ioapic() {
        let block = tables(&AcpiInput {
            vcpus: 3,
            ..AcpiInput::default()
        });
        let xsdt = table(&block, u64_at(&block, 24));
        let madt = table(&block, u64_at(xsdt, 44));
        let kinds: Vec<_> = {
            let mut rest = &madt[44..];
            let mut kinds = Vec::new();
            while let [kind, length, ..] = *rest {
                kinds.push(kind);
                rest = &rest[usize::from(length)..];
            }
            kinds
        };
        assert_eq!(kinds, [0, 0, 0, 1]);
    }

    #[test]
    fn a_device_that_is_not_there_is_not_described() {
        let finds = |name: &[u8], serial, panic_device| {
            let input = AcpiInput {
                vcpus: 1,
                serial,
                panic_device,
                ..AcpiInput::default()
            };
            let block = tables(&input);
            block.windows(name.len()).any(|bytes| bytes == name)
        };
        assert!(finds(b"COM1", true, false));
        assert!(!finds(b"COM1", false, true));
        assert!(finds(b"QEMU0001", false, true));
        assert!(!finds(b"QEMU0001", true, false));
    }

    #[test]
    fn a_window_beyond_memory_is_described_by_first_and_last_address() {
        let last = (1_u64 << 40) - 1;
        let finds = |high_window| {
            let block = tables(&AcpiInput {
                vcpus: 1,
                high_window,
                ..AcpiInput::default()
            });
            block.windows(8).any(|bytes| bytes == last.to_le_bytes())
        };
        assert!(finds(1 << 39..1 << 40));
        assert!(!finds(0..0));
    }
}
