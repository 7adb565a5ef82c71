//! Child processes of the lab and of the task runner: run, capture, and say what went wrong.
//!
//! A command's output goes to a log file or to the caller, never to the terminal, so that progress
//! lines stay readable; a failure quotes the end of the log and names the file.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// How many log lines a failure quotes.
const QUOTED_LINES: usize = 25;

/// A command that runs as root: as it is when we are root, else through `sudo`.
#[must_use]
pub fn as_root(program: impl AsRef<OsStr>) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("--").arg(program);
    command
}

/// Whether this process has root's user id.
#[must_use]
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// The command as a person would type it, for messages.
#[must_use]
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

/// Runs a command with its output appended to `log`.
///
/// # Errors
/// If it cannot be started or does not exit with 0; the message quotes the end of the log.
pub fn run_logged(command: &mut Command, log: &Path) -> Result<()> {
    let mut file = open_log(log)?;
    let text = shown(command);
    writeln!(file, "+ {text}").with_context(|| format!("writing {}", log.display()))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("sharing the log")?)
        .stderr(file)
        .status()
        .with_context(|| format!("starting `{}`", first_words(&text)))?;
    if !status.success() {
        let quoted = tail(log, QUOTED_LINES);
        bail!(
            "`{}` ended with {status}; the end of {}:\n{quoted}",
            first_words(&text),
            log.display()
        );
    }
    Ok(())
}

/// Runs a command and returns its standard output as text.
///
/// # Errors
/// If it cannot be started or does not exit with 0; the message carries its standard error.
pub fn capture(command: &mut Command) -> Result<String> {
    let text = shown(command);
    let output = output(command)?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{}` ended with {}:\n{}",
            first_words(&text),
            output.status,
            errors.trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command to its end, whatever that is.
///
/// # Errors
/// If it cannot be started.
pub fn output(command: &mut Command) -> Result<Output> {
    let text = shown(command);
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting `{}`", first_words(&text)))
}

/// The last lines of a file; empty if it cannot be read.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn open_log(log: &Path) -> Result<File> {
    if let Some(folder) = log.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("opening {}", log.display()))
}

/// Enough of a long command line to recognise it.
fn first_words(text: &str) -> String {
    const SHOWN: usize = 160;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_quotes_the_log_and_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("deep/log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo first; echo the reason >&2; exit 3"]);
        let message = run_logged(&mut command, &log).unwrap_err().to_string();
        assert!(message.contains("the reason"), "{message}");
        assert!(message.contains("deep/log"), "{message}");
        assert!(message.contains('3'), "{message}");
    }

    #[test]
    fn captured_output_is_the_standard_output_alone() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2"]);
        assert_eq!(capture(&mut command).unwrap(), "out\n");
    }
}
