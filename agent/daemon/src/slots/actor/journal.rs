//! The record on the disk, and the receipts beside it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use berth_agent_host::service_manager::DescriptorStore;
use berth_agent_host::slot_files::SlotFilesError;
use berth_agent_host::vm_files::VmFiles;
use berth_agent_host::vmm_unit::VmmUnits;
use berth_ledger::receipt::seal_receipt;

use super::SlotActor;
use crate::host::blocking;
use crate::launch::in_one_line;
use crate::slots::fail_point;

/// Pause before a record that could not be written is written again.
const PERSIST_RETRY: Duration = Duration::from_secs(1);

impl<U: VmmUnits, F: VmFiles, S: DescriptorStore> SlotActor<U, F, S> {
    /// Write the record, however long it takes: what happened cannot be refused, and nothing may be
    /// done about it before it is on the disk.
    pub(super) async fn persist(&mut self) {
        self.persist_at("").await;
    }

    pub(super) async fn persist_at(&mut self, point: &'static str) {
        while let Err(error) = self.try_persist(point).await {
            self.log(
                "could not write the record, trying again",
                &in_one_line(&error),
            );
            tokio::time::sleep(PERSIST_RETRY).await;
        }
    }

    pub(super) async fn try_persist(&mut self, point: &'static str) -> Result<(), SlotFilesError> {
        self.host.boot_id.clone_into(&mut self.record.boot_id);
        let record = self.record.clone();
        let (files, key) = (
            Arc::clone(&self.host.slots.files),
            Arc::clone(&self.host.slots.key),
        );
        let new: Vec<_> = record
            .receipts
            .iter()
            .filter(|receipt| !self.filed.contains(&receipt.receipt_id))
            .cloned()
            .collect();
        let ids: Vec<_> = new.iter().map(|receipt| receipt.receipt_id).collect();
        blocking(move || {
            files.write_record(&record)?;
            for receipt in &new {
                let sealed =
                    seal_receipt(&key, receipt).map_err(|cause| SlotFilesError::Record {
                        slot_id: record.slot_id,
                        cause,
                    })?;
                files.ensure_receipt(record.slot_id, receipt.receipt_id, &sealed)?;
            }
            Ok::<(), SlotFilesError>(())
        })
        .await?;
        let kept = self.record.receipts.iter().map(|r| r.receipt_id);
        let kept: BTreeSet<_> = kept.collect();
        self.filed.retain(|id| kept.contains(id));
        self.filed.extend(ids);
        self.slots.publish(&self.record);
        self.reach(point);
        Ok(())
    }

    /// A point is reached by what is new in a record, not by writing it once more.
    fn reach(&mut self, point: &str) {
        let is_new_phase = self
            .written
            .replace(self.record.generation)
            .is_some_and(|written| written != self.record.generation);
        if !point.is_empty() {
            fail_point::reached(point);
        } else if is_new_phase || self.record.doing.is_some() {
            fail_point::reached(&self.record.journal_point());
        }
    }
}
