//! The files of each VM: `vms/<bare id>/{record.json,disk.raw,console.0,console.1}`.
//!
//! Owns their layout, their durability and their removal. Every call can be repeated: an unfinished
//! disk has another name until it is whole and on the disk, and a record is replaced as one. Calls
//! block; the daemon makes them where that is harmless. What a record means is `berth-agent-core`'s.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use berth_agent_core::console::SEGMENT_BYTES;
use berth_agent_core::vm_record::VmRecord;
use berth_api::ids::VmId;
use berth_api::vmm::console_segment::HEADER_BYTES;

use crate::file_copy::copy_sparse;
use crate::folder::Folder;

const RECORD: &str = "record.json";
const DISK: &str = "disk.raw";
const UNFINISHED_DISK: &str = "disk.raw.new";
const CONSOLES: [&str; 2] = ["console.0", "console.1"];
/// Everything in a VM's folder that goes when the VM goes.
const VM_FILES: [&str; 4] = [DISK, UNFINISHED_DISK, CONSOLES[0], CONSOLES[1]];
/// Longest record that is read: four results of the longest kind are far shorter.
const MAX_RECORD_BYTES: u64 = 4 * 1024 * 1024;
const MIB: u64 = 1024 * 1024;

/// What is there of a VM beside its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilePresence {
    /// The finished disk.
    pub disk: bool,
    /// Anything at all.
    pub any: bool,
}

/// A VM's files, open for its VMM.
#[derive(Debug)]
pub struct GuestFiles {
    /// The root disk, for reading and writing.
    pub disk: File,
    /// Its length in bytes.
    pub disk_bytes: u64,
    /// The two console segments, for reading and writing.
    pub consoles: [File; 2],
}

/// Why a VM's files could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum VmFilesError {
    /// The file system failed.
    #[error("could not {action} {subject}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The VM or folder.
        subject: String,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// The record is not one of this version's.
    #[error("the record of {vm_id} is not readable by this version")]
    Record {
        /// Whose.
        vm_id: VmId,
        /// Where it does not fit.
        #[source]
        cause: serde_json::Error,
    },
    /// The image does not fit the disk that was asked for.
    #[error("disk_mib is {disk_mib}, the image needs {needed_mib}")]
    DiskTooSmall {
        /// What was asked for.
        disk_mib: u64,
        /// What the image has, rounded up.
        needed_mib: u64,
    },
    /// A test told the fake to fail.
    #[error("the fake was told to fail")]
    Injected,
}

impl VmFilesError {
    /// Whether the host has no room left.
    #[must_use]
    pub fn is_out_of_room(&self) -> bool {
        matches!(
            self,
            Self::Io { cause, .. }
                if matches!(
                    cause.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                )
        )
    }
}

/// What the daemon needs of the file system for its VMs.
pub trait VmFiles: Send + Sync + 'static {
    /// All VMs that have a folder.
    fn list(&self) -> Result<Vec<VmId>, VmFilesError>;
    /// A VM's record; `None` where there is none.
    fn read_record(&self, vm_id: VmId) -> Result<Option<VmRecord>, VmFilesError>;
    /// Replace a VM's record. It is on the disk when this returns.
    fn write_record(&self, record: &VmRecord) -> Result<(), VmFilesError>;
    /// What is there beside the record.
    fn presence(&self, vm_id: VmId) -> Result<FilePresence, VmFilesError>;
    /// Ensure that the VM has a root disk: a copy of `image`, grown to `disk_mib`.
    fn ensure_disk(&self, vm_id: VmId, image: &File, disk_mib: u64) -> Result<(), VmFilesError>;
    /// Open what the VMM gets. Missing consoles are made, a missing disk is an error.
    fn open_guest(&self, vm_id: VmId) -> Result<GuestFiles, VmFilesError>;
    /// What the two console files hold; empty where they are missing.
    fn read_consoles(&self, vm_id: VmId) -> Result<[Vec<u8>; 2], VmFilesError>;
    /// Ensure that nothing but the record is left.
    fn ensure_gone(&self, vm_id: VmId) -> Result<(), VmFilesError>;
}

/// The files of this host, below one folder.
#[derive(Debug, Clone)]
pub struct LinuxVmFiles {
    root: PathBuf,
}

fn failed(action: &'static str, subject: &dyn ToString) -> impl FnOnce(io::Error) -> VmFilesError {
    let subject = subject.to_string();
    move |cause| VmFilesError::Io {
        action,
        subject,
        cause,
    }
}

impl LinuxVmFiles {
    /// The files below `root`, which is made where it is missing.
    pub fn new(root: PathBuf) -> Result<Self, VmFilesError> {
        Folder::ensure(&root).map_err(failed("open", &root.display()))?;
        Ok(Self { root })
    }

    fn folder(&self, vm_id: VmId) -> io::Result<Folder> {
        Folder::ensure(&self.root.join(vm_id.bare()))
    }

