//! Where the BARs of passed-through functions go, as a pure function of their sizes.
//!
//! Owns the placing: every BAR at a multiple of its size, larger ones first, within one range that
//! the host's IOMMU and the guest's processor can address. For sizes that are powers of two this
//! order finds a placing whenever there is one. Which ranges are allowed is the machine's to say.

use std::ops::Range;

use crate::pci::bar::BarKind;

/// Granularity of placing: no two BARs share a page.
const PAGE_BYTES: u64 = 4096;

/// One BAR that wants an address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct WantedBar {
    /// Position of its function among the passed-through ones.
    pub function: usize,
    /// Its first register.
    pub bar: u8,
    /// Its length: a power of two.
    pub bytes: u64,
    /// Which addresses it can have.
    pub kind: BarKind,
}

/// One BAR with an address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PlacedBar {
    /// Position of its function among the passed-through ones.
    pub function: usize,
    /// Its first register.
    pub bar: u8,
    /// Guest physical address of its first byte.
    pub address: u64,
    /// Which of the plan's windows it is in.
    pub kind: BarKind,
}

/// Where BARs may be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AllowedRanges {
    /// For [`BarKind::Memory32`], below 4 GiB.
    pub low: Range<u64>,
    /// For [`BarKind::Memory64`], ascending; the first one with room is used.
    pub high: Vec<Range<u64>>,
}

/// All BARs with their addresses.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BarPlan {
    /// The BARs in the order in which they were placed.
    pub bars: Vec<PlacedBar>,
    /// From the first 32-bit BAR to the end of the last, in whole pages; empty without any.
    pub low: Range<u64>,
    /// The same for the 64-bit ones: the window that the guest is told of.
    pub high: Range<u64>,
}

/// Why there is no place for a BAR.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlaceBarsError {
    /// A length that is no power of two.
    #[error("BAR {bar} of device {function} has {bytes:#x} bytes, which is no power of two")]
    BadSize {
        /// Position of the function.
        function: usize,
        /// The BAR.
        bar: u8,
        /// Its length.
        bytes: u64,
    },
    /// 32-bit BARs do not fit below 4 GiB.
    #[error(
        "the 32-bit BARs need {needed:#x} bytes in whole and there is no place for BAR {bar} of \
         device {function} below 4 GiB"
    )]
    LowFull {
        /// Position of the function whose BAR does not fit.
        function: usize,
        /// The BAR.
        bar: u8,
        /// Bytes that all of them need.
        needed: u64,
    },
    /// 64-bit BARs fit in no range.
    #[error(
        "the 64-bit BARs need {needed:#x} bytes and the longest range that the guest's processor \
         and the host's IOMMU leave for them has {longest:#x}"
    )]
    HighFull {
        /// Position of the function whose BAR does not fit the last range.
        function: usize,
        /// The BAR.
        bar: u8,
        /// Bytes that all of them need.
        needed: u64,
        /// Length of the longest range.
        longest: u64,
    },
}

impl PlaceBarsError {
    /// Position of the function that is at fault.
    #[must_use]
    pub fn function(&self) -> usize {
        match *self {
            Self::BadSize { function, .. }
            | Self::LowFull { function, .. }
            | Self::HighFull { function, .. } => function,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::BadSize { .. } => "take the device out: it misstates its BARs",
            Self::LowFull { .. } => "pass fewer devices with 32-bit BARs to one guest",
            Self::HighFull { .. } => {
                "give the guest less memory or fewer devices, or use a host whose IOMMU has wider \
                 addresses"
            }
        }
    }
}

/// Gives every BAR an address in `allowed`.
///
/// # Errors
/// If a BAR is malformed or a kind of BARs does not fit.
pub fn place_bars(
    wanted: &[WantedBar],
    allowed: &AllowedRanges,
) -> Result<BarPlan, PlaceBarsError> {
    if let Some(bad) = wanted.iter().find(|bar| !bar.bytes.is_power_of_two()) {
        return Err(PlaceBarsError::BadSize {
            function: bad.function,
            bar: bad.bar,
            bytes: bad.bytes,
        });
    }
    let low = largest_first(wanted, BarKind::Memory32);
    let high = largest_first(wanted, BarKind::Memory64);
    let below_4_gib = allowed.low.start..allowed.low.end.min(1 << 32);
    let mut bars = pack(&low, below_4_gib).map_err(|bar| PlaceBarsError::LowFull {
        function: bar.function,
        bar: bar.bar,
        needed: sum(&low),
    })?;
    let low_window = hull(&bars, &low);
    let placed_high = place_high(&high, &allowed.high)?;
    let high_window = hull(&placed_high, &high);
    bars.extend(placed_high);
    Ok(BarPlan {
        bars,
        low: low_window,
        high: high_window,
    })
}

