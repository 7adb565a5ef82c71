//! How each VMM is started on the node with the same guest.
//!
//! All get raw disks through the host's page cache with flushes honoured, one queue pair of
//! network, a random number device and a serial port. Peers run with their default system call
//! filters and with the PCI transport.

use std::fmt::Write as _;

use crate::startup::PeerKind;

use super::work::Work;

/// Who is compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Contender {
    /// `berth-vmm`, packets through the process.
    Berth,
    /// `berth-vmm`, packets through vhost-net.
    BerthVhost,
    Firecracker,
    CloudHypervisor,
}

impl From<PeerKind> for Contender {
    fn from(kind: PeerKind) -> Self {
        match kind {
            PeerKind::Firecracker => Self::Firecracker,
            PeerKind::CloudHypervisor => Self::CloudHypervisor,
        }
    }
}

/// A guest, as all contenders get it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guest {
    pub(super) vcpus: u32,
    pub(super) memory_mib: u32,
    /// Whether it has a network interface over `tap0`.
    pub(super) network: bool,
    /// Whether it has the third disk, `/dev/vdc`.
    pub(super) data_disk: bool,
    /// Whether it has the drive at `/run/contest-drive`.
    pub(super) drive: bool,
}

const CMDLINE: &str = "console=ttyS0 root=/dev/vda rw quiet berth.script";
const MAC: &str = "52:54:00:00:00:00";

impl Contender {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Berth => "berth",
            Self::BerthVhost => "berth, vhost-net",
            Self::Firecracker => "firecracker",
            Self::CloudHypervisor => "cloud-hypervisor",
        }
    }

    /// Where its program is on the node.
    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Berth | Self::BerthVhost => "/usr/local/bin/vmm-run",
            Self::Firecracker => "/usr/local/bin/firecracker",
            Self::CloudHypervisor => "/usr/local/bin/cloud-hypervisor",
        }
    }

    pub(super) fn is_peer(self) -> bool {
        matches!(self, Self::Firecracker | Self::CloudHypervisor)
    }

    pub(super) fn can_do(self, work: Work) -> bool {
        match self {
            Self::Berth | Self::CloudHypervisor => true,
            Self::BerthVhost => work == Work::Network,
            // It passes no host devices through.
            Self::Firecracker => work != Work::Passthrough,
        }
    }

    /// The shell command that runs `guest` from the current folder, with its console on standard
    /// output.
    pub(super) fn command(self, guest: Guest) -> String {
        match self {
            Self::Berth | Self::BerthVhost => self.berth(guest),
            Self::Firecracker => firecracker(guest),
            Self::CloudHypervisor => cloud_hypervisor(guest),
        }
    }

    fn berth(self, guest: Guest) -> String {
        let mut command = format!(
            "vmm-run --vmm /usr/libexec/berth/berth-vmm --kernel /srv/guest/vmlinux \
             --initrd /srv/guest/initrd --disk root.raw --disk script:ro --entropy \
             --vcpus {} --memory-mib {} --console - --cmdline '{CMDLINE}'",
            guest.vcpus, guest.memory_mib
        );
        let mut add = |text: &str| command.push_str(text);
        if guest.data_disk {
            add(" --disk data.raw");
        }
        if guest.network {
            let vhost = if self == Self::BerthVhost {
                ",vhost"
            } else {
                ""
            };
            add(&format!(" --tap tap0,mac={MAC}{vhost}"));
        }
        if guest.drive {
            add(" --vfio $(cat /run/contest-drive)");
        }
        command
    }
}

fn firecracker(guest: Guest) -> String {
    let mut disks = vec![("root.raw", false), ("script", true)];
    if guest.data_disk {
        disks.push(("data.raw", false));
    }
    let drives: Vec<_> = disks
        .into_iter()
        .map(|(path, read_only)| {
            serde_json::json!({
                "drive_id": path.replace('.', "_"), "path_on_host": path,
                "is_root_device": false, "is_read_only": read_only,
                "cache_type": "Writeback", "io_engine": "Async",
            })
        })
        .collect();
    let mut machine = serde_json::json!({
        "boot-source": {
            "kernel_image_path": "/srv/guest/vmlinux", "initrd_path": "/srv/guest/initrd",
            "boot_args": CMDLINE,
        },
        "drives": drives,
        "machine-config": { "vcpu_count": guest.vcpus, "mem_size_mib": guest.memory_mib },
        "entropy": {},
    });
    if guest.network {
        machine["network-interfaces"] = serde_json::json!([
            { "iface_id": "net0", "guest_mac": MAC, "host_dev_name": "tap0" }
        ]);
    }
    format!(
        "sh -c 'echo '\\''{machine}'\\'' >machine.json; \
         exec firecracker --no-api --enable-pci --config-file machine.json'"
    )
}

fn cloud_hypervisor(guest: Guest) -> String {
    let mut command = format!(
        "cloud-hypervisor --kernel /srv/guest/vmlinux --initramfs /srv/guest/initrd \
         --cmdline '{CMDLINE}' --cpus boot={} --memory size={}M --rng src=/dev/urandom \
         --serial tty --console off --disk path=root.raw,image_type=raw \
         path=script,readonly=on,image_type=raw",
        guest.vcpus, guest.memory_mib
    );
    let mut add = |text: &str| {
        // Writing to a String cannot fail.
        let _infallible = write!(command, "{text}");
    };
    if guest.data_disk {
        add(" path=data.raw,image_type=raw");
    }
    if guest.network {
        add(&format!(" --net tap=tap0,mac={MAC}"));
    }
    if guest.drive {
        add(" --device path=/sys/bus/pci/devices/$(cat /run/contest-drive)");
    }
    command
}
