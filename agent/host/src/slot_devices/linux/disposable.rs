//! Reading and writing of sysfs files whose kernel side may never return: in a child process that can
//! be given up.
//!
//! A driver may keep the writer of `unbind` for ever, killed or not. A thread of ours would keep the
//! whole agent from ending; a child keeps nobody. It gets the open file and does one transfer: no path,
//! no shell, no environment.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Copies its standard input to its standard output.
const CAT: &str = "/usr/bin/cat";
/// How often a child is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// Most of a child's words, and of an attribute, that are read.
const MAX_BYTES: u64 = 4096;

/// Why a transfer did not come about.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    /// The kernel has not answered in time, and maybe never will.
    #[error("the kernel did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The kernel refused.
    #[error("the kernel refused: {0}")]
    Refused(String),
    /// The file or the child could not be had.
    #[error("the attribute could not be reached")]
    Io(#[from] io::Error),
}

/// Write `content` to an attribute by one call.
pub(super) fn write(path: &Path, content: &str, limit: Duration) -> Result<(), TransferError> {
    let file = File::options().write(true).truncate(true).open(path)?;
    let (reader, mut writer) = io::pipe()?;
    // Shorter than a pipe's buffer, so that nobody waits.
    writer.write_all(content.as_bytes())?;
    drop(writer);
    transfer(reader.into(), file.into(), limit)
}

/// Read an attribute.
pub(super) fn read(path: &Path, limit: Duration) -> Result<String, TransferError> {
    let file = File::open(path)?;
    let (reader, writer) = io::pipe()?;
    transfer(file.into(), writer.into(), limit)?;
    let mut text = String::new();
    reader.take(MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

fn transfer(from: Stdio, to: Stdio, limit: Duration) -> Result<(), TransferError> {
    let mut command = Command::new(CAT);
    command
        .env_clear()
        .current_dir("/")
        .stdin(from)
        .stdout(to)
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    // The command has copies of both ends.
    drop(command);
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            let mut words = String::new();
            if let Some(stderr) = child.stderr.take() {
                stderr.take(MAX_BYTES).read_to_string(&mut words)?;
            }
            if status.success() {
                return Ok(());
            }
            return Err(TransferError::Refused(words.trim().to_owned()));
        }
        if Instant::now() >= deadline {
            give_up(child)?;
            return Err(TransferError::TimedOut(limit));
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// Kills a child that may not be able to die, and lets somebody else wait for that.
fn give_up(mut child: Child) -> io::Result<()> {
    child.kill()?;
    std::thread::Builder::new()
        .name("sysfs-write".to_owned())
        .spawn(move || {
            if let Err(error) = child.wait() {
                tracing::debug!(%error, "a child that was given up cannot be waited for");
            }
        })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn attributes_are_written_whole_and_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("driver_override");
        std::fs::write(&path, "(null)\n").unwrap();
        write(&path, "vfio-pci", LIMIT).unwrap();
        assert_eq!(read(&path, LIMIT).unwrap(), "vfio-pci");
        write(&path, "\n", LIMIT).unwrap();
        assert_eq!(read(&path, LIMIT).unwrap(), "\n");
    }

    #[test]
    fn what_is_not_there_or_refuses_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("unbind");
        let error = write(&missing, "x", LIMIT).unwrap_err();
        assert!(matches!(error, TransferError::Io(_)), "{error:?}");
        assert!(!missing.exists());
        let error = write(Path::new("/dev/full"), "x", LIMIT).unwrap_err();
        assert!(matches!(error, TransferError::Refused(_)), "{error:?}");
    }

    #[test]
    fn a_kernel_that_does_not_answer_is_given_up() {
        // A terminal whose other side says nothing keeps its reader, as a driver keeps a writer.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("silent");
        rustix::fs::mkfifoat(
            rustix::fs::CWD,
            &path,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        )
        .unwrap();
        let open = File::options().read(true).write(true).open(&path).unwrap();
        let error = read(&path, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, TransferError::TimedOut(_)), "{error:?}");
        drop(open);
    }
}
