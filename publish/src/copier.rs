//! Copies the logs of a folder, one for each epoch, so that a reader of the store finds all that a
//! checkpoint there covers, whenever it looks and wherever a copy broke off.
//!
//! What is new goes first, then the checkpoint, then away go the partial forms of what is full now. It
//! begins at the store's checkpoint, and every write is repeatable, as contents follow from names. The
//! store's checkpoint is replaced only while it is the one that was compared, where the store can say so.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;

use berth_ledger::checkpoint::{Checkpoint, OpenCheckpointError, SignedCheckpoint};
use berth_ledger::keys::PublicKey;
use berth_ledger::merkle::{Hash, Node};
use berth_ledger::note::{KeyKind, Note, Vkey};
use berth_ledger::tile::{DecodeError, FULL_WIDTH, Resource, Tile, combine};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutPayload, UpdateVersion};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::history::{self, Denied};

/// Objects on their way at once.
const AT_ONCE: usize = 32;
/// How often a folder is looked at anew whose log grows while its right edge is read.
const LOOKS: u32 = 5;

/// Who is told how far a copy is.
pub(crate) trait Tell {
    /// So many objects of all that are to be copied are there.
    fn progress(&mut self, epoch: &str, done: u64, all: u64);
}

/// What was done for one log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Copied {
    /// Its folder: `e1`.
    pub(crate) epoch: String,
    /// Its name.
    pub(crate) origin: String,
    /// Entries that were published before.
    pub(crate) published_before: u64,
    /// Entries that are published now.
    pub(crate) size: u64,
    /// Objects written, without the checkpoint.
    pub(crate) objects: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Partial tiles and bundles removed.
    pub(crate) removed: u64,
    /// Whether the store has changed.
    pub(crate) is_new: bool,
}

impl fmt::Display for Copied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, size, .. } = self;
        if !self.is_new {
            return write!(f, "{epoch}: {size} entries, all published");
        }
        let (before, objects, bytes) = (self.published_before, self.objects, self.bytes);
        write!(
            f,
            "{epoch}: {size} entries published, {before} before; {objects} objects of {bytes} bytes \
             written, {} removed",
            self.removed
        )
    }
}

/// One of the two sides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// What is copied.
    Folder,
    /// Where it goes.
    Store,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Folder => "folder",
            Self::Store => "store",
        })
    }
}

/// Why a log was not copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    /// One of the sides did not do what it was asked.
    #[error("the {side} could not {action} {object}")]
    Objects {
        /// Which.
        side: Side,
        /// What was tried.
        action: &'static str,
        /// With which object.
        object: Path,
        /// Why not.
        #[source]
        cause: object_store::Error,
    },
    /// The folder is not one of `[publish]`, or not yet.
    #[error("the folder has no log: no `e1/checkpoint`. Is it the `[publish]` folder?")]
    NoLog,
    /// A checkpoint is not by a key that was given.
    #[error(
        "{object} of the {side} is not a checkpoint of the log by a key that was given. `berthctl ledger head` has the key; if the store's is another deployment's, give another destination"
    )]
    Foreign {
        /// Where it is.
        side: Side,
        /// Which.
        object: Path,
        /// Why not.
        #[source]
        cause: OpenCheckpointError,
    },
    /// What is published must stay.
    #[error("{epoch} is not published")]
    Denied {
        /// Which log.
        epoch: String,
        /// Why.
        #[source]
        cause: Denied,
    },
    /// The folder's tiles are not those of its checkpoint.
    #[error("{epoch}: the folder's tiles do not lead to the root of its checkpoint")]
    Inconsistent {
        /// Which log.
        epoch: String,
    },
    /// A tile or bundle is not what its name says.
    #[error("{resource} of the folder is malformed")]
    Malformed {
        /// Which.
        resource: Resource,
        /// In which way.
        #[source]
        cause: DecodeError,
    },
    /// The folder's log grew faster than its right edge was read.
    #[error("{epoch} has grown while it was read")]
    Restless {
        /// Which log.
        epoch: String,
    },
    /// A copy's task died.
    #[error("copying was given up")]
    GivenUp,
}

