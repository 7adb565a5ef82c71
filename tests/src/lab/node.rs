//! One emulated host: a QEMU process with SVM, an IOMMU, our node image and a way in.
//!
//! TCG emulates the processor, so no hardware virtualisation is needed here and KVM works inside.
//! The process ends with its [`Node`], however that ends: by `Drop`, or by the kernel's
//! parent-death signal. [`Node::keep`] is the one way to leave it running.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::cache;
use super::devices::{Device, drive_argument};
use super::host::Host;
use super::image::{ChannelKeys, NodeImage, lab_dir};
use super::kept::Kept;
use super::monitor::{self, Monitor};
use super::scenario::Context as Material;
use super::ssh::{self, Channel, Lifetime, wait_for};
use crate::command;

/// How long a node may take until its ssh server answers. The usual time is 10 to 20 s; a busy
/// machine may need several times that.
const BOOT_LIMIT: Duration = Duration::from_secs(600);

/// What a node is made of.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// Its memory.
    pub memory_mib: u32,
    /// Its processors.
    pub cpus: u32,
    /// What is plugged in.
    pub devices: Vec<Device>,
    /// Its IOMMU.
    pub iommu: Iommu,
    /// More words for its kernel's command line.
    pub kernel_words: String,
    /// What it boots from.
    pub root: RootDisk,
    /// Whether it ends with us.
    pub lifetime: Lifetime,
}

/// What a node has for an IOMMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Iommu {
    /// None at all.
    Absent,
    /// One in front of all devices.
    Present {
        /// Bits of the addresses that it translates: 39 or 48.
        bits: u32,
        /// Whether it remaps interrupts, too.
        remaps_interrupts: bool,
    },
}

/// What a node boots from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootDisk {
    /// The node's image, shared with other nodes; what is written is lost with the node.
    Discarded,
    /// A copy of the image in a file that stays, so that a node whose power was cut boots again.
    Kept(PathBuf),
}

impl Default for NodeSpec {
    fn default() -> Self {
        Self {
            memory_mib: 3072,
            cpus: 2,
            devices: Vec::new(),
            iommu: Iommu::Present {
                bits: 48,
                remaps_interrupts: true,
            },
            kernel_words: String::new(),
            root: RootDisk::Discarded,
            lifetime: Lifetime::Ours,
        }
    }
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    folder: PathBuf,
    port: u16,
    qemu: Child,
    channel: Option<Channel>,
}

impl Node {
    /// Boots a node and waits until it answers. `name` is the folder of its logs below
    /// `build/lab/runs/`, which is emptied first.
    ///
    /// # Errors
    /// If QEMU ends, or ssh does not answer in time; the message quotes the node's console.
    pub fn boot(name: &str, image: &NodeImage, spec: &NodeSpec) -> Result<Self> {
        let folder = run_folder(name);
        cache::remove_tree(&folder)?;
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let keys = ChannelKeys::ensure()?;
        let port = ssh::free_port()?;
        let log = File::create(folder.join("qemu.log")).context("creating qemu.log")?;
        let mut command = qemu(image, spec, port, &folder);
        std::fs::write(folder.join("qemu.cmd"), command::shown(&command))
            .context("writing qemu.cmd")?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let qemu = command.spawn().context("starting qemu-system-x86_64")?;
        let mut node = Self {
            folder,
            port,
            qemu,
            channel: None,
        };
        node.wait_until_it_answers()?;
        node.channel = Some(Channel::open(port, &keys, &node.folder, spec.lifetime)?);
        Ok(node)
    }

    /// Where this node's logs are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The way in.
    ///
    /// # Errors
    /// If the node never answered.
    pub fn channel(&self) -> Result<&Channel> {
        self.channel.as_ref().context("the node has no channel")
    }

    /// A talk with the machine itself, to plug and unplug devices.
    ///
    /// # Errors
    /// If QEMU does not answer.
    pub fn monitor(&self) -> Result<Monitor> {
        Monitor::open(&self.folder)
    }

