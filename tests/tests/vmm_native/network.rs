//! The network device over real taps, in a network namespace that each test makes: a bridge with the
//! device's tap and another one, whose frames the test reads and writes. Needs root, not KVM.

mod driver;
mod wire;

use std::io::ErrorKind;

use berth_vmm_devices::virtio::net::backend::NetBackend;
use berth_vmm_devices::virtio::net::wire::Wire;
use berth_vmm_devices::virtio::net::{HEADER_BYTES, Offloads};
use berth_vmm_machine::tap_queue::TapQueue;
use vm_memory::VolatileSlice;

use self::driver::Driver;
use self::wire::{Frames, Link, frame, segments};

/// `VIRTIO_NET_F_CSUM`, `GUEST_CSUM`, `GUEST_TSO4`, `HOST_TSO4`, `MRG_RXBUF`.
const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const HOST_TSO4: u64 = 1 << 11;
const MERGEABLE: u64 = 1 << 15;

/// Bytes of payload that are one segment to the driver and many to a link.
const LONG_PAYLOAD: usize = 60_000;
/// Payload of one segment on the link.
const SEGMENT: u16 = 1448;

/// What every back end does, whatever is behind it.
fn check_backend(backend: &mut dyn NetBackend, other_end: &mut dyn Frames) {
    let mut room = vec![0; 2000];
    let mut receive = |backend: &mut dyn NetBackend, bytes: usize| {
        let (first, rest) = room[..bytes].split_at_mut(bytes / 3);
        let slices = [VolatileSlice::from(first), VolatileSlice::from(rest)];
        let received = backend.receive(&slices)?;
        Ok::<_, std::io::Error>(room[..received].to_vec())
    };
    assert_eq!(
        receive(backend, 100).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    for bytes in [14, 60, 1000, 1514] {
        let mut sent = frame(bytes);
        let (first, rest) = sent.split_at_mut(20);
        let slices = [VolatileSlice::from(first), VolatileSlice::from(rest)];
        backend.send(&slices).unwrap();
        assert_eq!(other_end.next()[HEADER_BYTES..], sent[HEADER_BYTES..]);
        other_end.put(&sent);
    }
    other_end.wait_for(backend);
    for bytes in [14, 60, 1000, 1514] {
        let received = receive(backend, 2000).unwrap();
        assert_eq!(received[HEADER_BYTES..], frame(bytes)[HEADER_BYTES..]);
    }
    other_end.put(&frame(1000));
    other_end.put(&frame(60));
    other_end.wait_for(backend);
    let cut = receive(backend, 99).unwrap();
    assert_eq!(cut[HEADER_BYTES..], frame(1000)[HEADER_BYTES..99]);
    assert_eq!(receive(backend, 99).unwrap().len(), HEADER_BYTES + 60);
    for offloads in [Offloads::TCP, Offloads::NONE] {
        backend.set_offloads(offloads).unwrap();
    }
    assert!(backend.offloads().contains(Offloads::TCP));
}

#[test]
fn a_wire_and_a_tap_do_the_same() {
    let wire = Wire::new();
    check_backend(wire.port().as_mut(), &mut wire.clone());
    let Some(mut link) = Link::new(1) else { return };
    let mut queues = TapQueue::all(std::mem::take(&mut link.device)).unwrap();
    check_backend(&mut queues[0], &mut link);
}

#[test]
fn a_queue_of_a_tap_is_put_out_of_use_and_back() {
    let Some(mut link) = Link::new(2) else { return };
    let mut queues = TapQueue::all(std::mem::take(&mut link.device)).unwrap();
    let mut room = [0; 2000];
    let room = [VolatileSlice::from(room.as_mut_slice())];
    queues[1].set_attached(false).unwrap();
    queues[1].set_attached(false).unwrap_err();
    // With both queues in use the kernel would spread them by their flows.
    for bytes in 60..76 {
        link.put(&frame(bytes));
        link.wait_for(&queues[0]);
        assert_eq!(queues[0].receive(&room).unwrap(), HEADER_BYTES + bytes);
    }
    queues[1].set_attached(true).unwrap();
    let empty = queues[1].receive(&room).unwrap_err().kind();
    assert_eq!(empty, ErrorKind::WouldBlock);
}

#[test]
fn frames_go_both_ways_between_a_driver_and_a_tap() {
    let Some(mut link) = Link::new(1) else { return };
    let mut driver = Driver::new(std::mem::take(&mut link.device), MERGEABLE);
    for bytes in [14, 60, 1514] {
        driver.send(&frame(bytes));
        assert_eq!(link.next()[HEADER_BYTES..], frame(bytes)[HEADER_BYTES..]);
        link.put(&frame(bytes));
        let received = driver.receive();
        assert_eq!(received[HEADER_BYTES..], frame(bytes)[HEADER_BYTES..]);
        assert_eq!(received[10..HEADER_BYTES], [1, 0]);
    }
    assert_eq!(driver.count("rx_packets"), 3);
    assert_eq!(driver.count("tx_packets"), 3);
}

#[test]
fn a_long_tcp_segment_passes_whole_in_both_directions() {
    let Some(mut link) = Link::new(1) else { return };
    let features = MERGEABLE | CSUM | GUEST_CSUM | GUEST_TSO4 | HOST_TSO4;
    let mut driver = Driver::new(std::mem::take(&mut link.device), features);
    let long = segments(LONG_PAYLOAD, SEGMENT);
    driver.send(&long);
    let out = link.next();
    assert_eq!(out.len(), long.len());
    assert!(out[HEADER_BYTES..] == long[HEADER_BYTES..]);
    assert_eq!(
        out[..8],
        long[..8],
        "flags, kind, and sizes of headers and segments"
    );
    link.put(&long);
    let received = driver.receive();
    assert!(received[HEADER_BYTES..] == long[HEADER_BYTES..]);
    assert_eq!(
        received[1], 1,
        "TCP over IPv4, to be cut by whoever sends it on"
    );
    let buffers = u16::from_le_bytes([received[10], received[11]]);
    assert_eq!(
        usize::from(buffers),
        long.len().div_ceil(driver::BUFFER_BYTES)
    );
    assert_eq!(driver.count("guest_errors"), 0);
}

#[test]
fn a_driver_that_takes_no_long_segments_gets_short_ones() {
    let Some(mut link) = Link::new(1) else { return };
    let mut driver = Driver::new(std::mem::take(&mut link.device), MERGEABLE);
    let long = segments(LONG_PAYLOAD, SEGMENT);
    link.put(&long);
    let mut payload = Vec::new();
    while payload.len() < LONG_PAYLOAD {
        let received = driver.receive();
        assert!(received.len() <= HEADER_BYTES + 1514);
        assert_eq!(received[..2], [0, 0], "nothing is left to do");
        payload.extend_from_slice(&received[HEADER_BYTES + wire::HEADERS..]);
    }
    assert!(payload == long[HEADER_BYTES + wire::HEADERS..]);
}

#[test]
fn a_packet_that_the_tap_refuses_is_dropped_and_the_next_one_sent() {
    let Some(mut link) = Link::new(1) else { return };
    let mut driver = Driver::new(std::mem::take(&mut link.device), MERGEABLE | CSUM);
    let mut wrong = frame(60);
    // A checksum behind the packet's end.
    wrong[0] = 1;
    wrong[6..8].copy_from_slice(&5000u16.to_le_bytes());
    driver.send(&wrong);
    // No whole Ethernet header.
    driver.send(&frame(60)[..HEADER_BYTES + 10]);
    driver.send(&frame(100));
    assert_eq!(link.next()[HEADER_BYTES..], frame(100)[HEADER_BYTES..]);
    assert_eq!(driver.count("tx_dropped"), 2);
    assert_eq!(driver.count("tx_packets"), 1);
}
