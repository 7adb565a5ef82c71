//! All decisions on one host: which task is obeyed, what a VM's record becomes, what remains to be
//! done, what a console holds.
//!
//! Pure: no files, clocks, processes or async. Time and observations come in as arguments; effects
//! go out as values that the daemon carries out through `berth-agent-host`.
#![forbid(unsafe_code)]

pub mod console;
pub mod image_name;
mod log_keys;
pub mod log_watch;
pub mod phase;
pub mod plan;
pub mod policy;
pub mod process_end;
pub mod seed;
pub mod slot;
pub mod task_check;
pub mod vm_record;
