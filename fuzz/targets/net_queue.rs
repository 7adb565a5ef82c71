//! The network device over one of its queues in arbitrary guest memory, while packets come in.
//!
//! Holds: what leaves is a whole packet that asks for nothing that was not agreed, and the host
//! leaves undone only what was agreed.
#![no_main]

use std::cell::RefCell;
use std::sync::Arc;

use berth_fuzz::input::Input;
use berth_fuzz::queue::serve_queue;
use berth_vmm_devices::memory::Memory;
use berth_vmm_devices::virtio::config::DeviceConfig;
use berth_vmm_devices::virtio::device::VirtioDevice;
use berth_vmm_devices::virtio::net::wire::Wire;
use berth_vmm_devices::virtio::net::{
    HEADER_BYTES, MAX_PACKET_BYTES, Net, NetOptions, Offloads, PairBackend,
};
use berth_vmm_devices::virtio::queue::{QueueBroken, Queues};
use libfuzzer_sys::fuzz_target;

/// `VIRTIO_NET_F_CSUM`, and `HOST_TSO4` to `HOST_UFO` by the kind of segment.
const CSUM: u64 = 1 << 0;
const HOST_KINDS: [(u8, u32); 4] = [(1, 11), (4, 12), (3, 14), (5, 56)];
/// `VIRTIO_NET_F_GUEST_CSUM` to `GUEST_UFO`.
const GUEST_OFFLOADS: u64 = 1 << 1 | 0b1111 << 7;

/// The device with features of its own in place of those that the queue's input gives.
struct Agreed {
    net: Net,
    features: u64,
}

impl VirtioDevice for Agreed {
    fn device_type(&self) -> u16 {
        self.net.device_type()
    }
    fn features(&self) -> u64 {
        self.net.features()
    }
    fn queue_max_sizes(&self) -> &[u16] {
        self.net.queue_max_sizes()
    }
    fn config(&self) -> Arc<DeviceConfig> {
        self.net.config()
    }
    fn chain_budget(&self, index: u16) -> u16 {
        self.net.chain_budget(index)
    }
    fn activate(&mut self, _features: u64) {
        self.net.activate(self.features);
    }
    fn serve(
        &mut self,
        index: u16,
        queues: &mut Queues,
        memory: &Memory,
    ) -> Result<(), QueueBroken> {
        self.net.serve(index, queues, memory)
    }
    fn reset(&mut self) {
        self.net.reset();
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let queue = u16::from(input.byte()) % 5;
    let wires = [Wire::new(), Wire::new()];
    let pairs = wires.iter().map(|wire| PairBackend {
        queue: wire.port(),
        vhost: None,
    });
    let options = NetOptions {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: None,
    };
    let net = Net::new(pairs.collect(), options);
    let features = input.quad() & net.features();
    let packets = RefCell::new([(); 4].map(|()| usize::from(input.word())).into_iter());
    let deliver = || {
        let Some(bytes) = packets.borrow_mut().next() else {
            return;
        };
        for wire in &wires {
            wire.put(vec![0xa5; bytes + HEADER_BYTES]);
        }
    };
    deliver();
    let device = Box::new(Agreed { net, features });
    serve_queue(device, queue, &mut input, || {
        for packet in wires.iter().flat_map(Wire::take) {
            check_sent(&packet, features);
        }
        let undone = wires[0].offloads();
        assert!(
            Offloads::accepted(features & GUEST_OFFLOADS | features >> 54 << 54).contains(undone)
        );
        deliver();
    });
});

fn check_sent(packet: &[u8], features: u64) {
    assert!(packet.len() > HEADER_BYTES && packet.len() <= MAX_PACKET_BYTES);
    assert!(packet[0] == 0 || packet[0] == 1 && features & CSUM != 0);
    let kind = packet[1] & 0x7f;
    let agreed = HOST_KINDS
        .into_iter()
        .any(|(known, feature)| known == kind && features >> feature & 1 == 1);
    assert!(kind == 0 || agreed);
}
