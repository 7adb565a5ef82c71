//! The published form of a log (C2SP tlog-tiles 0.1.0): paths, tiles and entry bundles.
//!
//! Owns which resources a log of some size has, how they are called below the log's address, and
//! their bytes. A tile holds 256 hashes of one level, its bundle 256 entries; the last of each level
//! may hold fewer, and is then another resource with its width in its name. It reads nothing: nodes
//! and entries are handed in.

use std::fmt;

use crate::merkle::{Frontier, Hash, Node};

/// Hashes in a full tile, entries in a full bundle.
pub const FULL_WIDTH: u16 = 256;
/// Levels of the tree that one level of tiles spans.
const HEIGHT: u8 = 8;
/// Levels of tiles that a tree of at most 2^63 - 1 leaves can have.
const LEVELS: u8 = 8;
/// Longest entry, in bytes: its length has two.
pub const MAX_ENTRY_BYTES: usize = 65_535;

/// Something that a log publishes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Resource {
    /// The newest checkpoint; the one resource that changes.
    Checkpoint,
    /// Hashes of the tree.
    Tile(Tile),
    /// Entries.
    Entries(EntryBundle),
}

/// 256 hashes of one level of the tree, or fewer at its right edge.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Tile {
    level: u8,
    index: u64,
    width: u16,
}

/// 256 entries, or fewer at the log's end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct EntryBundle {
    index: u64,
    width: u16,
}

/// Why text is not the path of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the path is not `checkpoint`, `tile/<level>/<n>[.p/<width>]` or `tile/entries/<n>[.p/<width>]`"
)]
pub struct ParsePathError;

/// Why bytes are not what a tile or bundle of this width holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A tile of another length.
    #[error("a tile of {width} hashes has 32 bytes for each, this has {bytes} bytes")]
    TileLength {
        /// Hashes that it must have.
        width: u16,
        /// Bytes found.
        bytes: usize,
    },
    /// A bundle that ends inside an entry, or has too few.
    #[error("the bundle ends after {entries} of {width} entries")]
    BundleTooShort {
        /// Whole entries found.
        entries: usize,
        /// Entries that it must have.
        width: u16,
    },
    /// A bundle with something after its last entry.
    #[error("the bundle has {bytes} bytes after its {width} entries")]
    BundleTooLong {
        /// Entries that it must have.
        width: u16,
        /// Bytes left over.
        bytes: usize,
    },
}

/// An entry that no bundle can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an entry has at most {MAX_ENTRY_BYTES} bytes, this has {bytes}")]
pub struct EntryTooLong {
    /// Bytes that it has.
    pub bytes: usize,
}

impl Resource {
    /// The resource with this path below the log's address, which must be exactly as
    /// [`Resource::fmt`] writes it.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn parse(path: &str) -> Result<Self, ParsePathError> {
        let resource = parse_path(path).ok_or(ParsePathError)?;
        // Whatever is not canonical, such as leading zeros, does not come back as it was.
        if resource.to_string() != path {
            return Err(ParsePathError);
        }
        Ok(resource)
    }

    /// Everything that a log of this size publishes beside its checkpoint, level by level, each level
    /// left to right, entries last. Full tiles and the partial ones of this very size.
    pub fn all(size: u64) -> impl Iterator<Item = Self> {
        Self::since(0, size)
    }

    /// What a log publishes that has grown from `old` entries to `size`, in the order of
    /// [`Resource::all`], without what it published before.
    pub fn since(old: u64, size: u64) -> impl Iterator<Item = Self> {
        let tiles = (0..LEVELS).flat_map(move |level| {
            let shift = HEIGHT * level;
            widths_since(old >> shift, size >> shift).map(move |(index, width)| {
                Self::Tile(Tile {
                    level,
                    index,
                    width,
                })
            })
        });
        let bundles = widths_since(old, size)
            .map(|(index, width)| Self::Entries(EntryBundle { index, width }));
        tiles.chain(bundles)
    }

    /// Whether it is full, and so stays as it is for ever.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Checkpoint => false,
            Self::Tile(tile) => tile.width == FULL_WIDTH,
            Self::Entries(bundle) => bundle.width == FULL_WIDTH,
        }
    }

    /// The entry bundles of a log of this size, in order.
    pub fn bundles(size: u64) -> impl Iterator<Item = EntryBundle> {
        widths_since(0, size).map(|(index, width)| EntryBundle { index, width })
    }
}

