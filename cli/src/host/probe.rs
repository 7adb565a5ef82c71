//! Running a short program and reading what it prints, within a time limit.

use std::io::{self, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The most output that is read.
const MAX_OUTPUT_BYTES: u64 = 64 << 10;
const POLL: Duration = Duration::from_millis(10);

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ran {
    /// There is no such program.
    Absent,
    /// It could not be started; why.
    NotStarted(String),
    /// It did not end in time and was killed.
    TimedOut,
    /// It ended.
    Ended {
        /// With exit code 0.
        success: bool,
        /// Its standard output.
        output: String,
    },
}

/// Run `program` with no input; its standard error is dropped.
#[must_use]
pub(crate) fn run(program: &Path, arguments: &[&str], limit: Duration) -> Ran {
    match run_within(program, arguments, limit) {
        Ok(ran) => ran,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ran::Absent,
        Err(error) => Ran::NotStarted(error.to_string()),
    }
}

fn run_within(program: &Path, arguments: &[&str], limit: Duration) -> io::Result<Ran> {
    let deadline = Instant::now() + limit;
    let mut child = Command::new(program)
        .args(arguments)
        .env_remove("BERTH_TOKEN")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    // The output is read beside, so that a full pipe cannot stop the program.
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut output = Vec::new();
            let read = stdout.take(MAX_OUTPUT_BYTES).read_to_end(&mut output);
            // Nobody listens any more when the time limit has passed.
            sender.send(read.map(|_| output)).ok();
        });
    }
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(Ran::TimedOut);
        }
        std::thread::sleep(POLL);
    };
    // A grandchild that inherited the pipe keeps it open: then the output counts as never ended.
    let left = deadline.saturating_duration_since(Instant::now());
    match receiver.recv_timeout(left.max(POLL)) {
        Ok(output) => Ok(Ran::Ended {
            success: status.success(),
            output: String::from_utf8_lossy(&output?).into_owned(),
        }),
        Err(_still_open) => Ok(Ran::TimedOut),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    fn shell(script: &str, limit: Duration) -> Ran {
        run(Path::new("/bin/sh"), &["-c", script], limit)
    }

    #[test]
    fn output_and_success_are_reported() {
        let ended = |success, output: &str| Ran::Ended {
            success,
            output: output.to_owned(),
        };
        assert_eq!(shell("echo yes", LONG), ended(true, "yes\n"));
        assert_eq!(shell("echo no; exit 3", LONG), ended(false, "no\n"));
    }

    #[test]
    fn what_does_not_end_is_killed_in_time() {
        let started = Instant::now();
        let ran = shell("exec sleep 600", Duration::from_millis(100));
        assert_eq!(ran, Ran::TimedOut);
        assert!(started.elapsed() < LONG);
    }

    #[test]
    fn what_floods_its_output_does_not_hang() {
        let ran = shell("head -c 1000000 /dev/zero", LONG);
        let Ran::Ended { output, .. } = ran else {
            panic!("{ran:?}");
        };
        assert_eq!(output.len(), usize::try_from(MAX_OUTPUT_BYTES).unwrap());
    }

    #[test]
    fn what_is_not_there_is_absent_and_what_is_no_program_is_not_started() {
        assert_eq!(run(Path::new("/nonexistent/x"), &[], LONG), Ran::Absent);
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        assert!(matches!(run(&plain, &[], LONG), Ran::NotStarted(_)));
    }
}
