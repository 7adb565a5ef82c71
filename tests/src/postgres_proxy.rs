//! Between a controller and its PostgreSQL: passes everything on, and loses a connection at a commit
//! when it is told to, before the server has heard of it or after.
//!
//! It understands as much of the protocol as that needs: the lengths of what a client sends, and the
//! one word that a server says to a commit.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};

/// What a PostgreSQL server calls its socket.
const SOCKET: &str = ".s.PGSQL.5432";
/// What it says once a commit is done.
const COMMITTED: &[u8] = b"COMMIT\0";
/// Kind of a message that holds one statement.
const QUERY: u8 = b'Q';
/// Most bytes that are passed on at once.
const BUFFER: usize = 64 * 1024;

/// What becomes of a commit whose connection is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// The server never hears of it.
    NotPersisted,
    /// The server has done it, and its client never hears of that.
    Persisted,
}

/// A proxy that runs for as long as this process.
#[derive(Debug)]
pub struct PostgresProxy {
    folder: tempfile::TempDir,
    database: String,
    next: Next,
}

/// What is to be lost next: the commit of a transaction in which these bytes were sent.
#[derive(Debug)]
struct Wanted {
    loss: Loss,
    mark: Vec<u8>,
}

type Next = Arc<Mutex<Option<Wanted>>>;

impl PostgresProxy {
    /// A proxy before a database of [`crate::postgres::Postgres`].
    ///
    /// # Errors
    /// If the URL is not such a database's, or there can be no socket.
    pub fn before(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("postgres:///").context("a local URL")?;
        let (database, words) = rest.split_once('?').context("a URL with a host")?;
        let mut words = words.split('&');
        let host = words.find_map(|word| word.strip_prefix("host="));
        let server = Path::new(host.context("a URL with a host")?).join(SOCKET);
        let folder = tempfile::Builder::new().prefix("berth-proxy-").tempdir()?;
        let listener = UnixListener::bind(folder.path().join(SOCKET))?;
        let next = Arc::default();
        let lost = Arc::clone(&next);
        std::thread::spawn(move || accept(&listener, &server, &lost));
        Ok(Self {
            folder,
            database: database.to_owned(),
            next,
        })
    }

    /// The same database, by way of this proxy.
    #[must_use]
    pub fn url(&self) -> String {
        let folder = self.folder.path().display();
        format!("postgres:///{}?host={folder}&user=berth", self.database)
    }

    /// Lose the connection of the next commit whose transaction has sent these words.
    pub fn lose_next(&self, loss: Loss, words: &str) {
        let mark = words.as_bytes().to_owned();
        *lock(&self.next) = Some(Wanted { loss, mark });
    }

    /// Whether the commit that was to be lost is lost.
    #[must_use]
    pub fn has_lost(&self) -> bool {
        lock(&self.next).is_none()
    }
}

fn lock(next: &Next) -> MutexGuard<'_, Option<Wanted>> {
    next.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends with the process: the listener is never closed before.
fn accept(listener: &UnixListener, server: &Path, next: &Next) {
    for client in listener.incoming() {
        // A server that is not there is what its client then hears of.
        let (Ok(client), Ok(server)) = (client, UnixStream::connect(server)) else {
            continue;
        };
        let next = Arc::clone(next);
        std::thread::spawn(move || {
            // The end of either side ends both, whatever it was.
            drop(pass_on(&client, &server, &next));
            drop(client.shutdown(Shutdown::Both));
            drop(server.shutdown(Shutdown::Both));
        });
    }
}

fn pass_on(client: &UnixStream, server: &UnixStream, next: &Next) -> Result<()> {
    let is_mute = Arc::new(AtomicBool::new(false));
    let (from, to) = (server.try_clone()?, client.try_clone()?);
    let muted = Arc::clone(&is_mute);
    let back = std::thread::spawn(move || {
        drop(answers(&from, &to, &muted));
        drop(to.shutdown(Shutdown::Both));
    });
    let (mut from, mut to) = (client, server);
    let (mut is_first, mut is_meant) = (true, false);
    loop {
        let message = message(&mut from, is_first)?;
        is_first = false;
        is_meant |= lock(next)
            .as_ref()
            .is_some_and(|wanted| has(&message, &wanted.mark));
        if is_commit(&message) {
            let wanted = is_meant.then(|| lock(next).take()).flatten();
            is_meant = false;
            match wanted.map(|wanted| wanted.loss) {
                None => {}
                Some(Loss::NotPersisted) => return Ok(()),
                Some(Loss::Persisted) => {
                    is_mute.store(true, Ordering::Release);
                    to.write_all(&message)?;
                    // It ends once the server has said that it is done.
                    drop(back.join());
                    return Ok(());
                }
            }
        }
        to.write_all(&message)?;
    }
}

/// What the server says; nothing of it, and an end, once a commit is to be lost.
fn answers(mut from: &UnixStream, mut to: &UnixStream, is_mute: &AtomicBool) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut unsaid = Vec::new();
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => buffer
                .get(..read)
                .context("read more than there is room for")?,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        if !is_mute.load(Ordering::Acquire) {
            to.write_all(read)?;
            continue;
        }
        unsaid.extend_from_slice(read);
        if has(&unsaid, COMMITTED) {
            return Ok(());
        }
    }
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|place| place == part)
}

/// The next message of a client: a kind, unless it is the first, a length that counts itself, a body.
fn message(from: &mut &UnixStream, is_first: bool) -> Result<Vec<u8>> {
    let head = if is_first { 4 } else { 5 };
    let mut message = vec![0; head];
    from.read_exact(&mut message)?;
    let length = message.last_chunk::<4>().context("a length")?;
    let length = usize::try_from(u32::from_be_bytes(*length))?;
    let body = length.checked_sub(4).context("a length without itself")?;
    message.resize(head + body, 0);
    let body = message.get_mut(head..).context("a body")?;
    from.read_exact(body)?;
    Ok(message)
}

fn is_commit(message: &[u8]) -> bool {
    matches!(message, [QUERY, _, _, _, _, text @ ..] if text == COMMITTED)
}