    fn existing_folder(&self, vm_id: VmId) -> io::Result<Option<Folder>> {
        match Folder::open(&self.root.join(vm_id.bare())) {
            Ok(folder) => Ok(Some(folder)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn copy_disk(&self, vm_id: VmId, image: &File, disk_bytes: u64) -> io::Result<()> {
        let folder = self.folder(vm_id)?;
        if folder.has(DISK)? {
            return Ok(());
        }
        let disk = folder.create(UNFINISHED_DISK)?;
        let copied = copy_sparse(image, &disk).and_then(|_| disk.set_len(disk_bytes));
        if copied.is_err() {
            // What was copied so far may be what filled the disk.
            folder.remove(UNFINISHED_DISK)?;
        }
        copied?;
        folder.publish(&disk, UNFINISHED_DISK, DISK)
    }
}

impl VmFiles for LinuxVmFiles {
    fn list(&self) -> Result<Vec<VmId>, VmFilesError> {
        let listed = || -> io::Result<Vec<VmId>> {
            let mut all = Vec::new();
            for entry in std::fs::read_dir(&self.root)? {
                let name = entry?.file_name();
                let id = format!("{}_{}", VmId::PREFIX, name.to_string_lossy());
                all.extend(id.parse::<VmId>());
            }
            Ok(all)
        };
        listed().map_err(failed("list", &self.root.display()))
    }

    fn read_record(&self, vm_id: VmId) -> Result<Option<VmRecord>, VmFilesError> {
        let read = || match self.existing_folder(vm_id)? {
            Some(folder) => folder.read(RECORD, MAX_RECORD_BYTES),
            None => Ok(None),
        };
        let Some(content) = read().map_err(failed("read the record of", &vm_id))? else {
            return Ok(None);
        };
        serde_json::from_slice(&content)
            .map(Some)
            .map_err(|cause| VmFilesError::Record { vm_id, cause })
    }

    fn write_record(&self, record: &VmRecord) -> Result<(), VmFilesError> {
        let vm_id = record.vm_id;
        let content =
            serde_json::to_vec(record).map_err(|cause| VmFilesError::Record { vm_id, cause })?;
        self.folder(vm_id)
            .and_then(|folder| folder.replace(RECORD, &content))
            .map_err(failed("write the record of", &vm_id))
    }

    fn presence(&self, vm_id: VmId) -> Result<FilePresence, VmFilesError> {
        let look = || {
            let Some(folder) = self.existing_folder(vm_id)? else {
                return Ok(FilePresence {
                    disk: false,
                    any: false,
                });
            };
            let mut any = false;
            for name in VM_FILES {
                any |= folder.has(name)?;
            }
            Ok(FilePresence {
                disk: folder.has(DISK)?,
                any,
            })
        };
        look().map_err(failed("look at the files of", &vm_id))
    }

    fn ensure_disk(&self, vm_id: VmId, image: &File, disk_mib: u64) -> Result<(), VmFilesError> {
        let image_bytes = image
            .metadata()
            .map_err(failed("read the image for", &vm_id))?
            .len();
        let disk_bytes = disk_mib.saturating_mul(MIB);
        if image_bytes > disk_bytes {
            return Err(VmFilesError::DiskTooSmall {
                disk_mib,
                needed_mib: image_bytes.div_ceil(MIB),
            });
        }
        self.copy_disk(vm_id, image, disk_bytes)
            .map_err(failed("make the disk of", &vm_id))
    }

    fn open_guest(&self, vm_id: VmId) -> Result<GuestFiles, VmFilesError> {
        let open = || {
            let folder = self.folder(vm_id)?;
            let disk = folder.read_write(DISK)?;
            let disk_bytes = disk.metadata()?.len();
            let [first, second] = CONSOLES;
            let consoles = [
                folder.read_write_or_create(first)?,
                folder.read_write_or_create(second)?,
            ];
            Ok(GuestFiles {
                disk,
                disk_bytes,
                consoles,
            })
        };
        open().map_err(failed("open the files of", &vm_id))
    }

    fn read_consoles(&self, vm_id: VmId) -> Result<[Vec<u8>; 2], VmFilesError> {
        // A VMM gone wrong can make its files longer; no more than a segment is ever read.
        let limit = HEADER_BYTES + SEGMENT_BYTES;
        let read = || {
            let Some(folder) = self.existing_folder(vm_id)? else {
                return Ok([Vec::new(), Vec::new()]);
            };
            let [first, second] = CONSOLES;
            Ok([
                folder.read(first, limit)?.unwrap_or_default(),
                folder.read(second, limit)?.unwrap_or_default(),
            ])
        };
        read().map_err(failed("read the console of", &vm_id))
    }

    fn ensure_gone(&self, vm_id: VmId) -> Result<(), VmFilesError> {
        let remove = || {
            let Some(folder) = self.existing_folder(vm_id)? else {
                return Ok(());
            };
            for name in VM_FILES {
                folder.remove(name)?;
            }
            folder.sync()
        };
        remove().map_err(failed("remove the files of", &vm_id))
    }
}

#[cfg(test)]
mod tests;
