//! virtio-net: an interface of a host's network.
//!
//! Owns the device's facts, which queue is whose, and the control queue. Receiving is in
//! [`receive`], sending in [`transmit`], what may be left undone in [`features`]; packets come from
//! and go to [`backend`], or the host's kernel moves them by itself ([`vhost`]). Queues are `receive 0, transmit 0, receive 1, …` and the control queue
//! behind those that the driver knows of.

pub mod backend;
mod control;
pub mod features;
mod receive;
mod slices;
#[cfg(test)]
mod tests;
mod transmit;
pub mod vhost;
pub mod wire;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_OK, VIRTIO_NET_S_LINK_UP,
};
use vm_memory::{Bytes, GuestAddress};

use self::backend::NetBackend;
use self::control::Command;
use self::features::has;
pub use self::features::{HEADER_BYTES, MAX_PACKET_BYTES, Offloads};
use self::receive::{Receiver, Stopped};
use self::vhost::{KernelPair, Source, VhostBackend};
use super::config::DeviceConfig;
use super::device::{Served, VirtioDevice};
use super::executor::SERVE_BUDGET;
use super::queue::{QueueBroken, Queues};
use crate::counters::Counters;
use crate::guest_error::GuestError;
use crate::memory::Memory;

/// Descriptors of each receive and transmit queue.
pub const QUEUE_SIZE: u16 = 256;
/// Descriptors of the control queue.
pub const CONTROL_QUEUE_SIZE: u16 = 64;
/// Most queue pairs of one interface.
pub const MAX_PAIRS: u16 = 8;

const DEVICE_TYPE: u16 = 1;
/// Chains that one call takes from a receive queue: a long packet needs some 40 of them.
const RECEIVE_BUDGET: u16 = 512;
/// `struct virtio_net_config` up to the MTU.
const CONFIG_BYTES: usize = 12;
const CONFIG_STATUS: usize = 6;
const CONFIG_PAIRS: usize = 8;
const CONFIG_MTU: usize = 10;

const COUNTERS: &[&str] = &[
    "rx_packets",
    "rx_bytes",
    "rx_dropped",
    "tx_packets",
    "tx_bytes",
    "tx_dropped",
    "guest_errors",
    "host_errors",
];

/// Positions in [`COUNTERS`].
#[derive(Clone, Copy)]
enum Count {
    RxPackets,
    RxBytes,
    RxDropped,
    TxPackets,
    TxBytes,
    TxDropped,
    GuestErrors,
    HostErrors,
}

/// The counters of one interface. Bytes are those of frames, without the header.
struct NetCounters(Arc<Counters>);

impl NetCounters {
    fn add(&self, count: Count, amount: u64) {
        self.0.add(count as usize, amount);
    }

    /// Counts one packet of `bytes` bytes, header and all.
    fn packet(&self, packets: Count, bytes_count: Count, bytes: usize) {
        let frame = bytes.saturating_sub(HEADER_BYTES);
        self.add(packets, 1);
        self.add(bytes_count, u64::try_from(frame).unwrap_or(u64::MAX));
    }
}

/// What an interface tells its driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NetOptions {
    /// The guest's address on the link.
    pub mac: [u8; 6],
    /// The link's MTU in bytes, if the driver is told.
    pub mtu: Option<u16>,
}

/// The host's side of one queue pair.
pub struct PairBackend {
    /// One queue of the host's interface.
    pub queue: Box<dyn NetBackend>,
    /// The kernel's end, if it moves the packets. Of one interface's pairs all have one or none.
    pub vhost: Option<Box<dyn VhostBackend>>,
}

impl fmt::Debug for PairBackend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PairBackend")
            .field("vhost", &self.vhost.is_some())
            .finish_non_exhaustive()
    }
}

/// One queue pair.
struct Pair {
    backend: Box<dyn NetBackend>,
    receiver: Receiver,
    kernel: Option<KernelPair>,
    is_attached: bool,
}

