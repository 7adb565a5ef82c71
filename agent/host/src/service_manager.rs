//! What the agent says to its own service manager: readiness, watchdog, and descriptors to keep.
//!
//! The protocol of sd_notify(3), spoken directly, because descriptors travel with it. A descriptor
//! in systemd's store outlives the agent, so that the next agent takes up each VMM's conversation
//! where the last one was killed. Outside systemd everything here does nothing, and says so.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg,
    sendmsg_addr, socket_with,
};

/// The first descriptor that systemd passes (sd_listen_fds(3)).
const LISTEN_FDS_START: i32 = 3;
/// Most descriptors that are taken over: far more than VMs fit on one host.
const MAX_INHERITED: i32 = 65_536;
/// How long the manager may take to read what it was sent.
const BARRIER_TIMEOUT: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// Why the service manager was not told.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// The socket failed.
    #[error("could not send {what} to the service manager")]
    Send {
        /// What was to be said.
        what: &'static str,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// It did not read the message in time.
    #[error("the service manager did not take {what} within 5 s")]
    NotTaken {
        /// What was said.
        what: &'static str,
    },
    /// A test told the fake to fail.
    #[error("the fake was told to fail")]
    Injected,
}

/// A place where descriptors outlive the agent. Calls block for a moment.
pub trait DescriptorStore: Send + Sync + 'static {
    /// Keep a copy of a descriptor under a name. It is safe when this returns.
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> Result<(), NotifyError>;
    /// Forget what is kept under a name, if anything is.
    fn forget(&self, name: &str) -> Result<(), NotifyError>;
}

/// The service manager that started this process, or nobody.
#[derive(Debug)]
pub struct ServiceManager {
    notify: Option<(OwnedFd, SocketAddrUnix)>,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The manager that the environment names (`NOTIFY_SOCKET`, `WATCHDOG_USEC`).
    pub fn from_environment() -> io::Result<Self> {
        let notify = match std::env::var("NOTIFY_SOCKET") {
            Ok(path) => Some(connect(&path)?),
            Err(_) => None,
        };
        let watchdog = std::env::var("WATCHDOG_USEC")
            .ok()
            .and_then(|text| text.parse().ok())
            .map(Duration::from_micros);
        Ok(Self { notify, watchdog })
    }

    /// Tell that start-up is complete.
    pub fn ready(&self) -> Result<(), NotifyError> {
        self.say("READY=1", "readiness", &[])
    }

    /// Tell that the agent goes down on request.
    pub fn stopping(&self) -> Result<(), NotifyError> {
        self.say("STOPPING=1", "the stop", &[])
    }

    /// Tell that the agent lives.
    pub fn alive(&self) -> Result<(), NotifyError> {
        self.say("WATCHDOG=1", "a sign of life", &[])
    }

    /// How often [`ServiceManager::alive`] is expected, halved as sd_watchdog_enabled(3) advises.
    #[must_use]
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|whole| whole / 2)
    }

    fn say(
        &self,
        message: &str,
        what: &'static str,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), NotifyError> {
        let Some((socket, address)) = &self.notify else {
            return Ok(());
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        sendmsg_addr(
            socket,
            address,
            &[IoSlice::new(message.as_bytes())],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
        .map(drop)
        .map_err(|errno| NotifyError::Send {
            what,
            cause: errno.into(),
        })
    }

    /// Wait until the manager has read everything said so far. Without it, a message of a process
    /// that died meanwhile is thrown away.
    fn barrier(&self, what: &'static str) -> Result<(), NotifyError> {
        if self.notify.is_none() {
            return Ok(());
        }
        let failed = |errno: rustix::io::Errno| NotifyError::Send {
            what,
            cause: errno.into(),
        };
        let (ours, theirs) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(failed)?;
        self.say("BARRIER=1", what, &[theirs.as_fd()])?;
        drop(theirs);
        let mut waiting = [PollFd::new(&ours, PollFlags::empty())];
        match poll(&mut waiting, Some(&BARRIER_TIMEOUT)) {
            Ok(0) => Err(NotifyError::NotTaken { what }),
            Ok(_) => Ok(()),
            Err(errno) => Err(failed(errno)),
        }
    }
}

impl DescriptorStore for ServiceManager {
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> Result<(), NotifyError> {
        let message = format!("FDSTORE=1\nFDNAME={name}");
        self.say(&message, "a descriptor", &[descriptor])?;
        self.barrier("a descriptor")
    }

    fn forget(&self, name: &str) -> Result<(), NotifyError> {
        let message = format!("FDSTOREREMOVE=1\nFDNAME={name}");
        self.say(&message, "a descriptor's end", &[])
    }
}

fn connect(path: &str) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        None => SocketAddrUnix::new(path)?,
    };
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok((socket, address))
}

