//! The vector table as a driver programs it, and its bounds, exhausted where they are few.

use super::*;

const TABLE: Place = Place {
    bar: 1,
    area: Area {
        offset: 0x18,
        bytes: 0x30,
    },
};

/// Every table of up to 66 vectors at every 8-byte offset of, before and beyond every BAR of 16
/// bytes to 4 KiB, and at the ends of what a register can say: taken exactly if its bytes are bytes
/// of the BAR.
#[test]
fn exhaustive_tables_are_taken_exactly_if_they_lie_inside_their_bar() {
    for log2 in 4..=12 {
        let bar_bytes = 1_u64 << log2;
        for vectors in [1, 2, 3, 4, 15, 16, 17, 63, 64, 65, 66, 2048] {
            let bytes = vectors * MSIX_ENTRY_BYTES;
            let near = (0..0x1100).step_by(8);
            for offset in near.chain([0x7fff_fff8, 0xffff_fff0, 0xffff_fff8]) {
                let register = offset | 1;
                let taken = Place::new("table", register, bytes, |bar| {
                    (bar == 1).then_some(bar_bytes)
                });
                let last = u64::from(offset) + bytes - 1;
                assert_eq!(taken.is_ok(), last < bar_bytes, "{offset:#x} {bytes:#x}");
                if let Ok(place) = taken {
                    let area = Area {
                        offset: offset.into(),
                        bytes,
                    };
                    assert_eq!(place, Place { bar: 1, area });
                }
            }
        }
    }
}

/// Every access of every width around a structure: it touches it exactly if they share a byte.
#[test]
fn exhaustive_accesses_touch_a_structure_exactly_if_they_share_a_byte() {
    for bar in 0..8 {
        for offset in (0..0x80_u64).chain([u64::MAX - 8, u64::MAX]) {
            for width in [1, 2, 4, 8] {
                let shares = |byte: u64| {
                    let end = TABLE.area.offset + TABLE.area.bytes;
                    bar == 1 && (TABLE.area.offset..end).contains(&byte)
                };
                let expected = (0..width).any(|byte| offset.checked_add(byte).is_some_and(shares));
                assert_eq!(
                    TABLE.is_touched(bar, offset, width),
                    expected,
                    "{offset:#x} {width}"
                );
            }
        }
    }
}

#[test]
fn every_bar_that_is_not_there_is_named() {
    for bar in 0..8 {
        let error = Place::new("pending bits", u32::from(bar), 8, |_| None).unwrap_err();
        let what = "pending bits";
        assert_eq!(error, ReadMsixError::NoBar { what, bar });
    }
}
