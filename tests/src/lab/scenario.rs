//! The list of scenarios: what each shows, what it needs, and how it is run.

use std::path::PathBuf;

use anyhow::Result;

use super::image::{GuestImage, NodeImage};
use super::scenarios;

/// What a scenario is given.
#[derive(Debug)]
pub struct Context {
    /// The node's disk, with our packages installed.
    pub node: NodeImage,
    /// The guest for tenants.
    pub guest: GuestImage,
    /// Folder of our own test programs, built.
    pub programs: PathBuf,
    /// Where the scenario says what it does.
    pub say: fn(&str),
}

/// One thing that the lab can show.
#[derive(Debug)]
pub struct Scenario {
    /// What `cargo xtask lab` calls it.
    pub name: &'static str,
    /// What it shows, in one sentence.
    pub shows: &'static str,
    /// Runs it.
    pub run: fn(&Context) -> Result<()>,
}

/// All scenarios.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "boot-debian",
        shows: "an unmodified Debian guest boots with 1 and 4 vCPUs, 256 MiB and 6 GiB, keeps what \
                it flushed, powers off by ACPI and reboots on request",
        run: scenarios::boot_debian::run,
    },
    Scenario {
        name: "seed-001",
        shows: "the how-to for a tenant's namespace, executed block by block as it stands",
        run: scenarios::seed_001::run,
    },
    Scenario {
        name: "quickstart",
        shows: "the way from packages to a running guest, executed as docs/quickstart.md has it",
        run: scenarios::quickstart::run,
    },
    Scenario {
        name: "vm-lifecycle",
        shows: "a tenant's VM from create to delete, with agent and controller killed on the way",
        run: scenarios::vm_lifecycle::run,
    },
];

/// The scenario of that name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}
