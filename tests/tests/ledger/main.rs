//! The transparency log seen by strangers: verifiers that share no code with ours, and a witness that
//! somebody else runs.
#![forbid(unsafe_code)]

#[cfg(test)]
mod foreign;
#[cfg(test)]
mod log_files;
#[cfg(test)]
mod verifiers;