    /// Cuts the power: whatever the node has not flushed is lost.
    pub fn cut_power(mut self) {
        // The channel first: it ends by itself only after a timeout.
        self.channel = None;
        ssh::end(&mut self.qemu);
    }

    /// Copies a file to the node.
    ///
    /// # Errors
    /// If it cannot be read here or written there.
    pub fn copy_in(&self, source: &Path, target: &str, mode: &str) -> Result<()> {
        let mut file =
            File::open(source).with_context(|| format!("opening {}", source.display()))?;
        self.channel()?.write(&mut file, target, mode)
    }

    /// Copies a file from the node.
    ///
    /// # Errors
    /// If it cannot be read there or written here.
    pub fn copy_out(&self, source: &str, target: &Path) -> Result<()> {
        let output = self.run(&format!("cat '{source}'"))?;
        ensure!(
            output.status.success(),
            "reading {source} on the node: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        std::fs::write(target, output.stdout)
            .with_context(|| format!("writing {}", target.display()))
    }

    /// Mounts the first shared disk read-only at `/srv/guest`.
    ///
    /// # Errors
    /// If the node has none.
    pub fn mount_guest_image(&self) -> Result<()> {
        self.check(
            "modprobe virtio_blk && udevadm settle --timeout=30 && mkdir -p /srv/guest && \
             mount -o ro /dev/vda /srv/guest",
        )?;
        Ok(())
    }

    /// Puts the VMM and its launcher on the node: `/usr/libexec/berth/berth-vmm` and `vmm-run`.
    ///
    /// # Errors
    /// If one cannot be copied.
    pub fn bring_vmm(&self, context: &Material) -> Result<()> {
        self.check("modprobe kvm_amd && mkdir -p /usr/libexec/berth")?;
        self.copy_in(&context.vmm, "/usr/libexec/berth/berth-vmm", "0755")?;
        let launcher = context.programs.join("vmm-run");
        self.copy_in(&launcher, "/usr/local/bin/vmm-run", "0755")
    }

    /// Leaves the node running, with its API reachable at a loopback port of this machine.
    ///
    /// # Errors
    /// If the port cannot be forwarded; the node is ended then.
    pub fn keep(self) -> Result<Kept> {
        let channel = self.channel()?;
        let kept = Kept {
            pids: vec![channel.pid(), self.qemu.id()],
            api_port: channel.forward(9221)?,
            ssh_port: self.port,
            folder: self.folder.clone(),
        };
        kept.record()?;
        // Both destructors would end the processes, which is what must not happen from here on.
        std::mem::forget(self);
        Ok(kept)
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let port = self.port;
        let answered = wait_for(BOOT_LIMIT, || {
            if let Some(status) = self.qemu.try_wait().context("waiting for QEMU")? {
                bail!(
                    "QEMU ended with {status}:\n{}",
                    command::tail(&self.folder.join("qemu.log"), 10)
                );
            }
            Ok(ssh::answers(port))
        })?;
        ensure!(
            answered,
            "the node did not answer within {} s; its console says:\n{}",
            BOOT_LIMIT.as_secs(),
            command::tail(&self.folder.join("serial.log"), 20)
        );
        Ok(())
    }
}

impl Host for Node {
    fn run(&self, script: &str) -> Result<Output> {
        self.channel()?.run(script)
    }

