//! Which entries a reader wants: pure.
//!
//! The controller selects by all of it; everything is checked here again, so an answer never shows
//! more than was asked for.

use std::str::FromStr;

use berth_api::rest::{AuditBody, AuditEntry};

use crate::duration::parse_seconds;

/// What a filter looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// Whose namespace.
    TenantId,
    /// Which VM.
    VmId,
    /// Which node.
    NodeId,
    /// Which slot.
    SlotId,
    /// Which kind of event.
    EventType,
    /// `accepted`, `denied`, `failed` or `completed`.
    Outcome,
    /// Under which token.
    TokenId,
}

const KEYS: [(&str, Key); 7] = [
    ("tenant-id", Key::TenantId),
    ("vm-id", Key::VmId),
    ("node-id", Key::NodeId),
    ("slot-id", Key::SlotId),
    ("event-type", Key::EventType),
    ("outcome", Key::Outcome),
    ("token-id", Key::TokenId),
];

/// One `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// What it looks at.
    pub(crate) key: Key,
    /// What must stand there.
    pub(crate) value: String,
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = KEYS.map(|(name, _)| name).join(", ");
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| format!("write it as KEY=VALUE with one of {known}"))?;
        let key = KEYS.iter().find(|(key_name, _)| *key_name == name);
        match key {
            None => Err(format!("`{name}` is none of {known}")),
            Some(_) if value.is_empty() => Err(format!("`{name}` needs a value")),
            Some((_, key)) => Ok(Self {
                key: *key,
                value: value.to_owned(),
            }),
        }
    }
}

/// Filters that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filters(pub(crate) Vec<Filter>);

impl Filters {
    /// The first value for a key, for the controller to select by.
    #[must_use]
    pub(crate) fn value_of(&self, key: Key) -> Option<&str> {
        self.0
            .iter()
            .find(|filter| filter.key == key)
            .map(|filter| filter.value.as_str())
    }

    /// Whether an entry is wanted. One whose body is not readable is wanted by nobody who filters.
    #[must_use]
    pub(crate) fn admit(&self, entry: &ReadEntry) -> bool {
        self.0.iter().all(|filter| {
            entry
                .body
                .as_ref()
                .is_some_and(|body| members(body, filter.key).contains(&filter.value))
        })
    }
}

fn members(body: &AuditBody, key: Key) -> Vec<String> {
    let one = |text: Option<String>| text.into_iter().collect();
    match key {
        Key::TenantId => one(body.tenant_id.as_ref().map(ToString::to_string)),
        Key::VmId => one(body.vm_id.map(|id| id.to_string())),
        Key::NodeId => one(body.node_id.map(|id| id.to_string())),
        Key::SlotId => body.slot_ids.iter().map(ToString::to_string).collect(),
        Key::EventType => vec![body.event_type.clone()],
        Key::Outcome => vec![body.outcome.clone()],
        Key::TokenId => one(body.actor.token_id.map(|id| id.to_string())),
    }
}

/// Where to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// At an index.
    Index(u64),
    /// At a time, as the API takes it.
    Time(jiff::Timestamp),
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(index) = text.parse() {
            return Ok(Self::Index(index));
        }
        if let Ok(time) = text.parse() {
            return Ok(Self::Time(time));
        }
        let seconds = parse_seconds(text)
            .ok()
            .and_then(|seconds| i64::try_from(seconds).ok())
            .ok_or("write an index, a time such as 2026-11-22T08:00:00Z, or 90s, 5m, 24h, 30d")?;
        let now = jiff::Timestamp::now().as_second();
        jiff::Timestamp::from_second(now.saturating_sub(seconds))
            .map(Self::Time)
            .map_err(|_| "that is before all time".to_owned())
    }
}

impl Since {
    /// The least index that can match.
    #[must_use]
    pub(crate) fn index(&self) -> u64 {
        match self {
            Self::Index(index) => *index,
            Self::Time(_) => 0,
        }
    }

    /// The time for the controller to select by.
    #[must_use]
    pub(crate) fn time(&self) -> Option<String> {
        match self {
            Self::Index(_) => None,
            Self::Time(time) => Some(time.to_string()),
        }
    }

    /// Whether an entry is not older.
    #[must_use]
    pub(crate) fn admits(&self, entry: &ReadEntry) -> bool {
        match self {
            Self::Index(index) => entry.entry.index >= *index,
            Self::Time(since) => entry
                .body
                .as_ref()
                .and_then(|body| body.time.parse::<jiff::Timestamp>().ok())
                .is_some_and(|time| time >= *since),
        }
    }
}

/// An entry with what its body says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReadEntry {
    /// As served.
    pub(crate) entry: AuditEntry,
    /// Nothing if a newer controller wrote it in a way that is not known here.
    pub(crate) body: Option<AuditBody>,
}

impl From<AuditEntry> for ReadEntry {
    fn from(entry: AuditEntry) -> Self {
        Self {
            body: serde_json::from_str(&entry.body).ok(),
            entry,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry() -> ReadEntry {
        let body = json!({
            "event_id": "ev_01jd0000000000000000000000",
            "time": "2026-01-02T03:04:05.678Z",
            "event_type": "TENANT_CREATED",
            "tenant_id": "acme-corp",
            "tenant_seq": 1,
            "prev": "",
            "actor": {
                "kind": "operator",
                "token_id": "tok_01jd0000000000000000000000",
                "subject_key": null
            },
            "request": null,
            "vm_id": null,
            "node_id": null,
            "outcome": "completed",
            "code": null
        });
        AuditEntry {
            index: 0,
            body: body.to_string(),
            nonce: String::new(),
            leaf: String::new(),
            leaf_hash: String::new(),
        }
        .into()
    }

    fn admits(filters: &[&str]) -> bool {
        let filters = filters.iter().map(|text| text.parse().unwrap()).collect();
        Filters(filters).admit(&entry())
    }

    #[test]
    fn all_filters_must_hold() {
        assert!(admits(&[]));
        assert!(admits(&[
            "tenant-id=acme-corp",
            "event-type=TENANT_CREATED"
        ]));
        assert!(admits(&["outcome=completed"]));
        assert!(admits(&["token-id=tok_01jd0000000000000000000000"]));
        assert!(!admits(&["tenant-id=acme-corp", "event-type=VM_DELETED"]));
        assert!(!admits(&["tenant-id=acme"]));
        assert!(!admits(&["vm-id=vm_01jd0000000000000000000000"]));
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_known_ones() {
        let refused = "tenant=acme-corp".parse::<Filter>().unwrap_err();
        for (name, _) in KEYS {
            assert!(refused.contains(name), "{refused}");
        }
        "tenant-id".parse::<Filter>().unwrap_err();
        "tenant-id=".parse::<Filter>().unwrap_err();
    }

    #[test]
    fn an_unreadable_body_is_listed_but_matches_no_filter() {
        let mut entry = entry();
        entry.body = None;
        assert!(Filters::default().admit(&entry));
        assert!(!Filters(vec!["outcome=completed".parse().unwrap()]).admit(&entry));
    }
}
