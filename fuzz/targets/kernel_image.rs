//! Kernel images, PVH ELF and bzImage: parsing, and loading what was accepted with an initial RAM
//! disk and a command line.
//!
//! Holds: what is accepted is entered inside of its own memory, and loading it reaches no memory
//! that the guest does not have.
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek as _, Write as _};

use berth_api::vmm::MemoryBacking;
use berth_vmm_devices::memory::Memory;
use berth_vmm_machine::boot::{BootInput, KernelImage, load};
use berth_vmm_machine::layout::RamLayout;
use berth_vmm_machine::memory::map;
use libfuzzer_sys::fuzz_target;

const MEMORY_BYTES: u64 = 48 << 20;

thread_local! {
    static STAGE: RefCell<Option<(File, Memory)>> = const { RefCell::new(None) };
}

fuzz_target!(|bytes: &[u8]| {
    STAGE.with_borrow_mut(|stage| {
        let ram = RamLayout::new(MEMORY_BYTES);
        let (file, memory) = stage.get_or_insert_with(|| {
            let file = tempfile::tempfile().expect("there is room for a file");
            let memory = map(ram, &MemoryBacking::default());
            (file, memory.expect("memory can be mapped"))
        });
        file.set_len(0).expect("the file can be cut");
        file.rewind().expect("the file has a start");
        file.write_all(bytes).expect("there is room for an input");
        let Ok(image) = KernelImage::parse(file) else {
            return;
        };
        match &image {
            KernelImage::Pvh(image) => {
                let (place, entry) = (image.footprint(), u64::from(image.entry()));
                assert!(place.start >= 0x10_0000 && (place.start..place.end).contains(&entry));
            }
            KernelImage::BzImage(image) => {
                let place = image.footprint();
                assert!(place.start >= 0x10_0000);
                assert!((place.start..place.end).contains(&image.entry()));
                assert!(image.payload().end <= bytes.len() as u64);
            }
        }
        let input = BootInput {
            kernel: file,
            initrd: (bytes.len() % 2 == 1).then_some(&*file),
            cmdline: "console=ttyS0",
            ram,
        };
        // A refusal is an answer; more than that would be a panic or a sanitizer's report.
        drop(load(memory, &input));
    });
});
