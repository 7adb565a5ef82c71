//! Lets others on the same host talk with a VMM that this process started.
//!
//! Owns a listening socket: each line that comes is one request, as JSON and not looked at; each
//! event goes to everybody who is connected. It outlives a VMM, as a guest that resets gets a new
//! one.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_api::vmm::Event;

use crate::launch::Talk;

/// How long somebody who does not read keeps the others waiting, once.
const WRITE_PATIENCE: Duration = Duration::from_secs(1);

/// A listening socket and those who are connected.
#[derive(Debug, Clone)]
pub struct ControlRelay(Arc<Mutex<Parties>>);

#[derive(Debug, Default)]
struct Parties {
    vmm: Option<Talk>,
    others: Vec<UnixStream>,
}

impl ControlRelay {
    /// Listens at `path`, in the place of whatever socket is there.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn listen(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        let relay = Self(Arc::default());
        let served = relay.clone();
        std::thread::spawn(move || {
            for other in listener.incoming().map_while(Result::ok) {
                // Who is gone already is not served.
                let _served = served.admit(other);
            }
        });
        Ok(relay)
    }

    /// From here on requests go to this VMM.
    pub fn connect(&self, vmm: Talk) {
        self.lock().vmm = Some(vmm);
    }

    /// Tells everybody. Who does not take it is told no more.
    ///
    /// # Errors
    /// If the event has no JSON, which no event lacks.
    pub fn tell(&self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let mut parties = self.lock();
        parties
            .others
            .retain_mut(|other| other.write_all(&line).is_ok());
        Ok(())
    }

    fn admit(&self, other: UnixStream) -> io::Result<()> {
        other.set_write_timeout(Some(WRITE_PATIENCE))?;
        let requests = BufReader::new(other.try_clone()?);
        self.lock().others.push(other);
        let relay = self.clone();
        std::thread::spawn(move || {
            for line in requests.split(b'\n').map_while(Result::ok) {
                let parties = relay.lock();
                if let Some(vmm) = &parties.vmm {
                    // A VMM that is gone is asked for nothing.
                    let _sent = vmm.send_bytes(&line);
                }
            }
        });
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Parties> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use berth_api::vmm::Event;
    use rustix::net::{RecvFlags, recv};

    use super::*;
    use crate::launch::Descriptors;

    #[test]
    fn lines_become_requests_and_events_become_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        std::fs::write(&path, "").unwrap();
        let relay = ControlRelay::listen(&path).unwrap();
        let (talk, vmm) = Talk::open(b"start", &Descriptors::new()).unwrap();
        relay.connect(talk);
        let mut other = UnixStream::connect(&path).unwrap();
        other
            .write_all(b"{\"request\":\"pause\"}\nnonsense\n")
            .unwrap();
        for expected in ["start", "{\"request\":\"pause\"}", "nonsense"] {
            let mut buffer = [0; 64];
            let (_, length) = recv(&vmm, &mut buffer, RecvFlags::empty()).unwrap();
            assert_eq!(&buffer[..length], expected.as_bytes());
        }
        relay.tell(&Event::Paused).unwrap();
        let mut line = String::new();
        BufReader::new(other).read_line(&mut line).unwrap();
        assert_eq!(line, "{\"event\":\"paused\"}\n");
    }
}
