//! The sanitize status log (NVMe Base 2.0, 5.16.1.25) and what it shows of one run. Pure but for the read.
//!
//! SPROG is FFFFh whenever nothing runs, after a failure too; it says nothing of success. Only SSTAT and
//! SCDW10 together do, and only if the log shows that they are of our run.

use std::time::Duration;

use crate::drive::Drive;
use crate::error::DriveError;
use crate::fields::Fields;

const SANITIZE_STATUS: u8 = 0x81;
const LOG_BYTES: usize = 512;
const NOT_REPORTED: u32 = u32::MAX;
const GLOBAL_DATA_ERASED: u16 = 1 << 8;

/// One reading of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SanitizeLog {
    /// SPROG, in 65536ths.
    pub(crate) progress: u16,
    /// SSTAT.
    pub(crate) status: u16,
    /// SCDW10.
    pub(crate) command: u32,
    /// Seconds for overwrite, block and crypto erase; then the same without deallocation.
    estimates: [u32; 6],
}

/// SSTAT bits 2:0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Never,
    Done,
    Running,
    Failed,
    Unknown,
}

/// What a command does (SANACT).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Block,
    Overwrite,
    Crypto,
}

impl Action {
    /// CDW10 in restricted mode (AUSE 0): a failure leaves the drive closed until one succeeds. One pass
    /// where passes count; NDAS as asked for.
    pub(crate) fn command_word(self, without_deallocation: bool) -> u32 {
        let action = match self {
            Self::Block => 2,
            Self::Overwrite => 3 | 1 << 4,
            Self::Crypto => 4,
        };
        action | u32::from(without_deallocation) << 9
    }
}

impl SanitizeLog {
    pub(crate) fn read(drive: &mut Drive<'_>) -> Result<Self, DriveError> {
        let mut page = [0; LOG_BYTES];
        drive.log_page(SANITIZE_STATUS, &mut page)?;
        Ok(Self::parse(&page))
    }

    fn parse(page: &[u8; LOG_BYTES]) -> Self {
        let page = Fields(page);
        Self {
            progress: page.le16(0),
            status: page.le16(2),
            command: page.le32(4),
            estimates: [8, 12, 16, 20, 24, 28].map(|offset| page.le32(offset)),
        }
    }

    pub(crate) fn state(&self) -> State {
        match self.status & 7 {
            0 => State::Never,
            1 | 4 => State::Done,
            2 => State::Running,
            3 => State::Failed,
            _ => State::Unknown,
        }
    }

    /// What it was asked to do, with the time that the drive says it takes.
    pub(crate) fn estimate(&self, action: Action, without_deallocation: bool) -> Option<Duration> {
        let index = match action {
            Action::Overwrite => 0,
            Action::Block => 1,
            Action::Crypto => 2,
        };
        let index = index + if without_deallocation { 3 } else { 0 };
        self.estimates
            .get(index)
            .filter(|seconds| **seconds != NOT_REPORTED)
            .map(|seconds| Duration::from_secs(u64::from(*seconds)))
    }

    /// Whether a run began between `before`, when none was running, and this reading. A change of what
    /// was erased counts in one direction only: writing clears that bit without a run.
    pub(crate) fn shows_a_run_since(&self, before: &Self) -> bool {
        let erased = |log: &Self| log.status & GLOBAL_DATA_ERASED != 0;
        self.state() != before.state()
            || self.command != before.command
            || (erased(self) && !erased(before))
    }

    /// Its numbers for a journal: SPROG, SSTAT and SCDW10.
    pub(crate) fn to_mark(self) -> String {
        format!(
            "{:04x} {:04x} {:08x}",
            self.progress, self.status, self.command
        )
    }

    pub(crate) fn from_mark(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut next = || words.next();
        let log = Self {
            progress: u16::from_str_radix(next()?, 16).ok()?,
            status: u16::from_str_radix(next()?, 16).ok()?,
            command: u32::from_str_radix(next()?, 16).ok()?,
            estimates: [NOT_REPORTED; 6],
        };
        next().is_none().then_some(log)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(status: u16, command: u32) -> SanitizeLog {
        SanitizeLog {
            progress: 0xffff,
            status,
            command,
            estimates: [NOT_REPORTED; 6],
        }
    }

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let mut page = [0; LOG_BYTES];
        page[..8].copy_from_slice(&[0x00, 0x80, 0x02, 0x01, 0x02, 0x02, 0, 0]);
        for (index, place) in page[8..32].chunks_exact_mut(4).enumerate() {
            place[0] = u8::try_from(index).unwrap() + 1;
        }
        let log = SanitizeLog::parse(&page);
        assert_eq!(
            (log.progress, log.status, log.command),
            (0x8000, 0x102, 0x202)
        );
        assert_eq!(log.state(), State::Running);
        let seconds = |action, kept| log.estimate(action, kept).unwrap().as_secs();
        assert_eq!(seconds(Action::Overwrite, false), 1);
        assert_eq!(seconds(Action::Block, false), 2);
        assert_eq!(seconds(Action::Crypto, true), 6);
        assert_eq!(
            super::SanitizeLog::from_mark(&log.to_mark())
                .unwrap()
                .status,
            0x102
        );
    }

    #[test]
    fn a_run_shows_by_state_command_or_erased_data_and_not_by_a_write() {
        for (before, after, expected) in [
            (log(0, 0), log(1, 4), true),
            (log(1, 4), log(1, 4), false),
            (log(1, 2), log(1, 4), true),
            (log(1, 4), log(0x101, 4), true),
            (log(0x101, 4), log(1, 4), false),
            (log(3, 4), log(4, 4), true),
            (log(1, 4), log(3, 4), true),
        ] {
            assert_eq!(
                after.shows_a_run_since(&before),
                expected,
                "{before:?} {after:?}"
            );
        }
    }

    #[test]
    fn every_command_is_in_restricted_mode() {
        for action in [Action::Block, Action::Overwrite, Action::Crypto] {
            for kept in [false, true] {
                assert_eq!(action.command_word(kept) & 1 << 3, 0);
            }
        }
        assert_eq!(Action::Crypto.command_word(true), 0x204);
    }

    #[test]
    fn marks_that_are_no_marks_are_nothing() {
        for text in ["", "1 2", "1 2 3 4", "x 1 2", "11111 1 1"] {
            assert_eq!(SanitizeLog::from_mark(text), None, "{text}");
        }
    }
}
