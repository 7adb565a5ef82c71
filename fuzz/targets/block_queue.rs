//! The block device over a queue and requests in arbitrary guest memory.
//!
//! Requests complete at once, or late and in the order that the input says.
//!
//! Bits 2 to 4 of the options say before which call the medium is taken out; 0 for never.
//!
//! Holds: a read-only disk stays as it is, nothing passes the disk's end, without a negotiated
//! cache every write is durable when the device has answered, and a medium that was taken out is let
//! go as soon as nothing of it is in progress.
#![no_main]

use std::cell::Cell;

use berth_fuzz::disk::{CheckedDisk, completion_order};
use berth_fuzz::input::Input;
use berth_fuzz::queue::{CALLS, serve_medium};
use berth_vmm_devices::virtio::block::{Block, BlockOptions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let options = input.byte();
    let read_only = options & 1 != 0;
    let order = completion_order(options, &mut input);
    let (disk, view) = CheckedDisk::new(read_only, order);
    let has_cache = input.clone().byte() & 2 != 0;
    let block = Block::new(
        Box::new(disk),
        BlockOptions {
            read_only,
            serial: "0123456789abcdefghij".to_owned(),
            queues: 1,
        },
    );
    let before = view.content();
    let ejected_at = usize::from(options >> 2 & 7).checked_sub(1);
    let ejected_at = ejected_at.filter(|call| *call < CALLS);
    let calls = Cell::new(0);
    serve_medium(
        Box::new(block),
        ejected_at.unwrap_or(CALLS),
        &mut input,
        || {
            let is_ejected = ejected_at.is_some_and(|call| call <= calls.get());
            calls.set(calls.get() + 1);
            assert!(
                !is_ejected || view.is_busy() || !view.is_in_use(),
                "the host's side is still open"
            );
            assert!(!read_only || view.content() == before);
            let is_settled = !view.is_dirty() || view.is_busy();
            assert!(has_cache || is_settled, "a write is not durable");
        },
    );
});
