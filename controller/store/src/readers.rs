//! The connections that read: so many at once, kept for the next while idle.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::sql::{Connection, Result};

/// Most reads at once; others wait. PostgreSQL has a hundred connections for everybody.
const MAX_READERS: usize = 16;

/// The readers' side of a database.
#[derive(Debug, Default)]
pub(crate) struct Readers {
    places: Mutex<Places>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct Places {
    taken: usize,
    idle: Vec<Connection>,
}

/// The right to read. It ends when this is dropped, whatever happened.
struct Place<'r> {
    readers: &'r Readers,
}

impl Readers {
    /// Run `read` in a transaction that sees one moment. `connect` makes a connection where none is
    /// idle, or the idle one is no good any more.
    pub(crate) fn read<T>(
        &self,
        connect: impl FnOnce() -> Result<Connection>,
        read: impl FnOnce(&Connection) -> T,
    ) -> Result<T> {
        let _place = self.place();
        let idle = self.lock().idle.pop();
        let conn = match idle {
            Some(conn) if conn.begin_read().is_ok() => conn,
            Some(_) | None => {
                let conn = connect()?;
                conn.begin_read()?;
                conn
            }
        };
        let result = read(&conn);
        if conn.abandon() {
            self.lock().idle.push(conn);
        }
        Ok(result)
    }

    fn place(&self) -> Place<'_> {
        let mut places = self
            .returned
            .wait_while(self.lock(), |places| places.taken >= MAX_READERS)
            .unwrap_or_else(PoisonError::into_inner);
        places.taken += 1;
        Place { readers: self }
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.readers.lock().taken -= 1;
        self.readers.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn reads_beyond_the_places_wait_and_connections_are_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        Connection::open_file(&path).unwrap();
        let (readers, made, at_once) =
            (Readers::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        let connect = || {
            made.fetch_add(1, Ordering::SeqCst);
            Connection::read_file(&path)
        };
        std::thread::scope(|scope| {
            for _ in 0..4 * MAX_READERS {
                scope.spawn(|| {
                    readers.read(connect, |conn| {
                        let now = at_once.fetch_add(1, Ordering::SeqCst) + 1;
                        let one: u32 = conn.query_row("SELECT 1", [], |row| row.get(0)).unwrap();
                        at_once.fetch_sub(1, Ordering::SeqCst);
                        assert!(one == 1 && now <= MAX_READERS, "{now} at once");
                    })
                });
            }
        });
        assert!(made.load(Ordering::SeqCst) <= MAX_READERS);
    }

    #[test]
    fn a_read_that_panics_gives_its_place_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        Connection::open_file(&path).unwrap();
        let readers = Readers::default();
        for _ in 0..2 * MAX_READERS {
            let read = || readers.read(|| Connection::read_file(&path), |_| panic!("told to"));
            let panicked: std::thread::Result<Result<()>> =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
            assert!(panicked.is_err(), "it panics");
        }
        readers
            .read(|| Connection::read_file(&path), |_| ())
            .unwrap();
    }
}
