//! The host as the daemon holds it: one value per surface, real or fake.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use berth_agent_host::images::Images;
use berth_agent_host::service_manager::DescriptorStore;
use berth_agent_host::vm_files::{VmFiles, VmFilesError};
use berth_agent_host::vmm_unit::VmmUnits;

use crate::log_memory::LogMemory;
use crate::slots::SlotHost;

/// Everything through which the daemon changes the host.
#[derive(Debug)]
pub struct Host<U, F, S> {
    /// The VMs' services.
    pub units: U,
    /// The VMs' files.
    pub files: Arc<F>,
    /// Where sockets outlive the agent.
    pub store: Arc<S>,
    /// The slots' devices and files.
    pub slots: SlotHost,
    /// The images.
    pub images: Images,
    /// The VMM's executable, absolute.
    pub vmm: PathBuf,
    /// The KVM device.
    pub kvm: PathBuf,
    /// What VMMs need to know of the KVM device, once it could be found out.
    pub host_facts: OnceLock<File>,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// What was seen of the ledger.
    pub log: Arc<LogMemory>,
}

impl<U: VmmUnits, F: VmFiles, S: DescriptorStore> Host<U, F, S> {
    /// Work on files, off the thread that serves everybody.
    pub(crate) async fn on_files<T: Send + 'static>(
        &self,
        work: impl FnOnce(&F) -> Result<T, VmFilesError> + Send + 'static,
    ) -> Result<T, VmFilesError> {
        let files = Arc::clone(&self.files);
        blocking(move || work(&files)).await
    }
}

/// Do what blocks, off the thread that serves everybody.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is being torn down: nobody waits for the answer.
            Err(_) => std::future::pending().await,
        },
    }
}
