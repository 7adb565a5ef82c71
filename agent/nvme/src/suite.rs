//! What every drive has to do under this driver, modelled or real: cases that run over any transport.
//!
//! Destroys what is on the drive. Behind the feature `model`, for tests of this crate, of those that
//! bring a transport, and of the lab.

use std::collections::BTreeMap;
use std::io;

use berth_agent_core::slot::wipe::{WipeJournal, WipePolicy, WipeRun};
use berth_api::slot::WipeMethod;

use crate::blocks;
use crate::command::{Command, nvm};
use crate::drive::{Drive, Lane, Metadata, SHORT, Transfer};
use crate::error::DriveError;
use crate::identify::{Look, identify};
use crate::sample::stride;
use crate::status::StatusKind;
use crate::transport::Transport;
use crate::wipe::{NvmeWipe, WipeOrder, wipe};
use crate::wipe_error::WipeError;

/// What a drive that the suite runs on is known to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectations {
    /// Methods that it has; it is wiped once by each.
    pub has: Vec<WipeMethod>,
    /// Methods that it lacks; each has to be refused.
    pub lacks: Vec<WipeMethod>,
    /// Blocks that are read back, and seconds that a wipe may take.
    pub policy: WipePolicy,
}

/// A case that did not go as it has to.
#[derive(Debug, thiserror::Error)]
#[error("{case}: {found}")]
pub struct SuiteFailure {
    /// Its name.
    pub case: &'static str,
    /// What was found instead.
    pub found: String,
}

/// A journal in memory.
#[derive(Debug, Clone, Default)]
pub struct Notes {
    /// Everything that was noted, in order.
    pub runs: Vec<WipeRun>,
    /// Every progress that was told.
    pub progress: Vec<(u8, Option<u64>)>,
    /// From which note on none can be made durable.
    pub fails_from: Option<usize>,
    /// From which progress on the agent is about to end.
    pub cancelled_from: Option<usize>,
}

impl WipeJournal for Notes {
    fn note(&mut self, run: &WipeRun) -> io::Result<()> {
        if self.fails_from.is_some_and(|from| self.runs.len() >= from) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.runs.push(run.clone());
        Ok(())
    }

    fn progress(&mut self, percent: u8, seconds_left: Option<u64>) {
        self.progress.push((percent, seconds_left));
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled_from
            .is_some_and(|from| self.progress.len() >= from)
    }
}

type Case = fn(&mut dyn Transport, &Expectations) -> Result<(), Fault>;

/// Why a case failed.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("{0}")]
    Found(String),
    #[error("the drive failed")]
    Drive(#[from] DriveError),
    #[error("the wipe failed")]
    Wipe(#[from] WipeError),
}

const CASES: [(&str, Case); 6] = [
    (
        "a drive says the same of itself after a reset",
        same_after_reset,
    ),
    (
        "what is refused leaves the drive usable",
        refusals_are_survived,
    ),
    ("blocks come back as they were written", blocks_come_back),
    (
        "a read beyond the end is refused",
        reads_end_with_the_namespace,
    ),
    (
        "a method that the drive lacks is refused",
        lacking_methods_are_refused,
    ),
    ("what a tenant wrote is gone after each method", patterns_go),
];

/// Run all cases. Returns their names.
///
/// # Errors
/// The first one that did not go as it has to.
pub fn run(
    transport: &mut dyn Transport,
    expected: &Expectations,
) -> Result<Vec<&'static str>, SuiteFailure> {
    let mut passed = Vec::new();
    for (case, check) in CASES {
        check(transport, expected).map_err(|fault| SuiteFailure {
            case,
            found: chain(&fault),
        })?;
        passed.push(case);
    }
    Ok(passed)
}

fn chain(fault: &Fault) -> String {
    let mut text = fault.to_string();
    let mut cause = std::error::Error::source(fault);
    while let Some(found) = cause {
        text.push_str(&format!(": {found}"));
        cause = found.source();
    }
    text
}

fn found<T>(what: String) -> Result<T, Fault> {
    Err(Fault::Found(what))
}

fn same_after_reset(transport: &mut dyn Transport, _: &Expectations) -> Result<(), Fault> {
    let mut drive = Drive::open(transport)?;
    let first = identify(&mut drive)?;
    drive.reset()?;
    let second = identify(&mut drive)?;
    drive.close()?;
    if first != second || first.is_empty() {
        return found(format!("{first:?}, then {second:?}"));
    }
    Ok(())
}

fn refusals_are_survived(transport: &mut dyn Transport, _: &Expectations) -> Result<(), Fault> {
    let mut drive = Drive::open(transport)?;
    let nonsense = Command::new(0x2f, 0);
    match drive.admin(&nonsense) {
        Err(DriveError::Refused { status, .. }) if status.kind() == StatusKind::InvalidOpcode => {}
        other => return found(format!("{other:?}")),
    }
    Look::at(&mut drive)?;
    Ok(drive.close()?)
}

