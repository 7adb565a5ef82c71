//! What a slot's task is told: by VMs, operators and the controller.

use berth_agent_core::slot::phase::{Event, Phase};
use berth_agent_core::vm_record::Recall;
use berth_agent_host::service_manager::DescriptorStore;
use berth_agent_host::vm_files::VmFiles;
use berth_agent_host::vmm_unit::VmmUnits;
use berth_api::pci::PciAddress;
use berth_api::slot::{SlotHolder, SlotProblem, SlotProblemCode};

use super::SlotActor;
use crate::launch::in_one_line;
use crate::slots::{Answer, SlotMessage};

impl<U: VmmUnits, F: VmFiles, S: DescriptorStore> SlotActor<U, F, S> {
    pub(super) async fn on_message(&mut self, message: SlotMessage) {
        match message {
            SlotMessage::Claim(holder, answer) => self.on_claim(holder, answer).await,
            SlotMessage::Open(vm_id, answer) => {
                let opened = if self.record.held_by() == Some(vm_id) {
                    self.open().await
                } else {
                    Err(not_held())
                };
                tell(answer, opened);
            }
            SlotMessage::GuestGone(vm_id, answer) => {
                if self.record.held_by() == Some(vm_id) {
                    self.follow(Event::GuestGone).await;
                }
                tell(answer, Ok(()));
            }
            SlotMessage::Release(vm_id, answer) => {
                if self.record.held_by() == Some(vm_id) {
                    self.follow(Event::Release).await;
                }
                tell(answer, Ok(()));
            }
            SlotMessage::Task(task) => {
                if self.record.recall(task.task_id) == Recall::Unknown {
                    let (stamp, generation) = (self.stamp(), self.record.generation);
                    tracing::info!(
                        SLOT_ID = %self.record.slot_id, TASK_ID = %task.task_id,
                        "task accepted: {:?}", task.action
                    );
                    self.record.order(&task, stamp);
                    self.after_change(generation).await;
                }
            }
            SlotMessage::Look => self.is_look_wanted = true,
            SlotMessage::ReceiptsStored(stored) => {
                if self.record.acknowledge_receipts(&stored) {
                    self.persist().await;
                }
            }
            SlotMessage::ResultsStored(stored) => {
                if self.record.acknowledge_results(&stored) {
                    self.persist().await;
                }
            }
            SlotMessage::SendAgain(task_id) => {
                self.record.send_again(task_id);
                self.slots.publish(&self.record);
            }
        }
    }

    pub(super) async fn on_claim(&mut self, holder: SlotHolder, answer: Answer<()>) {
        let before = self.record.clone();
        let stamp = self.stamp();
        let claimed = self.record.claim(holder.clone(), stamp);
        if self.record != before
            && let Err(error) = self.try_persist("").await
        {
            // Nothing was done yet, so nothing has to be undone.
            self.record = before;
            let message = format!(
                "the claim could not be written down: {}",
                in_one_line(&error)
            );
            let code = SlotProblemCode::RecordLost;
            tell(answer, Err(SlotProblem { code, message }));
            return;
        }
        if let Err(denied) = claimed {
            tell(answer, Err(denied.0));
            return;
        }
        self.claimants.push((holder, answer));
        self.refusal = None;
        self.turn_to_phase(before.generation);
        self.answer_claimants();
    }

    pub(super) async fn open(&mut self) -> Result<Vec<PciAddress>, SlotProblem> {
        let ready = matches!(self.record.phase, Phase::Claimed { is_ready: true, .. });
        if !ready {
            return Err(not_held());
        }
        self.follow(Event::Open).await;
        Ok(self.record.addresses())
    }

    pub(super) fn answer_claimants(&mut self) {
        for (holder, answer) in std::mem::take(&mut self.claimants) {
            let is_his = self.record.held_by() == Some(holder.vm_id);
            let phase = &self.record.phase;
            if is_his && matches!(phase, Phase::Preparing { .. }) {
                self.claimants.push((holder, answer));
            } else if is_his && matches!(phase, Phase::Claimed { is_ready: true, .. }) {
                tell(answer, Ok(()));
            } else {
                let problem = self.refusal.clone().or(phase.problem().cloned());
                tell(answer, Err(problem.unwrap_or_else(not_held)));
            }
        }
    }
}

fn not_held() -> SlotProblem {
    SlotProblem {
        code: SlotProblemCode::SlotBusy,
        message: "the slot is not ready for this VM".to_owned(),
    }
}

fn tell<T>(answer: Answer<T>, result: Result<T, SlotProblem>) {
    // Who has stopped waiting needs no answer.
    drop(answer.send(result));
}
