//! Passports of slots: which entries of the ledger belong in them, noted as those are written.
//!
//! An entry that may be shown to a slot's later tenants names nobody and is of the platform's own
//! sequence. What the host signed is in the entry of whom it is about, where that is somebody.

use berth_api::ids::{EventId, SlotId, VmId};
use berth_controller_core::passport::{Mark, MarkKind, passage_to};
use berth_ledger::entry::ProvenEntry;
use berth_ledger::passport::{Before, SlotPassage};

use crate::error::StoreError;
use crate::ledger::{Cause, EntryFilter, NewEvent};
use crate::rows::parsed;
use crate::store::Db;
use crate::writer::WriteTx;

/// How far back a way to a claim is looked for, in entries about the slot.
const MAX_MARKS: u32 = 256;

/// What an entry says of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SlotMark {
    Approved,
    Wiped,
    Unheard,
    Claimed(VmId),
    Launched(VmId),
}

impl SlotMark {
    fn kind(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Wiped => "wiped",
            Self::Unheard => "unheard",
            Self::Claimed(_) => "claimed",
            Self::Launched(_) => "launched",
        }
    }

    fn vm_id(self) -> Option<VmId> {
        match self {
            Self::Claimed(vm_id) | Self::Launched(vm_id) => Some(vm_id),
            Self::Approved | Self::Wiped | Self::Unheard => None,
        }
    }
}

/// Why a VM has no passport.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoPassport {
    /// There is nothing that it could be about.
    #[error("the VM has no slots")]
    NoSlots,
    /// The log does not have what would show it.
    #[error("this log has no wipe or approval of {slot_id} that leads to the VM's claim")]
    NotShown {
        /// Which slot.
        slot_id: SlotId,
    },
}

impl WriteTx<'_> {
    /// Append an entry, and find it by its slot from then on.
    pub(crate) fn append_marked(
        &mut self,
        event: NewEvent,
        (slot, mark, fencing_epoch): (SlotId, SlotMark, u64),
        cause: &Cause,
    ) -> Result<u64, StoreError> {
        let index = self.append(event, cause)?;
        self.conn
            .prepare_cached(
                "INSERT INTO slot_mark (slot_id, epoch, idx, kind, fencing_epoch, vm_id)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .send((
                slot.to_string(),
                self.log.head.epoch,
                index,
                mark.kind(),
                fencing_epoch,
                mark.vm_id().map(|vm_id| vm_id.to_string()),
            ))?;
        Ok(index)
    }

    /// The same for everybody: an entry without those that it is about, beside the one that has them.
    pub(crate) fn append_bare(
        &mut self,
        event: NewEvent,
        at: (SlotId, SlotMark, u64),
        of: EventId,
        cause: &Cause,
    ) -> Result<u64, StoreError> {
        let bare = NewEvent {
            event_id: Some(of),
            tenant_id: None,
            project_id: None,
            vm_id: None,
            ..event
        };
        self.append_marked(bare, at, cause)
    }
}

impl Db<'_> {
    /// The ways of a VM's slots to it, proved in the tree of `size` entries, which this log has reached.
    pub fn passages(
        &self,
        vm_id: VmId,
        size: u64,
    ) -> Result<Result<Vec<SlotPassage>, NoPassport>, StoreError> {
        let epoch = self.log_head()?.epoch;
        let of_vm = self.marks_of_vm(vm_id, epoch, size)?;
        let mut passages = Vec::new();
        for (slot_id, kind, index, fencing_epoch) in &of_vm {
            if kind != "claimed" {
                continue;
            }
            let marks = self.marks_before(*slot_id, epoch, *index)?;
            let Some(passage) = passage_to(*fencing_epoch, &marks) else {
                let slot_id = *slot_id;
                return Ok(Err(NoPassport::NotShown { slot_id }));
            };
            let event = self.proven_entry(passage.before.index, size)?;
            let launch = of_vm.iter().find(|(slot, kind, _, epoch)| {
                (slot, kind.as_str(), epoch) == (slot_id, "launched", fencing_epoch)
            });
            passages.push(SlotPassage {
                slot_id: *slot_id,
                claim: self.proven_entry(*index, size)?,
                before: match passage.before.kind {
                    MarkKind::Wiped => Before::Wiped { event },
                    MarkKind::Approved | MarkKind::Unheard => Before::Approved { event },
                },
                unused: passage
                    .unused
                    .into_iter()
                    .map(|index| self.proven_entry(index, size))
                    .collect::<Result<_, _>>()?,
                launch: launch
                    .map(|(_, _, index, _)| self.proven_entry(*index, size))
                    .transpose()?,
            });
        }
        if passages.is_empty() {
            return Ok(Err(NoPassport::NoSlots));
        }
        Ok(Ok(passages))
    }

    fn marks_of_vm(
        &self,
        vm_id: VmId,
        epoch: u64,
        size: u64,
    ) -> Result<Vec<(SlotId, String, u64, u64)>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT slot_id, kind, idx, fencing_epoch FROM slot_mark
             WHERE vm_id = ?1 AND epoch = ?2 AND idx < ?3 ORDER BY idx",
        )?;
        let rows = select.query_map((vm_id.to_string(), epoch, size), |row| {
            let slot_id: String = row.get(0)?;
            Ok((slot_id, row.get(1)?, row.get(2)?, row.get(3)?))
        })?;
        rows.map(|row| {
            let (slot_id, kind, index, fencing_epoch) = row?;
            Ok((parsed(&slot_id, "slot id")?, kind, index, fencing_epoch))
        })
        .collect()
    }

    /// What is said of a slot before an entry, newest first.
    fn marks_before(&self, slot: SlotId, epoch: u64, index: u64) -> Result<Vec<Mark>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT kind, idx, fencing_epoch FROM slot_mark
             WHERE slot_id = ?1 AND epoch = ?2 AND idx < ?3 AND vm_id IS NULL
             ORDER BY idx DESC LIMIT ?4",
        )?;
        let rows = select.query_map((slot.to_string(), epoch, index, MAX_MARKS), |row| {
            let kind: String = row.get(0)?;
            Ok((kind, row.get(1)?, row.get(2)?))
        })?;
        rows.map(|row| {
            let (kind, index, fencing_epoch) = row?;
            Ok(Mark {
                kind: match kind.as_str() {
                    "approved" => MarkKind::Approved,
                    "wiped" => MarkKind::Wiped,
                    "unheard" => MarkKind::Unheard,
                    _ => return Err(StoreError::Corrupt { what: "slot mark" }),
                },
                index,
                fencing_epoch,
            })
        })
        .collect()
    }

    fn proven_entry(&self, index: u64, size: u64) -> Result<ProvenEntry, StoreError> {
        let filter = EntryFilter {
            since_index: index,
            until_index: Some(index.saturating_add(1)),
            limit: 1,
            ..EntryFilter::default()
        };
        let found = self.proven_entries(&filter, size)?;
        let corrupt = StoreError::Corrupt { what: "slot mark" };
        found.into_iter().next().ok_or(corrupt)
    }
}
