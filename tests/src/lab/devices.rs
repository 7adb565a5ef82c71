//! What a scenario may plug into a node, as a typed list, and the QEMU arguments that do it.

use std::ffi::OsString;
use std::path::PathBuf;

/// A device of a node, beyond root disk and network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// A read-only virtio-blk disk; the node sees `/dev/vda` and so on, in order.
    SharedDisk {
        /// A raw image that other nodes may use at the same time.
        image: PathBuf,
    },
    /// A writable NVMe drive on a root port of its own: a slot in an IOMMU group of its own.
    NvmeSlot {
        /// A raw image; its size is the drive's.
        image: PathBuf,
        /// What the drive calls itself.
        serial: String,
    },
    /// A display adapter on a root port of its own, which stands for a GPU.
    DisplaySlot,
    /// A device on a root port of its own that is nothing but one 64-bit BAR.
    MemorySlot {
        /// The BAR's length: a power of two.
        gib: u32,
    },
    /// A device on a root port of its own whose 64-bit BAR is a file of this machine.
    SharedMemorySlot {
        /// The file, as long as the BAR.
        file: PathBuf,
        /// The BAR's length: a power of two.
        gib: u32,
    },
    /// The same below a switch's downstream port, whose secondary bus reset works; that of an emulated root
    /// port does not.
    SwitchedMemorySlot {
        /// The file, as long as the BAR.
        file: PathBuf,
        /// The BAR's length: a power of two.
        mib: u32,
    },
    /// An NVMe drive as a slot that writes no faster than this.
    SlowNvmeSlot {
        /// The drive.
        drive: Nvme,
        /// Bytes in a second.
        write_rate: u64,
    },
    /// Two NVMe drives as two functions of one device: one IOMMU group, and one bus to reset.
    NvmeTwins([Nvme; 2]),
    /// Two NVMe drives below a switch that does not keep its ports apart.
    NvmesBehindSwitch([Nvme; 2]),
    /// Two NVMe drives, each below its own of two root ports that are functions of one device and have no
    /// access control services.
    NvmesBehindOpenPorts([Nvme; 2]),
    /// A display adapter and QEMU's test device behind a bridge to conventional PCI: one group.
    BehindPlainBridge,
    /// QEMU's test device on the root bus: it cannot be reset.
    Unresettable,
    /// An NVMe drive with SR-IOV, on a root port of its own.
    NvmeWithFunctions {
        /// Who it is, without a namespace.
        serial: String,
        /// How many virtual functions it can have.
        functions: u32,
    },
}

/// An NVMe drive: a raw image, whose size is the drive's, and the drive's name for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nvme {
    /// The raw image.
    pub image: PathBuf,
    /// The serial number.
    pub serial: String,
}

impl Nvme {
    /// `name` is unique in the machine; `place` is where it is plugged, in QEMU's words.
    fn arguments(&self, name: &str, place: &str, drive_options: &str) -> Vec<OsString> {
        vec![
            "-drive".into(),
            drive_argument(&format!("disk-{name}"), &self.image, drive_options),
            "-device".into(),
            format!(
                "nvme,id={name},serial={},drive=disk-{name},{place}",
                self.serial
            )
            .into(),
        ]
    }
}

/// What the lab's drives have for options, so that a file holds what its drive was told to keep.
const DRIVE: &str = "cache=none";

