//! The walk of a function's configuration space, which a device makes up.
//!
//! Holds: the walk ends after as many reads as the space has registers for, reads only whole registers
//! inside of it, says the same twice, and doubts nothing only of a space whose public part it has read.
#![no_main]

use std::cell::Cell;

use berth_inventory::config_space::{ConfigSpace, walk};
use libfuzzer_sys::fuzz_target;

/// Registers of four bytes, and as many again for what capabilities hold.
const MOST_READS: u32 = 4 * 1024;

fn walked(bytes: &[u8]) -> ConfigSpace {
    let reads = Cell::new(0);
    walk(|at| {
        reads.set(reads.get() + 1);
        assert!(reads.get() <= MOST_READS, "the walk does not end");
        assert_eq!(at % 4, 0);
        assert!(at < 4096);
        let at = usize::from(at);
        let register = bytes.get(at..at + 4)?;
        Some(u32::from_le_bytes(register.try_into().ok()?))
    })
}

fuzz_target!(|bytes: &[u8]| {
    let space = walked(bytes);
    assert_eq!(space, walked(bytes));
    let facts = &space.facts;
    if facts.fault.is_none() && facts.answers {
        assert!(bytes.len() >= 68, "what could not be read is not in doubt");
    }
    assert!(facts.port_kind.is_none_or(|kind| kind < 16));
    assert!(facts.power_state.is_none_or(|state| state < 4));
    assert_eq!(facts.acs.is_some(), facts.acs_capable.is_some());
    assert!(facts.answers || *facts == Default::default() || facts.fault.is_some());
});
