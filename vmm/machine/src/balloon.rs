//! The balloon of a machine: the host's side of its pages, and its size for whoever asks.
//!
//! Owns the way of a page to the host and the bound on what a guest may be asked to give up. The
//! device itself is emulated elsewhere.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use berth_api::vmm::{self, DeviceStatistics, MIN_MEMORY_MIB};
use berth_vmm_devices::memory::Memory;
use berth_vmm_devices::virtio::balloon::{self, BalloonOptions, BalloonSize, HostPages};
use berth_vmm_sys::discard_pages;
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// The name in statistics.
pub(crate) const NAME: &str = "balloon";

/// Pages of private anonymous memory, which the host's kernel takes back.
struct AnonymousPages;

impl HostPages for AnonymousPages {
    fn discard(&self, memory: &Memory, range: Range<u64>) -> io::Result<()> {
        let bytes = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        let pages = memory
            .get_slice(GuestAddress(range.start), bytes)
            .map_err(io::Error::other)?;
        discard_pages(&pages)
    }
}

/// Makes the device.
pub(crate) fn device(balloon: vmm::Balloon) -> balloon::Balloon {
    let options = BalloonOptions {
        deflate_on_oom: balloon.deflate_on_oom,
        free_page_reporting: balloon.free_page_reporting,
    };
    balloon::Balloon::new(options, Box::new(AnonymousPages))
}

/// What the machine asks of its balloon.
#[derive(Debug)]
pub(crate) struct BalloonControl {
    size: Arc<BalloonSize>,
    memory_mib: u64,
}

impl BalloonControl {
    /// The balloon of a machine with this much memory.
    pub(crate) fn new(size: Arc<BalloonSize>, memory_bytes: u64) -> Self {
        Self {
            size,
            memory_mib: memory_bytes >> 20,
        }
    }

    /// The largest target in MiB: the least memory of any machine stays with the guest.
    pub(crate) fn most_mib(&self) -> u64 {
        self.memory_mib.saturating_sub(MIN_MEMORY_MIB)
    }

    pub(crate) fn set_target(&self, mib: u64) {
        self.size.set_target(mib.min(self.most_mib()) << 20);
    }

    /// Adds the sizes to the counters of the balloon.
    pub(crate) fn add_to(&self, devices: &mut [DeviceStatistics]) {
        let balloon = devices.iter_mut().find(|device| device.device == NAME);
        if let Some(balloon) = balloon {
            let sizes = [
                ("target_mib", self.size.target()),
                ("actual_mib", self.size.actual()),
            ];
            let in_mib = sizes.map(|(name, bytes)| (name.to_owned(), bytes >> 20));
            balloon.counters.extend(in_mib);
        }
    }
}
