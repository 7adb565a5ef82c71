//! Capability tokens: chains of PASETO v4.public links, minted, narrowed and checked. Pure: no clock,
//! no I/O.
//!
//! The first link is signed by the controller's root key, each other by the holder of the link before
//! it. A link says who holds it, what it may do and until when, and never allows more than the one
//! before it. The controller mints and checks, holders derive. Which tokens were revoked and which
//! nonces were used is kept elsewhere; [`Revocations`] and [`pop`] say what follows from it.
#![forbid(unsafe_code)]

mod chain;
mod claims;
mod derive;
mod grant;
mod mint;
pub mod pop;
mod resources;
mod scope;
mod subject;
mod verify;

pub use chain::{
    Chain, IMPLICIT_ASSERTION, LINK_SEPARATOR, Link, MAX_LINKS, MAX_TOKEN_CHARS, NotNarrower,
    implicit_assertion, must_be_narrower,
};
pub use derive::{DeriveError, derive};
pub use grant::{Grant, Revocations};
pub use mint::{MAX_DELEGATIONS, MintError, NewLink, RootKey};
pub use resources::{ParseResourcesError, Resource, Resources};
pub use scope::{ParseScopeError, Scope, ScopeSet, ScopeSetError};
pub use subject::{ParseSubjectError, SubjectKey};
pub use verify::{NOT_BEFORE_LEEWAY_SECONDS, TokenVerifier, VerifyError};
