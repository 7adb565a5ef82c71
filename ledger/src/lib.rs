//! Signatures, envelopes and ledger entries, and how to check them. Without I/O.
//!
//! The controller writes with it, agents check tasks and sign their reports with it, the command
//! line verifies with it. It knows `berth-api` and `ring`, and no clock, file or network.
#![forbid(unsafe_code)]

pub mod chain;
pub mod envelope;
pub mod keys;
pub mod receipt;
