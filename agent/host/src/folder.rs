//! A folder held open: files in it are named relative to it, no link is followed, and what is said
//! to be durable is.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;

/// An open folder.
#[derive(Debug)]
pub(crate) struct Folder {
    fd: OwnedFd,
}

impl Folder {
    /// Open a folder that is there.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::open_at(CWD, path)
    }

    /// Open a folder, made with mode 0700 where it is missing.
    pub(crate) fn ensure(path: &Path) -> io::Result<Self> {
        match mkdirat(CWD, path, Mode::RWXU) {
            Ok(()) => {
                if let Some(parent) = path.parent() {
                    Self::open(parent)?.sync()?;
                }
            }
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        Self::open(path)
    }

    fn open_at(at: impl std::os::fd::AsFd, path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self {
            fd: openat(at, path, flags, Mode::empty())?,
        })
    }

    fn open_file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(openat(
            &self.fd,
            name,
            flags,
            Mode::RUSR | Mode::WUSR,
        )?))
    }

    /// Open a file for reading.
    pub(crate) fn read_only(&self, name: &str) -> io::Result<File> {
        self.open_file(name, OFlags::RDONLY)
    }

    /// Open a file for reading and writing.
    pub(crate) fn read_write(&self, name: &str) -> io::Result<File> {
        self.open_file(name, OFlags::RDWR)
    }

    /// Open a file for reading and writing, made with mode 0600 where it is missing.
    pub(crate) fn read_write_or_create(&self, name: &str) -> io::Result<File> {
        self.open_file(name, OFlags::RDWR | OFlags::CREATE)
    }

    /// A new file with mode 0600 in the place of whatever had that name.
    pub(crate) fn create(&self, name: &str) -> io::Result<File> {
        self.remove(name)?;
        self.open_file(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
    }

    /// Whether something has that name.
    pub(crate) fn has(&self, name: &str) -> io::Result<bool> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Ensure that nothing has that name.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Give a file its final name, atomically; the file and the name are on the disk when this
    /// returns.
    pub(crate) fn publish(&self, file: &File, from: &str, to: &str) -> io::Result<()> {
        file.sync_all()?;
        renameat(&self.fd, from, &self.fd, to)?;
        self.sync()
    }

    /// Give a file another name; the name is on the disk when this returns.
    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        renameat(&self.fd, from, &self.fd, to)?;
        self.sync()
    }

    /// Replace a small file as a whole.
    pub(crate) fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let temporary = format!("{name}.new");
        let mut file = self.create(&temporary)?;
        file.write_all(content)?;
        self.publish(&file, &temporary, name)
    }

    /// Read a small file, `limit` bytes at the most; `None` where there is none.
    pub(crate) fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match self.read_only(name) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut content = Vec::new();
        file.take(limit).read_to_end(&mut content)?;
        Ok(Some(content))
    }

    /// Put the folder's names on the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.fd)?)
    }
}
