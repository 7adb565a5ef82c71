//! Looking at the host, and refusing a device that the host uses.
//!
//! Reading some files of sysfs waits for the driver that is just being taken off or put on. One that
//! never ends may cost a thread, but not the agent: looks have a limit, and few may hang at a time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use berth_agent_core::slot::snapshot::{HostSnapshot, HostUse};
use berth_api::pci::PciAddress;
use berth_api::slot::SlotProblemCode;

use super::wipe::chain;
use crate::slot_devices::DeviceError;

/// How long a look may take. A host with hundreds of functions takes a fraction of a second.
const LIMIT: Duration = Duration::from_secs(60);
/// Looks that may be under way at a time; more than that are hanging.
const MAX_HANGING: u32 = 64;

/// Looks at a host with a limit.
#[derive(Debug, Clone)]
pub(super) struct Looks {
    root: PathBuf,
    hanging: Arc<AtomicU32>,
}

impl Looks {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            hanging: Arc::default(),
        }
    }

    pub(super) fn look(&self) -> Result<HostSnapshot, DeviceError> {
        let root = self.root.clone();
        self.within(LIMIT, move || {
            berth_inventory::read(&root).map_err(|error| chain(&error))
        })
    }

    fn within(
        &self,
        limit: Duration,
        read: impl FnOnce() -> Result<HostSnapshot, String> + Send + 'static,
    ) -> Result<HostSnapshot, DeviceError> {
        let failed = |why: &str| {
            let message = format!("the host's devices cannot be read: {why}");
            DeviceError::new(SlotProblemCode::BindFailed, message)
        };
        let hanging = Arc::clone(&self.hanging);
        if hanging.load(Ordering::Relaxed) >= MAX_HANGING {
            return Err(failed(
                "sysfs does not answer, as a driver hangs; restart the host",
            ));
        }
        let (sender, receiver) = channel();
        hanging.fetch_add(1, Ordering::Relaxed);
        let look = move || {
            // Nobody hears it after the limit.
            drop(sender.send(read()));
            hanging.fetch_sub(1, Ordering::Relaxed);
        };
        if let Err(error) = std::thread::Builder::new()
            .name("inventory".to_owned())
            .spawn(look)
        {
            self.hanging.fetch_sub(1, Ordering::Relaxed);
            return Err(failed(&error.to_string()));
        }
        match receiver.recv_timeout(limit) {
            Ok(read) => read.map_err(|why| failed(&why)),
            Err(RecvTimeoutError::Timeout) => Err(failed("sysfs does not answer in time")),
            Err(RecvTimeoutError::Disconnected) => Err(failed("the look was broken off")),
        }
    }
}

/// Refuse a device that the host itself uses, whatever was approved.
pub(super) fn refuse_if_used(
    snapshot: &HostSnapshot,
    device: PciAddress,
) -> Result<(), DeviceError> {
    let uses = snapshot.functions.get(&device).map(|found| &found.uses);
    let Some(how) = uses.into_iter().flatten().find_map(told) else {
        return Ok(());
    };
    let message = format!("{device}: the host uses it: {how}; stop using it first");
    Err(DeviceError::new(SlotProblemCode::DeviceInUse, message))
}

fn told(used: &HostUse) -> Option<String> {
    match used {
        HostUse::Block { device, how } => Some(format!("{device} is {how}")),
        HostUse::Boot { device } => Some(format!("it booted from {device}")),
        HostUse::Route { interface } => Some(format!("{interface} has a route")),
        HostUse::Console => Some("it shows the console".to_owned()),
        HostUse::ManagementController => Some("its management controller has it".to_owned()),
        // Whoever that is has it through VFIO, so that binding takes nothing from them.
        HostUse::VfioUser { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_hangs_is_given_up_and_few_may_hang() {
        let looks = Looks::new(Path::new("/nonexistent"));
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let hang = Arc::new(std::sync::Mutex::new(hang));
        for _ in 0..MAX_HANGING {
            let hang = Arc::clone(&hang);
            let error = looks.within(Duration::from_millis(10), move || {
                let ended = hang.lock().unwrap().recv();
                Err(format!("{ended:?}"))
            });
            assert!(error.unwrap_err().message.contains("in time"));
        }
        let error = looks.within(LIMIT, || Ok(HostSnapshot::default()));
        assert!(error.unwrap_err().message.contains("restart the host"));
        drop(release);
    }

    #[test]
    fn a_look_returns_what_was_read() {
        let looks = Looks::new(Path::new("/nonexistent"));
        let read = looks.within(LIMIT, || Ok(HostSnapshot::default()));
        assert_eq!(read.unwrap(), HostSnapshot::default());
        let error = looks.look().unwrap_err();
        assert_eq!(error.code, SlotProblemCode::BindFailed);
    }

    #[test]
    fn every_use_but_vfio_is_a_reason_to_refuse() {
        let block = HostUse::Block {
            device: "nvme0n1p2".to_owned(),
            how: "mounted on /srv".to_owned(),
        };
        assert_eq!(told(&block).unwrap(), "nvme0n1p2 is mounted on /srv");
        assert!(told(&HostUse::Console).is_some());
        assert!(told(&HostUse::ManagementController).is_some());
        assert_eq!(told(&HostUse::VfioUser { pid: 1 }), None);
    }
}