/// A network interface.
pub struct Net {
    pairs: Vec<Pair>,
    queue_sizes: Vec<u16>,
    offered: u64,
    accepted: u64,
    /// Whether the host knows what the driver accepted. It is told on the I/O thread, which alone
    /// may ask it.
    is_prepared: bool,
    config: Arc<DeviceConfig>,
    counters: NetCounters,
}

/// What a queue is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Receive(usize),
    Transmit(usize),
    Control,
    /// Nothing, with the features that the driver accepted.
    Unused,
}

impl Net {
    /// An interface over `backends`, all of one host interface: the first [`MAX_PAIRS`] at most.
    #[must_use]
    pub fn new(backends: Vec<PairBackend>, options: NetOptions) -> Self {
        let pairs: Vec<_> = backends
            .into_iter()
            .take(usize::from(MAX_PAIRS))
            .map(|PairBackend { queue, vhost }| Pair {
                backend: queue,
                receiver: Receiver::default(),
                kernel: vhost.map(KernelPair::new),
                is_attached: true,
            })
            .collect();
        let count = u16::try_from(pairs.len()).expect("there are 8 pairs at most");
        let offloads = pairs.first().map(|pair| pair.backend.offloads());
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * pairs.len()];
        queue_sizes.push(CONTROL_QUEUE_SIZE);
        Self {
            pairs,
            queue_sizes,
            offered: features::offered(offloads.unwrap_or_default(), count, options.mtu.is_some()),
            accepted: 0,
            is_prepared: false,
            config: DeviceConfig::constant(&configuration(options, count)),
            counters: NetCounters(Arc::new(Counters::new(COUNTERS))),
        }
    }

    /// What queue `index` is for. A driver that knows of one pair has its control queue behind it.
    fn role(&self, index: u16) -> Role {
        let is_multiqueue = has(self.accepted, VIRTIO_NET_F_MQ);
        let pairs = if is_multiqueue { self.pairs.len() } else { 1 };
        let index = usize::from(index);
        match (index / 2, index % 2) {
            (pair, 0) if pair < pairs => Role::Receive(pair),
            (pair, _) if pair < pairs => Role::Transmit(pair),
            _ if index == 2 * pairs => Role::Control,
            _ => Role::Unused,
        }
    }

    /// Whether the host's kernel moves the packets.
    fn is_kernels(&self) -> bool {
        self.pairs.iter().any(|pair| pair.kernel.is_some())
    }

    /// The kernel's side of the pair that queue `index` belongs to.
    fn kernel_of(&mut self, index: u16) -> Option<&mut KernelPair> {
        let (Role::Receive(pair) | Role::Transmit(pair)) = self.role(index) else {
            return None;
        };
        self.pairs.get_mut(pair)?.kernel.as_mut()
    }

    /// Receives on one pair, and says in the queue whether the driver has to tell of new buffers.
    fn receive(
        &mut self,
        pair: usize,
        queues: &mut Queues,
        memory: &Memory,
    ) -> Result<Served, QueueBroken> {
        let index = u16::try_from(2 * pair).unwrap_or(u16::MAX);
        let (Some(pair), Some(queue)) = (self.pairs.get_mut(pair), queues.get(index)) else {
            return Ok(Served::Idle);
        };
        queue.keep_quiet(true);
        if !pair.is_attached || pair.kernel.is_some() {
            return Ok(Served::Idle);
        }
        loop {
            let backend = pair.backend.as_mut();
            match pair
                .receiver
                .receive(backend, queue, memory, &self.counters)?
            {
                // New packets wake the device, and then it looks for buffers.
                Stopped::Drained => return Ok(Served::Idle),
                Stopped::Spent => return Ok(Served::More),
                Stopped::Starved => {
                    queue.keep_quiet(false);
                    if !queue.enable_notification(memory)? {
                        return Ok(Served::Idle);
                    }
                    // A driver that moves its index to and fro makes rounds without buffers.
                    if queue.charge(1) == 0 {
                        return Ok(Served::More);
                    }
                    queue.keep_quiet(true);
                }
            }
        }
    }

    /// Sends on one pair.
    fn transmit(
        &mut self,
        pair: usize,
        queues: &mut Queues,
        memory: &Memory,
    ) -> Result<(), QueueBroken> {
        let index = u16::try_from(2 * pair + 1).unwrap_or(u16::MAX);
        let (Some(pair), Some(queue)) = (self.pairs.get_mut(pair), queues.get(index)) else {
            return Ok(());
        };
        if pair.kernel.is_some() {
            queue.keep_quiet(true);
            return Ok(());
        }
        let backend = pair.backend.as_mut();
        transmit::transmit(backend, self.accepted, queue, memory, &self.counters)
    }

    /// Tells the host of a new driver.
    fn prepare(&mut self) {
        if std::mem::replace(&mut self.is_prepared, true) {
            return;
        }
        // Where the host does not do what it offered, packets stay whole and the counter tells.
        self.set_offloads(Offloads::accepted(self.accepted));
        self.use_pairs(1);
        let is_mergeable = has(self.accepted, VIRTIO_NET_F_MRG_RXBUF);
        for pair in &mut self.pairs {
            pair.receiver.activate(is_mergeable);
            // What came before may need offloads that this driver does not know.
            pair.receiver.discard(pair.backend.as_mut(), &self.counters);
            if pair.kernel.is_some() {
                pair.receiver.reset();
            }
        }
    }

    /// Lets the kernel serve the pairs in use, where that is its work.
    fn start_kernel(&mut self, queues: &mut Queues) -> Result<(), QueueBroken> {
        for (first, pair) in (0..).step_by(2).zip(&mut self.pairs) {
            if let Some(kernel) = pair.kernel.as_mut().filter(|_| pair.is_attached) {
                kernel.start(first, self.accepted, queues, &self.counters)?;
            }
        }
        Ok(())
    }

    /// The host's kernel signalled `source`.
    fn kernel_signalled(
        &mut self,
        source: Source,
        queues: &mut Queues,
    ) -> Result<Served, QueueBroken> {
        match source {
            Source::Call(pair, ring) => {
                let index = u16::try_from(2 * pair + ring).unwrap_or(u16::MAX);
                queues.used_elsewhere(index);
            }
            Source::Error(pair) => {
                let kernel = self.pairs.get_mut(pair);
                if kernel
                    .and_then(|pair| pair.kernel.as_mut())
                    .is_some_and(KernelPair::take_error)
                {
                    return Err(QueueBroken);
                }
            }
        }
        Ok(Served::Idle)
    }

    /// Carries the driver's commands out.
    fn control(
        &mut self,
        index: u16,
        queues: &mut Queues,
        memory: &Memory,
    ) -> Result<(), QueueBroken> {
        loop {
            let Some(queue) = queues.get(index) else {
                return Ok(());
            };
            let Some(mut chain) = queue.pop(memory)? else {
                return Ok(());
            };
            let done = match control::parse(&chain, memory) {
                Some(Command::SetPairs(count)) => self.driver_sets_pairs(count),
                Some(Command::SetOffloads(offloads)) => self.driver_sets_offloads(offloads),
                None => false,
            };
            self.start_kernel(queues)?;
            let Some(queue) = queues.get(index) else {
                return Ok(());
            };
            let status = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            let [status, ..] = status.to_le_bytes();
            let answered = chain
                .writable
                .take_last_byte()
                .is_some_and(|place| memory.write_obj(status, GuestAddress(place)).is_ok());
            if !done || !answered {
                queue.count(GuestError::VirtioRequest);
                self.counters.add(Count::GuestErrors, 1);
            }
            queue.complete(memory, chain, u32::from(answered))?;
        }
    }

    fn driver_sets_pairs(&mut self, count: u16) -> bool {
        let count = usize::from(count);
        has(self.accepted, VIRTIO_NET_F_MQ)
            && (1..=self.pairs.len()).contains(&count)
            && self.use_pairs(count)
    }

    fn driver_sets_offloads(&mut self, offloads: u64) -> bool {
        let negotiated = Offloads::accepted(self.accepted);
        has(self.accepted, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)
            && Offloads::accepted(offloads).is_exactly(offloads)
            && negotiated.contains(Offloads::accepted(offloads))
            && self.set_offloads(Offloads::accepted(offloads))
    }

    /// Lets the host use the first `count` pairs and no others; false if it does not.
    fn use_pairs(&mut self, count: usize) -> bool {
        if self.pairs.len() < 2 {
            return true;
        }
        for (position, pair) in self.pairs.iter_mut().enumerate() {
            let wanted = position < count;
            if pair.is_attached == wanted {
                continue;
            }
            if let Some(kernel) = pair.kernel.as_mut().filter(|_| !wanted) {
                kernel.pause(&self.counters);
            }
            if pair.backend.set_attached(wanted).is_err() {
                self.counters.add(Count::HostErrors, 1);
                return false;
            }
            pair.is_attached = wanted;
        }
        true
    }

    fn set_offloads(&mut self, offloads: Offloads) -> bool {
        let Some(pair) = self.pairs.first_mut() else {
            return true;
        };
        let is_set = pair.backend.set_offloads(offloads).is_ok();
        if !is_set {
            self.counters.add(Count::HostErrors, 1);
        }
        is_set
    }
}

