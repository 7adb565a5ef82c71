//! What tests of the process need of it: its jail.
#![forbid(unsafe_code)]

pub mod jail;
