//! Starts one `berth-vmm` as the agent does: a transient systemd unit with the agent's own sandbox.
//!
//! Owns the waiting for the unit's end. The unit's properties are the agent's, not repeated here.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use berth_agent_core::process_end::ProcessEnd;
use berth_agent_host::vmm_unit::{SystemdUnits, UnitSpec, UnitState, VmmUnits};
use berth_api::ids::VmId;
use berth_api::vmm::{Request, Start};
use tokio::runtime::Runtime;
use tokio::sync::broadcast;

use crate::launch::{Descriptors, Heard, Talk};

/// What becomes the unit's root.
const EMPTY_ROOT: &str = "/run/berth-vmm-root";
/// What a shell says of a program that cannot be run.
const NOT_RUN: i32 = 126;
/// How often a unit is looked at beside the changes that systemd tells.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// A VMM in a unit of its own. Dropping it ends the unit.
pub struct UnitVmm {
    runtime: Runtime,
    units: SystemdUnits,
    changes: broadcast::Receiver<VmId>,
    vm_id: VmId,
    talk: Talk,
}

impl std::fmt::Debug for UnitVmm {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("UnitVmm")
            .field("vm_id", &self.vm_id)
            .finish_non_exhaustive()
    }
}

/// Bytes of the memory of the devices that `start` passes through; `None` without any.
fn device_memory(start: &Start) -> Result<Option<u64>> {
    let Some(vfio) = &start.vfio else {
        return Ok(None);
    };
    let mut bytes = 0;
    for device in &vfio.devices {
        let address = device.address.parse().context("a device's address")?;
        bytes += berth_inventory::memory_bytes(Path::new("/"), address);
    }
    Ok(Some(bytes))
}

impl UnitVmm {
    /// Starts the program at `vmm` in a new unit and sends it `start` with its descriptors.
    ///
    /// # Errors
    /// If systemd cannot be asked or refuses.
    pub fn launch(vmm: &Path, start: &Start, descriptors: &Descriptors) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting a runtime")?;
        let (talk, theirs) = Talk::open(&serde_json::to_vec(start)?, descriptors)?;
        let vm_id = VmId::generate();
        let unit = UnitSpec {
            vm_id,
            tenant_id: "lab".parse().context("a tenant's name")?,
            name: start.vm_id.clone(),
            generation: 1,
            executable: vmm.to_owned(),
            memory_mib: start.memory_mib,
            vcpus: start.vcpus,
            device_memory_bytes: device_memory(start)?,
        };
        let (units, changes) = runtime.block_on(async {
            let units = SystemdUnits::connect(EMPTY_ROOT.into()).await?;
            let changes = units.changes();
            units.start(&unit, theirs).await?;
            anyhow::Ok((units, changes))
        })?;
        Ok(Self {
            runtime,
            units,
            changes,
            vm_id,
            talk,
        })
    }

    /// Waits at most `timeout` for the next message.
    ///
    /// # Errors
    /// See [`Talk::next_event`].
    pub fn next_event(&self, timeout: Duration) -> io::Result<Heard> {
        self.talk.next_event(timeout)
    }

    /// Sends one request.
    ///
    /// # Errors
    /// If the socket is closed on either side.
    pub fn send(&self, request: &Request) -> io::Result<()> {
        self.talk.send(request)
    }

    /// Our end of the socket.
    #[must_use]
    pub fn talk(&self) -> &Talk {
        &self.talk
    }

    /// Waits at most `timeout` for the process to end; `None` if it goes on.
    ///
    /// # Errors
    /// If systemd cannot be asked, or forgot the unit.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + timeout;
        let Self {
            runtime,
            units,
            changes,
            vm_id,
            ..
        } = self;
        runtime.block_on(async {
            loop {
                match units.state(*vm_id).await? {
                    UnitState::Ended(end) => return Ok(Some(status(&end.status))),
                    UnitState::Absent => anyhow::bail!("systemd does not know the unit any more"),
                    UnitState::Running { .. } | UnitState::Ending => {}
                }
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(None);
                }
                // A change or its absence both mean: look again.
                let _change = tokio::time::timeout(left.min(LOOK_INTERVAL), changes.recv()).await;
            }
        })
    }

    /// Ends the unit, by force if need be, and forgets it.
    ///
    /// # Errors
    /// If systemd cannot be asked.
    pub fn end(&mut self) -> Result<()> {
        Ok(self.runtime.block_on(self.units.ensure_gone(self.vm_id))?)
    }
}

impl Drop for UnitVmm {
    fn drop(&mut self) {
        // The unit is gone, or systemd is, which ends it as well.
        let _gone = self.end();
    }
}

/// What a parent would have been told.
fn status(end: &ProcessEnd) -> ExitStatus {
    match *end {
        ProcessEnd::Exited(code) => ExitStatus::from_raw((code & 0xff) << 8),
        ProcessEnd::NotRun => ExitStatus::from_raw(NOT_RUN << 8),
        ProcessEnd::Killed(signal) => ExitStatus::from_raw(signal & 0x7f),
    }
}
