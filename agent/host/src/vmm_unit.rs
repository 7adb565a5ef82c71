//! One VMM process as one systemd service: start, watch, stop.
//!
//! Owns the unit's name, its sandbox and the reading of its state. It does not know what an exit
//! status means (the daemon asks `berth-agent-core`), and it never parses what the VMM says.
//! [`SystemdUnits`] is the real thing; [`crate::fakes::FakeUnits`] stands beside it.

mod properties;
mod systemd;

use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use berth_agent_core::process_end::ProcessEnd;
use berth_api::ids::{TenantId, VmId};
use tokio::sync::broadcast;

pub use systemd::SystemdUnits;

/// What every VMM unit's name begins with.
const UNIT_PREFIX: &str = "berth-vm-";
/// What every VMM unit's name ends with.
const UNIT_SUFFIX: &str = ".service";
/// Memory that a VMM may use beside its guest's, in MiB: its own heap, its stacks, page tables.
pub const VMM_OVERHEAD_MIB: u64 = 64;
/// Tasks that a VMM may have beside its vCPU threads: its I/O thread, the kernel's threads for its
/// disks' requests (5, and as many for a vCPU that resets a disk), and room for vhost's.
pub const VMM_OVERHEAD_TASKS: u32 = 32;

/// Everything that a unit is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitSpec {
    /// Which VM.
    pub vm_id: VmId,
    /// Whose; decides the slice.
    pub tenant_id: TenantId,
    /// The VM's name, for the description that an administrator reads.
    pub name: String,
    /// The generation that the launch belongs to.
    pub generation: u64,
    /// The VMM's executable, absolute.
    pub executable: PathBuf,
    /// Guest memory, in MiB.
    pub memory_mib: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Bytes of the memory of its devices behind VFIO, for which guest memory is locked; `None` without
    /// such a device.
    pub device_memory_bytes: Option<u64>,
}

/// What systemd knows of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnitState {
    /// No such unit is loaded.
    Absent,
    /// The process runs, or is about to.
    Running {
        /// Its host process id; 0 until systemd has forked it.
        pid: u32,
        /// This activation, lower-case hex.
        invocation_id: String,
    },
    /// Told to stop, and not gone yet.
    Ending,
    /// The process is gone; the unit stays for its status until it is cleared.
    Ended(UnitEnd),
}

/// How a unit's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitEnd {
    /// What happened to the process.
    pub status: ProcessEnd,
    /// systemd's own word: `success`, `exit-code`, `signal`, `oom-kill`, `watchdog`, …
    pub result: String,
}

/// One unit of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedUnit {
    /// Its name.
    pub unit: String,
    /// The VM that the name stands for; `None` where somebody else chose the name.
    pub vm_id: Option<VmId>,
}

/// Why systemd could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// No connection to the system bus.
    #[error("could not connect to systemd on the system bus")]
    Connect(#[source] zbus::Error),
    /// The folder that is the root of VMMs could not be made.
    #[error("could not make {}, the root of VMMs", path.display())]
    Root {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: std::io::Error,
    },
    /// A unit of that name is there already.
    #[error("the unit {unit} exists already")]
    Exists {
        /// Its name.
        unit: String,
    },
    /// systemd refused a call.
    #[error("systemd refused {call} for {unit}")]
    Call {
        /// The D-Bus method.
        call: &'static str,
        /// The unit.
        unit: String,
        /// systemd's words.
        #[source]
        cause: zbus::Error,
    },
    /// A reply of another shape than documented.
    #[error("systemd answered {call} with something unexpected")]
    Reply {
        /// The D-Bus method.
        call: &'static str,
    },
    /// The unit is still there.
    #[error("the unit {unit} is not gone after {} s", waited.as_secs())]
    StillThere {
        /// The unit.
        unit: String,
        /// How long we waited.
        waited: Duration,
    },
    /// A test told the fake to fail.
    #[error("the fake was told to fail")]
    Injected,
}

/// What the daemon needs from the service manager.
pub trait VmmUnits: Send + Sync + 'static {
    /// Start a unit whose standard input is `stdin`. Returns when systemd has accepted it, not when
    /// the process runs.
    fn start(
        &self,
        unit: &UnitSpec,
        stdin: OwnedFd,
    ) -> impl Future<Output = Result<(), UnitError>> + Send;

    /// Read a unit's state.
    fn state(&self, vm_id: VmId) -> impl Future<Output = Result<UnitState, UnitError>> + Send;

    /// Ensure that the unit is neither running nor remembered. A running process gets SIGTERM, and
    /// SIGKILL after [`STOP_SECONDS`].
    fn ensure_gone(&self, vm_id: VmId) -> impl Future<Output = Result<(), UnitError>> + Send;

    /// All units with our prefix.
    fn list(&self) -> impl Future<Output = Result<Vec<ListedUnit>, UnitError>> + Send;

    /// Hear about each change of one of our units. Missed messages mean: look at all.
    fn changes(&self) -> broadcast::Receiver<VmId>;

    /// Whether the host is going down, so that units end without anybody's wish.
    fn host_is_stopping(&self) -> impl Future<Output = Result<bool, UnitError>> + Send;
}

/// Seconds that a VMM has between SIGTERM and SIGKILL.
pub const STOP_SECONDS: u64 = 10;

/// The unit's name: `berth-vm-<bare id>.service`.
#[must_use]
pub fn unit_name(vm_id: VmId) -> String {
    format!("{UNIT_PREFIX}{}{UNIT_SUFFIX}", vm_id.bare())
}

/// The VM that a unit's name stands for.
#[must_use]
pub fn vm_of_unit(unit: &str) -> Option<VmId> {
    let bare = unit.strip_prefix(UNIT_PREFIX)?.strip_suffix(UNIT_SUFFIX)?;
    format!("{}_{bare}", VmId::PREFIX).parse().ok()
}

/// The tenant's slice below `berth.slice`. A hyphen in a slice's name nests it, so the tenant's own
/// hyphens are escaped as systemd.unit(5) says.
#[must_use]
pub fn slice_name(tenant_id: &TenantId) -> String {
    format!("berth-{}.slice", tenant_id.as_str().replace('-', "\\x2d"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_name_leads_back_to_its_vm() {
        let vm_id = VmId::generate();
        assert_eq!(vm_of_unit(&unit_name(vm_id)), Some(vm_id));
        assert_eq!(vm_of_unit("berth-vm-x.service"), None);
        assert_eq!(vm_of_unit("ssh.service"), None);
    }

    #[test]
    fn a_tenants_hyphens_do_not_nest_its_slice() {
        let tenant = "acme-corp-1".parse().unwrap();
        assert_eq!(slice_name(&tenant), "berth-acme\\x2dcorp\\x2d1.slice");
    }
}