/// The configuration space.
fn configuration(options: NetOptions, pairs: u16) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    let [up, ..] = VIRTIO_NET_S_LINK_UP.to_le_bytes();
    config[..CONFIG_STATUS].copy_from_slice(&options.mac);
    config[CONFIG_STATUS] = up;
    config[CONFIG_PAIRS..][..2].copy_from_slice(&pairs.to_le_bytes());
    config[CONFIG_MTU..][..2].copy_from_slice(&options.mtu.unwrap_or(0).to_le_bytes());
    config
}

impl fmt::Debug for Net {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Net")
            .field("pairs", &self.pairs.len())
            .finish_non_exhaustive()
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> Arc<DeviceConfig> {
        Arc::clone(&self.config)
    }

    fn counters(&self) -> Option<Arc<Counters>> {
        Some(Arc::clone(&self.counters.0))
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        let mut sources = Vec::new();
        for pair in &self.pairs {
            match &pair.kernel {
                Some(kernel) => sources.extend(kernel.sources()),
                None => sources.extend(pair.backend.descriptor()),
            }
        }
        sources
    }

    fn chain_budget(&self, index: u16) -> u16 {
        match self.role(index) {
            Role::Receive(_) => RECEIVE_BUDGET,
            Role::Transmit(_) | Role::Control | Role::Unused => SERVE_BUDGET,
        }
    }