impl Device {
    /// QEMU arguments for this device; `number` is unique among the node's devices.
    #[must_use]
    pub fn arguments(&self, number: usize) -> Vec<OsString> {
        let name = format!("dev{number}");
        let on_port = format!("bus=port{number}");
        match self {
            Self::SharedDisk { image } => vec![
                "-drive".into(),
                drive_argument(&name, image, "readonly=on"),
                "-device".into(),
                format!("virtio-blk-pci,drive={name}").into(),
            ],
            Self::NvmeSlot { image, serial } => {
                let drive = Nvme {
                    image: image.clone(),
                    serial: serial.clone(),
                };
                below_port(number, "", drive.arguments(&name, &on_port, DRIVE))
            }
            // Without `iommu_platform` QEMU's virtio devices pass the IOMMU by.
            Self::DisplaySlot => {
                let device = format!("virtio-gpu-pci,id={name},{on_port},iommu_platform=on");
                below_port(number, "", devices([device]))
            }
            Self::MemorySlot { gib } => {
                let device = format!("pci-testdev,{on_port},membar={gib}G");
                below_port(number, "", devices([device]))
            }
            Self::SharedMemorySlot { file, gib } => {
                let mut backend = OsString::from(format!(
                    "memory-backend-file,id=memory{number},share=on,size={gib}G,mem-path="
                ));
                backend.push(file.to_string_lossy().replace(',', ",,"));
                let device = format!("ivshmem-plain,{on_port},memdev=memory{number}");
                let mut words = vec!["-object".into(), backend];
                words.extend(devices([device]));
                below_port(number, "", words)
            }
            Self::SlowNvmeSlot { drive, write_rate } => {
                let options = format!("{DRIVE},throttling.bps-write={write_rate}");
                below_port(number, "", drive.arguments(&name, &on_port, &options))
            }
            Self::NvmeTwins(drives) => {
                let places = [
                    format!("{on_port},addr=0.0,multifunction=on"),
                    format!("{on_port},addr=0.1"),
                ];
                below_port(number, "", pair(&name, drives, &places))
            }
            Self::NvmesBehindSwitch(drives) => {
                let mut words = devices([
                    format!("x3130-upstream,id=switch{number},{on_port}"),
                    format!(
                        "xio3130-downstream,id=left{number},bus=switch{number},slot=0,chassis=1{number}"
                    ),
                    format!(
                        "xio3130-downstream,id=right{number},bus=switch{number},slot=1,chassis=1{number}"
                    ),
                ]);
                let places = [format!("bus=left{number}"), format!("bus=right{number}")];
                words.extend(pair(&name, drives, &places));
                below_port(number, "", words)
            }
            Self::NvmesBehindOpenPorts(drives) => open_ports(number, &name, drives),
            Self::BehindPlainBridge => {
                let bridge = format!("pcie-pci-bridge,id=bridge{number},{on_port}");
                let display = format!("bochs-display,bus=bridge{number},addr=1");
                let test = format!("edu,bus=bridge{number},addr=2");
                below_port(number, "", devices([bridge, display, test]))
            }
            Self::Unresettable => devices([format!("edu,id={name}")]),
            Self::NvmeWithFunctions { serial, functions } => {
                let subsystem = format!("nvme-subsys,id=subsystem{number}");
                let drive = format!(
                    "nvme,id={name},serial={serial},subsys=subsystem{number},{on_port},\
                     sriov_max_vfs={functions},sriov_vq_flexible={0},sriov_vi_flexible={0},\
                     max_ioqpairs={1},msix_qsize={2}",
                    2 * functions,
                    2 * functions + 2,
                    2 * functions + 1
                );
                below_port(number, "", devices([subsystem, drive]))
            }
            Self::SwitchedMemorySlot { file, mib } => {
                let mut backend = OsString::from(format!(
                    "memory-backend-file,id=memory{number},share=on,size={mib}M,mem-path="
                ));
                backend.push(file.to_string_lossy().replace(',', ",,"));
                let mut words = vec!["-object".into(), backend];
                words.extend(devices([
                    format!("x3130-upstream,id=up{number},{on_port}"),
                    format!(
                        "xio3130-downstream,id=down{number},bus=up{number},slot=0,chassis=1{number}"
                    ),
                    format!("ivshmem-plain,bus=down{number},memdev=memory{number}"),
                ]));
                below_port(number, "", words)
            }
        }
    }
}

/// A root port that others share nothing with, and what is below it.
fn below_port(number: usize, options: &str, below: Vec<OsString>) -> Vec<OsString> {
    let port = format!("pcie-root-port,id=port{number},slot={number},chassis={number}{options}");
    let mut words = devices([port]);
    words.extend(below);
    words
}

/// Two functions of one device on the root bus, each a root port that isolates nothing.
fn open_ports(number: usize, name: &str, drives: &[Nvme; 2]) -> Vec<OsString> {
    // Above the places that QEMU gives away by itself.
    let place = 16 + number;
    let mut words = devices([
        format!(
            "pcie-root-port,id=left{number},chassis=1{number},addr={place:#x}.0,\
             multifunction=on,disable-acs=on"
        ),
        format!(
            "pcie-root-port,id=right{number},chassis=2{number},addr={place:#x}.1,disable-acs=on"
        ),
    ]);
    let places = [format!("bus=left{number}"), format!("bus=right{number}")];
    words.extend(pair(name, drives, &places));
    words
}

fn devices<const COUNT: usize>(all: [String; COUNT]) -> Vec<OsString> {
    let words = all.into_iter().map(OsString::from);
    words.flat_map(|word| ["-device".into(), word]).collect()
}

fn pair(name: &str, drives: &[Nvme; 2], places: &[String; 2]) -> Vec<OsString> {
    let pairs = drives.iter().zip(places).zip(["a", "b"]);
    pairs
        .flat_map(|((drive, place), suffix)| {
            drive.arguments(&format!("{name}{suffix}"), place, DRIVE)
        })
        .collect()
}

/// A `-drive` value for a raw image without a front end.
#[must_use]
pub fn drive_argument(id: &str, image: &std::path::Path, options: &str) -> OsString {
    let mut value = OsString::from(format!("if=none,id={id},format=raw,{options},file="));
    // A comma in a path is doubled in QEMU's option syntax.
    value.push(image.to_string_lossy().replace(',', ",,"));
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_has_a_root_port_of_its_own() {
        let slot = Device::NvmeSlot {
            image: "/x/a,b.raw".into(),
            serial: "s1".into(),
        };
        let words: Vec<_> = slot
            .arguments(3)
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect();
        assert!(words.contains(&"nvme,id=dev3,serial=s1,drive=disk-dev3,bus=port3".to_owned()));
        assert!(
            words.iter().any(|word| word.ends_with("file=/x/a,,b.raw")),
            "{words:?}"
        );
    }
}
