//! Sanitize and Format of a modelled drive over time: what they do to its media, what they say, and what is
//! left of them by a reset.

use std::time::Duration;

use crate::status::Status;

use super::Model;
use super::media::Erasing;
use super::script::{Formatting, Sanitizing};

/// What the sanitize status log says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SanitizeStatus {
    pub(super) progress: u16,
    pub(super) status: u16,
    pub(super) command: u32,
}

/// What a drive keeps of its sanitizes, whatever happens to its power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sanitizer {
    pub(super) last: SanitizeStatus,
    pub(super) running: Option<SanitizeRun>,
    pub(super) runs: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SanitizeRun {
    started: Duration,
    command: u32,
}

impl Default for Sanitizer {
    fn default() -> Self {
        Self {
            last: SanitizeStatus {
                progress: 0xffff,
                status: 0,
                command: 0,
            },
            running: None,
            runs: 0,
        }
    }
}

/// A format in work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FormatRun {
    pub(super) nsid: u32,
    pub(super) word: u32,
    pub(super) started: Duration,
}

const ERASED: u16 = 1 << 8;
/// Keys of what is left when a key is lost: none that a host would take for its own stream.
const GARBAGE: u64 = 0x6b65_7973_6c6f_7374;

impl Model {
    pub(super) fn is_sanitizing(&mut self) -> bool {
        self.advance_sanitize();
        self.sanitizer.running.is_some()
    }

    pub(super) fn has_failed_sanitize(&self) -> bool {
        self.sanitizer.last.status & 7 == 3
    }

    /// Somebody wrote something.
    pub(super) fn note_written(&mut self) {
        self.sanitizer.last.status &= !ERASED;
    }

    pub(super) fn start_sanitize(&mut self, word: u32) -> Status {
        let action = word & 7;
        let is_there = match action {
            2 => self.script.sanitize & 2 != 0,
            3 => self.script.sanitize & 4 != 0,
            4 => self.script.sanitize & 1 != 0,
            _ => false,
        };
        if self.script.sanitize & 7 == 0 {
            return Status::new(0, 0x01);
        }
        if !is_there {
            return Status::new(0, 0x02);
        }
        if self
            .media
            .spaces
            .values()
            .any(|space| space.write_protection != 0)
        {
            return Status::new(0, 0x20);
        }
        self.sanitizer.runs += 1;
        let command = match self.script.sanitizing {
            Sanitizing::KeepsItsLog => return Status::SUCCESS,
            Sanitizing::LogsAnother => word ^ 6,
            Sanitizing::Honest
            | Sanitizing::ErasesNothing
            | Sanitizing::FailsAt(_)
            | Sanitizing::StallsAt(_)
            | Sanitizing::NeverEnds => word,
        };
        self.sanitizer.running = Some(SanitizeRun {
            started: self.now,
            command,
        });
        Status::SUCCESS
    }

    /// What the log says at this instant.
    pub(super) fn sanitize_status(&mut self) -> SanitizeStatus {
        self.advance_sanitize();
        match self.sanitizer.running {
            None => self.sanitizer.last,
            Some(run) => SanitizeStatus {
                progress: self.sanitize_progress(run),
                status: 2,
                command: run.command,
            },
        }
    }

    fn sanitize_progress(&self, run: SanitizeRun) -> u16 {
        let passed = self.now.saturating_sub(run.started);
        let share = |whole: Duration| {
            let part = passed.as_millis() * 0x1_0000 / whole.as_millis().max(1);
            u16::try_from(part).unwrap_or(0xfffe).min(0xfffe)
        };
        let whole = self.script.sanitize_takes;
        match self.script.sanitizing {
            Sanitizing::StallsAt(percent) => share(whole).min(u16::from(percent) * 655),
            Sanitizing::NeverEnds => share(whole * 100_000),
            Sanitizing::Honest
            | Sanitizing::ErasesNothing
            | Sanitizing::KeepsItsLog
            | Sanitizing::LogsAnother
            | Sanitizing::FailsAt(_) => share(whole),
        }
    }

    fn advance_sanitize(&mut self) {
        let Some(run) = self.sanitizer.running else {
            return;
        };
        let passed = self.now.saturating_sub(run.started);
        let whole = self.script.sanitize_takes;
        let status = match self.script.sanitizing {
            Sanitizing::StallsAt(_) | Sanitizing::NeverEnds => return,
            Sanitizing::FailsAt(percent) => {
                if passed < whole * u32::from(percent) / 100 {
                    return;
                }
                3
            }
            _ if passed < whole => return,
            Sanitizing::ErasesNothing | Sanitizing::KeepsItsLog => 1,
            Sanitizing::Honest | Sanitizing::LogsAnother => {
                self.sanitize_media(run.command);
                1
            }
        };
        let erased = if self.script.tells_erased_data && status == 1 {
            ERASED
        } else {
            0
        };
        self.sanitizer.running = None;
        self.sanitizer.last = SanitizeStatus {
            progress: 0xffff,
            status: status | erased,
            command: run.command,
        };
    }

