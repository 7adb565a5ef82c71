//! Tests of the queue; those whose names say `each` or `every` try all values there are.

use super::*;

fn buffers(segments: &[(u64, u32)]) -> Buffers {
    let segments = segments
        .iter()
        .map(|&(address, bytes)| Segment { address, bytes });
    Buffers(segments.collect())
}

#[test]
fn a_front_is_split_off_across_segments() {
    let mut rest = buffers(&[(0x100, 10), (0x200, 0), (0x300, 10)]);
    assert_eq!(rest.take_front(21), None);
    assert_eq!(rest.bytes(), 20);
    let front = rest.take_front(14).unwrap();
    assert_eq!(front, buffers(&[(0x100, 10), (0x200, 0), (0x300, 4)]));
    assert_eq!(rest, buffers(&[(0x304, 6)]));
    assert_eq!(rest.take_front(0), Some(buffers(&[])));
    assert_eq!(rest.take_front(6), Some(buffers(&[(0x304, 6)])));
    assert_eq!(rest, buffers(&[]));
}

#[test]
fn the_last_byte_is_found_behind_empty_segments() {
    let mut rest = buffers(&[(0x100, 2), (0x200, 0)]);
    assert_eq!(rest.take_last_byte(), Some(0x101));
    assert_eq!(rest.take_last_byte(), Some(0x100));
    assert_eq!(rest.take_last_byte(), None);
    assert_eq!(buffers(&[(u64::MAX, 3)]).take_last_byte(), None);
}

const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;

/// A queue of 8 whose driver offers all its descriptors, one buffer each, from `start` on.
fn full_queue(has_event_idx: bool, start: u16) -> (Memory, VirtQueue) {
    let memory = Memory::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
    let addresses = QueueAddresses {
        size: 8,
        descriptors: 0,
        available: AVAILABLE,
        used: USED,
    };
    let put = |value: u16, address| memory.write_obj(value, GuestAddress(address)).unwrap();
    for head in 0..8u16 {
        put(
            head,
            AVAILABLE + 4 + 2 * u64::from(start.wrapping_add(head) % 8),
        );
        put(2, 16 * u64::from(head) + 12);
    }
    put(start.wrapping_add(8), AVAILABLE + 2);
    let errors = Arc::new(GuestErrors::default());
    let mut queue = VirtQueue::new(addresses, has_event_idx, &memory, errors).unwrap();
    queue.ring.set_next_avail(start);
    queue.ring.set_next_used(start);
    queue.told = start;
    queue.grant(64);
    (memory, queue)
}

fn used_index(memory: &Memory) -> u16 {
    memory.read_obj(GuestAddress(USED + 2)).unwrap()
}

#[test]
fn completed_chains_become_visible_together_and_in_order() {
    for start in [0, 5, u16::MAX - 1] {
        let (memory, mut queue) = full_queue(false, start);
        for written in 0..3 {
            let chain = queue.pop(&memory).unwrap().unwrap();
            queue.complete(&memory, chain, written).unwrap();
        }
        assert_eq!(used_index(&memory), 0, "nothing is visible yet");
        queue.publish(&memory).unwrap();
        assert_eq!(used_index(&memory), start.wrapping_add(3));
        for position in 0..3u16 {
            let slot = u64::from(start.wrapping_add(position) % 8);
            let element: [u32; 2] = [0, 4].map(|at| {
                memory
                    .read_obj(GuestAddress(USED + 4 + 8 * slot + at))
                    .unwrap()
            });
            assert_eq!(element, [u32::from(position); 2]);
        }
        assert!(queue.needs_interrupt(&memory).unwrap());
        assert!(!queue.needs_interrupt(&memory).unwrap(), "nothing is new");
    }
}

#[test]
fn an_event_anywhere_in_a_batch_is_worth_one_interrupt() {
    for start in [0, u16::MAX - 1] {
        for event in 0..6u16 {
            let (memory, mut queue) = full_queue(true, start);
            let place = GuestAddress(AVAILABLE + 4 + 2 * 8);
            memory.write_obj(start.wrapping_add(event), place).unwrap();
            for _ in 0..4 {
                let chain = queue.pop(&memory).unwrap().unwrap();
                queue.complete(&memory, chain, 0).unwrap();
            }
            assert_eq!(queue.needs_interrupt(&memory).unwrap(), event < 4);
            assert_eq!(used_index(&memory), start.wrapping_add(4));
        }
    }
}

#[test]
fn a_lent_queue_is_gone_until_the_next_activation() {
    let (memory, queue) = full_queue(false, 0);
    let mut queues = Queues::new(vec![Some(queue), None]);
    assert!(queues.lend(1).is_none() && queues.lend(2).is_none());
    assert!(!queues.is_enabled(1));
    assert!(queues.lend(0).is_some());
    assert!(queues.get(0).is_none() && queues.lend(0).is_none());
    assert!(queues.is_enabled(0));
    assert!(!queues.needs_interrupt(0, &memory).unwrap());
    queues.used_elsewhere(0);
    queues.used_elsewhere(1);
    assert!(queues.needs_interrupt(0, &memory).unwrap());
    assert!(!queues.needs_interrupt(0, &memory).unwrap());
    assert!(!queues.needs_interrupt(1, &memory).unwrap());
}

