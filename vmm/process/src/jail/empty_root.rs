//! Whether there is anything to be found below `/`.
//!
//! Owns the walk. A root that a unit has emptied holds the program, the folders on the way to it, and
//! perhaps empty folders that the service manager insists on.

use std::io;
use std::path::{Path, PathBuf};

/// Entries after which a root is called full whatever they are.
const MOST_ENTRIES: usize = 64;

/// The first thing below `root` that is neither a folder nor `own`. A folder that may not be opened
/// is out of reach.
pub(super) fn first_stranger(root: &Path, own: &Path) -> Option<PathBuf> {
    let mut folders = vec![root.to_owned()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        let entries = match folder.read_dir() {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => continue,
            Err(_) => return Some(folder),
        };
        for entry in entries {
            let Ok(entry) = entry else {
                return Some(folder);
            };
            let path = entry.path();
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            seen += 1;
            if seen > MOST_ENTRIES || !is_folder && path != own {
                return Some(path);
            }
            if is_folder {
                folders.push(path);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs::{create_dir_all, write};

    /// A root with a program.
    fn root() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("usr/libexec");
        create_dir_all(&folder).unwrap();
        let own = folder.join("program");
        write(&own, "").unwrap();
        (root, own)
    }

    #[test]
    fn a_root_with_the_program_and_empty_folders_is_empty() {
        let (root, own) = root();
        create_dir_all(root.path().join("var/tmp")).unwrap();
        assert_eq!(first_stranger(root.path(), &own), None);
    }

    #[test]
    fn any_other_file_is_a_stranger() {
        let (root, own) = root();
        let other = root.path().join("usr/other");
        std::os::unix::fs::symlink("/", &other).unwrap();
        assert_eq!(first_stranger(root.path(), &own), Some(other));
    }

    #[test]
    fn a_root_of_many_folders_is_not_searched_to_the_end() {
        let (root, own) = root();
        for number in 0..MOST_ENTRIES {
            create_dir_all(root.path().join(number.to_string())).unwrap();
        }
        assert!(first_stranger(root.path(), &own).is_some());
    }
}
