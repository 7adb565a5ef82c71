//! Typed ids: one line each, so that the compiler keeps a node's id out of a VM's place.
//!
//! On the wire an id is a type prefix, an underscore and 26 lower-case Crockford base32 characters
//! (a ULID), so ids sort by creation time. Parsing accepts no other prefix.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use ulid::Ulid;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    /// The text does not begin with this type's prefix.
    #[error("an id of this type begins with `{expected}_`")]
    Prefix {
        /// The prefix this type has.
        expected: &'static str,
    },
    /// What follows the prefix is not a ULID.
    #[error("after `{expected}_` come 26 letters and digits")]
    Body {
        /// The prefix this type has.
        expected: &'static str,
    },
}

macro_rules! typed_id { ($($(#[$doc:meta])* $name:ident = $prefix:literal),* $(,)?) => {$(
    $(#[$doc])*
    #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub struct $name(Ulid);

    impl $name {
        /// The prefix that every id of this type carries, without the underscore.
        pub const PREFIX: &'static str = $prefix;

        /// A new id from the wall clock and the system's random source.
        #[must_use]
        pub fn generate() -> Self {
            Self(Ulid::new())
        }

        /// The 26 characters without the prefix: for unit names, folder names and the like.
        #[must_use]
        pub fn bare(&self) -> String {
            self.0.to_string().to_ascii_lowercase()
        }
    }

    impl fmt::Display for $name {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}_{}", $prefix, self.bare())
        }
    }

    impl fmt::Debug for $name {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt::Display::fmt(self, f)
        }
    }

    impl FromStr for $name {
        type Err = ParseIdError;

        fn from_str(text: &str) -> Result<Self, ParseIdError> {
            let body = text
                .strip_prefix($prefix)
                .and_then(|rest| rest.strip_prefix('_'))
                .ok_or(ParseIdError::Prefix { expected: $prefix })?;
            if body.chars().any(|c| c.is_ascii_uppercase()) {
                return Err(ParseIdError::Body { expected: $prefix });
            }
            Ulid::from_string(body)
                .map(Self)
                .map_err(|_| ParseIdError::Body { expected: $prefix })
        }
    }

    impl Serialize for $name {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(self)
        }
    }

    impl<'de> Deserialize<'de> for $name {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
            text.parse().map_err(serde::de::Error::custom)
        }
    }

    text_schema!(
        $name,
        concat!("^", $prefix, "_[0-7][0-9a-hjkmnp-tv-z]{25}$")
    );
)*}}

typed_id! {
    /// One run of an agent process, new at every start.
    AgentInstanceId = "agent",
    /// One tenant's right to one slot, from its claim to its release.
    ClaimId = "claim",
    /// One controller installation; tokens are made out to it.
    ControllerId = "ctl",
    /// One line of the ledger, known before its index is.
    EventId = "ev",
    /// A host that runs VMs.
    NodeId = "node",
    /// A long action that a caller can wait for.
    OperationId = "op",
    /// A person's link to a tenant.
    PersonId = "person",
    /// One signed statement of a host about one of its slots.
    ReceiptId = "rcpt",
    /// One REST request.
    RequestId = "req",
    /// A bundle of one host's devices that is rented as a whole.
    SlotId = "slot",
    /// A signed order to one agent.
    TaskId = "task",
    /// A capability token (its `jti`).
    TokenId = "tok",
    /// A tenant's intent to have a guest.
    VmId = "vm",
}

macro_rules! label_id { ($($(#[$doc:meta])* $name:ident, $error:ident, $problem:literal;)*) => {$(
    $(#[$doc])*
    #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize)]
    #[serde(transparent)]
    pub struct $name(String);

    text_schema!($name, "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$");

    /// Why a text is not such an id.
    #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
    #[error($problem)]
    pub struct $error;

    impl $name {
        /// The id as text.
        #[must_use]
        pub fn as_str(&self) -> &str {
            &self.0
        }
    }

    impl fmt::Display for $name {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.0)
        }
    }

    impl FromStr for $name {
        type Err = $error;

        fn from_str(text: &str) -> Result<Self, $error> {
            if is_label(text) {
                Ok(Self(text.to_owned()))
            } else {
                Err($error)
            }
        }
    }

    impl<'de> Deserialize<'de> for $name {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
            text.parse().map_err(serde::de::Error::custom)
        }
    }
)*}}

label_id! {
    /// A tenant's stable name: lower-case letters, digits and inner hyphens, 1 to 63 characters.
    TenantId, ParseTenantIdError,
    "a tenant id has 1 to 63 lower-case letters, digits or hyphens and does not begin or end with a hyphen";
    /// A project's stable name inside its tenant, in the same form. It means nothing without the tenant.
    ProjectId, ParseProjectIdError,
    "a project id has 1 to 63 lower-case letters, digits or hyphens and does not begin or end with a hyphen";
    /// A service account's stable name inside its tenant, in the same form.
    AccountId, ParseAccountIdError,
    "a service account's id has 1 to 63 lower-case letters, digits or hyphens and does not begin or end with a hyphen";
}

/// The project that every tenant has from its first moment to its last.
pub const DEFAULT_PROJECT: &str = "default";

impl Default for ProjectId {
    fn default() -> Self {
        Self(DEFAULT_PROJECT.to_owned())
    }
}

fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.chars().all(|c| inner(c) || c == '-')
        && text.starts_with(inner)
        && text.ends_with(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text() {
        let id = VmId::generate();
        assert_eq!(id.to_string().parse::<VmId>(), Ok(id));
        assert_eq!(id.to_string().len(), "vm_".len() + 26);
    }

    #[test]
    fn an_id_of_another_type_is_refused() {
        let text = NodeId::generate().to_string();
        assert_eq!(
            text.parse::<VmId>(),
            Err(ParseIdError::Prefix { expected: "vm" })
        );
    }

    #[test]
    fn an_id_has_one_spelling() {
        let upper = VmId::generate()
            .to_string()
            .to_ascii_uppercase()
            .replace("VM_", "vm_");
        assert_eq!(
            upper.parse::<VmId>(),
            Err(ParseIdError::Body { expected: "vm" })
        );
    }

    #[test]
    fn the_default_project_has_an_id_like_any_other() {
        assert_eq!(DEFAULT_PROJECT.parse(), Ok(ProjectId::default()));
    }

    #[test]
    fn tenant_ids_follow_the_published_pattern() {
        for good in ["a", "acme-corp", "0-0", &"a".repeat(63)] {
            assert!(good.parse::<TenantId>().is_ok(), "{good}");
            assert!(good.parse::<ProjectId>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "Acme",
            "a_b",
            "a.b",
            "ä",
            "a b",
            &"a".repeat(64),
        ] {
            assert!(bad.parse::<TenantId>().is_err(), "{bad}");
            assert!(bad.parse::<ProjectId>().is_err(), "{bad}");
        }
    }
}