    fn sanitize_media(&mut self, word: u32) {
        let keeps_blocks = word & 1 << 9 != 0;
        let erasing = if word & 7 == 4 && keeps_blocks {
            Erasing::ToGarbage {
                key: GARBAGE ^ self.sanitizer.runs,
            }
        } else {
            Erasing::ToZeroes
        };
        self.media.erase_all(erasing);
    }

    /// Begin a format; how long until it ends, or why not. `None`: it never does.
    pub(super) fn start_format(
        &mut self,
        nsid: u32,
        word: u32,
    ) -> Result<Option<Duration>, Status> {
        if self.script.admin_commands & 2 == 0 {
            return Err(Status::new(0, 0x01));
        }
        let attributes = self.script.format_attributes;
        if nsid == u32::MAX && (attributes & 0b1000 != 0 || attributes & 0b11 == 0) {
            return Err(Status::new(0, 0x0b));
        }
        if nsid != u32::MAX
            && !self
                .media
                .spaces
                .get(&nsid)
                .is_some_and(|space| space.is_attached)
        {
            return Err(Status::new(0, 0x0b));
        }
        if word & 0xf > 2 {
            return Err(Status::new(1, 0x0a));
        }
        if word >> 9 & 7 == 2 && attributes & 0b100 == 0 {
            return Err(Status::new(0, 0x02));
        }
        if self
            .media
            .spaces
            .values()
            .any(|space| space.write_protection != 0)
        {
            return Err(Status::new(0, 0x20));
        }
        self.formatting = Some(FormatRun {
            nsid,
            word,
            started: self.now,
        });
        Ok(match self.script.formatting {
            Formatting::NeverEnds => None,
            _ if word >> 9 & 7 == 0 => Some(Duration::from_millis(10)),
            Formatting::Honest
            | Formatting::ErasesNothing
            | Formatting::ErasesHalf
            | Formatting::ErasesRecent
            | Formatting::LeavesPercent(_)
            | Formatting::TakesAnotherFormat => Some(self.script.format_takes),
        })
    }

    /// The format in work is done, or this part of it is and the rest never will be.
    pub(super) fn end_format(&mut self, done: Option<Duration>) {
        let Some(run) = self.formatting.take() else {
            return;
        };
        let secure = run.word >> 9 & 7;
        let reaches_all =
            run.nsid == u32::MAX || (secure != 0 && self.script.format_attributes & 2 != 0);
        let ids: Vec<u32> = self.media.spaces.keys().copied().collect();
        for id in ids.into_iter().filter(|id| reaches_all || *id == run.nsid) {
            self.format_space(id, &run, done);
        }
        if let (Formatting::LeavesPercent(left), true) = (self.script.formatting, secure != 0) {
            self.format_left = left;
        }
        self.note_written();
    }

    fn format_space(&mut self, nsid: u32, run: &FormatRun, done: Option<Duration>) {
        let secure = run.word >> 9 & 7;
        let Some(space) = self.media.spaces.get_mut(&nsid) else {
            return;
        };
        let blocks = space.blocks;
        let reached = match done {
            None => blocks,
            Some(done) => {
                let whole = self.script.format_takes.as_millis().max(1);
                let part = u128::from(blocks) * done.as_millis() / whole;
                u64::try_from(part).unwrap_or(blocks).min(blocks)
            }
        };
        let erasing = match secure {
            2 => Erasing::ToGarbage { key: self.commands },
            _ => Erasing::ToZeroes,
        };
        let lies = self.script.formatting;
        match (secure, lies) {
            // Without an erase, the blocks are as they were, as far as they fit.
            (0, _) | (_, Formatting::ErasesNothing) => {}
            (_, Formatting::ErasesRecent) => {
                let recent = &self.recent;
                self.media
                    .erase(nsid, erasing, |lba| recent.contains(&(nsid, lba)));
            }
            (_, Formatting::ErasesHalf) => self.media.erase(nsid, erasing, |lba| lba % 2 == 0),
            _ => self.media.erase(nsid, erasing, |lba| lba < reached),
        }
        if done.is_none() {
            self.change_format(nsid, run.word);
        }
    }

    fn change_format(&mut self, nsid: u32, word: u32) {
        let takes_another = self.script.formatting == Formatting::TakesAnotherFormat;
        let Some(space) = self.media.spaces.get_mut(&nsid) else {
            return;
        };
        let [low, ..] = word.to_le_bytes();
        let format = if takes_another { 0 } else { low & 0xf };
        let bytes = space.bytes();
        if format == space.format {
            return;
        }
        space.format = format;
        space.is_extended = low & 1 << 4 != 0;
        space.protection = low >> 5 & 7;
        let stride = u64::try_from(space.stride()).unwrap_or(u64::MAX);
        space.blocks = bytes / stride;
        let (blocks, stride) = (space.blocks, space.stride());
        space.written.retain(|lba, _| *lba < blocks);
        for block in space.written.values_mut() {
            block.resize(stride, 0);
        }
    }
}