/// The ranges at or above `start` that both the guest's processor, with `address_bits` bits, and
/// `iova` can address, ascending. `None` stands for an IOMMU that need not reach BARs: there is no
/// peer-to-peer traffic.
#[must_use]
pub fn ranges_above(start: u64, address_bits: u32, iova: Option<&[Range<u64>]>) -> Vec<Range<u64>> {
    let end = 1_u64.checked_shl(address_bits).unwrap_or(u64::MAX);
    let everything = 0..u64::MAX;
    let mut ranges: Vec<_> = iova
        .unwrap_or(std::slice::from_ref(&everything))
        .iter()
        .map(|range| range.start.max(start)..range.end.min(end))
        .filter(|range| !range.is_empty())
        .collect();
    ranges.sort_by_key(|range| range.start);
    ranges
}

/// The first of `ranges` that is not wholly inside one of `allowed`: guest memory that the host's
/// IOMMU could not map at its own address.
#[must_use]
pub fn first_outside(ranges: &[Range<u64>], allowed: &[Range<u64>]) -> Option<Range<u64>> {
    let is_inside = |range: &Range<u64>| {
        allowed
            .iter()
            .any(|outer| outer.start <= range.start && range.end <= outer.end)
    };
    ranges
        .iter()
        .find(|range| !range.is_empty() && !is_inside(range))
        .cloned()
}

/// Bytes of address space that a BAR takes.
fn space(bar: &WantedBar) -> u64 {
    bar.bytes.max(PAGE_BYTES)
}

fn sum(bars: &[WantedBar]) -> u64 {
    bars.iter()
        .fold(0, |sum: u64, bar| sum.saturating_add(space(bar)))
}

fn largest_first(wanted: &[WantedBar], kind: BarKind) -> Vec<WantedBar> {
    let mut bars: Vec<_> = wanted
        .iter()
        .copied()
        .filter(|bar| bar.kind == kind)
        .collect();
    bars.sort_by_key(|bar| (std::cmp::Reverse(bar.bytes), bar.function, bar.bar));
    bars
}

fn place_high(bars: &[WantedBar], ranges: &[Range<u64>]) -> Result<Vec<PlacedBar>, PlaceBarsError> {
    let Some(first) = bars.first() else {
        return Ok(Vec::new());
    };
    let mut without_place = *first;
    for range in ranges {
        match pack(bars, range.clone()) {
            Ok(placed) => return Ok(placed),
            Err(bar) => without_place = bar,
        }
    }
    let lengths = ranges
        .iter()
        .map(|range| range.end.saturating_sub(range.start));
    Err(PlaceBarsError::HighFull {
        function: without_place.function,
        bar: without_place.bar,
        needed: sum(bars),
        longest: lengths.max().unwrap_or(0),
    })
}

/// Places `bars`, which are in descending order, in `range`, each at the lowest free multiple of
/// its size. Fails with the first one that has no place.
fn pack(bars: &[WantedBar], range: Range<u64>) -> Result<Vec<PlacedBar>, WantedBar> {
    let mut free = vec![range];
    let mut placed = Vec::with_capacity(bars.len());
    for bar in bars {
        let address = take(&mut free, space(bar)).ok_or(*bar)?;
        placed.push(PlacedBar {
            function: bar.function,
            bar: bar.bar,
            address,
            kind: bar.kind,
        });
    }
    Ok(placed)
}

/// Takes the lowest multiple of `bytes` that has `bytes` free bytes.
fn take(free: &mut Vec<Range<u64>>, bytes: u64) -> Option<u64> {
    let (position, base, end) = free.iter().enumerate().find_map(|(position, range)| {
        let base = range.start.checked_next_multiple_of(bytes)?;
        let end = base.checked_add(bytes)?;
        (end <= range.end).then_some((position, base, end))
    })?;
    let range = free.get(position)?.clone();
    let rest = [range.start..base, end..range.end];
    let rest = rest.into_iter().filter(|range| !range.is_empty());
    free.splice(position..=position, rest);
    Some(base)
}

