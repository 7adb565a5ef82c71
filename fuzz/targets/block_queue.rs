//! The block device over a queue and requests in arbitrary guest memory.
//!
//! Holds: a read-only disk stays as it is, nothing passes the disk's end, and without a negotiated
//! cache every write is durable when the device has answered.
#![no_main]

use berth_fuzz::disk::CheckedDisk;
use berth_fuzz::input::Input;
use berth_fuzz::queue::serve_device;
use berth_vmm_devices::virtio::block::{Block, BlockOptions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let options = input.byte();
    let read_only = options & 1 != 0;
    let (disk, view) = CheckedDisk::new(read_only);
    let block = Block::new(
        Box::new(disk),
        BlockOptions {
            read_only,
            serial: "0123456789abcdefghij".to_owned(),
        },
    );
    let before = view.content();
    let has_cache = bytes.get(1).is_some_and(|features| features & 2 != 0);
    serve_device(Box::new(block), &mut input, || {
        assert!(!read_only || view.content() == before);
        assert!(has_cache || !view.is_dirty(), "a write is not durable");
    });
});
