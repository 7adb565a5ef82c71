//! Capability tokens: PASETO v4.public links, minted and checked. Pure: no clock, no I/O.
//!
//! A token is one link signed by the controller's root key. It says who holds it, for which tenant
//! it speaks and what it may do. Chains (`link~link`) that a holder narrows offline are refused here
//! as [`VerifyError::Malformed`]; the shape of [`Grant`] already has room for them. The controller's
//! server is the only caller; which tokens are revoked is the store's knowledge, not this crate's.
#![forbid(unsafe_code)]

mod link;
mod scope;
mod subject;

pub use link::{
    Grant, IMPLICIT_ASSERTION, MAX_TOKEN_CHARS, MintError, NOT_BEFORE_LEEWAY_SECONDS, NewLink,
    RootKey, TokenVerifier, VerifyError,
};
pub use scope::{ParseScopeError, Scope, ScopeSet, ScopeSetError};
pub use subject::{ParseSubjectError, SubjectKey};
