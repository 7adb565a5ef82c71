//! VMMs side by side on one lab node: boot, disk, network, and an NVMe drive passed through.
//!
//! Owns the order of the measurements: one node, the same kernel, initial RAM disk, root disk and
//! script for all, contenders in turn, one warm-up. Peers are programs that the caller has.

mod contender;
mod report;
mod work;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

pub use report::ContestReport;
pub use work::Work;

use self::contender::Contender;
use self::work::Figures;
use super::devices::Device;
use super::host::Host as _;
use super::node::{Node, NodeSpec, run_folder};
use super::scenario::Context;
use crate::startup::Peer;

/// How often each contender does each piece of work when nothing else is asked for.
pub const DEFAULT_ROUNDS: usize = 5;
/// Memory of the node: the largest guest, and the page cache for its disks.
const NODE_MEMORY_MIB: u32 = 4096;
/// Bytes of the drive that is passed through.
const DRIVE_BYTES: u64 = 256 << 20;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often, after one warm-up of the boot.
    pub rounds: usize,
    /// What to have done; each once at most.
    pub work: Vec<Work>,
    /// Whom to compare with.
    pub peers: Vec<Peer>,
}

/// Runs all measurements.
///
/// # Errors
/// If the node does not boot, or a contender's guest does not do its work.
pub fn run(context: &Context, options: &Options) -> Result<ContestReport> {
    ensure!(
        options.rounds > 0,
        "the number of rounds is 0; ask for 1 or more"
    );
    let drive = run_folder("contest-drive.raw");
    make_drive(&drive)?;
    let spec = NodeSpec {
        memory_mib: NODE_MEMORY_MIB,
        devices: vec![
            Device::SharedDisk {
                image: context.guest.artefacts.clone(),
            },
            Device::NvmeSlot {
                image: drive.clone(),
                serial: "contest".to_owned(),
            },
        ],
        ..NodeSpec::default()
    };
    let node = Node::boot("contest", &context.node, &spec)?;
    let result = measure(&node, context, options);
    if result.is_err() {
        node.collect();
    }
    drop(node);
    std::fs::remove_file(&drive).context("removing the drive's image")?;
    result
}

fn make_drive(path: &Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).context("making the folder of runs")?;
    }
    let file = std::fs::File::create(path).context("making the drive's image")?;
    file.set_len(DRIVE_BYTES)
        .context("sizing the drive's image")
}

fn measure(node: &Node, context: &Context, options: &Options) -> Result<ContestReport> {
    node.mount_guest_image()?;
    node.bring_vmm(context)?;
    let runner = context.programs.join("contest-run");
    node.copy_in(&runner, "/usr/local/bin/contest-run", "0755")?;
    let mut contenders = vec![Contender::Berth, Contender::BerthVhost];
    for peer in &options.peers {
        let contender = Contender::from(peer.kind);
        node.copy_in(&peer.program, contender.program(), "0755")?;
        contenders.push(contender);
    }
    node.check(work::PREPARE_NODE)?;
    let mut figures = Figures::default();
    for work in Work::ALL
        .into_iter()
        .filter(|work| options.work.contains(work))
    {
        // The first boot of each fills the page cache and is no measurement.
        let warm_ups = usize::from(work == Work::Boot);
        for round in 0..options.rounds + warm_ups {
            for &contender in contenders.iter().filter(|who| who.can_do(work)) {
                let measured = work
                    .run(node, contender)
                    .with_context(|| format!("{}, {}", contender.name(), work.name()))?;
                (context.say)(&format!(
                    "  {} {}: {measured}",
                    contender.name(),
                    work.name()
                ));
                if round >= warm_ups {
                    figures.add(contender, &measured);
                }
            }
        }
    }
    ContestReport::new(&contenders, &figures, options.rounds)
}
