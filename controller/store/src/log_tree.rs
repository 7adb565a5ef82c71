//! The log's tree as its readers need it: stored nodes, proofs, tiles, entries with their proofs.

use std::collections::HashMap;

use berth_ledger::entry::ProvenEntry;
use berth_ledger::leaf::Leaf;
use berth_ledger::merkle::{
    BuildProofError, Hash, Node, consistency_proof, inclusion_proof, root_from_nodes,
};
use berth_ledger::tile::{Resource, encode_entry};

use crate::error::StoreError;
use crate::ledger::{EntryFilter, StoredEntry, storable};
use crate::log::{LogHead, NO_HASH, stored_head};
use crate::sql::{Connection, OptionalExtension as _, SqlError, ValueRef};
use crate::store::Db;

/// The stored nodes of one epoch.
pub(crate) struct TreeNodes<'c> {
    conn: &'c Connection,
    epoch: u64,
}

impl<'c> TreeNodes<'c> {
    pub(crate) fn of(conn: &'c Connection, epoch: u64) -> Self {
        Self { conn, epoch }
    }

    pub(crate) fn read(&self, node: Node) -> crate::sql::Result<Hash> {
        let hash: Option<Vec<u8>> = self
            .conn
            .prepare_cached(
                "SELECT hash FROM ledger_node WHERE epoch = ?1 AND level = ?2 AND idx = ?3",
            )?
            .query_row((self.epoch, node.level, node.index), |row| row.get(0))
            .optional()?;
        Ok(hash
            .and_then(|hash| Hash::from_bytes(&hash))
            .unwrap_or(NO_HASH))
    }

    /// Store new nodes, in the order of their table: neighbours one after the other.
    pub(crate) fn store(&self, mut new: Vec<(Node, Hash)>) -> crate::sql::Result<()> {
        new.sort_unstable_by_key(|(node, _)| *node);
        let epoch = ValueRef::Integer(storable(self.epoch));
        let rows: Vec<_> = new
            .iter()
            .map(|(node, hash)| {
                let level = ValueRef::Integer(node.level.into());
                let index = ValueRef::Integer(storable(node.index));
                [epoch, level, index, ValueRef::Blob(&hash.0)]
            })
            .collect();
        self.conn
            .insert_all("INSERT INTO ledger_node (epoch, level, idx, hash)", &rows)
    }

    /// The nodes that a tree has of `to` entries and has not of `from`, as far as they are stored.
    pub(crate) fn completed(&self, from: u64, to: u64) -> crate::sql::Result<HashMap<Node, Hash>> {
        let mut select = self.conn.prepare_cached(
            "SELECT idx, hash FROM ledger_node WHERE epoch = ?1 AND level = ?2 AND idx >= ?3 AND idx < ?4",
        )?;
        let mut found = HashMap::new();
        for level in 0..64_u8 {
            let (first, end) = (from >> level, to >> level);
            if first == end {
                break;
            }
            let rows = select.query_map((self.epoch, level, first, end), |row| {
                Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?))
            })?;
            for row in rows {
                let (index, hash) = row?;
                let hash = Hash::from_bytes(&hash).unwrap_or(NO_HASH);
                found.insert(Node { level, index }, hash);
            }
        }
        Ok(found)
    }

    /// The hashes of neighbours from `first` on, one after the other.
    fn row_of(&self, first: Node, count: u64) -> crate::sql::Result<Vec<u8>> {
        let mut select = self.conn.prepare_cached(
            "SELECT hash FROM ledger_node WHERE epoch = ?1 AND level = ?2 AND idx >= ?3 AND idx < ?4
             ORDER BY idx",
        )?;
        let end = first.index.saturating_add(count);
        let hashes = select
            .query_map((self.epoch, first.level, first.index, end), |row| {
                row.get::<_, Vec<u8>>(0)
            })?
            .collect::<Result<Vec<_>, _>>()?;
        Ok(hashes.concat())
    }
}

