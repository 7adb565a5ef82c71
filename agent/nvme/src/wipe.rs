//! One drive's wipe from beginning to end: look, choose, erase, put back, read, and say what of it is proved.
//!
//! ```text
//!  look ─ refuse shared, locked ─ choose ─┬─ earlier run is in the drive's log ── go on with it ─┐
//!                                         └─ note ─ unprotect, layout ─ sample, canaries ─ erase ─┤
//!  result ◄─ deallocate ◄─ read back ◄─ features, layout ◄─ same drive? ◄─ reset ◄────────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use berth_agent_core::slot::wipe::{WipeJournal, WipePolicy, WipeRun};
use berth_api::pci::PciAddress;
use berth_api::slot::{DeviceIdentity, DeviceWipe, ReadBack, WipeMethod};

use crate::blocks;
use crate::drive::Drive;
use crate::error::DriveError;
use crate::features;
use crate::format;
use crate::identify::layout::Layout;
use crate::identify::{Look, setting};
use crate::marks::Marks;
use crate::overwrite;
use crate::plan::{self, Erase};
use crate::read_back;
use crate::restore;
use crate::sample::Before;
use crate::sanitize::{self, Order};
use crate::security;
use crate::status::{Status, StatusKind};
use crate::wipe_error::WipeError;

/// What a wipe is to do.
#[derive(Debug, Clone, Copy)]
pub struct WipeOrder<'a> {
    /// How the drive may be wiped.
    pub policy: &'a WipePolicy,
    /// The approval's settings; of these, [`setting::NAMESPACES`] is put back. Without it the drive
    /// keeps its one namespace, or gets one of all there is.
    pub approved: &'a BTreeMap<String, String>,
    /// What an earlier agent noted last; `None` for a wipe that begins, also if the last one failed.
    pub earlier: Option<&'a WipeRun>,
    /// Chooses the places and the stream of canaries: another one for each wipe.
    pub seed: u64,
    /// Now, milliseconds since the epoch.
    pub started_at_ms: i64,
}

/// A wipe that is proved as far as it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmeWipe {
    /// How.
    pub method: WipeMethod,
    /// When the run was first noted, milliseconds since the epoch.
    pub started_at_ms: i64,
    /// What the drive said, in its own numbers.
    pub completion: BTreeMap<String, String>,
    /// What was undone beside.
    pub restored: Vec<String>,
    /// What was read afterwards.
    pub read_back: ReadBack,
    /// What is not proved.
    pub not_proved: Vec<String>,
}

impl NvmeWipe {
    /// For a receipt.
    #[must_use]
    pub fn into_device_wipe(
        self,
        address: PciAddress,
        identity: DeviceIdentity,
        ended_at_ms: i64,
    ) -> DeviceWipe {
        DeviceWipe {
            address,
            identity,
            method: self.method,
            started_at_ms: self.started_at_ms,
            ended_at_ms,
            completion: self.completion,
            restored: self.restored,
            read_back: self.read_back,
            not_proved: self.not_proved,
        }
    }
}

/// What shows that an erase ran after it was noted.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    pub(crate) before: Before,
    /// What the drive's log shows of our run.
    pub(crate) of_log: Option<&'static str>,
    /// Whether another agent gave the command.
    pub(crate) is_resumed: bool,
}

/// A wipe in work.
pub(crate) struct Run<'r, 't> {
    pub(crate) drive: &'r mut Drive<'t>,
    pub(crate) policy: &'r WipePolicy,
    pub(crate) journal: &'r mut dyn WipeJournal,
    pub(crate) approved: Option<Layout>,
    pub(crate) seed: u64,
    pub(crate) restored: Vec<String>,
    pub(crate) evidence: Evidence,
    started_at_ms: i64,
    completion: BTreeMap<String, String>,
    told: Option<(u8, Option<u64>)>,
}

impl Run<'_, '_> {
    /// Note how far the run is, before what comes next is done.
    pub(crate) fn note(&mut self, method: WipeMethod, marks: Marks) -> Result<(), WipeError> {
        self.check_cancelled()?;
        Ok(self
            .journal
            .note(&marks.to_run(method, self.started_at_ms))?)
    }

    /// Tell how far it is, once for each difference.
    pub(crate) fn progress(&mut self, percent: u8, seconds_left: Option<u64>) {
        let progress = (percent, seconds_left);
        if self.told != Some(progress) {
            self.told = Some(progress);
            self.journal.progress(percent, seconds_left);
        }
    }

    pub(crate) fn complete(&mut self, name: &str, value: String) {
        self.completion.insert(name.to_owned(), value);
    }

    /// When something that the drive gives no estimate for has to be done.
    pub(crate) fn deadline(&mut self) -> Duration {
        self.drive.now() + plan::limit(self.policy, None)
    }

