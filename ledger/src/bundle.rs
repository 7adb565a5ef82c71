//! Export bundles: a stretch of one holder's events that verifies without a network.
//!
//! JSON lines: a header with the checkpoint, one line for each event with its proof, and an end line
//! with the count, so that a file that was cut short is seen. Owns the lines and their check, one at a
//! time. The keys in the header are for convenience: believing them is believing the file.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{OpenCheckpointError, SignedCheckpoint};
use crate::entry::{ProvenEntry, VerifyEntryError};
use crate::leaf::ViewKey;
use crate::merkle::Hash;
use crate::note::Vkey;
use crate::tenant_view::{FIRST_SEQUENCE, NO_PREVIOUS, TenantView, ViewError};

/// What a bundle's header says that it is.
pub const FORMAT: &str = "berth-ledger-export/v1";

/// One line of a bundle.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Line {
    /// The first.
    Header(Header),
    /// An event.
    Event(ProvenEntry),
    /// The last.
    End(End),
}

/// The first line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// [`FORMAT`].
    pub format: String,
    /// The checkpoint under which all proofs are, with whatever cosignatures it has.
    pub checkpoint: String,
    /// Verifier keys of the log.
    pub log_keys: Vec<String>,
    /// Whose events these are.
    pub scope: Scope,
}

/// Whose events a bundle has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case", deny_unknown_fields)]
pub enum Scope {
    /// A stretch of one holder's sequence, without gaps.
    Holder {
        /// A tenant's id; `None` for the deployment's own events.
        tenant_id: Option<String>,
        /// Number of the first event.
        first_sequence: u64,
        /// Hash of the body before it.
        previous: Hash,
        /// The holder's view key in standard base64, for the holder itself; leave it out when the
        /// bundle is given to others.
        view_key: Option<String>,
    },
    /// Chosen events of any holders. That none is missing is not claimed.
    Selection {},
}

/// The last line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// Number of event lines.
    pub events: u64,
}

/// Why a bundle is not believed. Lines count from 1.
#[derive(Debug, thiserror::Error)]
pub enum VerifyBundleError {
    /// A line that is none of a bundle's, or not where it belongs.
    #[error("line {line} is not the {expected} of an export bundle")]
    Line {
        /// Which one.
        line: u64,
        /// What belongs there.
        expected: &'static str,
    },
    /// Another format, or one of another version.
    #[error("the bundle is not of the format {FORMAT}")]
    Format,
    /// A field of the header that cannot be read.
    #[error("the field `{field}` of the bundle's header cannot be read")]
    Header {
        /// Which.
        field: &'static str,
    },
    /// The checkpoint is not believed.
    #[error("the bundle's checkpoint is not believed")]
    Checkpoint(#[source] OpenCheckpointError),
    /// An event is not in the log.
    #[error("line {line} shows nothing")]
    Entry {
        /// Which one.
        line: u64,
        /// Why.
        #[source]
        cause: VerifyEntryError,
    },
    /// An event is not the holder's next one.
    #[error("line {line} is not the next event of the bundle's holder")]
    View {
        /// Which one.
        line: u64,
        /// Why.
        #[source]
        cause: ViewError,
    },
    /// Fewer or more events than were written.
    #[error("the bundle has {found} events, its end line says {expected}")]
    Count {
        /// Found.
        found: u64,
        /// Said.
        expected: u64,
    },
    /// It has no end line.
    #[error("the bundle was cut short: it has no end line")]
    NoEnd,
}

/// What a bundle was found to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BundleReport {
    /// The checkpoint under which everything is.
    pub signed: SignedCheckpoint,
    /// Number of events.
    pub events: u64,
    /// Whether the events are all of one holder from its first on, up to the last one shown.
    pub is_from_start: bool,
    /// Whether the tags were checked: the bundle has the view key.
    pub has_tags: bool,
}

/// Checks a bundle line by line. Holds nothing of the lines that have passed.
#[derive(Debug)]
pub struct BundleVerifier {
    signed: SignedCheckpoint,
    view: Option<TenantView>,
    is_from_start: bool,
    has_tags: bool,
    line: u64,
    events: u64,
    has_ended: bool,
}

