//! A network interface from its spec: tap queues, and the host's kernel behind them where it is to
//! move the packets.
//!
//! Owns the choice between both and what is asked of the kernel. Rings and packets are the device's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use berth_vmm_devices::memory::Memory;
use berth_vmm_devices::virtio::net::vhost::{LentRing, VhostBackend};
use berth_vmm_devices::virtio::net::{Net, NetOptions, PairBackend};
use berth_vmm_sys::{Event, VhostNet, VhostRing};

use crate::refusal::{BuildMachineError, Refusal, host};
use crate::spec::NetworkSpec;
use crate::tap_queue::TapQueue;

/// `VIRTIO_NET_F_MRG_RXBUF`, `VIRTIO_RING_F_INDIRECT_DESC`, `VIRTIO_RING_F_EVENT_IDX` and
/// `VIRTIO_F_VERSION_1`: what drivers are offered in any case, and Linux has since 4.0.
const NEEDED_FEATURES: u64 = 1 << 15 | 1 << 28 | 1 << 29 | 1 << 32;

/// A network interface, and the events that its guest's notifications are to signal: one for each
/// queue that the host's kernel serves.
#[derive(Debug)]
pub struct NetworkParts {
    /// The device.
    pub device: Net,
    /// Events by queue; empty if the device is to be called.
    pub kicks: Vec<Arc<Event>>,
}

/// The interface number `position` of the start message.
///
/// # Errors
/// If the host cannot set it up.
pub fn build(
    position: usize,
    spec: NetworkSpec,
    memory: &Memory,
) -> Result<NetworkParts, BuildMachineError> {
    let options = NetOptions {
        mac: spec.mac,
        mtu: spec.mtu,
    };
    let taps = spec.taps.iter();
    let taps = taps
        .map(|tap| tap.as_fd().try_clone_to_owned())
        .collect::<io::Result<Vec<_>>>()
        .map_err(host("copy a descriptor"))?;
    let queues = TapQueue::all(spec.taps).map_err(host("set up a tap"))?;
    let mut vhost = spec.vhost.into_iter().enumerate().zip(taps);
    let mut kicks = Vec::new();
    let mut pairs = Vec::with_capacity(queues.len());
    for queue in queues {
        let kernel = match vhost.next() {
            Some(((index, file), tap)) => {
                let field = format!("networks[{position}].vhost[{index}]");
                let kernel = VhostPair::new(&field, file, tap, memory)?;
                kicks.extend(kernel.vhost.kicks().iter().cloned());
                Some(Box::new(kernel) as Box<dyn VhostBackend>)
            }
            None => None,
        };
        pairs.push(PairBackend {
            queue: Box::new(queue),
            vhost: kernel,
        });
    }
    let device = Net::new(pairs, options);
    Ok(NetworkParts { device, kicks })
}

/// A queue pair of vhost-net over one queue of a tap.
#[derive(Debug)]
struct VhostPair {
    vhost: VhostNet,
    features: u64,
    tap: OwnedFd,
}

impl VhostPair {
    fn new(
        field: &str,
        file: OwnedFd,
        tap: OwnedFd,
        memory: &Memory,
    ) -> Result<Self, BuildMachineError> {
        let vhost = VhostNet::new(file, memory.clone()).map_err(|error| {
            Refusal::new(
                field,
                format!("vhost-net does not take this machine: {error}"),
                "open /dev/vhost-net anew for each queue pair",
            )
        })?;
        let features = vhost.features().map_err(host("ask vhost-net"))?;
        if features & NEEDED_FEATURES != NEEDED_FEATURES {
            return Err(Refusal::new(
                field,
                format!("the host's vhost-net has the features {features:#x} only"),
                "leave vhost out, or use a host whose kernel is Linux 4.0 or newer",
            )
            .into());
        }
        Ok(Self {
            vhost,
            features,
            tap,
        })
    }
}

fn ring(lent: &LentRing) -> VhostRing {
    VhostRing {
        size: lent.addresses.size,
        descriptors: lent.addresses.descriptors,
        available: lent.addresses.available,
        used: lent.addresses.used,
        next: lent.next,
    }
}

impl VhostBackend for VhostPair {
    fn features(&self) -> u64 {
        self.features
    }

    fn calls(&self) -> [BorrowedFd<'_>; 2] {
        self.vhost.calls().each_ref().map(AsFd::as_fd)
    }

    fn error(&self) -> BorrowedFd<'_> {
        self.vhost.error().as_fd()
    }

    fn take_error(&mut self) -> bool {
        self.vhost.error().take()
    }

    fn kick(&mut self, ring: usize) {
        if let Some(kick) = self.vhost.kicks().get(ring) {
            kick.signal();
        }
    }

    fn start(&mut self, features: u64, rings: &[LentRing; 2]) -> io::Result<()> {
        let rings = rings.each_ref().map(ring);
        self.vhost
            .start(features & self.features, &rings, self.tap.as_fd())
    }

    fn stop(&mut self) -> io::Result<[u16; 2]> {
        self.vhost.stop()
    }
}
