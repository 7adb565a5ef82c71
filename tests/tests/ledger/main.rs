//! The transparency log seen by strangers: verifiers that share no code with ours, and a witness that
//! somebody else runs.
#![forbid(unsafe_code)]

mod foreign;
mod log_files;
mod verifiers;