impl PublishError {
    /// Whether another attempt would end in the same way.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Foreign { .. }
            | Self::Denied { .. }
            | Self::Inconsistent { .. }
            | Self::Malformed { .. } => true,
            Self::Objects { .. } | Self::NoLog | Self::Restless { .. } | Self::GivenUp => false,
        }
    }
}

/// Copies logs, and remembers what it has copied.
#[derive(Debug)]
pub(crate) struct Copier {
    source: Arc<dyn ObjectStore>,
    target: Arc<dyn ObjectStore>,
    keys: Vec<PublicKey>,
    epochs: BTreeMap<String, Known>,
}

/// What is known of a log in the store since the last copy of it.
#[derive(Debug)]
struct Known {
    note: Vec<u8>,
    size: u64,
    /// Partial forms in the store.
    partial: BTreeSet<Resource>,
}

/// A log in the folder: its checkpoint, and what of it may be gone before long.
#[derive(Debug)]
struct Ours {
    note: Vec<u8>,
    checkpoint: Checkpoint,
    edge: HashMap<Resource, Vec<u8>>,
}

/// The checkpoint in the store.
struct Theirs {
    note: Vec<u8>,
    checkpoint: Checkpoint,
    version: UpdateVersion,
}

impl Copier {
    /// Copies what these keys have signed.
    pub(crate) fn new(
        source: Arc<dyn ObjectStore>,
        target: Arc<dyn ObjectStore>,
        keys: Vec<PublicKey>,
    ) -> Self {
        Self {
            source,
            target,
            keys,
            epochs: BTreeMap::new(),
        }
    }

    /// Copy every log of the folder as it is now, older ones first.
    ///
    /// # Errors
    /// The first thing that is in the way; what was copied before stays.
    pub(crate) async fn copy(&mut self, tell: &mut impl Tell) -> Result<Vec<Copied>, PublishError> {
        let root = Path::default();
        let listed = self.source.list_with_delimiter(None).await;
        let listed = listed.map_err(failed(Side::Folder, "list", &root))?;
        let mut numbers: Vec<u64> = listed.common_prefixes.iter().filter_map(number).collect();
        numbers.sort_unstable();
        let mut copied = Vec::new();
        for number in numbers {
            copied.extend(self.copy_epoch(&format!("e{number}"), tell).await?);
        }
        if copied.is_empty() {
            return Err(PublishError::NoLog);
        }
        Ok(copied)
    }

    /// Copy one log; `None` if the folder has no checkpoint of it yet.
    async fn copy_epoch(
        &mut self,
        epoch: &str,
        tell: &mut impl Tell,
    ) -> Result<Option<Copied>, PublishError> {
        let folder = Path::from(epoch);
        let Some(ours) = self.ours(epoch).await? else {
            return Ok(None);
        };
        let size = ours.checkpoint.size;
        let mut copied = Copied {
            epoch: epoch.to_owned(),
            origin: ours.checkpoint.origin.to_string(),
            published_before: size,
            size,
            objects: 0,
            bytes: 0,
            removed: 0,
            is_new: false,
        };
        let known = self.epochs.get(epoch);
        if known.is_some_and(|known| known.note == ours.note) {
            return Ok(Some(copied));
        }
        let theirs = self.theirs(&folder).await?;
        copied.published_before = theirs.as_ref().map_or(0, |found| found.checkpoint.size);
        self.compare(epoch, &ours, theirs.as_ref()).await?;
        let mut partial = match self.epochs.remove(epoch) {
            // Only while it is as we left it do we know what is there.
            Some(known) if known.size == copied.published_before => known.partial,
            _ => self.partial(&folder).await?,
        };
        let is_same = theirs.as_ref().is_some_and(|found| found.note == ours.note);
        if !is_same {
            self.upload(&mut copied, &ours, &mut partial, tell).await?;
            self.put_checkpoint(&folder, &ours, theirs).await?;
            copied.is_new = true;
        }
        copied.removed = self.remove_replaced(&folder, size, &mut partial).await?;
        let known = Known {
            note: ours.note,
            size,
            partial,
        };
        self.epochs.insert(epoch.to_owned(), known);
        Ok(Some(copied))
    }

