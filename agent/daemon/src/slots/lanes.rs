//! The wipes of one slot: a thread for each device, so that none waits for another and none of them
//! ever holds up a start elsewhere.
//!
//! A lane writes nothing: what its driver notes is written by the slot's task, and the lane waits for
//! that. Lanes that are dropped are told to leave their device as it is.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use berth_agent_core::slot::approval::ApprovedDevice;
use berth_agent_core::slot::wipe::{WipeJournal, WipePolicy, WipeRun};
use berth_agent_host::slot_devices::{DeviceError, SlotDevices};
use berth_api::pci::PciAddress;
use berth_api::slot::{DeviceWipe, SlotProblemCode};
use tokio::sync::mpsc::UnboundedSender;

/// What a lane says.
#[derive(Debug)]
pub(super) struct Word {
    /// Which lanes it belongs to: those of an earlier attempt are not listened to.
    pub(super) attempt: u64,
    pub(super) device: PciAddress,
    pub(super) kind: WordKind,
}

#[derive(Debug)]
pub(super) enum WordKind {
    /// Write this down and answer.
    Note(WipeRun, SyncSender<io::Result<()>>),
    /// It is so far, in percent.
    Progress(u8),
    /// It ended.
    Ended(Result<Box<DeviceWipe>, DeviceError>),
}

/// One device's wipe, before it begins.
pub(super) struct Lane {
    pub(super) device: ApprovedDevice,
    pub(super) at: PciAddress,
    pub(super) policy: WipePolicy,
    pub(super) earlier: Option<WipeRun>,
}

/// The lanes at work.
#[derive(Debug)]
pub(super) struct Lanes {
    pub(super) attempt: u64,
    /// How many have not said that they ended.
    pub(super) running: usize,
    cancelled: Arc<AtomicBool>,
}

impl Lanes {
    /// Start a thread for each lane.
    pub(super) fn start(
        attempt: u64,
        lanes: Vec<Lane>,
        devices: &Arc<dyn SlotDevices>,
        words: &UnboundedSender<Word>,
    ) -> Self {
        let cancelled = Arc::new(AtomicBool::new(false));
        let mut running = 0_usize;
        for lane in lanes {
            running = running.saturating_add(1);
            let at = lane.at;
            let journal = Journal {
                attempt,
                device: at,
                words: words.clone(),
                cancelled: Arc::clone(&cancelled),
                has_ended: false,
            };
            let devices = Arc::clone(devices);
            let started = std::thread::Builder::new()
                .name(format!("wipe {at}"))
                .spawn(move || run(&*devices, &lane, journal));
            // The journal of a thread that does not come about says that it ended.
            if let Err(error) = started {
                tracing::error!("no thread could be started for the wipe of {at}: {error}");
            }
        }
        Self {
            attempt,
            running,
            cancelled,
        }
    }

    /// Tell them to leave their devices as they are.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.cancel();
    }
}

fn run(devices: &dyn SlotDevices, lane: &Lane, mut journal: Journal) {
    let earlier = lane.earlier.as_ref();
    let wiped = devices.wipe(&lane.device, lane.at, &lane.policy, earlier, &mut journal);
    journal.end(wiped.map(Box::new));
}

struct Journal {
    attempt: u64,
    device: PciAddress,
    words: UnboundedSender<Word>,
    cancelled: Arc<AtomicBool>,
    has_ended: bool,
}

impl Journal {
    fn say(&self, kind: WordKind) -> bool {
        let word = Word {
            attempt: self.attempt,
            device: self.device,
            kind,
        };
        self.words.send(word).is_ok()
    }

    fn end(&mut self, result: Result<Box<DeviceWipe>, DeviceError>) {
        self.has_ended = true;
        // With the slot's task gone, the next agent finds what the device itself says.
        self.say(WordKind::Ended(result));
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if !self.has_ended {
            let message = format!("the thread that wiped {} died", self.device);
            self.end(Err(DeviceError::new(SlotProblemCode::WipeFailed, message)));
        }
    }
}

impl WipeJournal for Journal {
    fn note(&mut self, run: &WipeRun) -> io::Result<()> {
        let gone = || io::Error::other("the agent is ending");
        let (answer, answered) = sync_channel(1);
        if self.is_cancelled() || !self.say(WordKind::Note(run.clone(), answer)) {
            return Err(gone());
        }
        answered.recv().map_err(|_| gone())?
    }

    fn progress(&mut self, percent: u8, _: Option<u64>) {
        self.say(WordKind::Progress(percent));
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.words.is_closed()
    }
}
