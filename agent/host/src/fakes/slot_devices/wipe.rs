//! Wiping in the fake: noted, begun, ended and read as separate steps, each of which an agent may not
//! survive.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use berth_agent_core::slot::approval::ApprovedDevice;
use berth_agent_core::slot::wipe::{WipeJournal, WipePolicy, WipeRun};
use berth_api::pci::PciAddress;
use berth_api::slot::{DeviceKind, DeviceWipe, ReadBack, SlotProblemCode, WipeMethod};
use ring::digest::{SHA256, digest};

use super::super::lock;
use super::{DeviceFault, FakeSlotDevices, dead};
use crate::slot_devices::DeviceError;

/// How often a wipe that stalls looks whether it may go on.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The first method of the policy that such a device has.
fn choose(kind: DeviceKind, policy: &WipePolicy) -> Option<WipeMethod> {
    policy.methods.iter().copied().find(|method| match kind {
        DeviceKind::Nvme => !matches!(method, WipeMethod::MemoryOverwrite | WipeMethod::Reset),
        DeviceKind::Gpu => *method == WipeMethod::MemoryOverwrite,
        DeviceKind::Network | DeviceKind::Other => *method == WipeMethod::Reset,
    })
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.ok()
        .and_then(|now| i64::try_from(now.as_millis()).ok())
        .unwrap_or_default()
}

fn failed(at: PciAddress, what: &str) -> DeviceError {
    DeviceError::new(SlotProblemCode::WipeFailed, format!("{at}: {what}"))
}

impl FakeSlotDevices {
    pub(super) fn run_wipe(
        &self,
        device: &ApprovedDevice,
        at: PciAddress,
        policy: &WipePolicy,
        earlier: Option<&WipeRun>,
        journal: &mut dyn WipeJournal,
    ) -> Result<DeviceWipe, DeviceError> {
        let method = choose(device.kind, policy)
            .ok_or_else(|| failed(at, "it has none of the methods that are good enough"))?;
        let run = match earlier {
            // The device's own log says whether the command that was noted has run.
            Some(earlier) if self.device(at, |d| d.unfinished_wipe) == Some(true) => {
                earlier.clone()
            }
            _ => self.begin(at, method, journal)?,
        };
        self.wait_while_it_stalls(at, journal)?;
        journal.progress(50, Some(1));
        self.step(|state| {
            let device = state.own(at, "wipe")?;
            device.unfinished_wipe = false;
            if device.has(DeviceFault::WipeFails) {
                return Err(failed(at, "its wipe ended with an error").suspect());
            }
            if !device.has(DeviceFault::WipeLies) {
                device.contents.clear();
            }
            Ok(())
        })?;
        let left = self.contents(at);
        if !left.is_empty() {
            return Err(failed(at, "what was read back is not blank").suspect());
        }
        journal.progress(100, Some(0));
        Ok(DeviceWipe {
            address: at,
            identity: device.identity.clone(),
            method: run.method,
            started_at_ms: run.started_at_ms,
            ended_at_ms: now_ms(),
            completion: BTreeMap::from([("status".to_owned(), "0".to_owned())]),
            restored: Vec::new(),
            read_back: ReadBack {
                sample: "everything".to_owned(),
                bytes_total: 512,
                bytes_read: 512,
                bytes_wrong: 0,
                expected: "zeroes".to_owned(),
                sha256: hex::encode(digest(&SHA256, &[0; 512])),
            },
            not_proved: vec!["anything: this is a fake".to_owned()],
        })
    }

    fn begin(
        &self,
        at: PciAddress,
        method: WipeMethod,
        journal: &mut dyn WipeJournal,
    ) -> Result<WipeRun, DeviceError> {
        let run = WipeRun {
            method,
            started_at_ms: now_ms(),
            marks: BTreeMap::from([("fake".to_owned(), "1".to_owned())]),
        };
        if let Err(error) = journal.note(&run) {
            return Err(failed(at, &format!("it could not be noted: {error}")));
        }
        self.step(|state| {
            state.own(at, "wipe")?.unfinished_wipe = true;
            Ok(())
        })?;
        Ok(run)
    }

    /// Blocks for as long as the device stalls and nobody gives up.
    fn wait_while_it_stalls(
        &self,
        at: PciAddress,
        journal: &dyn WipeJournal,
    ) -> Result<(), DeviceError> {
        let mut state = lock(&self.world.state);
        loop {
            if self.fuse.is_burnt() {
                return Err(dead());
            }
            if journal.is_cancelled() {
                return Err(failed(at, "its wipe was left as it is"));
            }
            if !state.device(at)?.has(DeviceFault::WipeStalls) {
                return Ok(());
            }
            state = self
                .world
                .changed
                .wait_timeout(state, LOOK_EVERY)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
    }
}