    /// The folder's log. Its partial tiles are read at once: they go when they are full.
    async fn ours(&self, epoch: &str) -> Result<Option<Ours>, PublishError> {
        let folder = Path::from(epoch);
        let object = folder.clone().join("checkpoint");
        for _ in 0..LOOKS {
            let Some(note) = read(&self.source, Side::Folder, &object).await? else {
                return Ok(None);
            };
            let checkpoint = self.open(Side::Folder, &object, &note)?;
            if let Some(edge) = self.edge(&folder, checkpoint.size).await? {
                return Ok(Some(Ours {
                    note,
                    checkpoint,
                    edge,
                }));
            }
        }
        let epoch = epoch.to_owned();
        Err(PublishError::Restless { epoch })
    }

    /// The partial tiles and bundle of a log of this size; `None` if one of them is gone.
    async fn edge(
        &self,
        folder: &Path,
        size: u64,
    ) -> Result<Option<HashMap<Resource, Vec<u8>>>, PublishError> {
        let mut edge = HashMap::new();
        for resource in Resource::all(size).filter(|resource| !resource.is_full()) {
            let object = place_of(folder, &resource);
            let Some(bytes) = read(&self.source, Side::Folder, &object).await? else {
                return Ok(None);
            };
            edge.insert(resource, bytes);
        }
        Ok(Some(edge))
    }

    /// What a checkpoint says, if it is of the log that the folder is named for, by a key of ours.
    fn open(&self, side: Side, object: &Path, bytes: &[u8]) -> Result<Checkpoint, PublishError> {
        let opened = || {
            let note = Note::parse(bytes).map_err(OpenCheckpointError::Note)?;
            let said = Checkpoint::parse(note.text()).map_err(OpenCheckpointError::Text)?;
            let origin = said.origin;
            let is_of_folder = |epoch: &str| object.as_ref() == format!("{epoch}/checkpoint");
            if !origin.as_str().rsplit('/').next().is_some_and(is_of_folder) {
                return Err(OpenCheckpointError::UnknownOrigin { origin });
            }
            let keys = self.keys.iter();
            let vkeys: Vec<Vkey> = keys
                .map(|key| Vkey::new(origin.clone(), KeyKind::Ed25519, *key))
                .collect();
            SignedCheckpoint::open_note(note, &vkeys)
        };
        match opened() {
            Ok(signed) => Ok(signed.checkpoint().clone()),
            Err(cause) => Err(PublishError::Foreign {
                side,
                object: object.clone(),
                cause,
            }),
        }
    }

