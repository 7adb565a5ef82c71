//! The control queue: parsing of commands. Carrying out is the device's.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
};
use vm_memory::Permissions;

use super::slices;
use crate::memory::Memory;
use crate::virtio::queue::Chain;

/// A command that the device knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Command {
    /// Use so many queue pairs.
    SetPairs(u16),
    /// Take these offloads from now on, as feature bits.
    SetOffloads(u64),
}

/// The command in `chain`, if it is one: class, number and argument, all of their right lengths.
pub(super) fn parse(chain: &Chain, memory: &Memory) -> Option<Command> {
    let mut parts = Vec::new();
    let bytes = slices::append(&mut parts, &chain.readable, memory, Permissions::Read)?;
    let mut head = [0; 2];
    slices::take_front(&mut parts, &mut head)?;
    let [class, command] = head.map(u32::from);
    match (class, command, bytes - head.len()) {
        (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, 2) => {
            let mut pairs = [0; 2];
            slices::take_front(&mut parts, &mut pairs)?;
            Some(Command::SetPairs(u16::from_le_bytes(pairs)))
        }
        (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, 8) => {
            let mut offloads = [0; 8];
            slices::take_front(&mut parts, &mut offloads)?;
            Some(Command::SetOffloads(u64::from_le_bytes(offloads)))
        }
        _ => None,
    }
}