/// The path below the log's address.
impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (index, width) = match self {
            Self::Checkpoint => return f.write_str("checkpoint"),
            Self::Tile(tile) => {
                write!(f, "tile/{}/", tile.level)?;
                (tile.index, tile.width)
            }
            Self::Entries(bundle) => {
                f.write_str("tile/entries/")?;
                (bundle.index, bundle.width)
            }
        };
        write_index(f, index)?;
        if width < FULL_WIDTH {
            write!(f, ".p/{width}")?;
        }
        Ok(())
    }
}

impl Tile {
    /// The tile with these coordinates; `None` if no tree can have it or its width is not 1 to 256.
    #[must_use]
    pub fn new(level: u8, index: u64, width: u16) -> Option<Self> {
        let tile = Self {
            level,
            index,
            width,
        };
        let last = width.checked_sub(1)?;
        (level < LEVELS && width <= FULL_WIDTH).then_some(())?;
        tile.node(last)?.last_leaf().map(|_| tile)
    }

    /// Its level; 0 has the leaves' hashes.
    #[must_use]
    pub fn level(self) -> u8 {
        self.level
    }

    /// Number of tiles to its left.
    #[must_use]
    pub fn index(self) -> u64 {
        self.index
    }

    /// How many hashes it has, 1 to 256.
    #[must_use]
    pub fn width(self) -> u16 {
        self.width
    }

    /// Whether a log of this size publishes it, now or since it was smaller.
    #[must_use]
    pub fn is_in(self, size: u64) -> bool {
        self.node(self.width - 1)
            .is_some_and(|node| node.is_in(size))
    }

    /// The places in the tree of its hashes, left to right.
    pub fn nodes(self) -> impl Iterator<Item = Node> {
        (0..self.width).filter_map(move |item| self.node(item))
    }

    /// The tile that a log of this size publishes with what it takes to know a node, and which of its
    /// hashes those are; [`combine`] makes the node's hash of them. `None` if the log does not have
    /// the node.
    #[must_use]
    pub fn covering(node: Node, size: u64) -> Option<(Self, std::ops::Range<usize>)> {
        if !node.is_in(size) {
            return None;
        }
        let (level, above) = (node.level / HEIGHT, node.level % HEIGHT);
        let first = node.index << above;
        let index = first / u64::from(FULL_WIDTH);
        let tile = Self::new(level, index, width_at(size >> (HEIGHT * level), index))?;
        let place = usize::try_from(first % u64::from(FULL_WIDTH)).ok()?;
        Some((tile, place..place + (1 << above)))
    }

    /// Its bytes. `read` gets places of nodes.
    ///
    /// # Errors
    /// What `read` returns.
    pub fn encode<E>(self, mut read: impl FnMut(Node) -> Result<Hash, E>) -> Result<Vec<u8>, E> {
        let mut bytes = Vec::with_capacity(usize::from(self.width) * 32);
        for node in self.nodes() {
            bytes.extend_from_slice(&read(node)?.0);
        }
        Ok(bytes)
    }

    /// The hashes in its bytes.
    ///
    /// # Errors
    /// If there are not 32 bytes for each.
    pub fn decode(self, bytes: &[u8]) -> Result<Vec<Hash>, DecodeError> {
        let (hashes, rest) = bytes.as_chunks::<32>();
        if hashes.len() != usize::from(self.width) || !rest.is_empty() {
            return Err(DecodeError::TileLength {
                width: self.width,
                bytes: bytes.len(),
            });
        }
        Ok(hashes.iter().copied().map(Hash).collect())
    }

    fn node(self, item: u16) -> Option<Node> {
        let first = self.index.checked_mul(u64::from(FULL_WIDTH))?;
        Some(Node {
            level: self.level * HEIGHT,
            index: first.checked_add(u64::from(item))?,
        })
    }
}

impl EntryBundle {
    /// The bundle with these coordinates; `None` if no log can have it or its width is not 1 to 256.
    #[must_use]
    pub fn new(index: u64, width: u16) -> Option<Self> {
        Tile::new(0, index, width).map(|_| Self { index, width })
    }

    /// Number of bundles before it.
    #[must_use]
    pub fn index(self) -> u64 {
        self.index
    }

