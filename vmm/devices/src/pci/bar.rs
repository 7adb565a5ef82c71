//! Base address registers: what a function asks for, where the machine puts it and what a guest
//! reads while it sizes one.

/// Which addresses a BAR may have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BarKind {
    /// Below 4 GiB, one register.
    Memory32,
    /// Anywhere, two registers.
    Memory64,
}

/// One BAR of a function, not prefetchable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BarRequest {
    /// Its (first) register, 0 to 5.
    pub index: u8,
    /// Its length in bytes: a power of two, 4 KiB at least so that no two BARs share a page.
    pub bytes: u64,
    /// Which addresses it may have.
    pub kind: BarKind,
}
