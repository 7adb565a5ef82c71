//! Guest images: `images/<name>/{image.json,kernel,initrd,disk.raw}`.
//!
//! An image is made once, as a whole (a temporary folder that is renamed), and never changes. Its
//! digest is SHA-256 over `image.json`, which holds the digests of kernel and initrd and the disk's
//! size, so a record that names a digest names these very files.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use berth_agent_core::image_name::ImageName;
use berth_api::agent::ObservedImage;
use ring::digest::{Context, SHA256, digest};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::file_copy::copy_sparse;
use crate::folder::Folder;
use crate::kernel_check::{CheckKernelError, check_kernel};

/// The version of `image.json`'s layout.
const IMAGE_FORMAT: u32 = 1;
const MANIFEST: &str = "image.json";
const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";
const DISK: &str = "disk.raw";
/// What the name of an unfinished image begins with; no image's name can.
const UNFINISHED_PREFIX: &str = ".new-";
/// Where guests' kernels find their console and root if nothing else is said.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 root=/dev/vda rw";
/// Sector size of a disk, in bytes.
const SECTOR_BYTES: u64 = 512;
/// What a qcow2 file begins with.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";
const MIB: u64 = 1024 * 1024;
/// Longest manifest, in bytes: the command line is at most 2047.
const MAX_MANIFEST_BYTES: u64 = 64 * 1024;

/// What `image.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageManifest {
    /// Always 1.
    pub format: u32,
    /// The image's name.
    pub name: String,
    /// The kernel as guests get it.
    pub kernel: Blob,
    /// The initial RAM disk.
    pub initrd: Option<Blob>,
    /// Length of the root disk, in bytes.
    pub disk_bytes: u64,
    /// The kernel command line.
    pub cmdline: String,
}

/// A file with its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// SHA-256, lower-case hex.
    pub sha256: String,
    /// Length in bytes.
    pub bytes: u64,
}

/// What to import.
#[derive(Debug, Clone)]
pub struct ImageSource {
    /// The new image's name.
    pub name: ImageName,
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The initial RAM disk's file.
    pub initrd: Option<PathBuf>,
    /// The raw root disk's file.
    pub disk: PathBuf,
    /// The kernel command line.
    pub cmdline: String,
}

/// An image whose files are open and have the length that they should.
#[derive(Debug)]
pub struct OpenImage {
    /// What the image is.
    pub manifest: ImageManifest,
    /// The image's digest, lower-case hex.
    pub digest: String,
    /// The kernel.
    pub kernel: File,
    /// The initial RAM disk.
    pub initrd: Option<File>,
    /// The root disk.
    pub disk: File,
}

