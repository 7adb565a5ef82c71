//! The interface as its driver meets it, over wires in memory.

mod kernel;

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_MTU,
};

use super::features::HEADER_BUFFERS;
use super::wire::Wire;
use super::*;
use crate::pci::DeviceSlot;
use crate::virtio::executor::InlineExecutor;
use crate::virtio::testing::{BUFFERS, EVENT_IDX, RAM_BYTES, Ring, TestGuest, WRITE};

const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const MULTIQUEUE: u64 = 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
const OFFLOADS: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4;
const CONTROL_OFFLOADS: u64 = 1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;
const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const SENT: u64 = BUFFERS + 0x10_0000;
const SIZE: u16 = 64;

struct Interface {
    guest: TestGuest,
    executor: Arc<InlineExecutor>,
    counters: Arc<Counters>,
    wires: Vec<Wire>,
    rings: Vec<Ring>,
}

impl Interface {
    /// With one queue pair and `buffers` in the receive queue.
    fn new(features: u64, buffers: &[(u64, u32)]) -> Self {
        Self::with_pairs(features, 1, buffers)
    }

    fn with_pairs(features: u64, pairs: usize, buffers: &[(u64, u32)]) -> Self {
        let kernels = (0..pairs).map(|_| None).collect();
        Self::over(features, kernels, buffers)
    }

    /// With a kernel, or none, behind each of the pairs.
    fn over(
        features: u64,
        kernels: Vec<Option<Box<dyn VhostBackend>>>,
        buffers: &[(u64, u32)],
    ) -> Self {
        let wires: Vec<_> = kernels.iter().map(|_| Wire::new()).collect();
        let options = NetOptions {
            mac: MAC,
            mtu: Some(1400),
        };
        let backends = wires.iter().zip(kernels).map(|(wire, vhost)| PairBackend {
            queue: wire.port(),
            vhost,
        });
        let net = Net::new(backends.collect(), options);
        let counters = net.counters().unwrap();
        let executor = Arc::new(InlineExecutor::default());
        let guest = TestGuest::with_executor(Box::new(net), executor.clone());
        let mut interface = Self {
            guest,
            executor,
            counters,
            wires,
            rings: Vec::new(),
        };
        interface.activate(features, buffers);
        interface
    }

    fn activate(&mut self, features: u64, buffers: &[(u64, u32)]) {
        let queues = if features & MULTIQUEUE == MULTIQUEUE {
            2 * self.wires.len() + 1
        } else {
            3
        };
        let queues = u16::try_from(queues).unwrap();
        self.guest.enable_msix(u64::from(queues) + 1);
        self.guest.negotiate(features);
        self.rings = (0..queues)
            .map(|queue| self.guest.set_up_queue(queue, SIZE))
            .collect();
        for &(address, bytes) in buffers {
            self.rings[0].submit(&[(address, bytes, WRITE)]);
        }
        self.guest.set_status(0xf);
    }

    /// Makes a packet come in on pair `pair`.
    fn arrive(&self, pair: u16, packet: Vec<u8>) {
        self.wires[usize::from(pair)].put(packet);
        let slot = DeviceSlot::new(3).unwrap();
        self.executor.source_ready(slot, pair);
    }

