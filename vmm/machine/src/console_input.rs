//! Input of a virtio console from a pipe, a terminal or a socket.
//!
//! Owns the descriptor, which is made not to block. How much is read, and when, is the device's to
//! say.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_vmm_devices::virtio::console::backend::ConsoleInput;
use berth_vmm_sys::vectored_io;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vm_memory::VolatileSlice;

/// A stream that somebody else writes to.
#[derive(Debug)]
pub struct StreamInput(OwnedFd);

impl StreamInput {
    /// Input from `descriptor`.
    ///
    /// # Errors
    /// If it cannot be made not to block.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        let flags = fcntl_getfl(&descriptor)?;
        fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK)?;
        Ok(Self(descriptor))
    }
}

impl ConsoleInput for StreamInput {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn read(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        vectored_io::read_some(self.0.as_fd(), buffers)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn input_is_taken_as_far_as_there_is_room_and_never_waited_for() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut input = StreamInput::new(reader.into()).unwrap();
        let mut bytes = [0; 4];
        let mut read = || input.read(&[VolatileSlice::from(&mut bytes[..])]);
        assert_eq!(read().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        writer.write_all(b"hello").unwrap();
        assert_eq!(read().unwrap(), 4);
        assert_eq!(read().unwrap(), 1);
        drop(writer);
        assert_eq!(read().unwrap(), 0);
    }
}
