//! Why a machine is not built: the sender's mistake or the host's.
//!
//! Owns the two classes of failure before the guest runs. The first names the field of the start
//! message, what is wrong and what helps; the second is an error with its sources.

use std::fmt;
use std::io;

/// A value of the start message that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The field's path, such as `disks[0].fd`.
    pub field: String,
    /// What is wrong with the value.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl Refusal {
    pub(crate) fn new(
        field: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}: {}; {}",
            self.field, self.problem, self.remedy
        )
    }
}

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildMachineError {
    /// The start message is at fault.
    #[error("the start message was refused: {0}")]
    Refused(Refusal),
    /// Whoever waits for the machine wants it no more.
    #[error("the machine was stopped before it ran")]
    Stopped,
    /// The host cannot hold this guest's memory.
    #[error("could not map {bytes} bytes of guest memory")]
    MapMemory {
        /// How much was wanted.
        bytes: u64,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The regions of guest memory do not fit together.
    #[error("could not put guest memory together")]
    JoinMemory(#[from] vm_memory::GuestRegionCollectionError),
    /// KVM refused the machine itself.
    #[error(transparent)]
    CreateVm(#[from] berth_vmm_sys::CreateVmError),
    /// A step of the setup failed in the host.
    #[error("could not {step}")]
    Host {
        /// The step, as the end of the sentence "could not ...".
        step: &'static str,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The boot structures could not be written to guest memory.
    #[error("could not write {what} at {address:#x} of guest memory")]
    WriteGuest {
        /// What was written.
        what: &'static str,
        /// Where.
        address: u64,
        /// What went wrong.
        #[source]
        cause: vm_memory::GuestMemoryError,
    },
    /// Two devices claim one address.
    #[error(transparent)]
    Bus(#[from] berth_vmm_devices::bus::BuildBusError),
    /// The devices do not fit the PCI bus.
    #[error(transparent)]
    Pci(#[from] berth_vmm_devices::pci::root::BuildPciRootError),
}

impl From<Refusal> for BuildMachineError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Names the step that an I/O error interrupted.
pub(crate) fn host(step: &'static str) -> impl FnOnce(io::Error) -> BuildMachineError {
    move |cause| BuildMachineError::Host { step, cause }
}
