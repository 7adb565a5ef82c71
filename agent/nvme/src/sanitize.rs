//! Wiping by Sanitize (NVMe Base 2.0, 5.24 and 8.21), and going on with one after a crash.
//!
//! A sanitize belongs to the drive, not to whoever gave it: it goes on through resets and power cuts, and
//! its log tells how it ended. So the log just before the command is noted with the command, and an
//! agent that comes after a crash can tell from the two whether the command was ever taken.

use std::time::Duration;

use berth_api::slot::WipeMethod;

use crate::command::{Command, admin};
use crate::identify::Look;
use crate::marks::{Issued, Marks};
use crate::plan;
use crate::restore;
use crate::sample::{self, Before};
use crate::sanitize_log::{Action, SanitizeLog, State};
use crate::wipe::{Evidence, Run};
use crate::wipe_error::WipeError;

/// Between two looks at the log: short at first, as an erase of keys takes seconds.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Percent of the whole wipe that are the sanitize's.
const SHARE: u8 = 90;

/// What a sanitize is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) method: WipeMethod,
    pub(crate) action: Action,
    pub(crate) without_deallocation: bool,
}

impl Order {
    fn word(self) -> u32 {
        self.action.command_word(self.without_deallocation)
    }
}

/// Begin a sanitize and wait for its end.
pub(crate) fn begin(run: &mut Run<'_, '_>, order: Order) -> Result<(), WipeError> {
    let log = SanitizeLog::read(run.drive)?;
    if log.state() == State::Running {
        // Not ours: the last tenant's, or one that an earlier wipe gave up.
        wait(run, None, order)?;
    }
    run.note(order.method, Marks::Prepared)?;
    let mut before = Before {
        seed: run.seed,
        ..Before::default()
    };
    // A failed sanitize leaves nothing that could be read, changed or compared.
    if SanitizeLog::read(run.drive)?.state() != State::Failed {
        let look = restore::ensure(run.drive, run.approved.as_ref(), &mut run.restored)?;
        before = sample::take(run, &look)?;
    }
    let log_before = SanitizeLog::read(run.drive)?;
    let issued = Issued {
        command: order.word(),
        log_before,
        seed: run.seed,
        sample_blocks: run.policy.sample_blocks,
        canaries: u64::try_from(before.canaries.len()).unwrap_or(u64::MAX),
    };
    run.note(order.method, Marks::Issued(issued))?;
    let command = Command::new(admin::SANITIZE, 0).with(issued.command, 0);
    run.drive.admin(&command)?;
    run.evidence = Evidence {
        before,
        ..Evidence::default()
    };
    let (log, seen) = wait(run, Some(issued.command), order)?;
    judge(run, &log, &issued, seen)
}

/// Go on with a sanitize that an earlier agent was about to give. `false` if it has to be begun anew.
pub(crate) fn resume(
    run: &mut Run<'_, '_>,
    order: Order,
    issued: Issued,
) -> Result<bool, WipeError> {
    if issued.command != order.word() {
        return Ok(false);
    }
    let log = SanitizeLog::read(run.drive)?;
    let is_ours = log.command == issued.command;
    let is_newer = log.shows_a_run_since(&issued.log_before);
    match log.state() {
        State::Running if is_ours => {
            recall_canaries(run, &issued)?;
            let (log, seen) = wait(run, Some(issued.command), order)?;
            judge(run, &log, &issued, seen)?;
            Ok(true)
        }
        State::Done if is_ours => {
            recall_canaries(run, &issued)?;
            if is_newer {
                judge(run, &log, &issued, false)?;
                return Ok(true);
            }
            // The log is as it was: only canaries that are gone tell that the command ran.
            let look = Look::at(run.drive)?;
            let before = &run.evidence.before;
            let left = sample::canaries_left(run.drive, &look, &before.canaries, before.seed)?;
            if before.canaries.is_empty() || !left.is_empty() {
                return Ok(false);
            }
            note_log(run, &log);
            Ok(true)
        }
        State::Failed if is_newer => Err(WipeError::SanitizeFailed { sstat: log.status }),
        State::Never | State::Done | State::Running | State::Failed | State::Unknown => Ok(false),
    }
}

