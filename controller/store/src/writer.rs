//! The one thread that writes.
//!
//! Changes that wait at the same moment share one transaction and one fsync. Each has its own
//! savepoint, so one that fails takes nobody with it. Answers go out after the commit alone.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use crate::database::{Database, WriterLink};
use crate::error::StoreError;
use crate::log::{LogError, OpenLog};
use crate::rows::clock_ms;
use crate::seen_changes::SeenChanges;
use crate::sql::Connection;
use crate::store::{Db, KeySet};

/// The name of the thread that writes. Without it a store can only read, so a program should not
/// outlive a panic of this thread.
pub const WRITER_THREAD: &str = "store-writer";
/// Most changes that share one commit.
const MAX_BATCH: usize = 512;
/// The same for PostgreSQL, which keeps every version of a row until the transaction ends that made it, and
/// passes them all at the next change: counters change with each of ours.
const MAX_BATCH_POSTGRES: usize = 32;
/// Most changes that wait. What cannot be recorded soon is refused at once, and does not happen.
const MAX_WAITING: usize = 4096;

/// One change inside the writing transaction. What it can do stands beside each table.
#[derive(Debug)]
pub struct WriteTx<'c> {
    pub(crate) db: Db<'c>,
    pub(crate) keys: &'c KeySet,
    pub(crate) log: OpenLog,
}

impl<'c> Deref for WriteTx<'c> {
    type Target = Db<'c>;

    fn deref(&self) -> &Db<'c> {
        &self.db
    }
}

/// Why nothing of a batch was written.
#[derive(Clone)]
enum Unwritten {
    Stopped,
    Busy,
    Commit(Arc<LogError>),
}

/// A change with its answer's way back.
trait Job: Send {
    /// Do it; whether its effects are to stay.
    fn run(&mut self, tx: &mut WriteTx<'_>) -> bool;
    /// Tell the caller, after the commit.
    fn finish(self: Box<Self>, commit: Result<(), Unwritten>);
}

struct Change<T, F, D> {
    change: Option<F>,
    result: Option<Result<T, StoreError>>,
    done: D,
}

impl<T, F, D> Job for Change<T, F, D>
where
    T: Send,
    F: FnOnce(&mut WriteTx<'_>) -> Result<T, StoreError> + Send,
    D: FnOnce(Result<T, StoreError>) + Send,
{
    fn run(&mut self, tx: &mut WriteTx<'_>) -> bool {
        let result = self.change.take().map(|change| {
            let done = change(tx)?;
            tx.conn.settle()?;
            Ok(done)
        });
        let stays = matches!(result, Some(Ok(_)));
        self.result = result;
        stays
    }

    fn finish(self: Box<Self>, commit: Result<(), Unwritten>) {
        let answer = match (commit, self.result) {
            (Ok(()), Some(result)) => result,
            (Ok(()), None) | (Err(Unwritten::Stopped), _) => Err(StoreError::Stopped),
            (Err(Unwritten::Busy), _) => Err(StoreError::Busy),
            (Err(Unwritten::Commit(cause)), _) => Err(StoreError::Commit(cause)),
        };
        (self.done)(answer);
    }
}

/// The way to the writing thread. The thread ends when this is dropped.
pub(crate) struct Writer {
    jobs: SyncSender<Box<dyn Job>>,
}

impl Writer {
    pub(crate) fn start(
        database: &Database,
        conn: Connection,
        seen: Arc<SeenChanges>,
        keys: KeySet,
    ) -> std::io::Result<Self> {
        let (jobs, waiting) = sync_channel(MAX_WAITING);
        let most = match database {
            Database::File(_) => MAX_BATCH,
            Database::Postgres(_) => MAX_BATCH_POSTGRES,
        };
        let link = WriterLink::new(database.clone(), conn, seen)?;
        std::thread::Builder::new()
            .name(WRITER_THREAD.to_owned())
            .spawn(move || write_until_closed(link, &keys, &waiting, most))?;
        Ok(Self { jobs })
    }

    pub(crate) fn submit<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut WriteTx<'_>) -> Result<T, StoreError> + Send + 'static,
        done: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) {
        let job = Box::new(Change {
            change: Some(change),
            result: None,
            done,
        });
        match self.jobs.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(job)) => job.finish(Err(Unwritten::Busy)),
            Err(TrySendError::Disconnected(job)) => job.finish(Err(Unwritten::Stopped)),
        }
    }
}

fn write_until_closed(
    mut link: WriterLink,
    keys: &KeySet,
    waiting: &Receiver<Box<dyn Job>>,
    most: usize,
) {
    while let Ok(first) = waiting.recv() {
        let mut batch = vec![first];
        batch.extend(waiting.try_iter().take(most - 1));
        let commit = write_batch(&mut link, keys, &mut batch);
        match &commit {
            Ok(()) => link.committed(),
            Err(_) => link.give_up(),
        }
        let is_disk_lost =
            matches!(&commit, Err(LogError::Commit(cause)) if cause.is_disk_failure());
        let commit = commit.map_err(|cause| Unwritten::Commit(Arc::new(cause)));
        for job in batch {
            job.finish(commit.clone());
        }
        // After a flush that failed the page cache and the disk may differ for ever, and a second flush
        // would say that all is well. Only a new process reads what is there.
        assert!(!is_disk_lost, "the disk did not take a commit");
    }
}

/// The ledger's head is read anew in every transaction: another process may have written, and after
/// a commit of unknown outcome only the database knows.
fn write_batch(
    link: &mut WriterLink,
    keys: &KeySet,
    batch: &mut [Box<dyn Job>],
) -> Result<(), LogError> {
    let conn = link.begin()?;
    let now = clock_ms();
    let mut tx = WriteTx {
        db: Db { conn, now },
        keys,
        log: OpenLog::begin(conn, now)?,
    };
    for job in batch {
        let before = tx.log.len();
        conn.begin_change()?;
        if job.run(&mut tx) {
            conn.keep_change()?;
        } else {
            conn.undo_change()?;
            tx.log.undo_to(before);
        }
    }
    tx.log.seal(conn, keys)?;
    // What fails before the commit is known not to have happened.
    conn.settle()?;
    conn.commit().map_err(LogError::Commit)
}

#[cfg(test)]
mod tests;
