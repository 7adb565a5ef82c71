//! The disk without its medium: what is asked of it then, what was in flight, and what comes back.

use super::super::REQUESTS_PER_QUEUE;
use super::late::{Late, data};
use super::*;

const NO_SECTORS: u64 = 0;

fn capacity(guest: &TestGuest) -> u64 {
    guest.read(guest.at.device.unwrap(), 8)
}

#[test]
fn without_its_medium_every_request_fails_and_the_driver_is_told_of_no_sectors() {
    let disk = MemoryDisk::new(SECTORS * 512);
    let (guest, mut ring) = guest_with(disk.clone(), true);
    let read = |ring: &mut Ring| request(&guest, ring, (IN, 3), &[(DATA, 512, WRITE)]);
    assert_eq!(read(&mut ring), (OK, 513));
    guest.messages.take();
    let generation = guest.common(0x15, 1);
    guest.function.eject();
    assert_eq!(guest.messages.take(), [0], "the configuration has changed");
    assert_ne!(guest.common(0x15, 1), generation);
    assert_eq!(capacity(&guest), NO_SECTORS);
    assert_eq!(
        Arc::strong_count(&disk.content),
        1,
        "the host's side is closed"
    );
    guest
        .memory
        .write_slice(&[7; 512], GuestAddress(DATA))
        .unwrap();
    for _ in 0..3 {
        assert_eq!(read(&mut ring), (IOERR, 1));
    }
    assert_eq!(bytes(&guest, DATA, 512), [7; 512], "nothing was read");
    assert_eq!(request(&guest, &mut ring, (FLUSH, 0), &[]), (IOERR, 1));
    // The drive is still there, and says which one it is.
    let identified = request(&guest, &mut ring, (GET_ID, 0), &[(DATA, 20, WRITE)]);
    assert_eq!(
        (identified, bytes(&guest, DATA, 6)),
        ((OK, 21), b"disk-0".to_vec())
    );
    assert_eq!(guest.errors.total(), 0, "no driver is to blame");

    // Once is enough.
    guest.messages.take();
    guest.function.eject();
    assert_eq!(guest.messages.take(), [0; 0]);
}

#[test]
fn no_reset_of_the_device_brings_a_medium_back() {
    for at_rest in [false, true] {
        let disk = MemoryDisk::new(SECTORS * 512);
        let block = Block::new(Box::new(disk.clone()), options(true));
        let guest = TestGuest::new(Box::new(block));
        if !at_rest {
            guest.bring_up(0, QUEUE_SIZE);
        }
        guest.function.eject();
        assert_eq!(Arc::strong_count(&disk.content), 1, "at rest: {at_rest}");
        for _ in 0..2 {
            guest.set_status(0);
            let mut ring = guest.bring_up(0, QUEUE_SIZE);
            assert_eq!(capacity(&guest), NO_SECTORS);
            let read = request(&guest, &mut ring, (IN, 0), &[(DATA, 512, WRITE)]);
            assert_eq!(read, (IOERR, 1));
        }
    }
}

#[test]
fn what_is_in_flight_when_the_medium_goes_is_answered_and_then_the_host_is_let_go() {
    let late = Late::new(1, None);
    let mut ring = late.guest.bring_up(0, QUEUE_SIZE);
    let begun: Vec<_> = (1..3).map(|sector| late.read(&mut ring, sector)).collect();
    late.guest.notify(0);
    late.guest.function.eject();
    assert!(ring.take_used().is_empty());
    // What comes later waits for nobody.
    let after = late.read(&mut ring, 4);
    late.guest.notify(0);
    assert_eq!(ring.take_used(), [(after.into(), 1)]);
    assert_eq!(bytes(&late.guest, data(4) + 512, 1), [IOERR]);
    assert!(late.has_backend(), "it is still being read");
    late.disk.finish(1);
    late.wake(0);
    assert_eq!(ring.take_used(), [(begun[1].into(), 513)]);
    late.disk.finish(0);
    late.wake(0);
    assert_eq!(ring.take_used(), [(begun[0].into(), 513)]);
    for sector in 1..3_u8 {
        let answer = bytes(&late.guest, data(sector.into()), 513);
        assert_eq!(answer, [vec![sector; 512], vec![OK]].concat());
    }
    assert!(!late.has_backend());
    late.wake(0);
    late.read(&mut ring, 5);
    late.guest.notify(0);
    assert_eq!((ring.take_used().len(), late.guest.errors.total()), (1, 0));
}

#[test]
fn a_full_ring_is_answered_whole_after_the_medium_is_gone() {
    let late = Late::new(1, None);
    let mut ring = late.guest.bring_up(0, QUEUE_SIZE);
    put_header(&late.guest, FLUSH, 0);
    // Chains of one descriptor, as there are more of them than requests at once.
    let table = BUFFERS + 0x8_0000;
    ring.describe_in(table, 0, (HEADER, 16), NEXT, 1);
    ring.describe_in(table, 1, (STATUS, 1), WRITE, 0);
    for _ in 0..QUEUE_SIZE {
        ring.submit(&[(table, 32, INDIRECT)]);
    }
    late.guest.notify(0);
    assert_eq!(late.disk.held(), usize::from(REQUESTS_PER_QUEUE));
    late.guest.function.eject();
    let mut answered = 0;
    while late.disk.held() > 0 {
        late.disk.finish(0);
        late.wake(0);
        answered += ring.take_used().len();
    }
    assert_eq!(answered, usize::from(QUEUE_SIZE));
    assert!(!late.has_backend());
}

#[test]
fn a_reset_or_a_broken_ring_lets_the_host_go_as_well() {
    for breaks_before in [false, true] {
        let late = Late::new(1, None);
        let mut ring = late.guest.bring_up(0, QUEUE_SIZE);
        let head = late.read(&mut ring, 1);
        late.guest.notify(0);
        if breaks_before {
            ring.offer(head);
            late.guest.notify(0);
            assert_eq!(late.guest.errors.count(GuestError::VirtioQueueBroken), 1);
            late.guest.function.eject();
        } else {
            late.guest.function.eject();
            assert!(late.has_backend());
            late.guest.set_status(0);
        }
        assert!(!late.has_backend(), "broken before: {breaks_before}");
        late.guest.set_status(0);
        assert_eq!(late.guest.status(), 0);
        let mut ring = late.guest.bring_up(0, QUEUE_SIZE);
        late.read(&mut ring, 2);
        late.guest.notify(0);
        assert_eq!(ring.take_used().len(), 1);
    }
}
