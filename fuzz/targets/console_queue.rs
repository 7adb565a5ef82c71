//! The virtio console over a queue in arbitrary guest memory, with a sender that has more than the
//! guest has room for.
#![no_main]

use std::io::{self, Stdin, Write};
use std::os::fd::{AsFd, BorrowedFd};

use berth_fuzz::input::Input;
use berth_fuzz::queue::serve_queue;
use berth_vmm_devices::virtio::console::backend::ConsoleInput;
use berth_vmm_devices::virtio::console::{MAX_OUTPUT_BYTES, QUEUE_SIZE, VirtioConsole};
use libfuzzer_sys::fuzz_target;
use vm_memory::VolatileSlice;

/// Takes a bounded number of bytes in a run: a call of the device takes a ring of chains at most.
struct Screen(u64);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 -= u64::try_from(bytes.len()).expect("memory is small");
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends `self.1` bytes at once for ever; nothing if that is 0. Its descriptor is never used.
struct Keys(Stdin, u8);

impl ConsoleInput for Keys {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
    fn read(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let most: usize = buffers.iter().map(VolatileSlice::len).sum();
        assert!(most > 0, "a call for nothing");
        match self.1 {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            255 => Err(io::ErrorKind::ConnectionReset.into()),
            some => Ok(most.min(usize::from(some))),
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let queue = u16::from(input.byte() % 2);
    let keys = Keys(io::stdin(), input.byte());
    // Four calls of the device.
    let screen = Screen(4 * u64::from(MAX_OUTPUT_BYTES) * u64::from(QUEUE_SIZE));
    let device = VirtioConsole::new(Box::new(screen), Some(Box::new(keys)));
    serve_queue(Box::new(device), queue, &mut input, || {});
});
