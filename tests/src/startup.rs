//! Start-up: from just before a VMM is started to its guest's first output byte.
//!
//! Owns the measurement and its report. What is measured is what a user sees: wall time on the
//! launcher's clock, the processor time that was spent for it, and the peak of resident memory, for
//! `berth-vmm` and for peers that the caller has as programs, in one sitting and in turn. It builds
//! nothing and installs nothing.

mod contender;
mod report;

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

pub use contender::{Linkage, Peer, PeerKind};
pub(crate) use report::describe_host;
pub use report::{ContenderReport, Report, Spread};

use crate::progress;
use contender::{Contender, MARK};
use report::Sample;

/// How many times each contender is started when nothing else is asked for.
pub const DEFAULT_ROUNDS: usize = 30;
/// After this long without a byte, a start counts as failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `berth-vmm` to measure: a release build, if figures are to mean anything.
    pub vmm: PathBuf,
    /// How many times each contender is started after its warm-up, at least 1.
    pub rounds: usize,
    /// Whom to compare with.
    pub peers: Vec<Peer>,
}

/// Starts every contender once to warm up and then `rounds` times in turn.
///
/// # Errors
/// If `/dev/kvm` cannot be used, or a contender does not bring its guest to print a byte.
pub fn run(options: &Options) -> Result<Report> {
    ensure!(
        options.rounds > 0,
        "the number of rounds is 0; ask for 1 or more"
    );
    let folder = tempfile::tempdir().context("making a temporary folder")?;
    let mut contenders = vec![Contender::berth(&options.vmm, folder.path())?];
    for peer in &options.peers {
        ensure!(
            contenders
                .iter()
                .all(|known| known.name() != peer.kind.name()),
            "the peer `{}` is given twice; give each once",
            peer.kind.name()
        );
        contenders.push(Contender::peer(peer, folder.path())?);
    }
    let mut samples = vec![Vec::with_capacity(options.rounds); contenders.len()];
    for round in 0..=options.rounds {
        for (contender, samples) in contenders.iter().zip(&mut samples) {
            let sample = measure(contender)
                .with_context(|| format!("starting {}, round {round}", contender.name()))?;
            // The first one filled the page cache and is no measurement.
            if round > 0 {
                samples.push(sample);
            }
        }
        if round % 10 == 0 && round > 0 {
            progress::say(&format!("start-up: {round} of {} rounds", options.rounds));
        }
    }
    Report::new(&contenders, &samples)
}

/// One start, up to the first byte of the guest.
fn measure(contender: &Contender) -> Result<Sample> {
    let (mut reader, writer) = std::io::pipe().context("making a pipe")?;
    let (first_byte, seen) = channel();
    // The reading thread waits in `read` before the clock starts.
    let reading = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = reader.read(&mut buffer) {
            if buffer[..count].contains(&MARK) {
                // A launcher that gave up does not listen any more.
                let _heard = first_byte.send(Instant::now());
                break;
            }
        }
        reader
    });
    let cpu_before = own_cpu()?;
    let begun = Instant::now();
    let mut started = contender.start(OwnedFd::from(writer))?;
    let launcher = own_cpu()?.saturating_sub(cpu_before);
    let sample = wait_for_mark(&seen, begun, started.child(), launcher);
    started.end()?;
    // Only now, so that no contender meets a closed pipe while it is measured.
    drop(reading.join());
    sample
}

fn wait_for_mark(
    seen: &Receiver<Instant>,
    begun: Instant,
    child: &Child,
    launcher: Duration,
) -> Result<Sample> {
    let Ok(arrived) = seen.recv_timeout(PATIENCE) else {
        bail!("its guest printed nothing; run it by hand to see why");
    };
    // Both while the process lives: afterwards, the end of the process would be in them.
    let process = child_cpu(child)?;
    let peak_rss_kib = peak_rss_kib(child)?;
    let wall = arrived.duration_since(begun);
    Ok(Sample {
        wall,
        cpu: process + launcher,
        peak_rss_kib,
    })
}

/// Processor time of this thread, which does the launcher's work.
fn own_cpu() -> Result<Duration> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    Ok(time.context("reading the thread's CPU clock")?.into())
}

/// Processor time of all threads of the child, in user and kernel mode.
fn child_cpu(child: &Child) -> Result<Duration> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
    let clock = nix::time::clock_getcpuclockid(pid).context("finding the child's CPU clock")?;
    let time = nix::time::clock_gettime(clock).context("reading the child's CPU clock")?;
    Ok(time.into())
}

fn peak_rss_kib(child: &Child) -> Result<u64> {
    let path = format!("/proc/{}/status", child.id());
    let status = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let value = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    value.with_context(|| format!("{path} tells no peak of resident memory"))
}

/// A command whose output goes to `output` and whose input stays open and silent.
fn quiet(program: &std::path::Path, output: OwnedFd) -> Command {
    let mut command = Command::new(program);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::from(output))
        .stderr(Stdio::null());
    command
}