/// From the start of the first BAR to the end of the last.
fn hull(placed: &[PlacedBar], bars: &[WantedBar]) -> Range<u64> {
    let ends = placed
        .iter()
        .zip(bars)
        .map(|(placed, bar)| placed.address.saturating_add(space(bar)));
    match (placed.iter().map(|bar| bar.address).min(), ends.max()) {
        (Some(start), Some(end)) => start..end,
        _ => 0..0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn bar(function: usize, index: u8, bytes: u64, kind: BarKind) -> WantedBar {
        WantedBar {
            function,
            bar: index,
            bytes,
            kind,
        }
    }

    fn allowed(high: &[Range<u64>]) -> AllowedRanges {
        AllowedRanges {
            low: 0xd000_0000..0xe000_0000,
            high: high.to_vec(),
        }
    }

    fn addresses(plan: &BarPlan) -> Vec<(usize, u8, u64)> {
        plan.bars
            .iter()
            .map(|placed| (placed.function, placed.bar, placed.address))
            .collect()
    }

    #[test]
    fn a_gpu_and_a_drive_lie_above_ram_within_39_bits() {
        let wanted = [
            bar(0, 0, 16 << 20, BarKind::Memory32),
            bar(0, 1, 128 * GIB, BarKind::Memory64),
            bar(0, 3, 32 << 20, BarKind::Memory64),
            bar(1, 0, 16 << 10, BarKind::Memory64),
        ];
        let ranges = ranges_above(9 * GIB, 39, Some(&[0..0xfee0_0000, 0xfef0_0000..1 << 39]));
        let plan = place_bars(&wanted, &allowed(&ranges)).unwrap();
        assert_eq!(
            addresses(&plan),
            [
                (0, 0, 0xd000_0000),
                (0, 1, 128 * GIB),
                (0, 3, 9 * GIB),
                (1, 0, 9 * GIB + (32 << 20)),
            ]
        );
        assert_eq!(plan.low, 0xd000_0000..0xd100_0000);
        assert_eq!(plan.high, 9 * GIB..256 * GIB);
    }

    #[test]
    fn a_hole_in_the_ranges_of_the_iommu_is_left_alone() {
        let hole = [0..20 * GIB, 24 * GIB..64 * GIB];
        let ranges = ranges_above(16 * GIB, 46, Some(&hole));
        assert_eq!(ranges, [16 * GIB..20 * GIB, 24 * GIB..64 * GIB]);
        let wanted = [bar(0, 0, 8 * GIB, BarKind::Memory64)];
        let plan = place_bars(&wanted, &allowed(&ranges)).unwrap();
        assert_eq!(plan.high, 24 * GIB..32 * GIB);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_it_needs() {
        let wanted = [
            bar(0, 0, 256 * GIB, BarKind::Memory64),
            bar(2, 2, 256 * GIB, BarKind::Memory64),
        ];
        let ranges = ranges_above(5 * GIB, 39, None);
        let error = place_bars(&wanted, &allowed(&ranges)).unwrap_err();
        let expected = PlaceBarsError::HighFull {
            function: 2,
            bar: 2,
            needed: 512 * GIB,
            longest: 507 * GIB,
        };
        assert_eq!(error, expected);
        assert_eq!(error.function(), 2);
        let wanted = [bar(1, 4, 512 << 20, BarKind::Memory32)];
        let error = place_bars(&wanted, &allowed(&[])).unwrap_err();
        assert!(matches!(
            error,
            PlaceBarsError::LowFull {
                function: 1,
                bar: 4,
                ..
            }
        ));
    }

    #[test]
    fn sizes_that_overflow_every_sum_are_refused_and_do_not_panic() {
        let huge = bar(0, 0, 1 << 63, BarKind::Memory64);
        let (everything, end) = (0..u64::MAX, u64::MAX - 5..u64::MAX);
        let lists = [
            &[],
            std::slice::from_ref(&everything),
            std::slice::from_ref(&end),
        ];
        for ranges in lists {
            let error = place_bars(&[huge; 3], &allowed(ranges)).unwrap_err();
            assert!(matches!(
                error,
                PlaceBarsError::HighFull {
                    needed: u64::MAX,
                    ..
                }
            ));
        }
        let odd = bar(3, 1, 0x3000, BarKind::Memory64);
        let error = place_bars(&[odd], &allowed(&[])).unwrap_err();
        assert!(matches!(error, PlaceBarsError::BadSize { function: 3, .. }));
        assert_eq!(ranges_above(0, 64, None).first(), Some(&everything));
        assert_eq!(ranges_above(u64::MAX, 39, None), []);
    }

    #[test]
    fn small_bars_get_a_page_each() {
        let wanted = [
            bar(0, 0, 16, BarKind::Memory32),
            bar(0, 1, 256, BarKind::Memory32),
        ];
        let plan = place_bars(&wanted, &allowed(&[])).unwrap();
        assert_eq!(addresses(&plan), [(0, 1, 0xd000_0000), (0, 0, 0xd000_1000)]);
    }

    #[test]
    fn memory_outside_the_ranges_of_the_iommu_is_found() {
        let iova = [0..0xfee0_0000, 0xfef0_0000..1 << 39];
        assert_eq!(
            first_outside(&[0..3 * GIB, 4 * GIB..9 * GIB, 0..0], &iova),
            None
        );
        let beyond = [0..3 * GIB, 4 * GIB..(1 << 39) + 4096];
        assert_eq!(first_outside(&beyond, &iova), Some(beyond[1].clone()));
    }

    /// All ways to fill up to four BARs of 1, 2, 4 or 8 pages into every range of up to 16 pages
    /// that starts on any page below 8: placed if and only if counting says that it is possible.
    #[test]
    fn exhaustive_placing_succeeds_exactly_when_it_is_possible() {
        for sizes in size_lists() {
            let wanted: Vec<_> = (0..)
                .zip(&sizes)
                .map(|(function, pages)| bar(function, 0, pages * PAGE_BYTES, BarKind::Memory64))
                .collect();
            for start in 0..8 {
                for pages in 0..16 {
                    let range = start * PAGE_BYTES..(start + pages) * PAGE_BYTES;
                    check_plan(&wanted, &sizes, &range);
                }
            }
        }
    }

    fn size_lists() -> Vec<Vec<u64>> {
        let mut lists = vec![vec![]];
        let mut grown = 0;
        while grown < lists.len() {
            if lists[grown].len() < 4 {
                for pages in [1, 2, 4, 8] {
                    let mut list = lists[grown].clone();
                    list.push(pages);
                    lists.push(list);
                }
            }
            grown += 1;
        }
        lists
    }

    /// A packing exists if for every size there are enough aligned slots of that size for all BARs
    /// of at least that size, which take whole slots.
    fn can_be_packed(sizes: &[u64], range: &Range<u64>) -> bool {
        [1, 2, 4, 8].into_iter().all(|slot: u64| {
            let bytes = slot * PAGE_BYTES;
            let first = range.start.next_multiple_of(bytes);
            let slots = range.end.saturating_sub(first) / bytes;
            let larger = sizes.iter().filter(|&&pages| pages >= slot);
            larger.map(|pages| pages / slot).sum::<u64>() <= slots
        })
    }

    #[track_caller]
    fn check_plan(wanted: &[WantedBar], sizes: &[u64], range: &Range<u64>) {
        let result = place_bars(wanted, &allowed(std::slice::from_ref(range)));
        let Ok(plan) = result else {
            assert!(!can_be_packed(sizes, range), "{sizes:?} in {range:x?}");
            return;
        };
        assert!(can_be_packed(sizes, range), "{sizes:?} in {range:x?}");
        let mut spans: Vec<_> = plan
            .bars
            .iter()
            .map(|placed| (placed.address, sizes[placed.function] * PAGE_BYTES))
            .collect();
        spans.sort_unstable();
        assert_eq!(spans.len(), sizes.len());
        assert!(
            spans
                .windows(2)
                .all(|pair| pair[0].0 + pair[0].1 <= pair[1].0)
        );
        for (address, bytes) in spans {
            assert!(address.is_multiple_of(bytes), "{sizes:?} in {range:x?}");
            assert!(range.start <= address && address + bytes <= range.end);
        }
    }
}