fn blocks_come_back(transport: &mut dyn Transport, _: &Expectations) -> Result<(), Fault> {
    let mut drive = Drive::open(transport)?;
    let look = Look::at(&mut drive)?;
    for namespace in &look.active {
        let most = blocks::most_blocks(&drive, &namespace.shape)?;
        let bytes = stride(namespace);
        let longest = u64::from(most).min(namespace.shape.blocks);
        let longest = u16::try_from(longest).unwrap_or(most);
        let counts = [1, 2, 3, 8, 9, 17, longest];
        for count in counts.into_iter().filter(|count| *count <= longest) {
            let lba = namespace.shape.blocks.saturating_sub(u64::from(count));
            let pattern: Vec<u8> = (0..=250).cycle().take(bytes * usize::from(count)).collect();
            blocks::write(&mut drive, namespace, lba, &pattern)?;
            let read = blocks::read(&mut drive, namespace, lba, count)?;
            if read != pattern {
                return found(format!(
                    "{count} blocks of namespace {} differ",
                    namespace.id
                ));
            }
        }
        blocks::flush(&mut drive, namespace.id)?;
    }
    Ok(drive.close()?)
}

fn reads_end_with_the_namespace(
    transport: &mut dyn Transport,
    _: &Expectations,
) -> Result<(), Fault> {
    let mut drive = Drive::open(transport)?;
    let look = Look::at(&mut drive)?;
    for namespace in &look.active {
        let command = Command::blocks(nvm::READ, namespace.id, namespace.shape.blocks, 1);
        let mut block = vec![0; stride(namespace)];
        let transfer = Transfer::In(&mut block);
        match drive.run(Lane::Io, &command, transfer, Metadata::None, SHORT) {
            Err(DriveError::Refused { status, .. })
                if status.kind() == StatusKind::LbaOutOfRange => {}
            other => return found(format!("{other:?}")),
        }
        blocks::read(&mut drive, namespace, 0, 1)?;
    }
    Ok(drive.close()?)
}

fn only(expected: &Expectations, method: WipeMethod) -> WipePolicy {
    WipePolicy {
        methods: vec![method],
        ..expected.policy.clone()
    }
}

fn wiped(drive: &mut Drive<'_>, policy: &WipePolicy, seed: u64) -> Result<NvmeWipe, WipeError> {
    let order = WipeOrder {
        policy,
        approved: &BTreeMap::new(),
        earlier: None,
        seed,
        started_at_ms: 0,
    };
    wipe(drive, &order, &mut Notes::default())
}

fn lacking_methods_are_refused(
    transport: &mut dyn Transport,
    expected: &Expectations,
) -> Result<(), Fault> {
    for method in &expected.lacks {
        let mut drive = Drive::open(transport)?;
        match wiped(&mut drive, &only(expected, *method), 1) {
            Err(WipeError::NoMethod { .. }) => {}
            other => return found(format!("{method:?}: {other:?}")),
        }
        drive.close()?;
    }
    Ok(())
}

fn patterns_go(transport: &mut dyn Transport, expected: &Expectations) -> Result<(), Fault> {
    for (seed, method) in (1..).zip(&expected.has) {
        let mut drive = Drive::open(transport)?;
        let look = Look::at(&mut drive)?;
        leave_pattern(&mut drive, &look)?;
        let done = match wiped(&mut drive, &only(expected, *method), seed) {
            Ok(done) => done,
            Err(error) => return found(format!("{method:?}: {error}")),
        };
        if done.method != *method || done.read_back.bytes_read == 0 {
            return found(format!("{method:?}: {done:?}"));
        }
        if done.read_back.bytes_wrong != 0 || done.completion.is_empty() {
            return found(format!("{method:?}: {done:?}"));
        }
        for (lba, namespace) in places(&look) {
            let block = blocks::read(&mut drive, namespace, lba, 1)?;
            if block.windows(TENANT.len()).any(|window| window == TENANT) {
                return found(format!("{method:?}: block {lba} of {}", namespace.id));
            }
        }
        drive.close()?;
    }
    Ok(())
}

const TENANT: &[u8] = b"what the tenant before wrote";

fn places(look: &Look) -> impl Iterator<Item = (u64, &crate::identify::namespace::Namespace)> {
    look.active.iter().flat_map(|namespace| {
        let last = namespace.shape.blocks.saturating_sub(1);
        [0, last / 3, last / 2, last].map(|lba| (lba, namespace))
    })
}

fn leave_pattern(drive: &mut Drive<'_>, look: &Look) -> Result<(), DriveError> {
    for (lba, namespace) in places(look) {
        let block: Vec<u8> = TENANT
            .iter()
            .copied()
            .cycle()
            .take(stride(namespace))
            .collect();
        blocks::write(drive, namespace, lba, &block)?;
    }
    look.active
        .iter()
        .try_for_each(|namespace| blocks::flush(drive, namespace.id))
}