/// The canaries of the agent that gave the command. What it had read besides is lost with it.
fn recall_canaries(run: &mut Run<'_, '_>, issued: &Issued) -> Result<(), WipeError> {
    let mut before = Before {
        seed: issued.seed,
        ..Before::default()
    };
    if issued.canaries > 0 {
        let look = Look::at(run.drive)?;
        let places = sample::places(&look.layout(), issued.sample_blocks, issued.seed);
        let canaries = sample::canary_places(&places);
        // Fewer were written than there are places for: which ones is not known.
        if u64::try_from(canaries.len()) == Ok(issued.canaries) {
            before.canaries = canaries;
        }
    }
    run.evidence = Evidence {
        before,
        is_resumed: true,
        ..Evidence::default()
    };
    Ok(())
}

/// Wait until nothing runs. With `issued`, it has to be that command which runs. Returns the last log,
/// and whether it was seen running.
fn wait(
    run: &mut Run<'_, '_>,
    issued: Option<u32>,
    order: Order,
) -> Result<(SanitizeLog, bool), WipeError> {
    let started = run.drive.now();
    let first = SanitizeLog::read(run.drive)?;
    let estimate = first.estimate(order.action, order.without_deallocation);
    let limit = plan::limit(run.policy, estimate);
    let (mut log, mut seen) = (first, false);
    let (mut best, mut moved_at, mut pause) = (0, started, FIRST_PAUSE);
    while log.state() == State::Running {
        if let Some(issued) = issued.filter(|issued| *issued != log.command) {
            let found = log.command;
            return Err(WipeError::SanitizeNotOurs { issued, found });
        }
        seen = true;
        let now = run.drive.now();
        let passed = now.saturating_sub(started);
        if log.progress > best {
            (best, moved_at) = (log.progress, now);
        }
        let percent = plan::percent(best.into(), 1 << 16, 0, SHARE);
        let left = estimate.map(|whole| (whole / 0x1_0000 * u32::from(!best)).as_secs());
        run.progress(percent, left);
        let stands_since = now.saturating_sub(moved_at);
        if stands_since >= plan::stall(limit) {
            return Err(WipeError::Stalled {
                percent,
                seconds: stands_since.as_secs(),
            });
        }
        if passed >= limit {
            let seconds = limit.as_secs();
            return Err(WipeError::TooLong { seconds });
        }
        run.check_cancelled()?;
        run.drive.sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
        log = SanitizeLog::read(run.drive)?;
    }
    Ok((log, seen))
}

/// How our run ended, by the log. What the log does not show, the canaries have to.
fn judge(
    run: &mut Run<'_, '_>,
    log: &SanitizeLog,
    issued: &Issued,
    seen: bool,
) -> Result<(), WipeError> {
    match log.state() {
        State::Done => {}
        State::Failed => return Err(WipeError::SanitizeFailed { sstat: log.status }),
        State::Never | State::Running | State::Unknown => {
            return Err(WipeError::SanitizeNotShown { sstat: log.status });
        }
    }
    if log.command != issued.command {
        return Err(WipeError::SanitizeNotOurs {
            issued: issued.command,
            found: log.command,
        });
    }
    run.evidence.of_log = if seen {
        Some("it was seen running")
    } else if log.shows_a_run_since(&issued.log_before) {
        Some("the log changed")
    } else {
        None
    };
    note_log(run, log);
    Ok(())
}

fn note_log(run: &mut Run<'_, '_>, log: &SanitizeLog) {
    run.complete("sprog", format!("{:#06x}", log.progress));
    run.complete("sstat", format!("{:#06x}", log.status));
    run.complete("scdw10", format!("{:#010x}", log.command));
}
