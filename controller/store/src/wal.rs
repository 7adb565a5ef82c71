//! The thread that copies SQLite's write-ahead log into the database's file.
//!
//! Left to SQLite, the writer does that itself between two commits and waits for the disk meanwhile. Here a
//! connection of its own copies while the writer goes on. The writer copies only what was written during the
//! last of these passes, so that the log can begin again: a log that grows never comes to its end otherwise.
//! It knows no table. What is in the log and not in the file is as safe as what is in both.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::sql::{Connection, Result, SqlError};

/// The name of the thread that copies. A program should not outlive its panic: the disk failed.
pub const WAL_THREAD: &str = "store-wal";

/// How many pages of the log (4 KiB each) lead to what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Written since the last pass: time for the next one.
    pass_after: u32,
    /// In the log: it is to begin again.
    begins_again_at: u32,
    /// Not yet copied after a pass: little enough for the writer to do it.
    rest_at_most: u32,
    /// In the log: the copying does not keep up, so the writer does it with every commit.
    writer_copies_at: u32,
}

/// A page that is changed often is copied once for all of its changes between two passes, so a pass is not
/// for every commit; and what a reader who takes long keeps in the log does not stop the writer.
pub(crate) const LIMITS: Limits = Limits {
    pass_after: 4 * 1024,
    begins_again_at: 32 * 1024,
    rest_at_most: 2 * 1024,
    writer_copies_at: 128 * 1024,
};

/// What the writer is to do after a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterCommit {
    GoOn,
    WakeCopier,
    Copy,
}

/// How far the copying is, in pages.
#[derive(Debug, Default)]
struct State {
    in_log: u32,
    copied: u32,
    next_pass_at: u32,
    /// A pass has ended, and the writer has not copied the rest since.
    is_rest_due: bool,
    is_over: bool,
}

impl State {
    fn new(limits: Limits) -> Self {
        Self {
            next_pass_at: limits.pass_after,
            ..Self::default()
        }
    }

    fn committed(&mut self, in_log: u32, limits: Limits) -> AfterCommit {
        if in_log < self.in_log {
            // It began again.
            *self = Self {
                is_over: self.is_over,
                ..Self::new(limits)
            };
        }
        self.in_log = in_log;
        let rest = in_log.saturating_sub(self.copied);
        let may_begin_again = in_log >= limits.begins_again_at && rest <= limits.rest_at_most;
        if in_log >= limits.writer_copies_at || (self.is_rest_due && may_begin_again) {
            self.is_rest_due = false;
            return AfterCommit::Copy;
        }
        if self.is_pass_due() {
            AfterCommit::WakeCopier
        } else {
            AfterCommit::GoOn
        }
    }

    fn is_pass_due(&self) -> bool {
        self.in_log >= self.next_pass_at
    }

    /// The log may have begun again since the pass began: what is known here of its length is newer.
    fn copied(&mut self, pages: u32, limits: Limits) {
        self.copied = pages.min(self.in_log);
        self.next_pass_at = self.in_log.saturating_add(limits.pass_after);
    }
}

#[derive(Debug)]
struct Shared {
    limits: Limits,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way to the thread that copies; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct WalCopier(Arc<Shared>);

impl WalCopier {
    pub(crate) fn start(path: &Path, limits: Limits) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            limits,
            state: Mutex::new(State::new(limits)),
            changed: Condvar::new(),
        });
        let (path, its) = (path.to_owned(), Arc::clone(&shared));
        std::thread::Builder::new()
            .name(WAL_THREAD.to_owned())
            .spawn(move || copy_until_over(&path, &its))?;
        Ok(Self(shared))
    }

    /// Have a connection that writes tell of its commits, and do its share.
    pub(crate) fn watch(&self, writer: &mut Connection) -> Result<()> {
        let shared = Arc::clone(&self.0);
        writer.after_commits(move |in_log, copy| {
            let next = shared.lock().committed(in_log, shared.limits);
            match next {
                AfterCommit::GoOn => {}
                AfterCommit::WakeCopier => shared.changed.notify_one(),
                AfterCommit::Copy => match copy() {
                    Ok(Some(pages)) => shared.lock().copied(pages, shared.limits),
                    Err(failure) if failure.is_disk_failure() => return Err(failure),
                    // Another copies, or there is no room. What was committed is in the log.
                    Ok(None) | Err(_) => {}
                },
            }
            Ok(())
        })
    }
}

impl Drop for WalCopier {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.changed.notify_one();
    }
}

/// Its connection is made when there is something to copy.
fn copy_until_over(path: &Path, shared: &Shared) {
    let mut conn = None;
    loop {
        let idle = |state: &mut State| !state.is_over && !state.is_pass_due();
        let waited = shared.changed.wait_while(shared.lock(), idle);
        if waited.unwrap_or_else(PoisonError::into_inner).is_over {
            return;
        }
        let copied = match pass(path, &mut conn) {
            Ok(copied) => copied,
            Err(failure) => {
                // As for a commit: only a new process knows what is there.
                assert!(!failure.is_disk_failure(), "the disk did not take a page");
                conn = None;
                None
            }
        };
        let mut state = shared.lock();
        // A pass that failed is tried again after as many pages: if the disk is full, commits say so.
        let copied = copied.unwrap_or(state.copied);
        state.copied(copied, shared.limits);
        state.is_rest_due = true;
    }
}

/// How many pages of the log are copied; `None` if another was copying.
fn pass(path: &Path, conn: &mut Option<Connection>) -> Result<Option<u32>> {
    let conn = match conn {
        Some(conn) => conn,
        none => none.insert(Connection::open_file(path)?),
    };
    let copied = conn.copy_wal()?;
    // SQLite waits for the disk only when nothing is left to copy, which is the writer's share.
    sync_file(path)?;
    Ok(copied)
}

/// Have what was copied on disk. Closing any descriptor of a file ends all locks that the process has on it,
/// SQLite's included, so the one for this is opened once per file and never closed.
fn sync_file(path: &Path) -> Result<()> {
    static OPEN: Mutex<Vec<(PathBuf, File)>> = Mutex::new(Vec::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let place = match open.iter().position(|(known, _)| known == path) {
        Some(place) => place,
        None => {
            let file = File::open(path).map_err(SqlError::Runtime)?;
            open.push((path.to_owned(), file));
            open.len() - 1
        }
    };
    open.get(place)
        .map_or(Ok(()), |(_, file)| file.sync_data())
        .map_err(SqlError::Flush)
}

#[cfg(test)]
mod tests;
