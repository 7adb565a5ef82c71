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
}

impl Device {
    /// QEMU arguments for this device; `number` is unique among the node's devices.
    #[must_use]
    pub fn arguments(&self, number: usize) -> Vec<OsString> {
        let drive = format!("dev{number}");
        let port = || {
            [
                OsString::from("-device"),
                format!("pcie-root-port,id=port{number},slot={number},chassis={number}").into(),
                OsString::from("-device"),
            ]
        };
        match self {
            Self::SharedDisk { image } => vec![
                "-drive".into(),
                drive_argument(&drive, image, "readonly=on"),
                "-device".into(),
                format!("virtio-blk-pci,drive={drive}").into(),
            ],
            Self::NvmeSlot { image, serial } => vec![
                "-device".into(),
                format!("pcie-root-port,id=port{number},slot={number},chassis={number}").into(),
                "-drive".into(),
                drive_argument(&drive, image, "cache=none"),
                "-device".into(),
                format!("nvme,serial={serial},bus=port{number},drive={drive}").into(),
            ],
            Self::DisplaySlot => {
                // Without `iommu_platform` QEMU's virtio devices pass the IOMMU by.
                let device = format!("virtio-gpu-pci,bus=port{number},iommu_platform=on");
                port().into_iter().chain([device.into()]).collect()
            }
            Self::MemorySlot { gib } => {
                let device = format!("pci-testdev,bus=port{number},membar={gib}G");
                port().into_iter().chain([device.into()]).collect()
            }
            Self::SharedMemorySlot { file, gib } => {
                let memory = format!("memory{number}");
                let mut backend = OsString::from(format!(
                    "memory-backend-file,id={memory},share=on,size={gib}G,mem-path="
                ));
                backend.push(file.to_string_lossy().replace(',', ",,"));
                let device = format!("ivshmem-plain,bus=port{number},memdev={memory}");
                let object = [OsString::from("-object"), backend];
                let device = port().into_iter().chain([device.into()]);
                object.into_iter().chain(device).collect()
            }
            Self::SwitchedMemorySlot { file, mib } => {
                let memory = format!("memory{number}");
                let mut backend = OsString::from(format!(
                    "memory-backend-file,id={memory},share=on,size={mib}M,mem-path="
                ));
                backend.push(file.to_string_lossy().replace(',', ",,"));
                let switch = [
                    format!("x3130-upstream,id=up{number},bus=port{number}"),
                    format!(
                        "xio3130-downstream,id=down{number},bus=up{number},slot={number},chassis=1{number}"
                    ),
                    format!("ivshmem-plain,bus=down{number},memdev={memory}"),
                ];
                let [up, down, device] = switch.map(OsString::from);
                let object = [OsString::from("-object"), backend];
                let behind = [up, "-device".into(), down, "-device".into(), device];
                object.into_iter().chain(port()).chain(behind).collect()
            }
        }
    }
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
        assert!(words.contains(&"nvme,serial=s1,bus=port3,drive=dev3".to_owned()));
        assert!(
            words.iter().any(|word| word.ends_with("file=/x/a,,b.raw")),
            "{words:?}"
        );
    }
}
