//! Notices that a folder changed: that of the images, so that the controller hears of a new one at
//! once, and that of the approvals of slots.
//!
//! Owns one inotify descriptor and the small thread that waits on it. What changed is for others to
//! find out: several changes may come as one.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
use rustix::io::Errno;
use tokio::sync::mpsc::{self, Receiver, Sender};

/// Room for several events with the longest names (`inotify(7)`).
const BUFFER_BYTES: usize = 4096;
/// Stack of the waiting thread; its buffer is the largest thing on it.
const STACK_BYTES: usize = 64 * 1024;

/// A watch over one folder.
#[derive(Debug)]
pub struct FolderWatch {
    changes: Receiver<()>,
}

impl FolderWatch {
    /// Watch a folder from here on.
    ///
    /// # Errors
    /// If the folder is not there, or the kernel has no more watches or threads for this user.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let inotify = init(CreateFlags::CLOEXEC)?;
        // An image appears and goes as a whole: by a rename, or by the removal of its folder. An
        // approval may also be edited in its place, or change its owner or mode.
        let flags = WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR;
        add_watch(&inotify, folder, flags)?;
        // One place: a change that nobody took yet stands for all that follow it.
        let (sender, changes) = mpsc::channel(1);
        std::thread::Builder::new()
            .name("folder".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || forward(&inotify, &sender))?;
        Ok(Self { changes })
    }

    /// Wait until something changed since the last call; false if no change can be seen any more.
    pub async fn changed(&mut self) -> bool {
        self.changes.recv().await.is_some()
    }
}

/// Turns events into words until the descriptor fails or nobody listens.
fn forward(inotify: &OwnedFd, sender: &Sender<()>) {
    let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
    let mut events = Reader::new(inotify, &mut buffer);
    loop {
        match events.next() {
            Ok(_) => {
                let told = sender.try_send(());
                if matches!(told, Err(mpsc::error::TrySendError::Closed(()))) {
                    return;
                }
            }
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_image_that_appears_or_goes_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = FolderWatch::open(folder.path()).unwrap();
        let (unfinished, image) = (
            folder.path().join(".new-1"),
            folder.path().join("debian-12"),
        );
        std::fs::create_dir(&unfinished).unwrap();
        std::fs::rename(&unfinished, &image).unwrap();
        assert!(watch.changed().await);
        std::fs::remove_dir(&image).unwrap();
        assert!(watch.changed().await);
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_cannot_be_watched() {
        let folder = tempfile::tempdir().unwrap();
        let error = FolderWatch::open(&folder.path().join("absent")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
