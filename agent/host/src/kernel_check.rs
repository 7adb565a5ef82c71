//! The one child process of the agent: `berth-vmm check-kernel`, which reads a kernel that a
//! stranger may have made, so that the agent never does.
//!
//! Absolute path, no shell, empty environment, no privileges, a time limit. The child gets the file
//! as its standard input and writes the kernel that guests are started with to its standard output.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The child's exit status for a file that is no kernel (`EX_DATAERR`).
const NOT_A_KERNEL: i32 = 65;
/// Longest run of the child. A kernel of 100 MiB takes a second to unpack.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// How often the child is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// Most of the child's words that are shown.
const MAX_WORDS_BYTES: u64 = 4096;
/// The user and group `nobody`.
const NOBODY: u32 = 65_534;

/// Why a kernel was not taken.
#[derive(Debug, thiserror::Error)]
pub enum CheckKernelError {
    /// It is not a kernel that berth can start.
    #[error("{words}")]
    NotAKernel {
        /// The checker's words.
        words: String,
    },
    /// The checker could not be started or waited for.
    #[error("could not run {} check-kernel", program.display())]
    Run {
        /// The checker.
        program: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// The checker ended in another way.
    #[error("{} check-kernel failed with {status}: {words}", program.display())]
    Failed {
        /// The checker.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// Its words.
        words: String,
    },
    /// The checker did not end.
    #[error("{} check-kernel did not end within 60 s", program.display())]
    TimedOut {
        /// The checker.
        program: PathBuf,
    },
}

/// Have `program` (berth-vmm) read the kernel and write what guests are started with to `output`.
pub fn check_kernel(program: &Path, kernel: File, output: File) -> Result<(), CheckKernelError> {
    let run = |cause| CheckKernelError::Run {
        program: program.to_owned(),
        cause,
    };
    let mut command = Command::new(program);
    command
        .arg("check-kernel")
        .env_clear()
        .current_dir("/")
        .stdin(kernel)
        .stdout(output)
        .stderr(Stdio::piped());
    if rustix::process::geteuid().is_root() {
        // The standard library drops the supplementary groups as well.
        command.uid(NOBODY).gid(NOBODY);
    }
    let mut child = command.spawn().map_err(run)?;
    let Some(status) = wait(&mut child).map_err(run)? else {
        return Err(CheckKernelError::TimedOut {
            program: program.to_owned(),
        });
    };
    let words = words_of(&mut child).map_err(run)?;
    match status.code() {
        Some(0) => Ok(()),
        Some(NOT_A_KERNEL) => Err(CheckKernelError::NotAKernel { words }),
        Some(_) | None => Err(CheckKernelError::Failed {
            program: program.to_owned(),
            status,
            words,
        }),
    }
}

/// The child's status; `None` if it had to be ended.
fn wait(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if began.elapsed() > TIME_LIMIT {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// The child's words, cut to a pipe's content and cleaned for a terminal.
fn words_of(child: &mut Child) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(MAX_WORDS_BYTES).read_to_end(&mut bytes)?;
    }
    let words: String = String::from_utf8_lossy(&bytes)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    Ok(words.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

    /// A checker that is a shell script, in a folder that the child may enter.
    fn checker(script: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = folder.path().join("checker");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        (folder, path)
    }

    fn kernel() -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"kernel", 0).unwrap();
        file
    }

    #[test]
    fn the_checkers_output_is_the_kernel() {
        let (_folder, program) = checker("test \"$1\" = check-kernel && cat");
        let output = tempfile::tempfile().unwrap();
        check_kernel(&program, kernel(), output.try_clone().unwrap()).unwrap();
        let mut bytes = [0; 6];
        output.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"kernel");
    }

    #[test]
    fn status_65_means_not_a_kernel_in_the_checkers_words() {
        let (_folder, program) = checker("echo 'neither ELF nor bzImage' >&2; exit 65");
        let refused = check_kernel(&program, kernel(), tempfile::tempfile().unwrap());
        assert_eq!(refused.unwrap_err().to_string(), "neither ELF nor bzImage");
    }

    #[test]
    fn a_checker_that_crashes_or_is_missing_is_told_apart() {
        let (_folder, program) = checker("kill -9 $$");
        let crashed = check_kernel(&program, kernel(), tempfile::tempfile().unwrap());
        assert!(matches!(crashed, Err(CheckKernelError::Failed { .. })));
        let missing = check_kernel(
            Path::new("/nonexistent/berth-vmm"),
            kernel(),
            tempfile::tempfile().unwrap(),
        );
        assert!(matches!(missing, Err(CheckKernelError::Run { .. })));
    }

    #[test]
    fn a_child_of_root_has_no_privileges() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let (_folder, program) = checker("test \"$(id -u) $(id -G)\" = '65534 65534' || exit 1");
        check_kernel(&program, kernel(), tempfile::tempfile().unwrap()).unwrap();
    }
}
