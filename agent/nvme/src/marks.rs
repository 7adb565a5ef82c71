//! What is noted of a wipe before each of its destructive commands, as the journal keeps it and back. Pure.
//!
//! Marks that do not read as such stand for nothing: the wipe begins anew, which is always safe.

use std::collections::BTreeMap;

use berth_agent_core::slot::wipe::WipeRun;
use berth_api::slot::WipeMethod;

use crate::sanitize_log::SanitizeLog;

const STEP: &str = "step";
const COMMAND: &str = "cdw10";
const LOG_BEFORE: &str = "log_before";
const SEED: &str = "seed";
const SAMPLE: &str = "sample_blocks";
const CANARIES: &str = "canaries";

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marks {
    /// Namespaces, write protection and canaries may have been changed; nothing is erased.
    Prepared,
    /// A Format or our own writing may have begun.
    Erasing,
    /// This sanitize was about to be given.
    Issued(Issued),
}

/// A sanitize that was about to be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Issued {
    /// CDW10.
    pub(crate) command: u32,
    /// The log just before.
    pub(crate) log_before: SanitizeLog,
    /// Where the canaries are, and what they are: see [`crate::sample`].
    pub(crate) seed: u64,
    pub(crate) sample_blocks: u32,
    /// How many canaries were read back before.
    pub(crate) canaries: u64,
}

impl Marks {
    /// For the journal.
    pub(crate) fn to_run(self, method: WipeMethod, started_at_ms: i64) -> WipeRun {
        let text = |name: &str, value: String| (name.to_owned(), value);
        let marks: BTreeMap<_, _> = match self {
            Self::Prepared => [text(STEP, "prepared".to_owned())].into(),
            Self::Erasing => [text(STEP, "erasing".to_owned())].into(),
            Self::Issued(issued) => [
                text(STEP, "issued".to_owned()),
                text(COMMAND, format!("{:08x}", issued.command)),
                text(LOG_BEFORE, issued.log_before.to_mark()),
                text(SEED, format!("{:016x}", issued.seed)),
                text(SAMPLE, issued.sample_blocks.to_string()),
                text(CANARIES, issued.canaries.to_string()),
            ]
            .into(),
        };
        WipeRun {
            method,
            started_at_ms,
            marks,
        }
    }

    /// From the journal.
    pub(crate) fn of(run: &WipeRun) -> Option<Self> {
        let text = |name| run.marks.get(name).map(String::as_str);
        match text(STEP)? {
            "prepared" => Some(Self::Prepared),
            "erasing" => Some(Self::Erasing),
            "issued" => Some(Self::Issued(Issued {
                command: u32::from_str_radix(text(COMMAND)?, 16).ok()?,
                log_before: SanitizeLog::from_mark(text(LOG_BEFORE)?)?,
                seed: u64::from_str_radix(text(SEED)?, 16).ok()?,
                sample_blocks: text(SAMPLE)?.parse().ok()?,
                canaries: text(CANARIES)?.parse().ok()?,
            })),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issued() -> Marks {
        Marks::Issued(Issued {
            command: 0x204,
            log_before: SanitizeLog::from_mark("ffff 0101 00000004").unwrap(),
            seed: 7,
            sample_blocks: 64,
            canaries: 3,
        })
    }

    #[test]
    fn marks_are_the_same_after_the_journal_and_back() {
        for marks in [Marks::Prepared, Marks::Erasing, issued()] {
            let run = marks.to_run(WipeMethod::NvmeSanitizeCrypto, 5);
            assert_eq!(Marks::of(&run), Some(marks));
        }
    }

    #[test]
    fn marks_with_a_piece_missing_or_spoilt_stand_for_nothing() {
        let whole = issued().to_run(WipeMethod::NvmeSanitizeCrypto, 5);
        for name in whole.marks.keys() {
            let mut run = whole.clone();
            run.marks.remove(name);
            assert_eq!(Marks::of(&run), None, "without {name}");
            run.marks.insert(name.clone(), "?".to_owned());
            assert_eq!(Marks::of(&run), None, "{name}");
        }
    }
}