#[test]
fn slices_are_of_ram_and_never_empty() {
    let ram = [(GuestAddress(0), 0x1000), (GuestAddress(0x2000), 0x1000)];
    let memory = Memory::from_ranges(&ram).unwrap();
    let lengths = |segments: &[(u64, u32)]| {
        let buffers = buffers(segments);
        let slices = buffers.slices(&memory, Permissions::Write);
        slices.map(|slices| slices.iter().map(VolatileSlice::len).collect::<Vec<_>>())
    };
    assert_eq!(
        lengths(&[(0x10, 4), (u64::MAX, 0), (0xfff, 1)]),
        Ok(vec![4, 1])
    );
    assert_eq!(lengths(&[(0, 4), (0xfff, 2)]), Err(NotMemory));
    assert_eq!(lengths(&[(u64::MAX, 2)]), Err(NotMemory));
}

#[test]
fn lengths_add_up_without_overflow() {
    let all = buffers(&[(0, u32::MAX), (0, u32::MAX), (0, u32::MAX)]);
    assert_eq!(all.bytes(), 3 * u64::from(u32::MAX));
}

/// A queue of `size` in memory that ends where its rings end, its indexes at `start`.
fn empty_queue(size: u16, start: u16) -> (Memory, VirtQueue) {
    let available = 16 * u64::from(size);
    let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4);
    let end = used + 6 + 8 * u64::from(size);
    let memory = Memory::from_ranges(&[(GuestAddress(0), usize::try_from(end).unwrap())]).unwrap();
    let addresses = QueueAddresses {
        size,
        descriptors: 0,
        available,
        used,
    };
    let errors = Arc::new(GuestErrors::default());
    let mut queue = VirtQueue::new(addresses, false, &memory, errors).unwrap();
    queue.ring.set_next_avail(start);
    queue.ring.set_next_used(start);
    queue.told = start;
    (memory, queue)
}

const SIZES: std::ops::RangeInclusive<u32> = 0..=15;

#[test]
fn each_used_index_of_each_queue_size_has_its_place_inside_the_used_ring() {
    for size in SIZES.map(|power| 1_u16 << power) {
        let (memory, mut queue) = empty_queue(size, 0);
        let used = queue.addresses().used;
        for index in 0..=u16::MAX {
            queue.ring.set_next_used(index);
            let chain = Chain {
                head: index % size,
                readable: Buffers::default(),
                writable: Buffers::default(),
            };
            queue.complete(&memory, chain, u32::from(index)).unwrap();
            let place = GuestAddress(used + 4 + 8 * u64::from(index % size));
            let element: u64 = memory.read_obj(place).unwrap();
            assert_eq!(element, u64::from(index % size) | u64::from(index) << 32);
            queue.publish(&memory).unwrap();
            let visible: u16 = memory.read_obj(GuestAddress(used + 2)).unwrap();
            assert_eq!(visible, index.wrapping_add(1));
            assert_eq!(queue.ring.next_used(), visible);
        }
    }
}

#[test]
fn every_jump_of_the_available_index_is_within_the_ring_or_breaks_the_queue() {
    for size in SIZES.map(|power| 1_u16 << power) {
        for start in [0, size - 1, u16::MAX] {
            let (memory, mut queue) = empty_queue(size, start);
            let available = queue.addresses().available;
            for jump in 0..=u16::MAX {
                queue.ring.set_next_avail(start);
                queue.taken.fill(0);
                queue.grant(1);
                let index = start.wrapping_add(jump);
                memory
                    .write_obj(index, GuestAddress(available + 2))
                    .unwrap();
                match queue.pop(&memory) {
                    Ok(None) => assert_eq!(jump, 0),
                    Ok(Some(chain)) => {
                        assert!((1..=size).contains(&jump), "{size} {start} {jump}");
                        assert_eq!(chain.head(), 0);
                        assert_eq!(queue.next_available(), start.wrapping_add(1));
                    }
                    Err(QueueBroken) => assert!(jump > size, "{size} {start} {jump}"),
                }
            }
        }
    }
}

#[test]
fn each_head_has_a_bit_of_its_own_and_none_beyond_the_queue_has_one() {
    for size in SIZES.map(|power| 1_u16 << power) {
        let words = usize::from(size).div_ceil(64);
        let mut seen = vec![0_u64; words];
        for head in 0..=u16::MAX {
            let (word, bit) = taken_bit(head);
            assert_eq!(bit.count_ones(), 1);
            if head < size {
                assert_eq!(seen[word] & bit, 0, "{size} {head}");
                seen[word] |= bit;
            } else if size >= 64 {
                assert!(word >= words, "{size} {head}");
            }
        }
        let bits: u32 = seen.iter().map(|word| word.count_ones()).sum();
        assert_eq!(bits, u32::from(size));
    }
}

#[test]
fn every_event_is_passed_exactly_if_a_step_of_the_index_went_over_it() {
    for before in [0, 1, 0x7fff, 0x8000, u16::MAX - 1, u16::MAX] {
        for steps in (0..=8).chain([64, 0x7fff, 0x8000]) {
            let now = before.wrapping_add(steps);
            for event in 0..=u16::MAX {
                let went_over = event.wrapping_sub(before) < steps;
                assert_eq!(
                    has_passed(event, before, now),
                    went_over,
                    "{event} {before} {now}"
                );
            }
        }
    }
}
