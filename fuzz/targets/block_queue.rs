//! The block device over a queue and requests in arbitrary guest memory.
//!
//! Requests complete at once, or late and in the order that the input says.
//!
//! Holds: a read-only disk stays as it is, nothing passes the disk's end, and without a negotiated
//! cache every write is durable when the device has answered.
#![no_main]

use berth_fuzz::disk::{CheckedDisk, completion_order};
use berth_fuzz::input::Input;
use berth_fuzz::queue::serve_device;
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
    serve_device(Box::new(block), &mut input, || {
        assert!(!read_only || view.content() == before);
        let is_settled = !view.is_dirty() || view.is_busy();
        assert!(has_cache || is_settled, "a write is not durable");
    });
});