impl BundleVerifier {
    /// Read the first line. `log_keys` are the log's keys as the caller knows them from elsewhere;
    /// [`Header::log_keys`] only if the caller accepts that the file vouches for itself.
    ///
    /// # Errors
    /// If it is not a header, or its checkpoint is not believed.
    pub fn open(first_line: &str, log_keys: &[Vkey]) -> Result<Self, VerifyBundleError> {
        let header = read_header(first_line)?;
        let signed = SignedCheckpoint::open(header.checkpoint.as_bytes(), log_keys)
            .map_err(VerifyBundleError::Checkpoint)?;
        let mut verifier = Self {
            signed,
            view: None,
            is_from_start: false,
            has_tags: false,
            line: 1,
            events: 0,
            has_ended: false,
        };
        if let Scope::Holder {
            tenant_id,
            first_sequence,
            previous,
            view_key,
        } = header.scope
        {
            let view_key = view_key.as_deref().map(read_view_key).transpose()?;
            verifier.is_from_start = first_sequence == FIRST_SEQUENCE && previous == NO_PREVIOUS;
            verifier.has_tags = view_key.is_some();
            verifier.view = Some(TenantView::from(
                tenant_id,
                view_key,
                first_sequence,
                previous,
            ));
        }
        Ok(verifier)
    }

    /// Check the next line; the event, or `None` for the end line.
    ///
    /// # Errors
    /// If it does not hold.
    pub fn line(&mut self, line: &str) -> Result<Option<ProvenEntry>, VerifyBundleError> {
        self.line += 1;
        let line_number = self.line;
        let wrong = VerifyBundleError::Line {
            line: line_number,
            expected: "next event or end",
        };
        if self.has_ended {
            return Err(wrong);
        }
        match serde_json::from_str(line).map_err(|_| wrong)? {
            Line::Header(_) => Err(VerifyBundleError::Line {
                line: line_number,
                expected: "next event or end",
            }),
            Line::End(End { events }) if events != self.events => Err(VerifyBundleError::Count {
                found: self.events,
                expected: events,
            }),
            Line::End(_) => {
                self.has_ended = true;
                Ok(None)
            }
            Line::Event(entry) => {
                entry.verify(self.signed.checkpoint()).map_err(|cause| {
                    VerifyBundleError::Entry {
                        line: line_number,
                        cause,
                    }
                })?;
                if let Some(view) = &mut self.view {
                    view.accept(&entry.shown())
                        .map_err(|cause| VerifyBundleError::View {
                            line: line_number,
                            cause,
                        })?;
                }
                self.events += 1;
                Ok(Some(entry))
            }
        }
    }

    /// After the last line.
    ///
    /// # Errors
    /// If there was no end line.
    pub fn finish(self) -> Result<BundleReport, VerifyBundleError> {
        if !self.has_ended {
            return Err(VerifyBundleError::NoEnd);
        }
        Ok(BundleReport {
            signed: self.signed,
            events: self.events,
            is_from_start: self.is_from_start,
            has_tags: self.has_tags,
        })
    }
}

/// The header, before anything in it is believed: for its keys.
///
/// # Errors
/// If the line is not one.
pub fn read_header(first_line: &str) -> Result<Header, VerifyBundleError> {
    let Ok(Line::Header(header)) = serde_json::from_str(first_line) else {
        return Err(VerifyBundleError::Line {
            line: 1,
            expected: "header",
        });
    };
    if header.format != FORMAT {
        return Err(VerifyBundleError::Format);
    }
    Ok(header)
}

fn read_view_key(text: &str) -> Result<ViewKey, VerifyBundleError> {
    let bytes = STANDARD.decode(text).ok();
    let bytes: Option<[u8; 32]> = bytes.and_then(|bytes| bytes.try_into().ok());
    bytes
        .map(ViewKey::from_bytes)
        .ok_or(VerifyBundleError::Header { field: "view_key" })
}

#[cfg(test)]
mod tests;
