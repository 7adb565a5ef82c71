//! The transparency log seen by strangers: verifiers that share no code with ours, and a witness that
//! somebody else runs.
#![forbid(unsafe_code)]

#[cfg(test)]
mod busy_controller;
#[cfg(test)]
mod foreign;
#[cfg(test)]
mod object_store;
