//! The wipes of one slot: begun, listened to, ended.

use std::collections::BTreeSet;

use berth_agent_core::slot::phase::{Event, Lane as LaneState, Phase};
use berth_agent_core::slot::wipe::WipePolicy;
use berth_agent_host::service_manager::DescriptorStore;
use berth_agent_host::slot_devices::DeviceError;
use berth_agent_host::vm_files::VmFiles;
use berth_agent_host::vmm_unit::VmmUnits;
use berth_api::pci::PciAddress;
use berth_api::slot::{DeviceWipe, SlotProblemCode};

use super::SlotActor;
use crate::slots::lanes::{Lane, Lanes, Word, WordKind};
use crate::slots::steps;

impl<U: VmmUnits, F: VmFiles, S: DescriptorStore> SlotActor<U, F, S> {
    pub(super) async fn start_lanes(&mut self) {
        let Phase::Wiping { lanes, .. } = &self.record.phase else {
            return;
        };
        let known: BTreeSet<_> = lanes.keys().copied().collect();
        if known != self.record.addresses().into_iter().collect() {
            let message = "the devices moved while they were wiped: wipe the slot again".to_owned();
            let moved = DeviceError::new(SlotProblemCode::DeviceMissing, message);
            return self.fail(&moved).await;
        }
        let policy = self
            .record
            .approval
            .as_ref()
            .map(|a| a.approval.wipe.clone());
        let policy: WipePolicy = policy.unwrap_or_default();
        let mut starting = Vec::new();
        for (&at, state) in lanes {
            let earlier = match state {
                LaneState::Waiting => None,
                LaneState::Begun(run) => Some(run.clone()),
                LaneState::Done(_) | LaneState::Failed(_) => continue,
            };
            let Some(device) = steps::approved_at(&self.record, at) else {
                continue;
            };
            starting.push(Lane {
                device,
                at,
                policy: policy.clone(),
                earlier,
            });
        }
        self.attempt = self.attempt.saturating_add(1);
        self.percents = starting.iter().map(|lane| (lane.at, 0)).collect();
        let devices = &self.host.slots.devices;
        self.lanes = Some(Lanes::start(self.attempt, starting, devices, &self.words.0));
    }

    pub(super) async fn on_word(&mut self, word: Word) {
        let is_current = self
            .lanes
            .as_ref()
            .is_some_and(|l| l.attempt == word.attempt);
        if !is_current {
            return;
        }
        let device = word.device;
        let is_wiping = matches!(self.record.phase, Phase::Wiping { .. });
        match word.kind {
            WordKind::Note(run, answer) if is_wiping => {
                let stamp = self.stamp();
                self.record.follow(Event::WipeNoted { device, run }, stamp);
                self.persist_at("wiping.noted").await;
                // A lane that has died needs no answer.
                drop(answer.send(Ok(())));
            }
            // Without an answer the lane does nothing.
            WordKind::Note(_, answer) => drop(answer),
            WordKind::Progress(percent) => {
                self.percents.insert(device, percent.min(100));
                self.show_progress();
            }
            WordKind::Ended(result) => self.on_lane_end(device, result, is_wiping).await,
        }
    }

    pub(super) async fn on_lane_end(
        &mut self,
        device: PciAddress,
        result: Result<Box<DeviceWipe>, DeviceError>,
        is_wiping: bool,
    ) {
        self.percents.insert(device, 100);
        if let Some(lanes) = &mut self.lanes {
            lanes.running = lanes.running.saturating_sub(1);
            if lanes.running == 0 {
                self.lanes = None;
                self.percents.clear();
            }
        }
        self.show_progress();
        if let Err(error) = &result {
            self.log("a wipe failed", error);
        }
        if is_wiping {
            let result = result.map_err(|error| steps::problem(&error));
            self.follow(Event::WipeEnded { device, result }).await;
        }
    }

    pub(super) fn show_progress(&self) {
        let slowest = self.percents.values().min().copied();
        self.slots.publish_progress(self.record.slot_id, slowest);
    }
}
