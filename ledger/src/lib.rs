//! Signatures, envelopes, receipts and the transparency log, and how to check them. Without I/O.
//!
//! The controller writes with it, agents check tasks and sign their reports with it and keep watch over
//! the log, the command line verifies with it. It knows `berth-api` and `ring`, and no clock, file or
//! network.
//!
//! The log, from the bottom up: [`merkle`] has the tree, [`note`], [`checkpoint`] and [`cosignature`]
//! what is signed, [`tile`] what is published, [`leaf`] what an event becomes, [`tenant_view`] what its
//! holder can check of its own. [`proof`], [`bundle`] and [`passport`] are files that verify offline,
//! [`audit`] checks a whole log, [`witness`] and [`policy`] are how others keep watch.
#![forbid(unsafe_code)]

pub mod audit;
pub mod bundle;
pub mod checkpoint;
pub mod cosignature;
pub mod entry;
pub mod envelope;
pub mod keys;
pub mod leaf;
pub mod merkle;
#[cfg(any(test, feature = "model"))]
pub mod model;
pub mod note;
pub mod passport;
pub mod policy;
pub mod proof;
pub mod receipt;
pub mod tenant_view;
pub mod tile;
pub mod witness;
