//! The list of scenarios: what each shows, what it needs, and how it is run.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;

use super::image::{GuestImage, NodeImage};
use super::scenarios;

/// What a scenario is given.
#[derive(Debug)]
pub struct Context {
    /// The node's disk, as the scenario's [`NodeKind`] says.
    pub node: NodeImage,
    /// The guest for tenants.
    pub guest: GuestImage,
    /// Folder of our own test programs, for [`NodeKind::Bare`] alone.
    pub programs: PathBuf,
    /// The VMM as it is packaged.
    pub vmm: PathBuf,
    /// The agent built with `fail-points`, for [`NodeKind::WithFailPoints`] alone.
    pub failing_agent: Option<PathBuf>,
    /// Where the scenario says what it does.
    pub say: fn(&str),
    /// What was done a second time.
    pub repeats: Repeats,
}

/// What a scenario did a second time because the emulated host, and nothing of ours, failed. The
/// run's summary counts it, so that a failure which becomes frequent is seen.
#[derive(Debug, Default)]
pub struct Repeats(Mutex<Vec<String>>);

impl Repeats {
    /// Notes what was done again, and why.
    pub fn note(&self, what: String) {
        self.lock().push(what);
    }

    /// Takes all that was noted.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is on a scenario's node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeKind {
    /// Debian alone. Scenarios of the VMM bring it along, and need no other program to be built.
    Bare,
    /// Debian with our packages installed.
    Installed,
    /// The same, with an agent at hand that ends where it is told to.
    WithFailPoints,
}

/// One thing that the lab can show.
#[derive(Debug)]
pub struct Scenario {
    /// What `cargo xtask lab` calls it.
    pub name: &'static str,
    /// What it shows, in one sentence.
    pub shows: &'static str,
    /// What it runs on.
    pub node: NodeKind,
    /// Whether `cargo xtask test` runs it. The others run by name.
    pub is_core: bool,
    /// Runs it.
    pub run: fn(&Context) -> Result<()>,
}

/// All scenarios.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "boot-debian",
        shows: "an unmodified Debian guest boots with 1 and 4 vCPUs, 256 MiB and 6 GiB, keeps what \
                it flushed, powers off by ACPI and reboots on request",
        node: NodeKind::Bare,
        is_core: false,
        run: scenarios::boot_debian::run,
    },
    Scenario {
        name: "seed-001",
        shows: "the how-to for a tenant's namespace, executed block by block as it stands",
        node: NodeKind::Installed,
        is_core: true,
        run: scenarios::seed_001::run,
    },
    Scenario {
        name: "quickstart",
        shows: "the way from packages to a running guest, executed as docs/quickstart.md has it",
        node: NodeKind::Installed,
        is_core: true,
        run: scenarios::quickstart::run,
    },
    Scenario {
        name: "vm-lifecycle",
        shows: "a tenant's VM from create to delete, with agent and controller killed on the way",
        node: NodeKind::Installed,
        is_core: true,
        run: scenarios::vm_lifecycle::run,
    },
    Scenario {
        name: "guest-seed",
        shows: "a guest reads the key, the user data and the token that it was given, and its host keeps none \
                of them",
        node: NodeKind::Installed,
        is_core: false,
        run: scenarios::guest_seed::run,
    },
    Scenario {
        name: "rollback",
        shows: "yesterday's database under a running fleet: the controller refuses it, the hosts freeze where \
                it cannot know, and the VMs run on",
        node: NodeKind::Installed,
        is_core: false,
        run: scenarios::rollback::run,
    },
    Scenario {
        name: "power-cut",
        shows: "the controller's node loses its power ten times under write load: every change that was \
                acknowledged is there, and programs that are not ours accept the log",
        node: NodeKind::Installed,
        is_core: false,
        run: scenarios::power_cut::run,
    },
    Scenario {
        name: "vmm-devices",
        shows: "every device of the VMM from inside a Debian guest, with the jail on: disk, network, \
                sockets, console, balloon, power button, panic, 8 vCPUs",
        node: NodeKind::Bare,
        is_core: false,
        run: scenarios::vmm_devices::run,
    },
    Scenario {
        name: "vfio-nvme",
        shows: "a whole NVMe drive in a Debian guest: written and verified by its own driver with MSI-X, the \
                data in the drive's file, and as good for the next guest",
        node: NodeKind::Bare,
        is_core: false,
        run: scenarios::vfio_nvme::run,
    },
    Scenario {
        name: "vfio-multi",
        shows: "two NVMe drives and a display adapter in one guest, working at once",
        node: NodeKind::Bare,
        is_core: false,
        run: scenarios::vfio_multi::run,
    },
    Scenario {
        name: "vfio-narrow-iommu",
        shows: "an IOMMU of 39 bits: what it cannot reach costs peer-to-peer traffic and nothing else",
        node: NodeKind::Bare,
        is_core: false,
        run: scenarios::vfio_narrow_iommu::run,
    },
    Scenario {
        name: "vfio-hostile",
        shows: "a guest that resets its drive and takes its memory away in a loop under I/O harms itself \
                only",
        node: NodeKind::Bare,
        is_core: false,
        run: scenarios::vfio_hostile::run,
    },
    Scenario {
        name: "vfio-bigbar",
        shows: "BARs of many GiB are placed, kept and reached to their last byte",
        node: NodeKind::Bare,
        is_core: false,
        run: scenarios::vfio_bigbar::run,
    },
    Scenario {
        name: "slot-devices",
        shows: "what the agent does with a slot's devices, step by step on real ones: refused while the host \
                uses them, bound, reset, identified, wiped, with their files looked at from outside",
        node: NodeKind::Bare,
        is_core: false,
        run: scenarios::slot_devices::run,
    },
    Scenario {
        name: "slot-life",
        shows: "a slot goes from one tenant to the next: bound, wiped and proved, and nothing of the \
                first is left for the second or for the host",
        node: NodeKind::Installed,
        is_core: false,
        run: scenarios::slot_life::run,
    },
    Scenario {
        name: "slot-crash",
        shows: "the agent killed after every journaled step of claim and release, and the host's power \
                cut at ten of them: the slot ends where it should, and is never free without proof",
        node: NodeKind::WithFailPoints,
        is_core: false,
        run: scenarios::slot_crash::run,
    },
    Scenario {
        name: "slot-refusals",
        shows: "everything that must keep a device from a tenant does, with a reason that its owner can \
                act on",
        node: NodeKind::Installed,
        is_core: false,
        run: scenarios::slot_refusals::run,
    },
];

/// The scenario of that name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}
