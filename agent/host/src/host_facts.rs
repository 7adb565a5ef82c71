//! What VMMs need to know of this host's KVM, found out once and kept in sealed memory.
//!
//! Owns the asking (by `berth-vmm host-facts`, so that the agent knows neither KVM nor the form of the
//! answer) and the memory file. A host without facts starts guests all the same, a little slower.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::sealed_memory::sealed;

/// Longest answer that is taken.
const MAX_BYTES: u64 = 64 * 1024;

/// Ask `program` (berth-vmm) and keep its answer in a memory file that nobody can change.
///
/// # Errors
/// If the program cannot be run or does not answer, or if there is no memory file.
pub fn collect(program: &Path) -> io::Result<File> {
    let mut child = Command::new(program)
        .arg("host-facts")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut bytes = Vec::new();
    let read = match child.stdout.take() {
        Some(answer) => answer.take(MAX_BYTES + 1).read_to_end(&mut bytes),
        None => Ok(0),
    };
    let status = child.wait()?;
    let length = u64::try_from(read?).unwrap_or(u64::MAX);
    if !status.success() || !(1..=MAX_BYTES).contains(&length) {
        return Err(io::Error::other(format!(
            "{} host-facts ended with {status} after {length} bytes",
            program.display()
        )));
    }
    sealed("berth-host-facts", &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_an_answer_leaves_the_host_without_facts() {
        collect(Path::new("/nonexistent/berth-vmm")).unwrap_err();
        collect(Path::new("/bin/true")).unwrap_err();
        collect(Path::new("/bin/false")).unwrap_err();
    }
}
