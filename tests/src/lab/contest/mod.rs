//! VMMs side by side on one lab node: boot, disk, network, and an NVMe drive passed through.
//!
//! Owns the order of the measurements: nodes alike, the same kernel, initial RAM disk, root disk and
//! script for all, contenders in turn. Peers are programs that the caller has.

mod contender;
mod report;
mod work;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

pub use report::ContestReport;
pub use work::Work;

use self::contender::Contender;
use self::work::{Figures, GuestFell};
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
    if options.work.contains(&Work::Boot) {
        contest.measure_boots()?;
    }
    if options.work.iter().any(|work| *work != Work::Boot) {
        contest.on_a_node(Contest::measure_the_rest)?;
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
    /// Does `what` on a node that has just booted and has all programs.
    fn on_a_node(&mut self, what: impl FnOnce(&mut Self, &Node) -> Result<()>) -> Result<()> {
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
        let result = self.prepare(&node).and_then(|()| what(self, &node));
        if result.is_err() {
            node.collect();
        }
        drop(node);
        std::fs::remove_file(&drive).context("removing the drive's image")?;
        result
    }

    fn prepare(&self, node: &Node) -> Result<()> {
        node.mount_guest_image()?;
        node.bring_vmm(self.context)?;
        let runner = self.context.programs.join("contest-run");
        node.copy_in(&runner, "/usr/local/bin/contest-run", "0755")?;
        for peer in &self.options.peers {
            let program = Contender::from(peer.kind).program();
            node.copy_in(&peer.program, program, "0755")?;
        }
        node.check(work::PREPARE_NODE).map(drop)
    }

    /// Each boot has a node of its own. An emulator translates code as it meets it, and has to undo
    /// that where memory is used again: a later guest pays for an earlier one, whoever ran it.
    fn measure_boots(&mut self) -> Result<()> {
        for _ in 0..self.options.rounds {
            for contender in self.able(Work::Boot) {
                self.on_a_node(|contest, node| contest.measure(node, Work::Boot, contender))?;
            }
        }
        Ok(())
    }

    fn measure_the_rest(&mut self, node: &Node) -> Result<()> {
        let asked = |work: &Work| *work != Work::Boot && self.options.work.contains(work);
        for work in Work::ALL.into_iter().filter(asked).collect::<Vec<_>>() {
            for _ in 0..self.options.rounds {
                for contender in self.able(work) {
                    self.measure(node, work, contender)?;
                }
            }
        }
        Ok(())
    }

    fn able(&self, work: Work) -> Vec<Contender> {
        let able = self.contenders.iter().filter(|who| who.can_do(work));
        able.copied().collect()
    }

    /// Does `work` once, and again if the guest fell: the emulated processor of the host loses a guest
    /// now and then, whoever runs it. How often is in the report.
    fn measure(&mut self, node: &Node, work: Work, contender: Contender) -> Result<()> {
        let (who, what) = (contender.name(), work.name());
        let say = self.context.say;
        let measured = match work.run(node, contender) {
            Err(error) if error.is::<GuestFell>() => {
                say(&format!("  {who} {what}: {error:#}\n  once more"));
                self.figures.count_fall(contender);
                work.run(node, contender)
            }
            first => first,
        };
        let measured = measured.with_context(|| format!("{who}, {what}"))?;
        say(&format!("  {who} {what}: {measured}"));
        self.figures.add(contender, &measured);
        Ok(())
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
