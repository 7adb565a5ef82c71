//! What the fuzz targets share: reading an input as a script, and devices to drive with it.
//!
//! Owns no invariant of a product crate beyond those of the traits that it implements. It never
//! touches KVM, the network or the file system; a target that needs files makes its own.
#![forbid(unsafe_code)]

pub mod disk;
pub mod guest;
pub mod input;
pub mod layout;
pub mod ledger_seeds;
pub mod messages;
pub mod passed_device;
pub mod queue;
pub mod seed_values;
pub mod vsock;