    fn activate(&mut self, features: u64) {
        self.accepted = features;
        self.is_prepared = false;
    }

    fn serve(
        &mut self,
        index: u16,
        queues: &mut Queues,
        memory: &Memory,
    ) -> Result<(), QueueBroken> {
        self.prepare();
        self.start_kernel(queues)?;
        if let Some(kernel) = self.kernel_of(index) {
            kernel.kick(usize::from(index % 2));
        }
        match self.role(index) {
            Role::Receive(pair) => {
                if self.receive(pair, queues, memory)? == Served::More
                    && let Some(queue) = queues.get(index)
                {
                    queue.spend();
                }
                Ok(())
            }
            Role::Transmit(pair) => self.transmit(pair, queues, memory),
            Role::Control => self.control(index, queues, memory),
            Role::Unused => {
                if let Some(queue) = queues.get(index) {
                    queue.keep_quiet(true);
                }
                Ok(())
            }
        }
    }

    fn source_ready(
        &mut self,
        source: u16,
        queues: &mut Queues,
        memory: &Memory,
    ) -> Result<Served, QueueBroken> {
        self.prepare();
        self.start_kernel(queues)?;
        if self.is_kernels() {
            self.kernel_signalled(Source::at(source), queues)
        } else {
            self.receive(usize::from(source), queues, memory)
        }
    }

    fn reset(&mut self) {
        self.accepted = 0;
        for pair in &mut self.pairs {
            pair.receiver.reset();
            if let Some(kernel) = &mut pair.kernel {
                kernel.reset(&self.counters);
            }
        }
    }
}