    /// Stop at a deadline, or if the agent ends.
    pub(crate) fn keep_time(&mut self, deadline: Duration) -> Result<(), WipeError> {
        if self.drive.now() >= deadline {
            let seconds = plan::limit(self.policy, None).as_secs();
            return Err(WipeError::TooLong { seconds });
        }
        self.check_cancelled()
    }

    pub(crate) fn check_cancelled(&self) -> Result<(), WipeError> {
        if self.journal.is_cancelled() {
            return Err(WipeError::Cancelled);
        }
        Ok(())
    }
}

/// Wipe a drive. Blocks until it is done, which may be hours.
///
/// # Errors
/// Whatever is not proved. The drive then has to be taken as full of its last tenant's data; it is left
/// as it is, a sanitize in it goes on.
pub fn wipe(
    drive: &mut Drive<'_>,
    order: &WipeOrder<'_>,
    journal: &mut dyn WipeJournal,
) -> Result<NvmeWipe, WipeError> {
    let approved = order.approved.get(setting::NAMESPACES);
    let approved = approved.map(|text| text.parse()).transpose()?;
    let look = Look::at(drive)?;
    let (method, erase) = plan::choose(&look.controller, order.policy)?;
    match security::check(drive, &look.controller) {
        // Asked again when that has ended.
        Err(WipeError::Drive(error)) if is_sanitizing(&error) => {}
        checked => checked?,
    }
    let mut run = Run {
        drive,
        policy: order.policy,
        journal,
        approved,
        seed: order.seed,
        restored: Vec::new(),
        evidence: Evidence::default(),
        started_at_ms: order.started_at_ms,
        completion: BTreeMap::new(),
        told: None,
    };
    let compared = match erase {
        Erase::Sanitize {
            action,
            without_deallocation,
        } => {
            let order_of_drive = Order {
                method,
                action,
                without_deallocation,
            };
            run_sanitize(&mut run, order_of_drive, order.earlier)?;
            None
        }
        Erase::Format { secure, scope } => {
            format::run(&mut run, method, secure, scope)?;
            None
        }
        Erase::Overwrite => Some(overwrite::run(&mut run, method)?),
    };
    finish(run, &look, method, erase, compared)
}

fn is_sanitizing(error: &DriveError) -> bool {
    matches!(
        error.status().map(Status::kind),
        Some(StatusKind::SanitizeInProgress | StatusKind::SanitizeFailed)
    )
}

fn run_sanitize(
    run: &mut Run<'_, '_>,
    order: Order,
    earlier: Option<&WipeRun>,
) -> Result<(), WipeError> {
    if let Some(earlier) = earlier.filter(|earlier| earlier.method == order.method)
        && let Some(Marks::Issued(issued)) = Marks::of(earlier)
        && sanitize::resume(run, order, issued)?
    {
        run.started_at_ms = earlier.started_at_ms;
        return Ok(());
    }
    sanitize::begin(run, order)
}

/// Everything after the erase.
fn finish(
    mut run: Run<'_, '_>,
    first_look: &Look,
    method: WipeMethod,
    erase: Erase,
    compared: Option<ReadBack>,
) -> Result<NvmeWipe, WipeError> {
    run.drive.reset()?;
    let look = settle(&mut run, erase)?;
    same_drive(first_look, &look)?;
    security::check(run.drive, &look.controller)?;
    run.restored.extend(features::restore(run.drive, &look)?);
    let mut not_proved = not_proved(run.drive, &look, erase);
    let read_back = match compared {
        Some(read_back) => read_back,
        None => read_sample(&mut run, &look, &mut not_proved)?,
    };
    deallocate(&mut run, &look, erase)?;
    run.progress(100, Some(0));
    Ok(NvmeWipe {
        method,
        started_at_ms: run.started_at_ms,
        completion: run.completion,
        restored: run.restored,
        read_back,
        not_proved,
    })
}

/// Put back what the drive changed or could not change before. Of an erase that was only for what
/// namespaces there were, nothing is proved for others.
fn settle(run: &mut Run<'_, '_>, erase: Erase) -> Result<Look, WipeError> {
    let found = Look::at(run.drive)?.layout();
    let undone = run.restored.len();
    let look = restore::ensure(run.drive, run.approved.as_ref(), &mut run.restored)?;
    if run.restored.len() == undone {
        return Ok(look);
    }
    if !matches!(erase, Erase::Sanitize { .. }) {
        return Err(WipeError::LayoutNotRestored {
            wanted: look.layout().to_string(),
            found: found.to_string(),
        });
    }
    // Canaries and digests of other namespaces say nothing of these.
    run.evidence.before = Before {
        seed: run.evidence.before.seed,
        ..Before::default()
    };
    Ok(look)
}