    fn bytes(&self, address: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.guest
            .memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    /// Sends `packet` in parts of `part` bytes; what came out on the wire.
    fn send(&mut self, packet: &[u8], part: usize) -> Vec<Vec<u8>> {
        self.guest
            .memory
            .write_slice(packet, GuestAddress(SENT))
            .unwrap();
        let starts = (0..packet.len()).step_by(part);
        let parts: Vec<_> = starts
            .map(|start| {
                let bytes = part.min(packet.len() - start);
                let start = u64::try_from(start).unwrap();
                (SENT + start, u32::try_from(bytes).unwrap(), 0)
            })
            .collect();
        self.rings[1].submit(&parts);
        self.guest.notify(1);
        assert_eq!(self.rings[1].take_used().last().unwrap().1, 0);
        self.wires[0].take()
    }

    /// A command with `argument`; the answer.
    fn command(&mut self, queue: u16, class: u8, number: u8, argument: &[u8]) -> u8 {
        let command = [&[class, number], argument].concat();
        let memory = &self.guest.memory;
        memory.write_slice(&command, GuestAddress(SENT)).unwrap();
        memory.write_obj(0xee_u8, GuestAddress(SENT + 64)).unwrap();
        let bytes = u32::try_from(argument.len()).unwrap();
        let ring = &mut self.rings[usize::from(queue)];
        ring.submit(&[(SENT, 2, 0), (SENT + 2, bytes, 0), (SENT + 64, 1, WRITE)]);
        self.guest.notify(queue);
        assert_eq!(ring.take_used().last().unwrap().1, 1);
        self.bytes(SENT + 64, 1)[0]
    }

    fn count(&self, name: &str) -> u64 {
        let mut counters = self.counters.iter();
        counters.find(|(found, _)| *found == name).unwrap().1
    }
}

/// A packet of `bytes` bytes, with its header, that is like no other.
fn packet(bytes: usize, seed: u8) -> Vec<u8> {
    let mut packet = vec![0; HEADER_BYTES];
    let content = (0..bytes - HEADER_BYTES).map(|at| (at % 251).to_le_bytes()[0] ^ seed);
    packet.extend(content);
    packet
}

fn buffers(count: u64, bytes: u32) -> Vec<(u64, u32)> {
    (0..count)
        .map(|buffer| (BUFFERS + buffer * u64::from(bytes), bytes))
        .collect()
}

#[test]
fn the_driver_reads_address_link_pairs_and_mtu() {
    let interface = Interface::with_pairs(0, 3, &[]);
    let guest = &interface.guest;
    assert_eq!(guest.config(0, 4), 0x1041_1af4);
    let device = guest.at.device.unwrap();
    let mac: Vec<_> = (0..6).map(|at| guest.read(device + at, 1)).collect();
    assert_eq!(mac, MAC.map(u64::from));
    assert_eq!(
        [6, 8, 10].map(|at| guest.read(device + at, 2)),
        [1, 3, 1400]
    );
    let offered = guest.offered_features();
    for feature in [VIRTIO_NET_F_MQ, VIRTIO_NET_F_MTU, VIRTIO_NET_F_MRG_RXBUF] {
        assert!(has(offered, feature));
    }
}

#[test]
fn frames_go_in_and_out_unchanged() {
    let mut interface = Interface::new(MERGEABLE, &buffers(4, 2048));
    let sent = packet(1514, 1);
    assert_eq!(interface.send(&sent, 1514), [sent.as_slice()]);
    assert_eq!(interface.send(&sent, 25), [sent.as_slice()]);
    assert_eq!(interface.guest.messages.take(), [2, 2]);
    let mut received = packet(1400, 2);
    interface.arrive(0, received.clone());
    assert_eq!(interface.rings[0].take_used(), [(0, 1400)]);
    received[HEADER_BUFFERS] = 1;
    assert_eq!(interface.bytes(BUFFERS, 1400), received);
    assert_eq!(interface.guest.messages.take(), [1]);
    let names = ["rx_packets", "rx_bytes", "tx_packets", "tx_bytes"];
    let counts = names.map(|name| interface.count(name));
    assert_eq!(counts, [1, 1388, 2, 2 * 1502]);
    assert_eq!(interface.guest.errors.total(), 0);
}

#[test]
fn a_long_packet_is_spread_over_buffers_that_appear_together() {
    let all = buffers(50, 1536);
    let mut interface = Interface::new(MERGEABLE | OFFLOADS, &all);
    // The first one comes unexpected, after a short one; the second one does not.
    for seed in 0..2 {
        let mut long = packet(MAX_PACKET_BYTES, seed);
        interface.arrive(0, long.clone());
        let used = interface.rings[0].take_used();
        assert_eq!(used.len(), 43);
        assert!(used[..42].iter().all(|used| used.1 == 1536));
        assert_eq!(used[42].1, 65_562 - 42 * 1536);
        assert_eq!(interface.guest.messages.take(), [1]);
        let mut received = Vec::new();
        for &(head, written) in &used {
            let (address, _) = all[usize::try_from(head).unwrap()];
            received.extend(interface.bytes(address, usize::try_from(written).unwrap()));
        }
        long[HEADER_BUFFERS] = 43;
        assert!(received == long);
        for (head, _) in used {
            interface.rings[0].offer(u16::try_from(head).unwrap());
        }
    }
}

#[test]
fn a_packet_longer_than_the_buffers_at_hand_waits_for_more() {
    let mut interface = Interface::new(MERGEABLE | OFFLOADS, &buffers(3, 1000));
    let mut long = packet(5000, 4);
    interface.arrive(0, long.clone());
    interface.arrive(0, packet(60, 5));
    assert_eq!(interface.rings[0].take_used(), []);
    assert_eq!(interface.wires[0].waiting(), 1, "one after the other");
    assert!(!interface.rings[0].suppresses_notifications());
    for (address, bytes) in buffers(5, 1000).into_iter().skip(3) {
        assert_eq!(interface.rings[0].take_used(), []);
        interface.rings[0].submit(&[(address, bytes, WRITE)]);
        interface.guest.notify(0);
    }
    let used = interface.rings[0].take_used();
    assert_eq!(
        used,
        [(0, 1000), (1, 1000), (2, 1000), (3, 1000), (4, 1000)]
    );
    long[HEADER_BUFFERS] = 5;
    assert!(interface.bytes(BUFFERS, 5000) == long);
    assert_eq!(
        interface.wires[0].waiting(),
        1,
        "the next one has no buffer"
    );
    interface.rings[0].submit(&[(BUFFERS, 1000, WRITE)]);
    interface.guest.notify(0);
    assert_eq!(interface.rings[0].take_used(), [(5, 60)]);
}

#[test]
fn packets_stay_with_the_host_until_there_are_buffers() {
    let mut interface = Interface::new(MERGEABLE, &[]);
    for seed in 0..10 {
        interface.arrive(0, packet(100, seed));
    }
    assert_eq!(interface.wires[0].waiting(), 10);
    assert!(!interface.rings[0].suppresses_notifications());
    for (address, bytes) in buffers(12, 256) {
        interface.rings[0].submit(&[(address, bytes, WRITE)]);
    }
    interface.guest.notify(0);
    assert_eq!(interface.rings[0].take_used().len(), 10);
    assert_eq!(
        interface.guest.messages.take(),
        [1],
        "one batch, one interrupt"
    );
    assert_eq!(
        interface.bytes(BUFFERS + 9 * 256, 100)[12..],
        packet(100, 9)[12..]
    );
    assert!(
        interface.rings[0].suppresses_notifications(),
        "buffers are left: packets wake the device"
    );
}

#[test]
fn each_packet_is_there_before_the_next_is_read_and_one_interrupt_is_for_all() {
    let mut interface = Interface::new(MERGEABLE, &[]);
    for seed in 0..3 {
        interface.arrive(0, packet(100, seed));
    }
    for (address, bytes) in buffers(4, 256) {
        interface.rings[0].submit(&[(address, bytes, WRITE)]);
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let memory = Arc::clone(&interface.guest.memory);
    let used = GuestAddress(interface.rings[0].used + 2);
    let sees = Arc::clone(&seen);
    interface.wires[0].watch(move || {
        let index: u16 = memory.read_obj(used).unwrap();
        sees.lock().unwrap().push(index);
    });
    interface.guest.notify(0);
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2, 3]);
    assert_eq!(interface.guest.messages.take(), [1]);
}

