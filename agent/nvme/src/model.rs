//! A scriptable drive in memory, for what no real one does on demand: sanitize with progress, failure,
//! refusal, lies, lost power. Behind the feature `model`; speaks the driver's transport, in virtual time.
//!
//! What outlives a reset or a power cut is what the specification says: media, the sanitize in work and
//! its log, saved features. A format in work does not: it is left half done.

mod admin;
mod erase;
pub mod hostile;
mod io;
pub mod media;
mod pages;
mod queues;
pub mod script;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, ErrorKind};
use std::time::Duration;

use crate::registers::{
    ACQ, AQA, ASQ, CAP, CC, CC_EN, CSTS, CSTS_CFS, CSTS_RDY, CSTS_SHST_COMPLETE, DOORBELLS, VS,
};
use crate::transport::{DMA_PAGES, PAGE_BYTES, Transport, TransportError};
use erase::{FormatRun, Sanitizer};
use media::{Media, Space};
use queues::{Pending, Rings};
use script::{Break, Script};

/// Where the modelled drive sees the shared memory: pages apart and in falling order, so that a driver
/// which takes them for one piece is found out.
const FIRST_ADDRESS: u64 = 0x0010_0000_0000;

/// When the one who drives the model dies: at a command's doorbell, before the drive hears it or after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kill {
    /// The drive gets this many commands and no more.
    Before(u64),
    /// The drive gets this many commands, and nobody hears of the last one's end.
    After(u64),
}

/// A modelled drive.
#[derive(Debug)]
pub struct Model {
    /// What it can do and where it lies. May be changed at any time.
    pub script: Script,
    /// What is on it.
    pub media: Media,
    /// What somebody saved in it.
    pub saved_features: BTreeMap<(u8, u32), u32>,
    sanitizer: Sanitizer,
    formatting: Option<FormatRun>,
    format_left: u8,
    /// Blocks that were written since it was switched on.
    recent: BTreeSet<(u32, u64)>,
    now: Duration,
    commands: u64,
    kill: Option<Kill>,
    is_dead: bool,
    memory: Vec<u8>,
    addresses: Vec<u64>,
    registers: BTreeMap<u32, u32>,
    ready_at: Option<Duration>,
    queues: BTreeMap<u16, Rings>,
    pending: Vec<Pending>,
}

impl Model {
    /// A drive by its script, blank.
    #[must_use]
    pub fn new(script: Script) -> Self {
        let spaces = (1..)
            .zip(&script.namespaces)
            .map(|(id, new)| (id, Space::new(*new)));
        let media = Media {
            spaces: spaces.collect(),
            leftovers: BTreeMap::new(),
        };
        let step = 2 * u64::try_from(PAGE_BYTES).unwrap_or(0);
        let addresses = (0..DMA_PAGES)
            .zip(0..)
            .map(|(_, page)| FIRST_ADDRESS - page * step);
        Self {
            script,
            media,
            saved_features: BTreeMap::new(),
            sanitizer: Sanitizer::default(),
            formatting: None,
            format_left: 0,
            recent: BTreeSet::new(),
            now: Duration::ZERO,
            commands: 0,
            kill: None,
            is_dead: false,
            memory: vec![0; DMA_PAGES * PAGE_BYTES],
            addresses: addresses.collect(),
            registers: BTreeMap::new(),
            ready_at: None,
            queues: BTreeMap::new(),
            pending: Vec::new(),
        }
    }

    /// Commands that it was given since it was made.
    #[must_use]
    pub fn commands(&self) -> u64 {
        self.commands
    }

    /// Whether a sanitize is running.
    #[must_use]
    pub fn is_wiping_itself(&self) -> bool {
        self.sanitizer.running.is_some()
    }

    /// Sanitizes that it was given since it was made.
    #[must_use]
    pub fn sanitizes(&self) -> u64 {
        self.sanitizer.runs
    }

    /// Let whoever drives it die at a command; counted since it was made.
    pub fn kill_at(&mut self, kill: Kill) {
        self.kill = Some(kill);
    }

    /// Whoever drives it dies at once.
    pub fn kill_now(&mut self) {
        self.is_dead = true;
    }

    /// Somebody else opens it, which resets its function.
    pub fn revive(&mut self) {
        (self.kill, self.is_dead) = (None, false);
        self.stop();
    }

    /// Its power goes and comes again.
    pub fn power_cycle(&mut self) {
        for space in self.media.spaces.values_mut() {
            if space.write_protection == 2 {
                space.write_protection = 0;
            }
        }
        self.revive();
    }

    /// Time goes by.
    pub fn advance(&mut self, duration: Duration) {
        self.now += duration;
        self.complete_due();
        self.is_sanitizing();
    }

    /// A tenant has a sanitize run with this CDW10.
    pub fn begin_foreign_sanitize(&mut self, command: u32) {
        self.start_sanitize(command);
    }

