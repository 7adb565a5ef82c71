//! Small files and links of sysfs and procfs. What is not there is `None` or nothing: devices go while
//! they are looked at.

use std::fs;
use std::path::{Component, Path, PathBuf};

use berth_api::pci::PciAddress;

/// A file's text without the white space around it.
pub(crate) fn text(path: &Path) -> Option<String> {
    fs::read(path)
        .ok()
        .map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// The last part of what a link points to.
pub(crate) fn link_name(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

/// Names in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Where a link of sysfs leads in the tree of devices.
pub(crate) fn device_path(link: &Path) -> Option<PathBuf> {
    fs::canonicalize(link).ok()
}

/// The PCI function that a path in the tree of devices is below of: the last one named in it.
pub(crate) fn function_of(path: &Path) -> Option<PciAddress> {
    parts(path)
        .rev()
        .find_map(|part| part.parse::<PciAddress>().ok())
}

/// The parts of a path as text.
pub(crate) fn parts(path: &Path) -> impl DoubleEndedIterator<Item = &str> {
    path.components().filter_map(|component| match component {
        Component::Normal(part) => part.to_str(),
        Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => {
            None
        }
    })
}
