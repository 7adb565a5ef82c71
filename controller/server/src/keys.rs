//! The controller's three keys, each in its own file and used for one thing.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_ledger::keys::SigningKey;

/// What each key signs.
#[derive(Debug)]
pub(crate) struct KeyRing {
    /// Root links of tokens.
    pub(crate) token: SigningKey,
    /// Tasks.
    pub(crate) task: SigningKey,
    /// Ledger entries.
    pub(crate) ledger: SigningKey,
}

impl KeyRing {
    /// Make the files that are missing. Repeatable.
    pub(crate) fn ensure(folder: &Path) -> anyhow::Result<()> {
        private_folder(folder)?;
        for name in ["token.key", "task.key", "ledger.key"] {
            let key = SigningKey::generate()?;
            write_once(&folder.join(name), STANDARD.encode(key.seed()).as_bytes())?;
        }
        Ok(())
    }

    /// Read all three.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            token: read_key(&folder.join("token.key"))?,
            task: read_key(&folder.join("task.key"))?,
            ledger: read_key(&folder.join("ledger.key"))?,
        })
    }
}

fn read_key(path: &Path) -> anyhow::Result<SigningKey> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!(
            "could not read {}; `berth-controller init` makes it",
            path.display()
        )
    })?;
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        bail!(
            "{} can be read by others than its owner: chmod 0600 it",
            path.display()
        );
    }
    let seed = STANDARD
        .decode(text.trim())
        .with_context(|| format!("{} is not base64", path.display()))?;
    SigningKey::from_seed(&seed).with_context(|| format!("{} holds no key", path.display()))
}

/// Make a folder that only its owner can enter.
pub(crate) fn private_folder(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("could not make {}", path.display()))
}

/// Write a file that only its owner can read, unless it exists: whole and on disk, or not at all.
pub(crate) fn write_once(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let temporary = path.with_extension("new");
    match std::fs::remove_file(&temporary) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .with_context(|| format!("could not make {}", temporary.display()))?;
    file.write_all(content)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}
