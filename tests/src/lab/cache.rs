//! Folders kept by content: the name carries a hash of all that went in.
//!
//! An entry is built beside its place and renamed when complete, so that a broken build is never
//! taken for an entry. One builder at a time per name; others wait for it.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::command::{as_root, capture};

/// How many entries of one name are kept; older ones are removed.
const KEPT: usize = 3;

/// Collects what an entry is made from.
#[derive(Debug, Default)]
pub struct Key(Sha256);

impl Key {
    /// A key of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a text or bytes; its length is part of the key.
    #[must_use]
    pub fn with(mut self, part: impl AsRef<[u8]>) -> Self {
        let part = part.as_ref();
        self.0.update(part.len().to_le_bytes());
        self.0.update(part);
        self
    }

    /// Adds a file's content.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn with_file(self, path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(self.with(bytes))
    }

    fn text(self) -> String {
        let mut text = hex::encode(self.0.finalize());
        text.truncate(16);
        text
    }
}

/// The folder `<name>-<key>` below `parent`; `build` fills it if it is not there yet.
///
/// # Errors
/// If `build` fails or the folder cannot be made.
pub fn entry(
    parent: &Path,
    name: &str,
    key: Key,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    let lock_path = parent.join(format!("{name}.lock"));
    let lock =
        File::create(&lock_path).with_context(|| format!("creating {}", lock_path.display()))?;
    lock.lock()
        .with_context(|| format!("locking {}", lock_path.display()))?;
    let place = parent.join(format!("{name}-{}", key.text()));
    if place.exists() {
        return Ok(place);
    }
    let unfinished = parent.join(format!("{name}.unfinished"));
    remove_tree(&unfinished)?;
    std::fs::create_dir(&unfinished).with_context(|| format!("making {}", unfinished.display()))?;
    build(&unfinished)?;
    std::fs::rename(&unfinished, &place)
        .with_context(|| format!("putting {} in its place", place.display()))?;
    remove_old(parent, name)?;
    Ok(place)
}

/// Removes a tree that may belong to root. It is fine if there is none.
///
/// # Errors
/// If something of it stays.
pub fn remove_tree(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_ok() {
        capture(
            as_root("rm")
                .args(["-rf", "--one-file-system", "--"])
                .arg(path),
        )?;
    }
    Ok(())
}

fn remove_old(parent: &Path, name: &str) -> Result<()> {
    let prefix = format!("{name}-");
    let mut entries = Vec::new();
    for entry in
        std::fs::read_dir(parent).with_context(|| format!("listing {}", parent.display()))?
    {
        let entry = entry.context("listing the cache")?;
        let file_name = entry.file_name();
        let ours = file_name
            .to_str()
            .and_then(|text| text.strip_prefix(&prefix));
        if ours.is_some_and(|rest| rest.len() == 16 && !rest.contains('-')) {
            let made = entry.metadata().and_then(|meta| meta.modified());
            entries.push((made.context("reading an entry's age")?, entry.path()));
        }
    }
    entries.sort();
    let surplus = entries.len().saturating_sub(KEPT);
    for (_, path) in entries.drain(..surplus) {
        remove_tree(&path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_built_once_and_a_broken_build_is_not_kept() {
        let parent = tempfile::tempdir().unwrap();
        let failed = entry(parent.path(), "image", Key::new().with("a"), |place| {
            std::fs::write(place.join("half"), "x")?;
            anyhow::bail!("no space")
        });
        assert_eq!(failed.unwrap_err().to_string(), "no space");
        let build = |place: &Path| Ok(std::fs::write(place.join("whole"), "x")?);
        let first = entry(parent.path(), "image", Key::new().with("a"), build).unwrap();
        assert!(first.join("whole").exists() && !first.join("half").exists());
        let again = entry(parent.path(), "image", Key::new().with("a"), |_| {
            anyhow::bail!("built twice")
        });
        assert_eq!(again.unwrap(), first);
    }

    #[test]
    fn other_content_is_another_entry_and_the_oldest_leave() {
        let parent = tempfile::tempdir().unwrap();
        for content in ["a", "b", "c", "d", "e"] {
            entry(parent.path(), "image", Key::new().with(content), |_| Ok(())).unwrap();
        }
        let left = std::fs::read_dir(parent.path()).unwrap().count();
        assert_eq!(left, KEPT + 1, "the entries and the lock");
    }

    #[test]
    fn the_border_between_two_parts_counts() {
        let one = Key::new().with("ab").with("c").text();
        let other = Key::new().with("a").with("bc").text();
        assert_ne!(one, other);
    }
}