    /// The store's checkpoint of a log, if there is one.
    async fn theirs(&self, folder: &Path) -> Result<Option<Theirs>, PublishError> {
        let object = folder.clone().join("checkpoint");
        let failed = |cause| failed(Side::Store, "read", &object)(cause);
        let found = match self.target.get(&object).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(cause) => return Err(failed(cause)),
        };
        let version = UpdateVersion {
            e_tag: found.meta.e_tag.clone(),
            version: found.meta.version.clone(),
        };
        let note = found.bytes().await.map_err(failed)?.to_vec();
        Ok(Some(Theirs {
            checkpoint: self.open(Side::Store, &object, &note)?,
            note,
            version,
        }))
    }

    /// Whether the folder's checkpoint follows from its tiles, and may take the place of the store's.
    async fn compare(
        &self,
        epoch: &str,
        ours: &Ours,
        theirs: Option<&Theirs>,
    ) -> Result<(), PublishError> {
        let mut known = HashMap::new();
        let own = self
            .root(epoch, ours, ours.checkpoint.size, &mut known)
            .await?;
        if own != Some(ours.checkpoint.root) {
            let epoch = epoch.to_owned();
            return Err(PublishError::Inconsistent { epoch });
        }
        let Some(Theirs { checkpoint, .. }) = theirs else {
            return Ok(());
        };
        let origin = checkpoint.origin.clone();
        if origin != ours.checkpoint.origin {
            return Err(PublishError::Foreign {
                side: Side::Store,
                object: Path::from(epoch).join("checkpoint"),
                cause: OpenCheckpointError::UnknownOrigin { origin },
            });
        }
        let found = self.root(epoch, ours, checkpoint.size, &mut known).await?;
        history::may_replace(checkpoint, &ours.checkpoint, found).map_err(|cause| {
            PublishError::Denied {
                epoch: epoch.to_owned(),
                cause,
            }
        })
    }

    /// The root that the folder's log has at a size, from its tiles; `None` if it is not that long.
    async fn root(
        &self,
        epoch: &str,
        ours: &Ours,
        size: u64,
        known: &mut HashMap<Node, Hash>,
    ) -> Result<Option<Hash>, PublishError> {
        for node in history::peaks(size) {
            let Some((tile, range)) = Tile::covering(node, ours.checkpoint.size) else {
                return Ok(None);
            };
            let resource = Resource::Tile(tile);
            let bytes = content(&self.source, &Path::from(epoch), resource, &ours.edge).await?;
            let hashes = tile
                .decode(&bytes)
                .map_err(|cause| PublishError::Malformed { resource, cause })?;
            known.extend(hashes.get(range).map(|below| (node, combine(below))));
        }
        Ok(history::root(size, known))
    }

    /// Write what the store does not have, some at once.
    async fn upload(
        &self,
        copied: &mut Copied,
        ours: &Ours,
        partial: &mut BTreeSet<Resource>,
        tell: &mut impl Tell,
    ) -> Result<(), PublishError> {
        let folder = Path::from(copied.epoch.as_str());
        let missing = || Resource::since(copied.published_before, copied.size);
        let all = missing().fold(0, |count, _| count + 1);
        let mut resources = missing();
        let mut tasks = JoinSet::new();
        loop {
            while tasks.len() < AT_ONCE
                && let Some(resource) = resources.next()
            {
                if !resource.is_full() {
                    partial.insert(resource);
                }
                let (source, target) = (Arc::clone(&self.source), Arc::clone(&self.target));
                let folder = folder.clone();
                let edge = ours.edge.get_key_value(&resource);
                let edge = edge.map(|(resource, bytes)| (*resource, bytes.clone()));
                tasks.spawn(async move {
                    let edge = edge.into_iter().collect();
                    let bytes = content(&source, &folder, resource, &edge).await?;
                    copy_one(&target, &folder, resource, bytes).await
                });
            }
            let Some(done) = tasks.join_next().await else {
                return Ok(());
            };
            copied.bytes += done.map_err(|_| PublishError::GivenUp)??;
            copied.objects += 1;
            tell.progress(&copied.epoch, copied.objects, all);
        }
    }

    /// Put our checkpoint in the place of the one that was compared, and of no other.
    async fn put_checkpoint(
        &self,
        folder: &Path,
        ours: &Ours,
        theirs: Option<Theirs>,
    ) -> Result<(), PublishError> {
        let object = folder.clone().join("checkpoint");
        let put = async |mode: PutMode| {
            let content = PutPayload::from(ours.note.clone());
            self.target.put_opts(&object, content, mode.into()).await
        };
        let mode = theirs.map_or(PutMode::Create, |found| PutMode::Update(found.version));
        let mut done = put(mode).await;
        // A folder knows no versions, and not every store does.
        if let Err(object_store::Error::NotImplemented { .. }) = done {
            done = put(PutMode::Overwrite).await;
        }
        done.map(drop)
            .map_err(failed(Side::Store, "write", &object))
    }

    /// The partial forms that the store has of a log.
    async fn partial(&self, folder: &Path) -> Result<BTreeSet<Resource>, PublishError> {
        let mut partial = BTreeSet::new();
        let tiles = folder.clone().join("tile");
        let mut listed = self.target.list(Some(&tiles));
        while let Some(object) = poll_fn(|cx| listed.as_mut().poll_next(cx)).await {
            let object = object.map_err(failed(Side::Store, "list", &tiles))?;
            let path = object.location.as_ref().strip_prefix(folder.as_ref());
            let path = path.and_then(|path| path.strip_prefix('/'));
            let resource = path.and_then(|path| Resource::parse(path).ok());
            partial.extend(resource.filter(|resource| !resource.is_full()));
        }
        Ok(partial)
    }

    /// Remove the partial forms of what is full in a log of this size; how many there were.
    async fn remove_replaced(
        &self,
        folder: &Path,
        size: u64,
        partial: &mut BTreeSet<Resource>,
    ) -> Result<u64, PublishError> {
        let replaced: Vec<_> = partial
            .iter()
            .copied()
            .filter(|one| is_full_in(one, size))
            .collect();
        let mut removed = 0;
        for resource in replaced {
            let object = place_of(folder, &resource);
            match self.target.delete(&object).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(cause) => return Err(failed(Side::Store, "remove", &object)(cause)),
            }
            partial.remove(&resource);
            removed += 1;
        }
        Ok(removed)
    }
}