#[test]
fn without_mergeable_buffers_a_packet_has_one_chain_or_is_dropped() {
    let mut interface = Interface::new(0, &[(BUFFERS, 12), (BUFFERS + 0x1000, 1500)]);
    let ring = &mut interface.rings[0];
    ring.submit(&[
        (BUFFERS + 0x2000, 12, WRITE),
        (BUFFERS + 0x3000, 1000, WRITE),
    ]);
    interface.arrive(0, packet(12, 0));
    interface.arrive(0, packet(1501, 1));
    interface.arrive(0, packet(1500, 2));
    interface.arrive(0, packet(900, 3));
    assert_eq!(
        interface.rings[0].take_used(),
        [(0, 12), (1, 1500), (2, 900)]
    );
    assert_eq!(interface.count("rx_dropped"), 1);
    assert_eq!(interface.bytes(BUFFERS + HEADER_BUFFERS as u64, 2), [1, 0]);
    assert_eq!(interface.bytes(BUFFERS + 0x3000, 888), packet(900, 3)[12..]);
}

#[test]
fn bad_receive_buffers_are_given_back_and_the_next_ones_used() {
    let mut interface = Interface::new(MERGEABLE, &[]);
    let ring = &mut interface.rings[0];
    ring.submit(&[(BUFFERS, 11, WRITE)]);
    ring.submit(&[(BUFFERS, 0, WRITE)]);
    ring.submit(&[(RAM_BYTES, 1000, WRITE)]);
    ring.submit(&[(u64::MAX, u32::MAX, WRITE)]);
    ring.submit(&[(BUFFERS, 1000, 0)]);
    ring.submit(&[(BUFFERS, 10, 0), (BUFFERS, 1000, WRITE)]);
    ring.submit(&[(BUFFERS, 1000, WRITE)]);
    interface.arrive(0, packet(100, 1));
    let used = interface.rings[0].take_used();
    let lengths: Vec<_> = used.iter().map(|used| used.1).collect();
    assert_eq!(lengths, [0, 0, 0, 0, 0, 0, 100]);
    assert_eq!(interface.count("guest_errors"), 6);
    assert_eq!(interface.guest.errors.count(GuestError::VirtioRequest), 6);
}

