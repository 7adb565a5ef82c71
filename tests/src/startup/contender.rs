//! How each contender is started with the same tiny guest, 1 vCPU and 128 MiB.
//!
//! Peers run as their projects ship them: with their own default system call filters, without
//! options that make them faster or slower than a user would find them.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};
use berth_api::vmm::{Console, Start};

use super::quiet;
use crate::launch::{ALLOW_UNJAILED, Descriptors, LaunchedVmm};
use crate::tiny_guest::{Code, Width};

/// The guest's first byte, which no program's log has in it: it is no ASCII and no valid UTF-8.
pub(super) const MARK: u8 = 0xbe;
/// The first serial port of a PC.
const COM1_PORT: u16 = 0x3f8;
const MEMORY_MIB: u64 = 128;

/// A program that `berth-vmm` is compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerKind {
    /// Firecracker, started without its API from a configuration file.
    Firecracker,
    /// Cloud Hypervisor, started from its command line.
    CloudHypervisor,
}

impl PeerKind {
    const ALL: [Self; 2] = [Self::Firecracker, Self::CloudHypervisor];

    /// The name in options and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Firecracker => "firecracker",
            Self::CloudHypervisor => "cloud-hypervisor",
        }
    }
}

/// A peer and where its program is; written `NAME=PATH`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Which one.
    pub kind: PeerKind,
    /// Its program.
    pub program: PathBuf,
}

impl FromStr for Peer {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((name, path)) = text.split_once('=') else {
            bail!("`{text}` has no `=`; write NAME=PATH, such as firecracker=/usr/bin/firecracker");
        };
        let Some(kind) = PeerKind::ALL.into_iter().find(|kind| kind.name() == name) else {
            let known = PeerKind::ALL.map(PeerKind::name).join(", ");
            bail!("the peer `{name}` is not known; known are {known}");
        };
        ensure!(
            !path.is_empty(),
            "the peer `{name}` has no path; write {name}=PATH"
        );
        Ok(Self {
            kind,
            program: PathBuf::from(path),
        })
    }
}

/// Whether a program needs the dynamic loader, whose work is in its start-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Linkage {
    /// It starts by itself.
    Static,
    /// The loader starts it.
    Dynamic,
}

impl Linkage {
    /// The word in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Dynamic => "dynamic",
        }
    }
}

/// Whether an ELF64 image names an interpreter; `None` if it is no such image.
fn linkage(image: &[u8]) -> Option<Linkage> {
    const INTERPRETER: [u8; 4] = 3u32.to_le_bytes();
    let number = |place: usize| Some(u16::from_le_bytes(*image.get(place..)?.first_chunk()?));
    if !image.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let first = usize::try_from(u64::from_le_bytes(*image.get(32..)?.first_chunk()?)).ok()?;
    let (bytes, count) = (usize::from(number(54)?), usize::from(number(56)?));
    let headers = image.get(first..)?.get(..bytes.checked_mul(count)?)?;
    let dynamic = headers
        .chunks_exact(bytes.max(1))
        .any(|header| header.starts_with(&INTERPRETER));
    Some(if dynamic {
        Linkage::Dynamic
    } else {
        Linkage::Static
    })
}

/// Something that can be started.
#[derive(Debug)]
pub(super) struct Contender {
    program: PathBuf,
    kernel: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Berth {
        /// What the agent finds out once and hands to every start.
        host_facts: File,
    },
    Firecracker {
        configuration: PathBuf,
    },
    CloudHypervisor,
}

/// A started contender. It is killed and reaped when it is dropped.
pub(super) enum Started {
    Berth(LaunchedVmm),
    Peer(Child),
}

impl Started {
    pub(super) fn child(&mut self) -> &Child {
        match self {
            Self::Berth(vmm) => vmm.child(),
            Self::Peer(child) => child,
        }
    }

    /// Kills and reaps it.
    pub(super) fn end(mut self) -> Result<()> {
        self.kill().context("ending a contender")
    }

    fn kill(&mut self) -> std::io::Result<()> {
        match self {
            Self::Berth(vmm) => vmm.kill()?,
            Self::Peer(child) => {
                child.kill()?;
                child.wait()?
            }
        };
        Ok(())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // It can only fail because the process was reaped before, which is what we want.
        let _reaped = self.kill();
    }
}

impl Contender {
    pub(super) fn berth(program: &Path, folder: &Path) -> Result<Self> {
        let host_facts = berth_agent_host::host_facts::collect(program)
            .with_context(|| format!("asking {} for host facts", program.display()))?;
        Self::new(program, folder, Kind::Berth { host_facts })
    }

    pub(super) fn peer(peer: &Peer, folder: &Path) -> Result<Self> {
        let kind = match peer.kind {
            PeerKind::Firecracker => Kind::Firecracker {
                configuration: write_configuration(folder)?,
            },
            PeerKind::CloudHypervisor => Kind::CloudHypervisor,
        };
        Self::new(&peer.program, folder, kind)
    }

