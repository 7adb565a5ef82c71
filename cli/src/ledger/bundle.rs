//! Export files: written as they come, and checked line by line without a controller.

use std::io::BufRead;

use berth_ledger::bundle::{BundleReport, BundleVerifier, VerifyBundleError, read_header};
use berth_ledger::checkpoint::Checkpoint;
use berth_ledger::keys::PublicKey;
use berth_ledger::note::Vkey;

use crate::failure::Failure;
use crate::ledger::verify::log_keys;

/// Longest line that is read, in bytes: a body, its proof, and room.
const MAX_LINE_BYTES: u64 = 4 << 20;

/// What was found right.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct VerifiedFile {
    /// The log.
    pub(crate) origin: String,
    /// Size of the tree that all of it is proved in.
    pub(crate) size: u64,
    /// Its root, lower-case hex.
    pub(crate) root: String,
    /// Number of entries in the file.
    pub(crate) entries: u64,
    /// Whether these are all of one tenant up to the last one, from its first.
    pub(crate) is_complete: bool,
    /// Whether the file has what shows that none was left out in between.
    pub(crate) has_view_key: bool,
}

impl VerifiedFile {
    /// For people.
    #[must_use]
    pub(crate) fn sentence(&self, key_is_pinned: bool) -> String {
        let whole = match (self.is_complete, self.has_view_key) {
            (true, true) => "all of one tenant from its first on, with the tags of its sequence",
            (true, false) => "all of one tenant from its first on",
            (false, _) => "a stretch or a selection",
        };
        let trust = if key_is_pinned {
            "the key that you gave"
        } else {
            "the file's own word; give the key with --public-key"
        };
        format!(
            "verified: {} entries ({whole})\nlog: {}, size {}, root {}\nkey: {trust}",
            self.entries, self.origin, self.size, self.root
        )
    }
}

/// Check a file; `progress` is told how many entries were right so far.
pub(crate) fn verify(
    mut file: impl BufRead,
    pinned: Option<&PublicKey>,
    mut progress: impl FnMut(u64),
) -> Result<VerifiedFile, Failure> {
    let mut line = String::new();
    next_line(&mut file, &mut line)?;
    let keys = keys_of(&line, pinned).map_err(Failure::Bundle)?;
    let mut check = BundleVerifier::open(&line, &keys).map_err(Failure::Bundle)?;
    let mut entries = 0_u64;
    while next_line(&mut file, &mut line)? {
        if check.line(&line).map_err(Failure::Bundle)?.is_some() {
            entries = entries.saturating_add(1);
            if entries.is_multiple_of(1000) {
                progress(entries);
            }
        }
    }
    Ok(shown(&check.finish().map_err(Failure::Bundle)?))
}

fn shown(report: &BundleReport) -> VerifiedFile {
    let tree: &Checkpoint = report.signed.checkpoint();
    VerifiedFile {
        origin: tree.origin.to_string(),
        size: tree.size,
        root: tree.root.to_string(),
        entries: report.events,
        is_complete: report.is_from_start,
        has_view_key: report.has_tags,
    }
}

fn keys_of(first_line: &str, pinned: Option<&PublicKey>) -> Result<Vec<Vkey>, VerifyBundleError> {
    let header = read_header(first_line)?;
    log_keys(&header.checkpoint, &header.log_keys, pinned)
        .map_err(|field| VerifyBundleError::Header { field })
}

/// Whether there was one more line; it is without its line feed.
fn next_line(file: &mut impl BufRead, line: &mut String) -> Result<bool, Failure> {
    use std::io::Read as _;
    line.clear();
    let read = file.by_ref().take(MAX_LINE_BYTES).read_line(line);
    let length = read.map_err(Failure::ReadBundle)?;
    if line.ends_with('\n') {
        line.pop();
    }
    Ok(length > 0)
}