#[test]
fn a_packet_that_no_number_of_buffers_holds_is_dropped() {
    let all = buffers(u64::from(SIZE), 16);
    let mut interface = Interface::new(MERGEABLE, &all);
    interface.arrive(0, packet(1025, 1));
    interface.arrive(0, packet(1024, 2));
    assert_eq!(interface.rings[0].take_used().len(), 64);
    assert_eq!(interface.count("rx_dropped"), 1);
    assert_eq!(interface.count("rx_packets"), 1);
}

#[test]
fn packets_that_may_not_be_sent_are_dropped_and_counted() {
    let mut interface = Interface::new(1 << VIRTIO_NET_F_CSUM, &[]);
    let refused: [&[(u64, u32, u16)]; 6] = [
        &[(SENT, 12, 0)],
        &[(SENT, 0, 0)],
        &[(SENT, 65_563, 0)],
        &[(SENT, 100, 0), (SENT + 100, 10, WRITE)],
        &[(RAM_BYTES - 10, 100, 0)],
        &[(SENT, 100, WRITE)],
    ];
    for parts in refused {
        interface.rings[1].submit(parts);
    }
    interface.guest.notify(1);
    assert_eq!(interface.rings[1].take_used().len(), refused.len());
    assert!(interface.wires[0].take().is_empty());
    let mut segments = packet(1000, 1);
    segments[1] = 1;
    assert!(interface.send(&segments, 1000).is_empty());
    assert_eq!(interface.count("guest_errors"), 7);
    interface.wires[0].refuse(true);
    assert!(interface.send(&packet(1000, 1), 1000).is_empty());
    interface.wires[0].refuse(false);
    assert_eq!(interface.count("tx_dropped"), 8);
    let mut whole = packet(1000, 1);
    whole[0] = 0xff;
    let sent = interface.send(&whole, 1000);
    assert_eq!(sent[0][0], 1, "the device's own flags are not the driver's");
}