    /// Journal, kernel log and unit states, next to the serial log.
    fn collect(&self) {
        let wanted = [
            ("journal.txt", "journalctl --no-pager -b -o short-monotonic"),
            ("dmesg.txt", "dmesg"),
            (
                "units.txt",
                "systemctl --no-pager --all; systemctl --no-pager --failed",
            ),
            (
                "state.txt",
                "ls -laR /var/lib/berth /run/berth /etc/berth; ps auxf; free -m; df -h",
            ),
        ];
        for (name, script) in wanted {
            let text = match self.run(script) {
                Ok(output) => output.stdout,
                Err(error) => format!("could not be read: {error:#}\n").into_bytes(),
            };
            if std::fs::write(self.folder.join(name), text).is_err() {
                // The failure that is being reported matters more than its evidence.
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.channel = None;
        ssh::end(&mut self.qemu);
    }
}

/// The folder of a run's logs.
#[must_use]
pub fn run_folder(name: &str) -> PathBuf {
    lab_dir().join("runs").join(name)
}

/// Whether the node of that run ended because its own processor, which is emulated, gave up.
#[must_use]
pub fn fell(name: &str) -> bool {
    let log = std::fs::read_to_string(run_folder(name).join("cpu-reset.log"));
    log.is_ok_and(|log| ends_in_a_triple_fault(&log))
}

/// QEMU ends right after it has written this line: our nodes do not reboot.
fn ends_in_a_triple_fault(log: &str) -> bool {
    log.trim_end().ends_with("\nTriple fault")
}

fn qemu(image: &NodeImage, spec: &NodeSpec, port: u16, folder: &Path) -> Command {
    let mut command = spec.lifetime.command("qemu-system-x86_64");
    command.args(["-name", "berth-lab", "-machine", "q35,kernel-irqchip=off"]);
    // Without 5-level paging: guests that used it lost a translation now and then, as decision 14
    // tells, and no guest here has the memory that needs it.
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max,la57=off"]);
    command.args([
        "-smp",
        &spec.cpus.to_string(),
        "-m",
        &spec.memory_mib.to_string(),
    ]);
    if let Iommu::Present {
        bits,
        remaps_interrupts,
    } = spec.iommu
    {
        let remaps = if remaps_interrupts { "on" } else { "off" };
        let iommu = format!("intel-iommu,intremap={remaps},aw-bits={bits}");
        command.args(["-device", &iommu]);
    }
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
    ]);
    // Tells a triple fault, which ends QEMU without another word, from being killed.
    command
        .args(["-d", "cpu_reset", "-D"])
        .arg(folder.join("cpu-reset.log"));
    command
        .arg("-serial")
        .arg(format!("file:{}", folder.join("serial.log").display()));
    command.arg("-qmp").arg(monitor::argument(folder));
    let words = format!("{KERNEL_ARGUMENTS} {}", spec.kernel_words);
    command.arg("-kernel").arg(&image.kernel);
    command.args(["-append", words.trim_end()]);
    let root = match &spec.root {
        RootDisk::Discarded => {
            // What a node writes goes to a file of its own that QEMU has unlinked.
            command.env("TMPDIR", folder);
            drive_argument("root", &image.disk, "snapshot=on,cache=unsafe")
        }
        RootDisk::Kept(disk) => drive_argument("root", disk, "cache=writeback"),
    };
    command.arg("-drive").arg(root);
    command.args(["-device", "nvme,serial=root,drive=root"]);
    let network = format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22");
    command.args(["-netdev", &network, "-device", "virtio-net-pci,netdev=net"]);
    command.args(["-device", "virtio-rng-pci"]);
    for (number, device) in (1..).zip(&spec.devices) {
        command.args(device.arguments(number));
    }
    command
}

/// NVMe and ext4 are built into the kernel, so that the node needs no initrd. On a
/// busy machine the emulated timer is late for the kernel's check of it.
const KERNEL_ARGUMENTS: &str = "root=/dev/nvme0n1 rootfstype=ext4 rw console=ttyS0 quiet \
    net.ifnames=0 no_timer_check intel_iommu=on systemd.show_status=no";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_fell_if_the_last_word_of_its_processor_is_a_triple_fault() {
        assert!(ends_in_a_triple_fault(
            "CPU Reset (CPU 0)\nEIP=1\nTriple fault\n"
        ));
        assert!(!ends_in_a_triple_fault(
            "Triple fault\nCPU Reset (CPU 1)\nEIP=1\n"
        ));
        assert!(!ends_in_a_triple_fault(""));
        assert!(!fell("a-run-that-never-was"));
    }
}
