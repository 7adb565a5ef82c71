//! Where a console's input comes from. Output goes to any writer that never blocks.

use std::io;
use std::os::fd::BorrowedFd;

use vm_memory::VolatileSlice;

/// Input for the guest. Used by one thread at a time; nothing here may block.
pub trait ConsoleInput: Send {
    /// Becomes readable when there is something; always the same one.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Moves input to `buffers`; 0 if nobody can send any more.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is nothing.
    fn read(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize>;
}
