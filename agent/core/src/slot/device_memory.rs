//! Which memory of a device is overwritten when it is wiped, and which settings of a GPU nobody can
//! read without its vendor's registers.
//!
//! Pure. A BAR may as well be registers, doorbells or a window that the chip moves: writing there
//! breaks things. A chip says that reading a range has no side effect by calling it prefetchable, and
//! a GPU's window to its own memory is the longest such range that it has; doorbells and other windows
//! are shorter. So exactly one BAR is taken: the longest, unless the approval names another one, or none.

use std::collections::BTreeMap;

use crate::slot::snapshot::Bar;

/// Shortest BAR that is taken for memory, in bytes. Register files that are prefetchable by mistake are
/// a few pages long; no GPU's window to its memory is shorter than 16 MiB.
pub const MIN_MEMORY_BAR_BYTES: u64 = 1 << 20;

/// The approval's setting that names the BAR: its number, or `none`.
pub const MEMORY_BAR: &str = "memory_bar";

/// Why the approval's word cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the approval's `{MEMORY_BAR}` is `{named}`, and the device has no such prefetchable memory BAR of at least \
     1 MiB; name one that it has, or `none`"
)]
pub struct NoSuchBar {
    /// As in the approval.
    pub named: String,
}

/// The BAR to overwrite, if there is one.
///
/// # Errors
/// If `settings` name one that the device does not have.
pub fn choose_memory_bar(
    bars: &[Bar],
    settings: &BTreeMap<String, String>,
) -> Result<Option<Bar>, NoSuchBar> {
    let mut memory = bars
        .iter()
        .copied()
        .filter(|bar| bar.is_memory && bar.is_prefetchable && bar.bytes >= MIN_MEMORY_BAR_BYTES);
    match settings.get(MEMORY_BAR).map(String::as_str) {
        None => Ok(memory.max_by_key(|bar| bar.bytes)),
        Some("none") => Ok(None),
        Some(named) => match memory.find(|bar| bar.index.to_string() == named) {
            Some(bar) => Ok(Some(bar)),
            None => Err(NoSuchBar {
                named: named.to_owned(),
            }),
        },
    }
}

/// Settings of a GPU that outlive a reset and that a tenant can change. Each vendor keeps them in
/// registers of its own; as long as none is read here, a wipe says that it does not know them, and an
/// approval that names one cannot be met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GpuSetting {
    /// Whether its memory corrects errors.
    ErrorCorrection,
    /// Whether it is split into instances.
    Partitioning,
    /// Whether it is in its confidential mode.
    ConfidentialMode,
}

impl GpuSetting {
    /// All of them.
    pub const ALL: [Self; 3] = [
        Self::ErrorCorrection,
        Self::Partitioning,
        Self::ConfidentialMode,
    ];

    /// Its name in an approval's settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ErrorCorrection => "ecc",
            Self::Partitioning => "mig",
            Self::ConfidentialMode => "confidential_mode",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(index: u8, bytes: u64, is_memory: bool, is_prefetchable: bool) -> Bar {
        Bar {
            index,
            bytes,
            is_memory,
            is_prefetchable,
        }
    }

    #[track_caller]
    fn check(bars: &[Bar], named: Option<&str>, chosen: Result<Option<u8>, ()>) {
        let settings = named.map(|named| (MEMORY_BAR.to_owned(), named.to_owned()));
        let bar = choose_memory_bar(bars, &settings.into_iter().collect());
        let index = bar.map(|bar| bar.map(|bar| bar.index)).map_err(|_| ());
        assert_eq!(index, chosen);
    }

    #[test]
    fn the_longest_window_is_memory_and_nothing_else_is_written() {
        let gpu = [
            bar(0, 16 << 20, true, false),
            bar(1, 16 << 30, true, true),
            bar(3, 32 << 20, true, true),
            bar(5, 128, false, false),
        ];
        check(&gpu, None, Ok(Some(1)));
        check(&gpu, Some("3"), Ok(Some(3)));
        check(&gpu, Some("none"), Ok(None));
        for wrong in ["0", "5", "2", "", "1 ", "all"] {
            check(&gpu, Some(wrong), Err(()));
        }
    }

    #[test]
    fn registers_are_not_memory() {
        check(&[bar(4, 16 << 10, true, true)], None, Ok(None));
        check(&[bar(0, 1 << 30, true, false)], None, Ok(None));
        check(&[bar(0, 1 << 30, false, true)], None, Ok(None));
        check(&[], None, Ok(None));
        check(&[bar(4, 1 << 20, true, true)], None, Ok(Some(4)));
    }
}
