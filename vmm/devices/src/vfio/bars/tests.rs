//! BARs as a driver sizes, moves and switches them, small state spaces exhausted.

use proptest::prelude::*;

use super::super::testing::{Call, FakeDevice, whole};
use super::*;

const WINDOW: Range<u64> = 0x10_0000_0000..0x10_0001_0000;

fn host(device: &FakeDevice) -> Host {
    Host::new(Box::new(device.clone()))
}

/// One BAR of `bytes` bytes at register 2, placed at the window's start.
fn one_bar(bytes: u64, register: u32) -> FunctionBars {
    let mut description = Description::default();
    description.bars[2] = whole(bytes);
    let mut bars = FunctionBars::read(&description, [0, 0, register, 0, 0, 0]).unwrap();
    bars.place(2, WINDOW.start, &WINDOW);
    bars
}

fn set(bars: &mut FunctionBars, host: &Host, address: u64, decodes: bool) {
    bars.write_register(host, 2, word(address, 0), decodes);
    bars.write_register(host, 3, word(address, 1), decodes);
}

fn shown(bars: &FunctionBars) -> u64 {
    u64::from(bars.read_register(2)) | u64::from(bars.read_register(3)) << 32
}

#[test]
fn a_prefetchable_64_bit_bar_of_many_gib_sizes_like_one() {
    let device = FakeDevice::default();
    let mut bars = one_bar(64 << 30, 0xc);
    bars.write_register(&host(&device), 2, u32::MAX, false);
    bars.write_register(&host(&device), 3, u32::MAX, false);
    assert_eq!(shown(&bars), 0xffff_fff0_0000_000c);
    assert_eq!(
        bars.wanted().collect::<Vec<_>>(),
        [(2, 64 << 30, BarKind::Memory64)]
    );
}

#[test]
fn a_bar_moves_when_decoding_goes_on_and_only_inside_its_window() {
    let device = FakeDevice::default();
    let host = host(&device);
    let mut bars = one_bar(0x1000, 4);
    set(&mut bars, &host, WINDOW.start + 0x3000, false);
    assert_eq!(bars.locate(WINDOW.start + 0x3000, 4), None, "not yet");
    bars.take_moves(&host);
    let there = BarOffset { bar: 2, offset: 4 };
    assert_eq!(bars.locate(WINDOW.start + 0x3004, 4), Some(there));
    assert_eq!(bars.locate(WINDOW.start, 4), None);
    for bad in [0, WINDOW.end, WINDOW.start - 0x1000, 0xfee0_0000, u64::MAX] {
        set(&mut bars, &host, bad, false);
        bars.take_moves(&host);
        assert_eq!(shown(&bars), (WINDOW.start + 0x3000) | 4, "{bad:#x}");
        assert_eq!(bars.locate(WINDOW.start + 0x3004, 4), Some(there));
    }
}

#[test]
fn with_decoding_on_a_bar_can_be_sized_and_not_moved() {
    let device = FakeDevice::default();
    let host = host(&device);
    let mut bars = one_bar(0x1000, 4);
    set(&mut bars, &host, WINDOW.start + 0x3000, true);
    assert_eq!(shown(&bars), WINDOW.start | 4);
    bars.write_register(&host, 2, u32::MAX, true);
    assert_eq!(bars.read_register(2), 0xffff_f004);
    bars.write_register(&host, 2, word(WINDOW.start, 0), true);
    assert_eq!(shown(&bars), WINDOW.start | 4);
}

#[test]
fn pages_of_a_trapped_area_are_cut_out_of_the_mapping() {
    let device = FakeDevice::default();
    let area = Area {
        offset: 0x2800,
        bytes: 0x1000,
    };
    let mut bars = one_bar(0x8000, 4);
    bars.trap(2, area, &whole(0x8000));
    let left = [
        Area {
            offset: 0,
            bytes: 0x2000,
        },
        Area {
            offset: 0x4000,
            bytes: 0x4000,
        },
    ];
    assert_eq!(bars.bars[0].areas, left);
    let mut info = whole(0x8000);
    info.is_msix_mappable = false;
    bars.trap(2, area, &info);
    assert!(
        bars.bars[0].areas.is_empty(),
        "the kernel does not say that it can be mapped"
    );
    assert!(device.take_calls().is_empty());
}

#[test]
fn listed_areas_are_cut_to_whole_pages_inside_the_bar_without_overlap() {
    let mut info = whole(0x8000);
    info.mappable = Mappable::Areas(vec![
        Area {
            offset: 0x6000,
            bytes: 0x8000,
        },
        Area {
            offset: 0x0800,
            bytes: 0x2000,
        },
        Area {
            offset: 0x1000,
            bytes: 0x1000,
        },
        Area {
            offset: u64::MAX - 4,
            bytes: u64::MAX,
        },
        Area {
            offset: 0x3000,
            bytes: 0xfff,
        },
    ]);
    let kept = [
        Area {
            offset: 0x1000,
            bytes: 0x1000,
        },
        Area {
            offset: 0x6000,
            bytes: 0x2000,
        },
    ];
    assert_eq!(mappable_areas(&info), kept);
    info.is_writable = false;
    assert!(mappable_areas(&info).is_empty());
    let many = (0..1000).map(|page| Area {
        offset: page * 0x2000,
        bytes: 0x1000,
    });
    let mut info = whole(1 << 30);
    info.mappable = Mappable::Areas(many.collect());
    assert_eq!(mappable_areas(&info).len(), MAX_AREAS);
}