#[test]
fn segments_pass_once_they_are_negotiated() {
    let features = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4;
    let mut interface = Interface::new(features, &[]);
    let mut segments = packet(MAX_PACKET_BYTES, 1);
    (segments[0], segments[1]) = (1, 1);
    assert!(interface.send(&segments, 4096) == [segments]);
}

#[test]
fn the_host_leaves_undone_only_what_the_driver_takes() {
    let mut interface = Interface::new(MERGEABLE | OFFLOADS | CONTROL_OFFLOADS, &[]);
    let offloads = |interface: &Interface| interface.wires[0].offloads();
    assert_eq!(offloads(&interface), Offloads::accepted(OFFLOADS));
    // With one pair the control queue is queue 2.
    let csum = 1u64 << VIRTIO_NET_F_GUEST_CSUM;
    assert_eq!(interface.command(2, 5, 0, &csum.to_le_bytes()), 0);
    assert_eq!(offloads(&interface), Offloads::accepted(csum));
    for refused in [csum | 1 << 8, csum | 1, 1 << 7, u64::MAX] {
        assert_eq!(interface.command(2, 5, 0, &refused.to_le_bytes()), 1);
    }
    assert_eq!(interface.command(2, 5, 0, &csum.to_le_bytes()[..7]), 1);
    assert_eq!(interface.command(2, 9, 9, &[]), 1);
    assert_eq!(offloads(&interface), Offloads::accepted(csum));
    assert_eq!(interface.command(2, 5, 0, &0u64.to_le_bytes()), 0);
    assert_eq!(offloads(&interface), Offloads::NONE);
}

#[test]
fn the_driver_chooses_how_many_pairs_are_used() {
    let mut interface = Interface::with_pairs(MERGEABLE | MULTIQUEUE, 3, &[]);
    let attached = |interface: &Interface| -> Vec<bool> {
        interface.wires.iter().map(Wire::is_attached).collect()
    };
    assert_eq!(attached(&interface), [true, false, false]);
    assert_eq!(interface.command(6, 4, 0, &[2, 0]), 0);
    assert_eq!(attached(&interface), [true, true, false]);
    for refused in [[0, 0], [4, 0], [0, 0x80]] {
        assert_eq!(interface.command(6, 4, 0, &refused), 1);
    }
    interface.rings[2].submit(&[(BUFFERS, 2048, WRITE)]);
    interface.rings[4].submit(&[(BUFFERS, 2048, WRITE)]);
    interface.arrive(1, packet(100, 1));
    interface.arrive(2, packet(100, 1));
    assert_eq!(interface.rings[2].take_used(), [(0, 100)]);
    assert_eq!(interface.rings[4].take_used(), [], "the pair is not in use");
    interface.wires[2].refuse(true);
    assert_eq!(interface.command(6, 4, 0, &[3, 0]), 1);
    interface.wires[2].refuse(false);
    assert_eq!(interface.command(6, 4, 0, &[1, 0]), 0);
    assert_eq!(attached(&interface), [true, false, false]);
}

#[test]
fn a_driver_that_knows_one_pair_cannot_ask_for_more() {
    let mut interface = Interface::with_pairs(1 << VIRTIO_NET_F_CTRL_VQ, 2, &[]);
    assert_eq!(interface.command(2, 4, 0, &[1, 0]), 1);
    assert!(!interface.wires[1].is_attached());
}

#[test]
fn a_command_without_room_for_its_answer_is_counted() {
    let mut interface = Interface::new(1 << VIRTIO_NET_F_CTRL_VQ, &[]);
    interface.rings[2].submit(&[(SENT, 4, 0)]);
    interface.rings[2].submit(&[(SENT, 4, 0), (RAM_BYTES, 1, WRITE)]);
    interface.guest.notify(2);
    assert_eq!(interface.rings[2].take_used(), [(0, 0), (1, 0)]);
    assert_eq!(interface.count("guest_errors"), 2);
}

