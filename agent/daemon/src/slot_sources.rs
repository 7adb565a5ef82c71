//! Where the agent learns what its host's owner approved, and when to look again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_agent_core::slot::approval::Approvals;
use berth_agent_host::capacity::own_uid;
use berth_agent_host::folder_watch::FolderWatch;
use berth_inventory::read_approvals;
use berth_inventory::watch::DeviceWatch;
use tokio::io::unix::AsyncFd;

use crate::slots::ReadApprovals;

/// Longest time between two looks: nobody tells of a mount.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// Time for a burst of changes to become one look.
const BURST: Duration = Duration::from_millis(200);

/// The folder of approvals.
#[derive(Debug, Clone)]
pub struct ApprovalFolder {
    path: PathBuf,
}

impl ApprovalFolder {
    /// The folder at `path`, which need not be there. Folder and files must be the agent's own
    /// user's: root's.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }
}

impl ReadApprovals for ApprovalFolder {
    fn read(&self) -> Approvals {
        read_approvals(&self.path, own_uid())
    }
}

/// Changes of devices and of the folder of approvals.
#[derive(Debug)]
pub struct SlotChanges {
    devices: Option<AsyncFd<DeviceWatch>>,
    folder: Option<FolderWatch>,
}

impl SlotChanges {
    /// Watch from here on. What cannot be watched is looked at now and then. Must be called within a
    /// tokio runtime.
    #[must_use]
    pub fn open(approvals: &Path) -> Self {
        let devices = DeviceWatch::open().and_then(readable);
        let folder = FolderWatch::open(approvals);
        if let Err(error) = &devices {
            tracing::warn!(%error, "changes of devices are seen late");
        }
        if let Err(error) = &folder {
            tracing::info!(%error, "{} is not watched", approvals.display());
        }
        Self {
            devices: devices.ok(),
            folder: folder.ok(),
        }
    }

    /// Wait until something may have changed since the last call.
    pub async fn next(&mut self) {
        tokio::select! {
            () = device_changed(self.devices.as_ref()) => {}
            () = folder_changed(self.folder.as_mut()) => {}
            () = tokio::time::sleep(LOOK_INTERVAL) => return,
        }
        tokio::time::sleep(BURST).await;
        if let Some(devices) = &self.devices {
            drain(devices.get_ref());
        }
    }
}

#[expect(
    deprecated,
    reason = "its caller must keep the descriptor open, and a watch does: it owns the socket"
)]
fn readable(watch: DeviceWatch) -> std::io::Result<AsyncFd<DeviceWatch>> {
    AsyncFd::new(watch)
}

async fn device_changed(devices: Option<&AsyncFd<DeviceWatch>>) {
    let Some(devices) = devices else {
        return std::future::pending().await;
    };
    loop {
        let Ok(mut ready) = devices.readable().await else {
            return std::future::pending().await;
        };
        if drain(devices.get_ref()) {
            return;
        }
        ready.clear_ready();
    }
}

/// Take all messages there are. Returns whether there was one.
fn drain(devices: &DeviceWatch) -> bool {
    let mut any = false;
    while let Ok(Some(_)) = devices.next() {
        any = true;
    }
    any
}

async fn folder_changed(folder: Option<&mut FolderWatch>) {
    let changed = match folder {
        Some(folder) => folder.changed().await,
        None => false,
    };
    if !changed {
        std::future::pending().await
    }
}