/// The number of an epoch's folder.
fn number(folder: &Path) -> Option<u64> {
    let number: u64 = folder.as_ref().strip_prefix('e')?.parse().ok()?;
    (folder.as_ref() == format!("e{number}")).then_some(number)
}

/// Whether a log of this size has the full form of a tile or bundle.
fn is_full_in(partial: &Resource, size: u64) -> bool {
    let full = match partial {
        Resource::Checkpoint => None,
        Resource::Tile(tile) => Tile::new(tile.level(), tile.index(), FULL_WIDTH),
        Resource::Entries(bundle) => Tile::new(0, bundle.index(), FULL_WIDTH),
    };
    full.is_some_and(|full| full.is_in(size))
}

fn place_of(folder: &Path, resource: &Resource) -> Path {
    Path::from(format!("{folder}/{resource}"))
}

fn failed(
    side: Side,
    action: &'static str,
    object: &Path,
) -> impl Fn(object_store::Error) -> PublishError {
    let object = object.clone();
    move |cause| PublishError::Objects {
        side,
        action,
        object: object.clone(),
        cause,
    }
}

/// An object's bytes, if it is there.
async fn read(
    objects: &Arc<dyn ObjectStore>,
    side: Side,
    object: &Path,
) -> Result<Option<Vec<u8>>, PublishError> {
    let failed = failed(side, "read", object);
    match objects.get(object).await {
        Ok(found) => Ok(Some(found.bytes().await.map_err(failed)?.to_vec())),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(cause) => Err(failed(cause)),
    }
}

/// The folder's bytes of a tile or bundle, seen to be as long as its name says.
async fn content(
    source: &Arc<dyn ObjectStore>,
    folder: &Path,
    resource: Resource,
    edge: &HashMap<Resource, Vec<u8>>,
) -> Result<Vec<u8>, PublishError> {
    let bytes = match edge.get(&resource) {
        Some(bytes) => bytes.clone(),
        None => {
            let object = place_of(folder, &resource);
            let got = source.get(&object).await;
            let failed = failed(Side::Folder, "read", &object);
            got.map_err(&failed)?
                .bytes()
                .await
                .map_err(&failed)?
                .to_vec()
        }
    };
    let decoded = match resource {
        Resource::Checkpoint => Ok(()),
        Resource::Tile(tile) => tile.decode(&bytes).map(drop),
        Resource::Entries(bundle) => bundle.decode(&bytes).map(drop),
    };
    decoded.map_err(|cause| PublishError::Malformed { resource, cause })?;
    Ok(bytes)
}

/// Write one; its bytes.
async fn copy_one(
    target: &Arc<dyn ObjectStore>,
    folder: &Path,
    resource: Resource,
    bytes: Vec<u8>,
) -> Result<u64, PublishError> {
    let object = place_of(folder, &resource);
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let put = target.put(&object, bytes.into()).await;
    put.map_err(failed(Side::Store, "write", &object))?;
    Ok(length)
}

#[cfg(test)]
mod tests;