/// Why an image was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportImageError {
    /// The name is taken.
    #[error("an image named {name} exists; images never change, so choose another --name")]
    Exists {
        /// The name.
        name: ImageName,
    },
    /// An argument names a file that cannot be read.
    #[error("could not read the file given as {option}, {}", path.display())]
    Source {
        /// The option on the command line.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// A file is not what it should be.
    #[error("{option}: {problem}; {remedy}")]
    Invalid {
        /// The option on the command line.
        option: &'static str,
        /// What is wrong.
        problem: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The kernel's checker failed.
    #[error("could not check the file given as --kernel")]
    CheckKernel(#[source] CheckKernelError),
    /// The image could not be written.
    #[error("could not write the image {name}")]
    Write {
        /// The name.
        name: ImageName,
        /// Why not.
        #[source]
        cause: io::Error,
    },
}

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenImageError {
    /// There is none of that name.
    #[error("this host has no image named {name}")]
    Unknown {
        /// The name.
        name: ImageName,
    },
    /// A file is missing or has another length.
    #[error("the image {name} is damaged: {file} has {found} bytes, {expected} expected")]
    Truncated {
        /// The image.
        name: ImageName,
        /// The file.
        file: &'static str,
        /// Its length.
        found: u64,
        /// The length that the manifest says.
        expected: u64,
    },
    /// `image.json` is not one.
    #[error("the image {name} is damaged: image.json is not valid")]
    Manifest {
        /// The image.
        name: ImageName,
        /// Where it does not fit.
        #[source]
        cause: serde_json::Error,
    },
    /// The file system failed.
    #[error("could not open the image {name}")]
    Io {
        /// The image.
        name: ImageName,
        /// Why not.
        #[source]
        cause: io::Error,
    },
}

/// The images of this host.
#[derive(Debug, Clone)]
pub struct Images {
    root: PathBuf,
}

impl Images {
    /// The images below `root`, which is made where it is missing.
    pub fn new(root: PathBuf) -> io::Result<Self> {
        Folder::ensure(&root)?;
        Ok(Self { root })
    }

    /// The folder below which they are.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All usable images, by name. A damaged one is logged and left out.
    pub fn list(&self) -> io::Result<Vec<ObservedImage>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.root)? {
            let name = entry?.file_name();
            let Ok(name) = name.to_string_lossy().parse::<ImageName>() else {
                continue;
            };
            match self.open(&name) {
                Ok(image) => all.push(ObservedImage {
                    name: name.to_string(),
                    digest: image.digest,
                    disk_mib: image.manifest.disk_bytes.div_ceil(MIB),
                }),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "image left out");
                }
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Open an image's files and check their lengths.
    pub fn open(&self, name: &ImageName) -> Result<OpenImage, OpenImageError> {
        let io = |cause: io::Error| {
            let name = name.clone();
            if cause.kind() == io::ErrorKind::NotFound {
                OpenImageError::Unknown { name }
            } else {
                OpenImageError::Io { name, cause }
            }
        };
        let folder = Folder::open(&self.root.join(name.as_str())).map_err(io)?;
        let content = folder
            .read(MANIFEST, MAX_MANIFEST_BYTES)
            .map_err(io)?
            .unwrap_or_default();
        let manifest: ImageManifest =
            serde_json::from_slice(&content).map_err(|cause| OpenImageError::Manifest {
                name: name.clone(),
                cause,
            })?;
        let open = |file: &'static str, expected: u64| {
            let opened = folder.read_only(file).map_err(io)?;
            let found = opened.metadata().map_err(io)?.len();
            if found == expected {
                return Ok(opened);
            }
            Err(OpenImageError::Truncated {
                name: name.clone(),
                file,
                found,
                expected,
            })
        };
        let initrd = match &manifest.initrd {
            Some(blob) => Some(open(INITRD, blob.bytes)?),
            None => None,
        };
        Ok(OpenImage {
            kernel: open(KERNEL, manifest.kernel.bytes)?,
            initrd,
            disk: open(DISK, manifest.disk_bytes)?,
            digest: hex::encode(digest(&SHA256, &content)),
            manifest,
        })
    }

    /// Make an image. `vmm` is the program that checks the kernel.
    pub fn import(&self, source: &ImageSource, vmm: &Path) -> Result<(), ImportImageError> {
        let name = &source.name;
        let write = |cause| ImportImageError::Write {
            name: name.clone(),
            cause,
        };
        // One import at a time, so that what looks unfinished here is left over from a crash.
        let root = File::open(&self.root).map_err(write)?;
        flock(&root, FlockOperation::LockExclusive).map_err(|errno| write(errno.into()))?;
        self.remove_unfinished().map_err(write)?;
        let place = self.root.join(name.as_str());
        if place.symlink_metadata().is_ok() {
            return Err(ImportImageError::Exists { name: name.clone() });
        }
        let unfinished = self
            .root
            .join(format!("{UNFINISHED_PREFIX}{}", ulid::Ulid::new()));
        let made = fill(&unfinished, source, vmm).and_then(|()| {
            std::fs::rename(&unfinished, &place).map_err(write)?;
            root.sync_all().map_err(write)
        });
        if made.is_err()
            && let Err(error) = self.remove_unfinished()
        {
            // The next import removes it.
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "rest of an import left"
            );
        }
        made
    }

    fn remove_unfinished(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.root)? {
            let entry = entry?;
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with(UNFINISHED_PREFIX)
            {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Write all files of an image into a new folder, manifest last.
fn fill(place: &Path, source: &ImageSource, vmm: &Path) -> Result<(), ImportImageError> {
    let write = |cause| ImportImageError::Write {
        name: source.name.clone(),
        cause,
    };
    let cmdline_fits = source.cmdline.len() <= berth_api::vmm::MAX_CMDLINE_BYTES
        && !source.cmdline.chars().any(char::is_control);
    if !cmdline_fits {
        return Err(ImportImageError::Invalid {
            option: "--cmdline",
            problem: "it is longer than 2047 bytes or holds control characters".to_owned(),
            remedy: "give a shorter, plain one",
        });
    }
    let folder = Folder::ensure(place).map_err(write)?;
    let disk_bytes = take_disk(&folder, source)?;
    let kernel = take_kernel(&folder, source, vmm)?;
    let initrd = match &source.initrd {
        Some(path) => Some(take_initrd(&folder, source, path)?),
        None => None,
    };
    let manifest = ImageManifest {
        format: IMAGE_FORMAT,
        name: source.name.to_string(),
        kernel,
        initrd,
        disk_bytes,
        cmdline: source.cmdline.clone(),
    };
    let content = serde_json::to_vec_pretty(&manifest)
        .map_err(io::Error::from)
        .map_err(write)?;
    folder.replace(MANIFEST, &content).map_err(write)
}

fn open_source(option: &'static str, path: &Path) -> Result<File, ImportImageError> {
    let opened = File::open(path).and_then(|file| {
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(io::Error::other("it is not a regular file"))
        }
    });
    opened.map_err(|cause| ImportImageError::Source {
        option,
        path: path.to_owned(),
        cause,
    })
}

fn take_kernel(
    folder: &Folder,
    source: &ImageSource,
    vmm: &Path,
) -> Result<Blob, ImportImageError> {
    let write = |cause| ImportImageError::Write {
        name: source.name.clone(),
        cause,
    };
    let kernel = open_source("--kernel", &source.kernel)?;
    let output = folder.create(KERNEL).map_err(write)?;
    let for_child = output.try_clone().map_err(write)?;
    check_kernel(vmm, kernel, for_child).map_err(|error| {
        let CheckKernelError::NotAKernel { words } = error else {
            return ImportImageError::CheckKernel(error);
        };
        ImportImageError::Invalid {
            option: "--kernel",
            problem: format!("{} is not a kernel: {words}", source.kernel.display()),
            remedy: "give an x86-64 Linux bzImage (vmlinuz) or a PVH ELF image",
        }
    })?;
    output.sync_all().map_err(write)?;
    blob(&output).map_err(write)
}

fn take_initrd(
    folder: &Folder,
    source: &ImageSource,
    path: &Path,
) -> Result<Blob, ImportImageError> {
    let write = |cause| ImportImageError::Write {
        name: source.name.clone(),
        cause,
    };
    let initrd = open_source("--initrd", path)?;
    let output = folder.create(INITRD).map_err(write)?;
    let bytes = copy_sparse(&initrd, &output).map_err(write)?;
    if bytes == 0 {
        return Err(ImportImageError::Invalid {
            option: "--initrd",
            problem: format!("{} is empty", path.display()),
            remedy: "give the initial RAM disk of the same kernel, or leave the option out",
        });
    }
    output.sync_all().map_err(write)?;
    blob(&output).map_err(write)
}

fn take_disk(folder: &Folder, source: &ImageSource) -> Result<u64, ImportImageError> {
    let write = |cause| ImportImageError::Write {
        name: source.name.clone(),
        cause,
    };
    let disk = open_source("--disk", &source.disk)?;
    let invalid = |problem: String, remedy| ImportImageError::Invalid {
        option: "--disk",
        problem,
        remedy,
    };
    let length = disk.metadata().map_err(write)?.len();
    let mut head = Vec::new();
    (&disk)
        .take(QCOW2_MAGIC.len().try_into().unwrap_or(0))
        .read_to_end(&mut head)
        .map_err(write)?;
    if head == QCOW2_MAGIC {
        return Err(invalid(
            format!("{} is a qcow2 file", source.disk.display()),
            "convert it with: qemu-img convert -O raw",
        ));
    }
    if length == 0 || !length.is_multiple_of(SECTOR_BYTES) {
        return Err(invalid(
            format!(
                "{} has {length} bytes, which is not a whole number of 512-byte sectors",
                source.disk.display()
            ),
            "it was probably cut short: copy it again",
        ));
    }
    let output = folder.create(DISK).map_err(write)?;
    let copied = copy_sparse(&disk, &output).map_err(write)?;
    output.sync_all().map_err(write)?;
    Ok(copied)
}

/// Digest and length of a file, read from its beginning.
fn blob(file: &File) -> io::Result<Blob> {
    use std::os::unix::fs::FileExt as _;
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; 256 * 1024];
    let mut bytes = 0_u64;
    loop {
        let read = file.read_at(&mut chunk, bytes)?;
        if read == 0 {
            break;
        }
        context.update(&chunk[..read]);
        bytes = bytes.saturating_add(u64::try_from(read).unwrap_or(0));
    }
    Ok(Blob {
        sha256: hex::encode(context.finish()),
        bytes,
    })
}

#[cfg(test)]
mod tests;