    /// Everything that a reset ends.
    fn stop(&mut self) {
        if let Some(run) = self.formatting {
            let done = self.now.saturating_sub(run.started);
            self.end_format(Some(done));
        }
        self.recent.clear();
        self.registers.clear();
        self.ready_at = None;
        self.queues.clear();
        self.pending.clear();
    }

    fn broken(&self) -> Option<Break> {
        let (at, how) = self.script.breaks?;
        (self.commands >= at).then_some(how)
    }

    /// Fails if nobody is there to hear, or the drive is out of reach.
    fn reach(&mut self, offset: u32) -> Result<(), TransportError> {
        self.now += Duration::from_micros(1);
        self.complete_due();
        if self.is_dead || self.broken() == Some(Break::Unreachable) {
            let source = Error::from(ErrorKind::NotConnected);
            return Err(TransportError::Register { offset, source });
        }
        Ok(())
    }

    fn status(&self) -> u32 {
        if self.broken() == Some(Break::Fatal) {
            return CSTS_RDY | CSTS_CFS;
        }
        let is_ready = self.ready_at.is_some_and(|at| at <= self.now);
        let control = self.registers.get(&CC).copied().unwrap_or(0);
        let shutdown = if control & 3 << 14 == 0 {
            0
        } else {
            CSTS_SHST_COMPLETE
        };
        u32::from(is_ready) | shutdown
    }

    fn control(&mut self, value: u32) {
        let before = self.registers.insert(CC, value).unwrap_or(0);
        match (before & CC_EN, value & CC_EN) {
            (0, CC_EN) => {
                self.ready_at = Some(self.now + Duration::from_millis(10));
                let register = |offset| self.registers.get(&offset).copied().unwrap_or(0);
                let wide =
                    |offset| u64::from(register(offset + 4)) << 32 | u64::from(register(offset));
                let mut rings = Rings::default();
                rings.set_submissions(wide(ASQ), (register(AQA) & 0xfff) + 1);
                rings.set_completions(wide(ACQ), (register(AQA) >> 16 & 0xfff) + 1);
                self.queues.insert(0, rings);
            }
            (CC_EN, 0) => self.stop(),
            _ => {}
        }
    }

    fn doorbell(&mut self, offset: u32, value: u32) {
        let index = (offset - DOORBELLS) / 4;
        if !index.is_multiple_of(2) {
            return;
        }
        if self.kill == Some(Kill::Before(self.commands)) {
            self.is_dead = true;
            return;
        }
        if !matches!(self.broken(), Some(Break::Fatal | Break::Gone)) {
            self.ring(u16::try_from(index / 2).unwrap_or(u16::MAX), value);
        }
        if self.kill == Some(Kill::After(self.commands)) {
            self.is_dead = true;
        }
    }

    fn range(&self, offset: usize, bytes: usize) -> Result<std::ops::Range<usize>, TransportError> {
        let end = offset.saturating_add(bytes);
        if end > self.memory.len() {
            return Err(TransportError::OutOfRange { offset, end });
        }
        Ok(offset..end)
    }
}

impl Transport for Model {
    fn read_register(&mut self, offset: u32) -> Result<u32, TransportError> {
        self.reach(offset)?;
        if self.broken() == Some(Break::Gone) {
            return Ok(u32::MAX);
        }
        // 64 entries, 10 s, doorbells side by side, NVM command set.
        let usual = 63 | 20 << 24 | 1 << 37;
        let capabilities = self.script.capabilities.unwrap_or(usual).to_le_bytes();
        let [a, b, c, d, e, f, g, h] = capabilities;
        Ok(match offset {
            CAP => u32::from_le_bytes([a, b, c, d]),
            4 => u32::from_le_bytes([e, f, g, h]),
            VS => 0x0001_0400,
            CSTS => self.status(),
            offset => self.registers.get(&offset).copied().unwrap_or(0),
        })
    }

    fn write_register(&mut self, offset: u32, value: u32) -> Result<(), TransportError> {
        self.reach(offset)?;
        match offset {
            CC => self.control(value),
            offset if offset >= DOORBELLS => self.doorbell(offset, value),
            offset => drop(self.registers.insert(offset, value)),
        }
        Ok(())
    }

    fn page_addresses(&self) -> &[u64] {
        &self.addresses
    }

    fn read_memory(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), TransportError> {
        self.reach(0)?;
        let range = self.range(offset, bytes.len())?;
        bytes.copy_from_slice(&self.memory[range]);
        Ok(())
    }

    fn write_memory(&mut self, offset: usize, bytes: &[u8]) -> Result<(), TransportError> {
        self.reach(0)?;
        let range = self.range(offset, bytes.len())?;
        self.memory[range].copy_from_slice(bytes);
        Ok(())
    }

    fn now(&mut self) -> Duration {
        self.now
    }

    fn sleep(&mut self, duration: Duration) {
        self.advance(duration);
    }
}