    /// How many entries it has, 1 to 256.
    #[must_use]
    pub fn width(self) -> u16 {
        self.width
    }

    /// The indices of its entries.
    #[must_use]
    pub fn entries(self) -> std::ops::Range<u64> {
        let first = self.index.saturating_mul(u64::from(FULL_WIDTH));
        first..first.saturating_add(u64::from(self.width))
    }

    /// The entries in its bytes.
    ///
    /// # Errors
    /// If there are not exactly as many as its width says.
    pub fn decode(self, bytes: &[u8]) -> Result<Vec<&[u8]>, DecodeError> {
        let mut entries = Vec::with_capacity(usize::from(self.width));
        let mut rest = bytes;
        while entries.len() < usize::from(self.width) {
            let entry = rest.split_first_chunk::<2>().and_then(|(length, after)| {
                after.split_at_checked(usize::from(u16::from_be_bytes(*length)))
            });
            let Some((entry, after)) = entry else {
                return Err(DecodeError::BundleTooShort {
                    entries: entries.len(),
                    width: self.width,
                });
            };
            entries.push(entry);
            rest = after;
        }
        if !rest.is_empty() {
            return Err(DecodeError::BundleTooLong {
                width: self.width,
                bytes: rest.len(),
            });
        }
        Ok(entries)
    }
}

/// The hash of the perfect subtree over these hashes, whose number is a power of two.
#[must_use]
pub fn combine(hashes: &[Hash]) -> Hash {
    let mut subtree = Frontier::new();
    hashes.iter().for_each(|hash| subtree.push(*hash));
    subtree.root()
}

/// Append an entry to a bundle's bytes.
///
/// # Errors
/// If it is longer than [`MAX_ENTRY_BYTES`].
pub fn encode_entry(bundle: &mut Vec<u8>, entry: &[u8]) -> Result<(), EntryTooLong> {
    let bytes = entry.len();
    let length = u16::try_from(bytes).map_err(|_| EntryTooLong { bytes })?;
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
    Ok(())
}

/// The resources that a row of so many hashes or entries is cut into, index and width of each, without
/// those of a row of `old`.
fn widths_since(old: u64, count: u64) -> impl Iterator<Item = (u64, u16)> {
    let first = if old < count {
        old / u64::from(FULL_WIDTH)
    } else {
        count.div_ceil(u64::from(FULL_WIDTH))
    };
    (first..count.div_ceil(u64::from(FULL_WIDTH))).map(move |index| (index, width_at(count, index)))
}

/// How many of `count` hashes or entries the resource at `index` has.
fn width_at(count: u64, index: u64) -> u16 {
    let before = index.saturating_mul(u64::from(FULL_WIDTH));
    u16::try_from(count.saturating_sub(before)).map_or(FULL_WIDTH, |left| left.min(FULL_WIDTH))
}

/// Groups of three digits, all but the last with an x before them.
fn write_index(f: &mut fmt::Formatter<'_>, index: u64) -> fmt::Result {
    let (above, last) = (index / 1000, index % 1000);
    if above > 0 {
        write_upper_groups(f, above)?;
    }
    write!(f, "{last:03}")
}

fn write_upper_groups(f: &mut fmt::Formatter<'_>, index: u64) -> fmt::Result {
    if index >= 1000 {
        write_upper_groups(f, index / 1000)?;
    }
    write!(f, "x{:03}/", index % 1000)
}

/// Reads leniently what [`Resource::parse`] then compares with the canonical path.
fn parse_path(path: &str) -> Option<Resource> {
    if path == "checkpoint" {
        return Some(Resource::Checkpoint);
    }
    let (kind, rest) = path.strip_prefix("tile/")?.split_once('/')?;
    let (index, width) = match rest.split_once(".p/") {
        Some((index, width)) => (index, width.parse().ok()?),
        None => (rest, FULL_WIDTH),
    };
    let index = parse_index(index)?;
    if kind == "entries" {
        return EntryBundle::new(index, width).map(Resource::Entries);
    }
    Tile::new(kind.parse().ok()?, index, width).map(Resource::Tile)
}

fn parse_index(groups: &str) -> Option<u64> {
    groups.split('/').try_fold(0u64, |index, group| {
        let group: u64 = group.strip_prefix('x').unwrap_or(group).parse().ok()?;
        index.checked_mul(1000)?.checked_add(group)
    })
}

#[cfg(test)]
mod tests;
