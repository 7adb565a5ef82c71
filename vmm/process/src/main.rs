//! Placeholder until the first commit of this crate's owner.
fn main() {}
