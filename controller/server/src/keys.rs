//! The controller's three keys, each in its own file and used for one thing.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_ledger::keys::{PublicKey, SigningKey};

const TOKEN_KEY: &str = "token.key";
const PREVIOUS_TOKEN_KEY: &str = "token.previous.key";
const LEDGER_KEY: &str = "ledger.key";
const PREVIOUS_LEDGER_KEY: &str = "ledger.previous.key";

/// What each key signs.
#[derive(Debug)]
pub(crate) struct KeyRing {
    /// Root links of tokens.
    pub(crate) token: SigningKey,
    /// What signed them before, and still counts.
    pub(crate) previous_token: Option<SigningKey>,
    /// Tasks.
    pub(crate) task: SigningKey,
    /// The ledger's checkpoints.
    pub(crate) ledger: SigningKey,
    /// What signed them before, and signs beside it for those who know no other.
    pub(crate) previous_ledger: Option<SigningKey>,
}

impl KeyRing {
    /// Make the files that are missing. Repeatable.
    pub(crate) fn ensure(folder: &Path) -> anyhow::Result<()> {
        private_folder(folder)?;
        for name in [TOKEN_KEY, "task.key", LEDGER_KEY] {
            let key = SigningKey::generate()?;
            write_once(&folder.join(name), STANDARD.encode(key.seed()).as_bytes())?;
        }
        Ok(())
    }

    /// Read all three.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Self> {
        let ledger = read_key(&folder.join(LEDGER_KEY))?;
        let previous_ledger = read_optional(&folder.join(PREVIOUS_LEDGER_KEY))?;
        Ok(Self {
            token: read_key(&folder.join(TOKEN_KEY))?,
            previous_token: read_optional(&folder.join(PREVIOUS_TOKEN_KEY))?,
            task: read_key(&folder.join("task.key"))?,
            // A change of the key that broke off leaves the same one twice.
            previous_ledger: previous_ledger.filter(|previous| previous.seed() != ledger.seed()),
            ledger,
        })
    }
}

/// Make a new root key for tokens and keep the old one beside it. `record` gets both public halves,
/// old and new, before anything is changed.
pub(crate) fn rotate_token_key(
    folder: &Path,
    record: impl FnOnce(PublicKey, PublicKey) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let current = folder.join(TOKEN_KEY);
    let previous = folder.join(PREVIOUS_TOKEN_KEY);
    let old = read_key(&current)?;
    // After a rotation that broke off here both files hold the same key, and it goes on.
    if read_optional(&previous)?.is_some_and(|kept| kept.seed() != old.seed()) {
        bail!(
            "the root key before this one still counts: `berth-controller keys drop-token` first"
        );
    }
    let new = SigningKey::generate()?;
    record(old.public(), new.public())?;
    write_once(&previous, STANDARD.encode(old.seed()).as_bytes())?;
    write(&current, STANDARD.encode(new.seed()).as_bytes())
}

/// Remove the root key before this one; `false` if there is none. `record` gets its public half
/// before anything is changed.
pub(crate) fn drop_token_key(
    folder: &Path,
    record: impl FnOnce(PublicKey) -> anyhow::Result<()>,
) -> anyhow::Result<bool> {
    let previous = folder.join(PREVIOUS_TOKEN_KEY);
    let Some(old) = read_optional(&previous)? else {
        return Ok(false);
    };
    record(old.public())?;
    std::fs::remove_file(&previous)
        .with_context(|| format!("could not remove {}", previous.display()))?;
    File::open(folder)?.sync_all()?;
    Ok(true)
}

/// Make a new key for the ledger's log and keep the old one beside it. Repeatable after a crash: if the old
/// one is kept already, nothing is changed and `false` is returned.
pub(crate) fn change_ledger_key(folder: &Path) -> anyhow::Result<bool> {
    let current = folder.join(LEDGER_KEY);
    let previous = folder.join(PREVIOUS_LEDGER_KEY);
    let old = read_key(&current)?;
    if read_optional(&previous)?.is_some_and(|kept| kept.seed() != old.seed()) {
        return Ok(false);
    }
    write_once(&previous, STANDARD.encode(old.seed()).as_bytes())?;
    let new = SigningKey::generate()?;
    write(&current, STANDARD.encode(new.seed()).as_bytes())?;
    Ok(true)
}

/// Remove the ledger's key before this one.
pub(crate) fn drop_ledger_key(folder: &Path) -> anyhow::Result<()> {
    let previous = folder.join(PREVIOUS_LEDGER_KEY);
    std::fs::remove_file(&previous)
        .with_context(|| format!("could not remove {}", previous.display()))?;
    File::open(folder)?.sync_all()?;
    Ok(())
}

fn read_optional(path: &Path) -> anyhow::Result<Option<SigningKey>> {
    if path.exists() {
        read_key(path).map(Some)
    } else {
        Ok(None)
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
    write(path, content)
}

/// Write a file that only its owner can read: whole and on disk, or as it was.
pub(crate) fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
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
