//! What a token may allow: a closed list, and which scope covers which. No wildcards.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

macro_rules! scopes { ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
    /// One permission.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    pub enum Scope { $($(#[$doc])* $name),* }

    impl Scope {
        /// Every scope there is.
        pub const ALL: &'static [Self] = &[$(Self::$name),*];

        /// The scope as tokens and requests write it.
        #[must_use]
        pub fn as_str(self) -> &'static str {
            match self { $(Self::$name => $text),* }
        }
    }
}}

scopes! {
    /// The operator of the whole deployment. Only in tokens without a tenant.
    PlatformAdmin = "service:platform-admin",
    /// Everything inside one tenant.
    TenantAdmin = "service:tenant-admin",
    /// Read the metrics. Only in tokens without a tenant.
    Metrics = "service:metrics",
    /// See VMs, images, operations and usage.
    VmRead = "vm.read",
    /// Create VMs.
    VmCreate = "vm.create",
    /// Start, stop and delete VMs.
    VmControl = "vm.control",
    /// Read consoles.
    VmConsole = "vm.console",
    /// What a guest may do: learn what its own VM is, and have it deleted.
    VmGuest = "vm.guest",
    /// Read the tenant's ledger entries.
    LedgerRead = "ledger.read",
    /// Revoke the tenant's tokens.
    TokenRevoke = "token.revoke",
}

impl Scope {
    /// Whether holding `self` permits what `wanted` permits.
    #[must_use]
    pub fn covers(self, wanted: Self) -> bool {
        match self {
            Self::PlatformAdmin => true,
            Self::TenantAdmin => !wanted.is_platform(),
            Self::Metrics
            | Self::VmRead
            | Self::VmCreate
            | Self::VmControl
            | Self::VmConsole
            | Self::VmGuest
            | Self::LedgerRead
            | Self::TokenRevoke => self == wanted,
        }
    }

    /// Whether the scope belongs to tokens of the operator alone.
    #[must_use]
    pub fn is_platform(self) -> bool {
        matches!(self, Self::PlatformAdmin | Self::Metrics)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no such scope; GET /v1/version lists them as `scopes`")]
pub struct ParseScopeError;

impl FromStr for Scope {
    type Err = ParseScopeError;

    fn from_str(text: &str) -> Result<Self, ParseScopeError> {
        Self::ALL
            .iter()
            .copied()
            .find(|scope| scope.as_str() == text)
            .ok_or(ParseScopeError)
    }
}

/// Why a list of scopes cannot stand in a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScopeSetError {
    /// No scope at all.
    #[error("a token needs at least one scope")]
    Empty,
    /// The same scope twice.
    #[error("scope `{0}` is given twice")]
    Repeated(Scope),
    /// One of the texts is no scope.
    #[error(transparent)]
    Unknown(#[from] ParseScopeError),
}

/// The scopes of one token: at least one, none twice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScopeSet(BTreeSet<Scope>);

impl ScopeSet {
    /// A set of scopes.
    pub fn new(scopes: impl IntoIterator<Item = Scope>) -> Result<Self, ScopeSetError> {
        let mut set = BTreeSet::new();
        for scope in scopes {
            if !set.insert(scope) {
                return Err(ScopeSetError::Repeated(scope));
            }
        }
        if set.is_empty() {
            return Err(ScopeSetError::Empty);
        }
        Ok(Self(set))
    }

    /// A set of scopes from their texts.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, ScopeSetError> {
        let scopes = texts
            .iter()
            .map(|text| text.as_ref().parse::<Scope>())
            .collect::<Result<Vec<_>, _>>()?;
        Self::new(scopes)
    }

    /// Whether one of the scopes covers `wanted`.
    #[must_use]
    pub fn covers(&self, wanted: Scope) -> bool {
        self.0.iter().any(|held| held.covers(wanted))
    }

    /// Whether every scope of `other` is covered.
    #[must_use]
    pub fn covers_all(&self, other: &Self) -> bool {
        other.0.iter().all(|wanted| self.covers(*wanted))
    }

    /// The scopes in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = Scope> + '_ {
        self.0.iter().copied()
    }

    /// The scopes' texts in a fixed order.
    #[must_use]
    pub fn to_texts(&self) -> Vec<String> {
        self.iter().map(|scope| scope.as_str().to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scope_survives_its_text_and_no_other_text_is_one() {
        for scope in Scope::ALL {
            assert_eq!(scope.as_str().parse(), Ok(*scope));
        }
        for bad in ["", "vm.*", "*", "VM.READ", "vm.read ", "service:operator"] {
            assert_eq!(bad.parse::<Scope>(), Err(ParseScopeError), "{bad}");
        }
    }

    #[test]
    fn covering_is_the_published_table() {
        for held in Scope::ALL {
            for wanted in Scope::ALL {
                let expected = held == wanted
                    || *held == Scope::PlatformAdmin
                    || (*held == Scope::TenantAdmin
                        && !["service:platform-admin", "service:metrics"]
                            .contains(&wanted.as_str()));
                assert_eq!(held.covers(*wanted), expected, "{held} covers {wanted}");
            }
        }
    }

    #[test]
    fn a_set_is_neither_empty_nor_repetitive() {
        assert_eq!(ScopeSet::new([]), Err(ScopeSetError::Empty));
        assert_eq!(
            ScopeSet::parse(&["vm.read", "vm.read"]),
            Err(ScopeSetError::Repeated(Scope::VmRead))
        );
    }

    #[test]
    fn narrowing_is_seen_as_narrowing() {
        let admin = ScopeSet::new([Scope::TenantAdmin]).unwrap();
        let reader = ScopeSet::new([Scope::VmRead, Scope::LedgerRead]).unwrap();
        assert!(admin.covers_all(&reader));
        assert!(!reader.covers_all(&admin));
    }
}