fn same_drive(before: &Look, after: &Look) -> Result<(), WipeError> {
    let name = |look: &Look| format!("{} {}", look.controller.model, look.controller.serial);
    let (wanted, found) = (name(before), name(after));
    if wanted != found {
        return Err(WipeError::IdentityChanged { wanted, found });
    }
    Ok(())
}

/// Read what the erase left, and find what shows that it ran.
fn read_sample(
    run: &mut Run<'_, '_>,
    look: &Look,
    not_proved: &mut Vec<String>,
) -> Result<ReadBack, WipeError> {
    let reader = read_back::sample(run, look)?;
    let before = &run.evidence.before;
    if let Some(first) = reader.first_wrong {
        return Err(WipeError::ContentLeft {
            blocks: reader.blocks_wrong,
            first: first.to_string(),
        });
    }
    let places: BTreeSet<_> = look.active.iter().map(|found| found.id).collect();
    let canaries = before
        .canaries
        .iter()
        .filter(|place| places.contains(&place.nsid))
        .count();
    let (digests, seed) = (before.digests.len(), before.seed);
    not_proved.extend(weak_points(run, &reader, canaries));
    let evidence = match run.evidence.of_log {
        Some(of_log) if canaries > 0 => format!("{of_log}; {canaries} canaries are gone"),
        Some(of_log) => of_log.to_owned(),
        None if canaries > 0 => format!("{canaries} canaries are gone"),
        None => return Err(WipeError::EraseNotShown),
    };
    run.complete("shown to have run", evidence);
    run.complete("blocks read as zeroes", reader.blocks_zero.to_string());
    let expected = format!(
        "neither what {digests} of them held before nor the {canaries} canaries of key {seed:016x}"
    );
    let sample = read_back::sample_in_words(&reader, look);
    Ok(reader.finish(sample, expected))
}

fn weak_points(run: &Run<'_, '_>, reader: &read_back::Reader, canaries: usize) -> Vec<String> {
    let mut found = Vec::new();
    if reader.blocks_uniform > 0 {
        found.push(format!(
            "{} of {} blocks that were read are all one byte: a deallocated block reads so whatever the \
             media hold",
            reader.blocks_uniform, reader.blocks_read
        ));
    }
    if run.evidence.is_resumed {
        found.push(
            "what the drive held before: the agent that had read it ended before the erase did"
                .to_owned(),
        );
    } else if run.evidence.before.digests.is_empty() {
        found.push(
            "a difference to earlier content: none could be read, or it was blank".to_owned(),
        );
    }
    if canaries == 0 {
        found.push("that blocks changed: no canary could be written before the erase".to_owned());
    }
    found
}

/// What no wipe of this kind proves, whatever is read.
fn not_proved(drive: &Drive<'_>, look: &Look, erase: Erase) -> Vec<String> {
    let mut found = vec!["what firmware that lies keeps out of reach".to_owned()];
    if !matches!(erase, Erase::Sanitize { .. }) {
        found.push(
            "spare, remapped and retired blocks, and caches: no namespace shows them".to_owned(),
        );
        if drive.capabilities().has_persistent_memory() {
            found.push("the persistent memory region".to_owned());
        }
        if look.controller.unallocated_bytes > 0 {
            found.push(format!(
                "{} bytes that are in no namespace",
                look.controller.unallocated_bytes
            ));
        }
    }
    if drive.boot_partitions().is_some() {
        found.push("boot partitions: no wipe reaches them".to_owned());
    }
    if look.controller.protected_blocks > 0 {
        found.push("replay-protected memory blocks: no wipe reaches them".to_owned());
    }
    if drive.capabilities().has_other_command_sets() {
        found.push("namespaces of other command sets: they were not looked for".to_owned());
    }
    found
}

/// Give a drive that is full of what was written or kept its spare blocks back. The wipe is proved
/// before this, and does not depend on it.
fn deallocate(run: &mut Run<'_, '_>, look: &Look, erase: Erase) -> Result<(), WipeError> {
    let is_full = match erase {
        Erase::Sanitize {
            without_deallocation,
            ..
        } => without_deallocation,
        Erase::Overwrite => true,
        Erase::Format { .. } => false,
    };
    if !is_full || !look.controller.has_dataset_management() {
        return Ok(());
    }
    let deadline = run.deadline();
    for namespace in &look.active {
        let mut lba = 0;
        while lba < namespace.shape.blocks && run.drive.now() < deadline {
            match blocks::deallocate(run.drive, namespace, lba) {
                Ok(next) => lba = next,
                // The blocks stay in use, which costs speed and nothing else.
                Err(DriveError::Refused { .. }) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if lba >= namespace.shape.blocks {
            let name = format!("namespace {} after the read-back", namespace.id);
            run.complete(&name, "deallocated".to_owned());
        }
    }
    Ok(())
}