    fn new(program: &Path, folder: &Path, kind: Kind) -> Result<Self> {
        ensure!(
            program.is_file(),
            "{} is not there; build or install it first",
            program.display()
        );
        let kernel = kernel_path(folder);
        let mut guest = Code::new();
        guest
            .port_write(COM1_PORT, Width::Byte, u32::from(MARK))
            .halt();
        std::fs::write(&kernel, guest.to_elf()).context("writing the guest")?;
        Ok(Self {
            program: program.to_owned(),
            kernel,
            kind,
        })
    }

    pub(super) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Berth { .. } => "berth",
            Kind::Firecracker { .. } => PeerKind::Firecracker.name(),
            Kind::CloudHypervisor => PeerKind::CloudHypervisor.name(),
        }
    }

    /// Its program's size in bytes, and how it is linked.
    pub(super) fn program(&self) -> Result<(u64, Linkage)> {
        let content = std::fs::read(&self.program).context("reading a program")?;
        let linkage = linkage(&content);
        let linkage = linkage.with_context(|| format!("{} is no ELF", self.program.display()))?;
        Ok((u64::try_from(content.len())?, linkage))
    }

    /// Starts it with its serial output going to `output`.
    pub(super) fn start(&self, output: OwnedFd) -> Result<Started> {
        match &self.kind {
            Kind::Berth { host_facts } => {
                let vmm = self.start_berth(output, host_facts)?;
                Ok(Started::Berth(vmm))
            }
            Kind::Firecracker { configuration } => {
                let mut command = quiet(&self.program, output);
                command
                    .arg("--no-api")
                    .arg("--config-file")
                    .arg(configuration);
                spawn(&mut command)
            }
            Kind::CloudHypervisor => {
                let mut command = quiet(&self.program, output);
                command.arg("--kernel").arg(&self.kernel);
                command.args([
                    "--memory",
                    &format!("size={MEMORY_MIB}M"),
                    "--cpus",
                    "boot=1",
                ]);
                command.args(["--serial", "tty", "--console", "off"]);
                spawn(&mut command)
            }
        }
    }

    /// Does all that a parent of `berth-vmm` does, from opening `/dev/kvm` on, so that work which
    /// others do for themselves is in our time, too.
    fn start_berth(&self, output: OwnedFd, host_facts: &File) -> Result<LaunchedVmm> {
        let mut descriptors = Descriptors::new();
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        let kvm = descriptors.add(kvm.context("opening /dev/kvm")?);
        let kernel = File::open(&self.kernel).context("opening the guest")?;
        let kernel = descriptors.add(kernel);
        let host_facts = host_facts.try_clone().context("copying a descriptor")?;
        let start = Start {
            memory_mib: MEMORY_MIB,
            host_facts: Some(descriptors.add(host_facts)),
            console: Some(Console::Stream {
                fd: descriptors.add(output),
            }),
            ..Start::new("startup", kvm, kernel)
        };
        let mut command = Command::new(&self.program);
        command
            .arg(ALLOW_UNJAILED)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let message = serde_json::to_vec(&start)?;
        LaunchedVmm::launch_with(&mut command, &message, &descriptors).context("starting it")
    }
}

fn spawn(command: &mut Command) -> Result<Started> {
    command.spawn().map(Started::Peer).context("starting it")
}

fn kernel_path(folder: &Path) -> PathBuf {
    folder.join("guest.elf")
}

fn write_configuration(folder: &Path) -> Result<PathBuf> {
    let configuration = serde_json::json!({
        "boot-source": { "kernel_image_path": kernel_path(folder), "boot_args": "" },
        "drives": [],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
    });
    let path = folder.join("firecracker.json");
    std::fs::write(&path, configuration.to_string()).context("writing a configuration")?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_refused(text: &str, reason: &str) {
        let error = text.parse::<Peer>().unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn a_peer_is_a_known_name_and_a_path() {
        let peer: Peer = "firecracker=/opt/a=b".parse().unwrap();
        assert_eq!(peer.kind, PeerKind::Firecracker);
        assert_eq!(peer.program, Path::new("/opt/a=b"));
    }

    #[test]
    fn linkage_is_read_from_the_program_headers() {
        let guest = Code::new().halt().to_elf();
        assert_eq!(linkage(&guest), Some(Linkage::Static));
        let mut dynamic = guest.clone();
        dynamic[64 + 56] = 3;
        assert_eq!(linkage(&dynamic), Some(Linkage::Dynamic));
        assert_eq!(linkage(&guest[..80]), None);
        assert_eq!(linkage(b"#!/bin/sh"), None);
    }

    #[test]
    fn a_peer_that_is_not_known_is_refused_with_those_that_are() {
        check_refused(
            "qemu=/usr/bin/qemu",
            "known are firecracker, cloud-hypervisor",
        );
        check_refused("firecracker", "NAME=PATH");
        check_refused("cloud-hypervisor=", "has no path");
    }
}