impl Db<'_> {
    /// Which log is written here, and where it ends.
    pub fn log_head(&self) -> Result<LogHead, StoreError> {
        Ok(stored_head(self.conn)?)
    }

    fn tree_nodes(&self) -> Result<TreeNodes<'_>, StoreError> {
        Ok(TreeNodes::of(self.conn, self.log_head()?.epoch))
    }

    /// The root that the log had at a size that it has reached.
    pub fn root_at(&self, size: u64) -> Result<Hash, StoreError> {
        let nodes = self.tree_nodes()?;
        Ok(root_from_nodes(size, |node| nodes.read(node))?)
    }

    /// That an entry is in the tree of a size that the log has reached.
    pub fn prove_inclusion(
        &self,
        index: u64,
        size: u64,
    ) -> Result<Vec<Hash>, BuildProofError<SqlError>> {
        let nodes = self.nodes_for_proof()?;
        inclusion_proof(index, size, |node| nodes.read(node))
    }

    /// That the tree of one size is the beginning of the tree of a later one.
    pub fn prove_consistency(
        &self,
        from: u64,
        to: u64,
    ) -> Result<Vec<Hash>, BuildProofError<SqlError>> {
        let nodes = self.nodes_for_proof()?;
        consistency_proof(from, to, |node| nodes.read(node))
    }

    fn nodes_for_proof(&self) -> Result<TreeNodes<'_>, BuildProofError<SqlError>> {
        let head = stored_head(self.conn).map_err(BuildProofError::Read)?;
        Ok(TreeNodes::of(self.conn, head.epoch))
    }

    /// The bytes of a tile or an entry bundle (C2SP tlog-tiles); `None` where a log of `size` entries,
    /// which this one has reached, does not publish it.
    pub fn published(&self, resource: &Resource, size: u64) -> Result<Option<Vec<u8>>, StoreError> {
        match resource {
            Resource::Checkpoint => Ok(None),
            Resource::Tile(tile) if tile.is_in(size) => {
                let nodes = self.tree_nodes()?;
                let mut places = tile.nodes();
                let first = places.next();
                let row = first.map(|first| nodes.row_of(first, u64::from(tile.width())));
                Ok(row.transpose()?)
            }
            Resource::Entries(bundle) if bundle.entries().end <= size => {
                self.bundle(bundle.entries()).map(Some)
            }
            Resource::Tile(_) | Resource::Entries(_) => Ok(None),
        }
    }

    fn bundle(&self, entries: std::ops::Range<u64>) -> Result<Vec<u8>, StoreError> {
        let epoch = self.log_head()?.epoch;
        let mut select = self.conn.prepare_cached(
            "SELECT leaf FROM ledger_entry WHERE epoch = ?1 AND idx >= ?2 AND idx < ?3 ORDER BY idx",
        )?;
        let range = (epoch, storable(entries.start), storable(entries.end));
        let leaves = select.query_map(range, |row| row.get::<_, Vec<u8>>(0))?;
        let mut bundle = Vec::new();
        for leaf in leaves {
            encode_entry(&mut bundle, &leaf?).map_err(|_| StoreError::Corrupt { what: "leaf" })?;
        }
        Ok(bundle)
    }

    /// Entries with the proofs that the tree of `size` entries, which this log has reached, has them.
    pub fn proven_entries(
        &self,
        filter: &EntryFilter,
        size: u64,
    ) -> Result<Vec<ProvenEntry>, StoreError> {
        let nodes = self.tree_nodes()?;
        let filter = EntryFilter {
            until_index: Some(filter.until_index.unwrap_or(size).min(size)),
            ..filter.clone()
        };
        self.stored_entries(&filter)?
            .into_iter()
            .map(|entry| proven(entry, size, &nodes))
            .collect()
    }
}

fn proven(entry: StoredEntry, size: u64, nodes: &TreeNodes<'_>) -> Result<ProvenEntry, StoreError> {
    let corrupt = |what| StoreError::Corrupt { what };
    let proof = inclusion_proof(entry.index, size, |node| nodes.read(node));
    Ok(ProvenEntry {
        index: entry.index,
        leaf: Leaf::parse(&entry.leaf).map_err(|_| corrupt("leaf"))?,
        nonce: entry.nonce,
        body: entry.body,
        proof: proof.map_err(|error| match error {
            BuildProofError::Read(cause) => StoreError::Sql(cause),
            BuildProofError::NoSuchLeaf { .. } | BuildProofError::Sizes { .. } => {
                corrupt("place in the tree")
            }
        })?,
    })
}