#[test]
fn a_reset_forgets_buffers_and_a_new_driver_gets_new_packets_only() {
    let mut interface = Interface::new(MERGEABLE | OFFLOADS, &buffers(2, 2048));
    interface.arrive(0, packet(5000, 1));
    interface.guest.set_status(0);
    assert_eq!(interface.guest.status(), 0);
    interface.wires[0].put(packet(100, 2));
    interface.activate(MERGEABLE, &[(BUFFERS + 0x8000, 2048)]);
    assert_eq!(interface.wires[0].offloads(), Offloads::NONE);
    assert_eq!(interface.rings[0].take_used(), []);
    interface.arrive(0, packet(200, 3));
    assert_eq!(interface.rings[0].take_used(), [(0, 200)]);
    assert_eq!(
        interface.bytes(BUFFERS + 0x8000 + 12, 188),
        packet(200, 3)[12..]
    );
    assert_eq!(interface.count("rx_packets"), 1);
}

#[test]
fn a_flood_is_served_in_turns_and_completely() {
    for features in [MERGEABLE, MERGEABLE | EVENT_IDX] {
        let mut interface = Interface::new(features, &buffers(u64::from(SIZE), 256));
        for _ in 0..300 {
            interface.wires[0].put(packet(64, 1));
        }
        let mut received = 0;
        while received < 300 {
            interface.guest.notify(0);
            let used = interface.rings[0].take_used();
            assert!(!used.is_empty() && used.len() <= usize::from(SIZE));
            received += used.len();
            for (head, _) in used {
                interface.rings[0].offer(u16::try_from(head).unwrap());
            }
        }
        assert_eq!(received, 300);
    }
}

#[test]
fn a_host_that_fails_is_counted_and_not_asked_again_at_once() {
    let mut interface = Interface::new(MERGEABLE, &buffers(4, 2048));
    interface.wires[0].put(packet(100, 1));
    interface.wires[0].refuse(true);
    interface.guest.notify(0);
    assert_eq!(interface.count("host_errors"), 1);
    interface.wires[0].refuse(false);
    interface.guest.notify(0);
    assert_eq!(interface.rings[0].take_used(), [(0, 100)]);
}

#[test]
fn a_broken_receive_ring_asks_for_a_reset() {
    let interface = Interface::new(MERGEABLE, &[]);
    interface.rings[0].set_available_index(SIZE + 1);
    interface.guest.notify(0);
    assert_eq!(interface.guest.status(), 0x4f);
}

proptest! {
    #[test]
    fn any_packets_arrive_whole_in_any_buffers(
        sizes in prop::collection::vec(12usize..6000, 1..12),
        rooms in prop::collection::vec(12u32..3000, 64),
        batches in prop::collection::vec(1usize..20, 1..20),
    ) {
        let mut interface = Interface::new(MERGEABLE | OFFLOADS, &[]);
        for (seed, &bytes) in (0..).zip(&sizes) {
            interface.wires[0].put(packet(bytes, seed));
        }
        let mut rooms = rooms.into_iter().enumerate();
        let place = |position: usize| BUFFERS + u64::try_from(position).unwrap() * 0x1000;
        for batch in batches.into_iter().chain([64]) {
            for (position, bytes) in rooms.by_ref().take(batch) {
                interface.rings[0].submit(&[(place(position), bytes, WRITE)]);
            }
            interface.guest.notify(0);
        }
        let mut used = interface.rings[0].take_used().into_iter();
        for (seed, &bytes) in (0..).zip(&sizes) {
            let Some((head, written)) = used.next() else { break };
            let part = |interface: &Interface, head: u32, written: u32| {
                interface.bytes(place(usize::try_from(head).unwrap()), usize::try_from(written).unwrap())
            };
            let mut received = part(&interface, head, written);
            let count = u16::from_le_bytes([received[HEADER_BUFFERS], received[HEADER_BUFFERS + 1]]);
            for _ in 1..count {
                let (head, written) = used.next().unwrap();
                received.extend(part(&interface, head, written));
            }
            let mut expected = packet(bytes, seed);
            expected[HEADER_BUFFERS..HEADER_BYTES].copy_from_slice(&count.to_le_bytes());
            prop_assert!(received == expected);
        }
    }
}
