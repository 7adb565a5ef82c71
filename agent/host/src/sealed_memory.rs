//! Memory files that nobody can change: made once, handed to other processes, on no disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// What a host takes memory in, in bytes.
const PAGE: usize = 4096;

/// A memory file with this content, open for reading alone. Runs of zeroes take no memory.
///
/// # Errors
/// If there is no memory file, or none can be opened again.
pub fn sealed(name: &str, bytes: &[u8]) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create(name, flags)?);
    file.set_len(u64::try_from(bytes.len()).unwrap_or(u64::MAX))?;
    write_sparse(&file, bytes)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().read(true).open(path)
}

fn write_sparse(file: &File, bytes: &[u8]) -> io::Result<()> {
    let mut offset = 0_u64;
    for page in bytes.chunks(PAGE) {
        if page.iter().any(|byte| *byte != 0) {
            file.write_all_at(page, offset)?;
        }
        offset = offset.saturating_add(u64::try_from(page.len()).unwrap_or(u64::MAX));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn sealed_memory_can_be_read_and_not_changed_even_when_opened_again() {
        let file = sealed("test", b"facts").unwrap();
        let mut bytes = [0; 5];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"facts");
        file.write_all_at(b"x", 0).unwrap_err();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let again = OpenOptions::new().write(true).open(path).unwrap();
        again.write_all_at(b"x", 0).unwrap_err();
        again.set_len(100).unwrap_err();
    }

    #[test]
    fn zeroes_take_no_memory() {
        let mut bytes = vec![0; 1024 * 1024];
        bytes[700_000] = 1;
        let file = sealed("test", &bytes).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1024 * 1024);
        assert!(file.metadata().unwrap().blocks() * 512 <= 64 * 1024);
        let mut read = vec![1; 1024 * 1024];
        file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(read, bytes);
    }
}
