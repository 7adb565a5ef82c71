//! VMMs side by side on one lab node: boot, disk, network, and an NVMe drive passed through.
//!
//! Owns the order of the measurements: nodes alike, the same kernel, initial RAM disk, root disk and
//! script for all, contenders in turn, and who begins goes round. Peers are programs that the caller has.

mod contender;
mod profile;
mod report;
mod work;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

pub use report::ContestReport;
pub use work::Work;

use self::contender::Contender;
use self::work::{Figures, Measured};
use super::devices::Device;
use super::host::Host as _;
use super::node::{Node, NodeSpec, run_folder};
use super::scenario::Context;
use crate::startup::Peer;

/// How often each contender does each piece of work when nothing else is asked for.
pub const DEFAULT_ROUNDS: usize = 5;
/// Memory of the node: the largest guest, and the page cache for its disks.
const NODE_MEMORY_MIB: u32 = 4096;
/// How often a round is done again before the contest is given up.
const MAX_REPEATS: usize = 2;
/// Bytes of the drive that is passed through.
const DRIVE_BYTES: u64 = 256 << 20;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often.
    pub rounds: usize,
    /// What to have done; each once at most.
    pub work: Vec<Work>,
    /// Whom to compare with.
    pub peers: Vec<Peer>,
}

/// Runs all measurements.
///
/// # Errors
/// If a node does not boot, or a contender's guest does not do its work.
pub fn run(context: &Context, options: &Options) -> Result<ContestReport> {
    ensure!(
        options.rounds > 0,
        "the number of rounds is 0; ask for 1 or more"
    );
    let mut contest = Contest {
        context,
        options,
        contenders: vec![Contender::Berth, Contender::BerthVhost],
        figures: Figures::default(),
    };
    let peers = options.peers.iter();
    contest
        .contenders
        .extend(peers.map(|peer| Contender::from(peer.kind)));
    let asked = |work: &Work| options.work.contains(work);
    for work in Work::ALL.into_iter().filter(asked) {
        for number in 0..options.rounds {
            contest.round(work, number)?;
        }
    }
    ContestReport::new(&contest.contenders, &contest.figures, options.rounds)
}

/// A contest that goes on.
struct Contest<'c> {
    context: &'c Context,
    options: &'c Options,
    contenders: Vec<Contender>,
    figures: Figures,
}

impl Contest<'_> {
    /// Has everybody do `work` once. A round whose node or guest fell is done again: the emulated
    /// processor loses one now and then, whoever runs on it. How often is in the report.
    ///
    /// Who is first begins on a node whose code has not been translated yet, so each is it in turn.
    fn round(&mut self, work: Work, number: usize) -> Result<()> {
        let able = self.contenders.iter().filter(|who| who.can_do(work));
        let mut able: Vec<Contender> = able.copied().collect();
        let first = number % able.len().max(1);
        able.rotate_left(first);
        for _ in 0..MAX_REPEATS {
            match self.try_round(work, &able) {
                Ok(round) => {
                    self.keep(round);
                    return Ok(());
                }
                Err(fall) => {
                    let (who, what) = (fall.contender.name(), work.name());
                    (self.context.say)(&format!("  {who} {what}: {:#}\n  once more", fall.why));
                    self.figures.count_fall(fall.contender);
                }
            }
        }
        let round = self.try_round(work, &able).map_err(|fall| {
            let who = fall.contender.name();
            fall.why.context(format!("{who}, {}", work.name()))
        })?;
        self.keep(round);
        Ok(())
    }

    fn keep(&mut self, round: Vec<(Contender, Measured)>) {
        for (contender, measured) in round {
            self.figures.add(contender, &measured);
        }
    }

    /// A boot has a node of its own. An emulator translates code as it meets it, and has to undo that
    /// where memory is used again: a later guest pays for an earlier one, whoever ran it.
    fn try_round(
        &self,
        work: Work,
        able: &[Contender],
    ) -> Result<Vec<(Contender, Measured)>, Fall> {
        let size = if work == Work::Boot { 1 } else { able.len() };
        let mut round = Vec::new();
        for together in able.chunks(size) {
            round.extend(self.on_a_node(work, together)?);
        }
        Ok(round)
    }

    /// Has `contenders` do `work`, one after the other, on a node that has just booted.
    fn on_a_node(
        &self,
        work: Work,
        contenders: &[Contender],
    ) -> Result<Vec<(Contender, Measured)>, Fall> {
        let first = contenders.first().copied().unwrap_or(Contender::Berth);
        let (node, drive) = self.boot().map_err(|why| Fall::new(first, why))?;
        let measure = |&contender| {
            let measured = work.run(&node, contender).map_err(|why| {
                node.collect();
                Fall::new(contender, why)
            })?;
            let (who, what) = (contender.name(), work.name());
            (self.context.say)(&format!("  {who} {what}: {measured}"));
            Ok((contender, measured))
        };
        let measured = contenders.iter().map(measure).collect();
        drop(node);
        std::fs::remove_file(&drive)
            .context("removing the drive's image")
            .map_err(|why| Fall::new(first, why))?;
        measured
    }

    /// A node with all programs, and the file behind its drive.
    fn boot(&self) -> Result<(Node, PathBuf)> {
        let drive = run_folder("contest-drive.raw");
        make_drive(&drive)?;
        let spec = NodeSpec {
            memory_mib: NODE_MEMORY_MIB,
            devices: vec![
                Device::SharedDisk {
                    image: self.context.guest.artefacts.clone(),
                },
                Device::NvmeSlot {
                    image: drive.clone(),
                    serial: "contest".to_owned(),
                },
            ],
            ..NodeSpec::default()
        };
        let node = Node::boot("contest", &self.context.node, &spec)?;
        node.mount_guest_image()?;
        node.bring_vmm(self.context)?;
        let runner = self.context.programs.join("contest-run");
        node.copy_in(&runner, "/usr/local/bin/contest-run", "0755")?;
        for peer in &self.options.peers {
            let program = Contender::from(peer.kind).program();
            node.copy_in(&peer.program, program, "0755")?;
        }
        node.check(work::PREPARE_NODE)?;
        Ok((node, drive))
    }
}

/// A run that came to nothing, and whose it was.
struct Fall {
    contender: Contender,
    why: anyhow::Error,
}

impl Fall {
    fn new(contender: Contender, why: anyhow::Error) -> Self {
        Self { contender, why }
    }
}

fn make_drive(path: &Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).context("making the folder of runs")?;
    }
    let file = std::fs::File::create(path).context("making the drive's image")?;
    file.set_len(DRIVE_BYTES)
        .context("sizing the drive's image")
}
