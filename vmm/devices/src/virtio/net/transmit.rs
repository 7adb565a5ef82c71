//! One transmit queue: the driver's packets to the host.

use vm_memory::{Permissions, VolatileSlice};

use super::backend::NetBackend;
use super::features::{HEADER_BYTES, MAX_PACKET_BYTES, sent_header};
use super::{Count, NetCounters, slices};
use crate::guest_error::GuestError;
use crate::memory::Memory;
use crate::virtio::queue::{Chain, QueueBroken, VirtQueue};

/// Why a packet was not sent.
enum Dropped {
    /// It is no packet that the driver may send.
    Guest,
    /// The host did not take it.
    Host,
}

/// Sends what the driver offers. A packet that cannot be sent is dropped, as on any network.
pub(super) fn transmit(
    backend: &mut dyn NetBackend,
    features: u64,
    queue: &mut VirtQueue,
    memory: &Memory,
    counters: &NetCounters,
) -> Result<(), QueueBroken> {
    while let Some(chain) = queue.pop(memory)? {
        match send(backend, features, &chain, memory) {
            Ok(bytes) => counters.packet(Count::TxPackets, Count::TxBytes, bytes),
            Err(dropped) => {
                counters.add(Count::TxDropped, 1);
                if matches!(dropped, Dropped::Guest) {
                    counters.add(Count::GuestErrors, 1);
                    queue.count(GuestError::VirtioRequest);
                }
            }
        }
        queue.complete(memory, chain, 0)?;
    }
    Ok(())
}

/// Sends one packet; returns its length with the header.
fn send(
    backend: &mut dyn NetBackend,
    features: u64,
    chain: &Chain,
    memory: &Memory,
) -> Result<usize, Dropped> {
    let mut packet = Vec::with_capacity(chain.readable.segments().len() + 1);
    let bytes = slices::append(&mut packet, &chain.readable, memory, Permissions::Read);
    let bytes = bytes
        .filter(|bytes| (HEADER_BYTES + 1..=MAX_PACKET_BYTES).contains(bytes))
        .filter(|_| chain.writable.bytes() == 0)
        .ok_or(Dropped::Guest)?;
    let mut header = [0; HEADER_BYTES];
    slices::take_front(&mut packet, &mut header).ok_or(Dropped::Guest)?;
    // The host gets the copy that was checked: the guest can still write to its own.
    let mut header = sent_header(header, features).ok_or(Dropped::Guest)?;
    packet.insert(0, VolatileSlice::from(header.as_mut_slice()));
    backend.send(&packet).map_err(|_| Dropped::Host)?;
    Ok(bytes)
}
