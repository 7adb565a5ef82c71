//! Queues, doorbells and data transfers of a modelled drive.

use std::time::Duration;

use crate::command::ENTRY_BYTES;
use crate::fields::Fields;
use crate::status::Status;
use crate::transport::PAGE_BYTES;

use super::Model;
use super::script::Break;

/// How long an honest command takes.
const LATENCY: Duration = Duration::from_micros(20);

/// A pair of queues as the drive sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Rings {
    submissions: u64,
    submission_entries: u32,
    completions: u64,
    completion_entries: u32,
    head: u32,
    completion_tail: u32,
    is_second_round: bool,
}

/// A command as the drive has read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) opcode: u8,
    pub(super) id: u16,
    pub(super) nsid: u32,
    pub(super) metadata: u64,
    pub(super) prp: [u64; 2],
    pub(super) words: [u32; 6],
}

/// How a command ends, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    status: Status,
    result: u32,
    after: Option<Duration>,
}

/// A completion that is still to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pending {
    due: Duration,
    queue: u16,
    id: u16,
    outcome: Outcome,
    ends_format: bool,
}

impl Outcome {
    pub(super) fn at_once(status: Status) -> Self {
        Self {
            status,
            result: 0,
            after: Some(LATENCY),
        }
    }

    pub(super) fn with_result(result: u32) -> Self {
        Self {
            result,
            ..Self::at_once(Status::SUCCESS)
        }
    }

    pub(super) fn after(after: Duration) -> Self {
        Self {
            after: Some(after),
            ..Self::at_once(Status::SUCCESS)
        }
    }

    pub(super) fn never() -> Self {
        Self {
            after: None,
            ..Self::at_once(Status::SUCCESS)
        }
    }
}

impl Rings {
    pub(super) fn set_submissions(&mut self, address: u64, entries: u32) {
        (self.submissions, self.submission_entries) = (address, entries);
    }

    pub(super) fn set_completions(&mut self, address: u64, entries: u32) {
        (self.completions, self.completion_entries) = (address, entries);
    }
}

impl Model {
    /// The host rang: take what it put in, up to `tail`.
    pub(super) fn ring(&mut self, queue: u16, tail: u32) {
        loop {
            let Some(rings) = self.queues.get_mut(&queue) else {
                return;
            };
            if rings.head == tail || tail >= rings.submission_entries {
                return;
            }
            let address = rings.submissions + u64::from(rings.head) * 64;
            rings.head = (rings.head + 1) % rings.submission_entries;
            let Some(place) = self.offset_of(address) else {
                return;
            };
            let mut entry = [0; ENTRY_BYTES];
            entry.copy_from_slice(&self.memory[place..place + ENTRY_BYTES]);
            self.commands += 1;
            self.take(queue, &given(&entry));
        }
    }

    fn take(&mut self, queue: u16, given: &Given) {
        let had_format = self.formatting.is_some();
        let outcome = match queue {
            0 => self.admin(given),
            _ => self.io(given),
        };
        let Some(after) = outcome.after else {
            return;
        };
        self.pending.push(Pending {
            due: self.now + after,
            queue,
            id: given.id,
            outcome,
            ends_format: !had_format && self.formatting.is_some(),
        });
    }

    /// Write the completions that are due.
    pub(super) fn complete_due(&mut self) {
        while let Some(index) = self
            .pending
            .iter()
            .position(|pending| pending.due <= self.now)
        {
            let pending = self.pending.remove(index);
            if pending.ends_format {
                self.end_format(None);
            }
            self.write_completion(&pending);
        }
    }

    fn write_completion(&mut self, pending: &Pending) {
        let broken = self.broken();
        let Some(rings) = self.queues.get(&pending.queue).copied() else {
            return;
        };
        let mut phase = u16::from(!rings.is_second_round);
        let (mut id, mut head) = (pending.id, u16::try_from(rings.head).unwrap_or(0));
        let mut queue = pending.queue;
        match broken {
            Some(Break::Silent) => return,
            Some(Break::UnknownId) => id ^= 0x0101,
            Some(Break::WrongHead) => head = head.wrapping_add(1),
            Some(Break::WrongQueue) => queue ^= 1,
            Some(Break::PhaseGarbage) => phase ^= 1,
            Some(Break::Gone | Break::Unreachable | Break::Fatal) | None => {}
        }
        let mut entry = [0; 16];
        entry[..4].copy_from_slice(&pending.outcome.result.to_le_bytes());
        entry[8..10].copy_from_slice(&head.to_le_bytes());
        entry[10..12].copy_from_slice(&queue.to_le_bytes());
        entry[12..14].copy_from_slice(&id.to_le_bytes());
        entry[14..].copy_from_slice(&(pending.outcome.status.word() | phase).to_le_bytes());
        let address = rings.completions + u64::from(rings.completion_tail) * 16;
        if let Some(place) = self.offset_of(address) {
            self.memory[place..place + 16].copy_from_slice(&entry);
        }
        if let Some(rings) = self.queues.get_mut(&pending.queue) {
            rings.completion_tail += 1;
            if rings.completion_tail == rings.completion_entries {
                rings.completion_tail = 0;
                rings.is_second_round = !rings.is_second_round;
            }
        }
    }

    /// Send data to the host. `false` if the host's lists lead outside what it shares.
    pub(super) fn send(&mut self, prp: [u64; 2], bytes: &[u8]) -> bool {
        let Some(places) = self.places(prp, bytes.len()) else {
            return false;
        };
        for (place, piece) in places.iter().zip(bytes.chunks(PAGE_BYTES)) {
            self.memory[*place..place + piece.len()].copy_from_slice(piece);
        }
        true
    }

    /// Fetch data from the host.
    pub(super) fn receive(&mut self, prp: [u64; 2], bytes: usize) -> Option<Vec<u8>> {
        let places = self.places(prp, bytes)?;
        let mut found = Vec::with_capacity(bytes);
        for place in places {
            let piece = PAGE_BYTES.min(bytes - found.len());
            found.extend_from_slice(&self.memory[place..place + piece]);
        }
        Some(found)
    }

    /// Where in the memory a transfer's pages are, by its two entries.
    fn places(&self, prp: [u64; 2], bytes: usize) -> Option<Vec<usize>> {
        let pages = bytes.div_ceil(PAGE_BYTES);
        let mut places = vec![self.offset_of(prp[0])?];
        match pages {
            0 | 1 => {}
            2 => places.push(self.offset_of(prp[1])?),
            _ => {
                let list = self.offset_of(prp[1])?;
                for index in 0..pages - 1 {
                    let entry = Fields(&self.memory).le64(list + index * 8);
                    places.push(self.offset_of(entry)?);
                }
            }
        }
        Some(places)
    }

    /// Where in the memory a drive's address is.
    fn offset_of(&self, address: u64) -> Option<usize> {
        let page_bytes = u64::try_from(PAGE_BYTES).unwrap_or(u64::MAX);
        let within = usize::try_from(address % page_bytes).ok()?;
        let start = address - address % page_bytes;
        let page = self.addresses.iter().position(|found| *found == start)?;
        Some(page * PAGE_BYTES + within)
    }
}

fn given(entry: &[u8; ENTRY_BYTES]) -> Given {
    let entry = Fields(entry);
    Given {
        opcode: entry.byte(0),
        id: entry.le16(2),
        nsid: entry.le32(4),
        metadata: entry.le64(16),
        prp: [entry.le64(24), entry.le64(32)],
        words: [40, 44, 48, 52, 56, 60].map(|offset| entry.le32(offset)),
    }
}
