//! Reading the controller's ledger: which entries are wanted, and whether they are genuine.

pub(crate) mod bundle;
pub(crate) mod filter;
pub(crate) mod pages;
pub(crate) mod passport;
pub(crate) mod published;
pub(crate) mod verify;