/// Take over the descriptors that the manager kept, with their names. Call once, before anything
/// else is opened: their numbers are systemd's word alone.
pub fn inherited_descriptors() -> io::Result<Vec<(String, OwnedFd)>> {
    let variable = |name| std::env::var(name).ok();
    let for_us =
        variable("LISTEN_PID").and_then(|pid| pid.parse().ok()) == Some(std::process::id());
    let count = variable("LISTEN_FDS").and_then(|count| count.parse::<i32>().ok());
    let Some(count) = count.filter(|count| for_us && (1..=MAX_INHERITED).contains(count)) else {
        return Ok(Vec::new());
    };
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let (ours, theirs) = UnixDatagram::pair()?;
    let mut taken = Vec::new();
    for number in LISTEN_FDS_START..LISTEN_FDS_START.saturating_add(count) {
        let name = names.next().unwrap_or_default().to_owned();
        taken.extend(owned_copy(number, &ours, &theirs)?.map(|copy| (name, copy)));
        // The original has no close-on-exec flag and would end up in every child.
        nix::unistd::close(number)?;
    }
    Ok(taken)
}

/// An owned copy of the descriptor with this number, by sending it to ourselves: the kernel checks
/// the number, so no code has to claim that it is right.
fn owned_copy(
    number: RawFd,
    ours: &UnixDatagram,
    theirs: &UnixDatagram,
) -> io::Result<Option<OwnedFd>> {
    sendmsg::<()>(
        ours.as_raw_fd(),
        &[IoSlice::new(b"x")],
        &[ControlMessage::ScmRights(&[number])],
        MsgFlags::empty(),
        None,
    )?;
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(
        theirs,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let copy = ancillary.drain().find_map(|part| {
        if let RecvAncillaryMessage::ScmRights(mut received) = part {
            received.next()
        } else {
            None
        }
    });
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(path: &std::path::Path) -> ServiceManager {
        ServiceManager {
            notify: Some(connect(path.to_str().unwrap()).unwrap()),
            watchdog: None,
        }
    }

    #[test]
    fn a_descriptor_is_sent_with_its_name_and_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let sender = manager(&path);
        let null = std::fs::File::open("/dev/null").unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let keeping = std::thread::spawn(move || {
            let kept = sender.keep("berth-vm-x", null.as_fd());
            tell.send(()).unwrap();
            kept
        });
        let store = crate::fakes::receive_datagram(&systemd).unwrap();
        assert_eq!(store.0, b"FDSTORE=1\nFDNAME=berth-vm-x");
        assert_eq!(store.1.len(), 1);
        let barrier = crate::fakes::receive_datagram(&systemd).unwrap();
        assert_eq!(barrier.0, b"BARRIER=1");
        told.try_recv().unwrap_err();
        drop(barrier);
        keeping.join().unwrap().unwrap();
    }

    #[test]
    fn a_number_becomes_an_owned_copy_and_a_wrong_number_an_error() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let copy = owned_copy(file.as_raw_fd(), &ours, &theirs)
            .unwrap()
            .unwrap();
        file.set_len(7).unwrap();
        assert_eq!(std::fs::File::from(copy).metadata().unwrap().len(), 7);
        owned_copy(987_654, &ours, &theirs).unwrap_err();
    }

    #[test]
    fn without_a_manager_nothing_is_said_and_nothing_fails() {
        let nobody = ServiceManager {
            notify: None,
            watchdog: None,
        };
        nobody.ready().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        nobody.keep("x", null.as_fd()).unwrap();
    }
}
