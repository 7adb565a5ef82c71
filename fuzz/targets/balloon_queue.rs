//! The balloon over a queue in arbitrary guest memory: only RAM goes to the host, in whole pages.
#![no_main]

use std::io;
use std::ops::Range;

use berth_fuzz::input::Input;
use berth_fuzz::queue::serve_queue;
use berth_vmm_devices::memory::Memory;
use berth_vmm_devices::virtio::balloon::{
    Balloon, BalloonOptions, HostPages, MAX_REPORT_BYTES, PAGE_BYTES,
};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

/// A host that empties the pages.
struct Host;

impl HostPages for Host {
    fn discard(&self, memory: &Memory, range: Range<u64>) -> io::Result<()> {
        let bytes = range.end - range.start;
        assert!(bytes > 0 && bytes <= MAX_REPORT_BYTES);
        assert!(range.start % PAGE_BYTES == 0 && bytes % PAGE_BYTES == 0);
        let zeroes = vec![0; usize::try_from(bytes).expect("RAM is small")];
        memory
            .write_slice(&zeroes, GuestAddress(range.start))
            .expect("only RAM is discarded");
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let options = input.byte();
    let balloon = Balloon::new(
        BalloonOptions {
            deflate_on_oom: options & 1 != 0,
            free_page_reporting: true,
        },
        Box::new(Host),
    );
    let queue = u16::from(options >> 1) % 5;
    serve_queue(Box::new(balloon), queue, &mut input, || {});
});