#[test]
fn bars_that_no_function_can_have_are_refused() {
    let read = |index: usize, bytes: u64, register: u32, upper: u64| {
        let mut description = Description::default();
        description.bars[index] = whole(bytes);
        if let Some(next) = description.bars.get_mut(index + 1) {
            next.bytes = upper;
        }
        let mut registers = [0; BAR_COUNT];
        registers[index] = register;
        FunctionBars::read(&description, registers).map(|bars| bars.bars.len())
    };
    assert_eq!(
        read(5, 0x1000, 4, 0),
        Err(ReadBarsError::NoUpperHalf { bar: 5 })
    );
    assert_eq!(
        read(0, 0x1000, 4, 8),
        Err(ReadBarsError::NoUpperHalf { bar: 0 })
    );
    for register in [2, 6] {
        assert_eq!(
            read(1, 0x1000, register, 0),
            Err(ReadBarsError::BadType { bar: 1, register })
        );
    }
    for (bytes, register) in [(0x3000, 4), (8, 0), (1 << 32, 0), (u64::MAX, 4)] {
        assert_eq!(
            read(1, bytes, register, 0),
            Err(ReadBarsError::BadSize { bar: 1, bytes })
        );
    }
    assert_eq!(read(1, 32, 1, 0), Ok(0), "port BARs are left out");
    assert_eq!(read(1, 1 << 31, 0, 0), Ok(1));
    assert_eq!(read(4, 1 << 63, 4, 0), Ok(1));
}

#[test]
fn a_bar_that_was_not_placed_answers_nowhere_and_is_not_mapped() {
    let device = FakeDevice::default();
    let mut bars = one_bar(0x1000, 4);
    bars.bars[0].window = 0..0;
    bars.map(&host(&device));
    assert_eq!(bars.locate(WINDOW.start, 1), None);
    assert!(
        device
            .take_calls()
            .iter()
            .all(|call| !matches!(call, Call::Map(..)))
    );
}

/// Every kind and size of BAR, at every register, against what PCI says an all-ones write reads.
#[test]
fn exhaustive_sizing_of_every_size_reads_its_mask() {
    let device = FakeDevice::default();
    let host = host(&device);
    for flags in [0b0000, 0b1000, 0b0100, 0b1100] {
        let is_64_bit = flags & 0b100 != 0;
        for log2 in 4..if is_64_bit { 64 } else { 32 } {
            for index in 0_u8..if is_64_bit { 5 } else { 6 } {
                let mut description = Description::default();
                description.bars[usize::from(index)] = whole(1 << log2);
                let mut registers = [0; BAR_COUNT];
                registers[usize::from(index)] = flags;
                let mut bars = FunctionBars::read(&description, registers).unwrap();
                for register in 0_u8..6 {
                    bars.write_register(&host, register, u32::MAX, false);
                }
                let mask = !((1_u64 << log2) - 1) | u64::from(flags);
                for register in 0_u8..6 {
                    let expected = match register.checked_sub(index) {
                        Some(0) => word(mask, 0),
                        Some(1) if is_64_bit => word(mask, 1),
                        _ => 0,
                    };
                    assert_eq!(bars.read_register(register), expected);
                }
            }
        }
    }
}

/// Every order of up to four writes of interesting words to the two halves, with decoding off, on,
/// or going on in between: the BAR is always in its window and at a multiple of its size.
#[test]
fn exhaustive_moves_never_leave_a_bar_outside_its_window() {
    let words = [
        0,
        u32::MAX,
        word(WINDOW.start + 0x2000, 0),
        word(WINDOW.end, 0),
        word(WINDOW.start, 1),
        7,
    ];
    let device = FakeDevice::default();
    let host = host(&device);
    let steps = words.len() * 2 + 2;
    for script in 0..steps.pow(4) {
        let mut bars = one_bar(0x2000, 4);
        let mut decodes = false;
        let mut rest = script;
        for _ in 0..4 {
            let step = rest % steps;
            rest /= steps;
            match words.get(step / 2) {
                Some(&word) => {
                    let register = if step.is_multiple_of(2) { 2 } else { 3 };
                    bars.write_register(&host, register, word, decodes);
                }
                None if step.is_multiple_of(2) => decodes = false,
                None => {
                    if !decodes {
                        bars.take_moves(&host);
                    }
                    decodes = true;
                }
            }
            let bar = &bars.bars[0];
            assert!(bar.address >= WINDOW.start && bar.address + bar.bytes <= WINDOW.end);
            assert!(bar.address.is_multiple_of(bar.bytes));
        }
    }
}

proptest! {
    #[test]
    fn cutting_pages_out_leaves_exactly_the_other_pages(
        areas in prop::collection::btree_set(0_u64..24, 0..12),
        hole in (0_u64..0x1_a000, 0_u64..0x1_a000),
    ) {
        let areas: Vec<_> = areas
            .iter()
            .map(|page| Area { offset: page * PAGE_BYTES, bytes: PAGE_BYTES })
            .collect();
        let hole = Area { offset: hole.0, bytes: hole.1 };
        let left = without_pages(&areas, hole);
        for page in 0..32 {
            let offset = page * PAGE_BYTES;
            let is_in = |list: &[Area]| list.iter().any(|area| {
                area.offset <= offset && offset < area.offset + area.bytes
            });
            let is_hole = hole.bytes > 0
                && hole.offset < offset + PAGE_BYTES
                && offset < hole.offset + hole.bytes;
            prop_assert!(!is_hole || !is_in(&left));
            let first = hole.offset / PAGE_BYTES;
            if !is_hole && page != first {
                prop_assert_eq!(is_in(&left), is_in(&areas));
            }
        }
    }
}
