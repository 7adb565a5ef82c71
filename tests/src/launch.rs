//! Starts one `berth-vmm` as its parent would and talks with it over the control socket.
//!
//! Owns the parent's half of the contract in `api/src/vmm.rs`: a `SOCK_SEQPACKET` pair of which the
//! child finds one end as its standard input, the first message with all descriptors, requests,
//! events, and the end of the process. It knows nothing of units, records or images; what is sent is
//! the caller's to decide, so that tests can also send what no honest parent would.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use berth_api::vmm::{Event, FdIndex, MAX_DESCRIPTORS, MAX_MESSAGE_BYTES, Request, Start};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recvmsg, send, sendmsg, socketpair,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// What makes `berth-vmm` run a guest although nobody has emptied its root or taken its privileges;
/// everything else of its jail is there. For tests and trials: no unit uses it.
pub const ALLOW_UNJAILED: &str = "--allow-unjailed";

/// The descriptors that go with a [`Start`], in the order that its [`FdIndex`]es count.
#[derive(Debug, Default)]
pub struct Descriptors(Vec<OwnedFd>);

impl Descriptors {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one and tells the position that [`Start`] names it by.
    pub fn add(&mut self, descriptor: impl Into<OwnedFd>) -> FdIndex {
        let position = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0.push(descriptor.into());
        FdIndex(position)
    }

    fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }
}

/// What came over the control socket within the time given.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// One message.
    Event(Event),
    /// The other end is closed: the process is ending or gone.
    Closed,
    /// Nothing within the time.
    Nothing,
}

/// The parent's end of the control socket.
#[derive(Debug)]
pub struct Talk {
    /// `None` once [`Talk::close`] was called.
    socket: Option<OwnedFd>,
}

impl Talk {
    /// A socket pair with the start message waiting in it: our end, and the VMM's.
    ///
    /// # Errors
    /// If the message or its descriptors cannot be sent.
    pub fn open(message: &[u8], descriptors: &Descriptors) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        send_with_descriptors(&ours, message, descriptors)?;
        let talk = Self { socket: Some(ours) };
        Ok((talk, theirs))
    }

    /// Waits at most `timeout` for the next message.
    ///
    /// # Errors
    /// If the message is longer than the contract allows or is no [`Event`], or on a socket error.
    pub fn next_event(&self, timeout: Duration) -> io::Result<Heard> {
        let Some(socket) = &self.socket else {
            return Ok(Heard::Closed);
        };
        if !readable(socket, timeout)? {
            return Ok(Heard::Nothing);
        }
        let mut buffer = vec![0; MAX_MESSAGE_BYTES + 1];
        let received = recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut buffer)],
            &mut rustix::net::RecvAncillaryBuffer::default(),
            RecvFlags::empty(),
        );
        let length = match received {
            // A peer that died with our requests unread resets the connection.
            Err(rustix::io::Errno::CONNRESET) => 0,
            other => other?.bytes,
        };
        match length {
            0 => Ok(Heard::Closed),
            1..=MAX_MESSAGE_BYTES => Ok(Heard::Event(serde_json::from_slice(&buffer[..length])?)),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the VMM sent an overlong message",
            )),
        }
    }

    /// Sends one request.
    ///
    /// # Errors
    /// If the socket is closed on either side.
    pub fn send(&self, request: &Request) -> io::Result<()> {
        self.send_bytes(&serde_json::to_vec(request)?)
    }

    /// Sends any bytes as one message.
    ///
    /// # Errors
    /// If the socket is closed on either side.
    pub fn send_bytes(&self, message: &[u8]) -> io::Result<()> {
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        send(socket, message, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The same end once more, for another thread.
    ///
    /// # Errors
    /// If it is closed, or there is no descriptor left.
    pub fn another(&self) -> io::Result<Self> {
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        Ok(Self {
            socket: Some(socket.try_clone()?),
        })
    }

    /// Closes our end, as an agent that goes away does.
    pub fn close(&mut self) {
        self.socket = None;
    }
}

/// A `berth-vmm` that this process started. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct LaunchedVmm {
    child: Child,
    /// Becomes readable when the process has ended.
    process: OwnedFd,
    talk: Talk,
}

impl LaunchedVmm {
    /// Starts the program at `vmm` outside of any unit and sends it `start` with its descriptors. Its
    /// standard output and standard error are this process's.
    ///
    /// # Errors
    /// If the program cannot be started, or does not take the message.
    pub fn launch(vmm: &Path, start: &Start, descriptors: &Descriptors) -> io::Result<Self> {
        let mut command = Command::new(vmm);
        command.arg(ALLOW_UNJAILED);
        Self::launch_with(&mut command, &serde_json::to_vec(start)?, descriptors)
    }

    /// Like [`LaunchedVmm::launch`] with a command that the caller prepared (its standard input is
    /// replaced) and with any bytes as the first message.
    ///
    /// # Errors
    /// If the program cannot be started, or does not take the message.
    pub fn launch_with(
        command: &mut Command,
        message: &[u8],
        descriptors: &Descriptors,
    ) -> io::Result<Self> {
        // Before the child exists, so that the message waits for it and not the other way round.
        let (talk, theirs) = Talk::open(message, descriptors)?;
        let mut child = command.stdin(Stdio::from(theirs)).spawn()?;
        // The command holds the child's end open until it gets another one.
        command.stdin(Stdio::null());
        match watch(&child) {
            Ok(process) => Ok(Self {
                child,
                process,
                talk,
            }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    /// The child's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child, for its captured output.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits at most `timeout` for the next message.
    ///
    /// # Errors
    /// If the message is longer than the contract allows or is no [`Event`], or on a socket error.
    pub fn next_event(&self, timeout: Duration) -> io::Result<Heard> {
        self.talk.next_event(timeout)
    }

    /// Sends one request.
    ///
    /// # Errors
    /// If the socket is closed on either side.
    pub fn send(&self, request: &Request) -> io::Result<()> {
        self.talk.send(request)
    }

    /// Sends any bytes as one message.
    ///
    /// # Errors
    /// If the socket is closed on either side.
    pub fn send_bytes(&self, message: &[u8]) -> io::Result<()> {
        self.talk.send_bytes(message)
    }

    /// Our end of the socket.
    #[must_use]
    pub fn talk(&self) -> &Talk {
        &self.talk
    }

    /// Closes our end, as an agent that goes away does.
    pub fn close_socket(&mut self) {
        self.talk.close();
    }

    /// Waits at most `timeout` for the process to end; `None` if it goes on.
    ///
    /// # Errors
    /// If waiting itself fails.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        if readable(&self.process, timeout)? {
            self.child.wait().map(Some)
        } else {
            Ok(None)
        }
    }

    /// Sends `SIGKILL` and reaps the process.
    ///
    /// # Errors
    /// If the system refuses either.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }
}

impl Drop for LaunchedVmm {
    fn drop(&mut self) {
        // Either can only fail because the process was reaped before, which is what we want.
        let _reaped = self.kill();
    }
}

fn watch(child: &Child) -> io::Result<OwnedFd> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

fn send_with_descriptors(
    socket: &OwnedFd,
    message: &[u8],
    descriptors: &Descriptors,
) -> io::Result<()> {
    let borrowed = descriptors.borrowed();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS * 2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors",
        ));
    }
    sendmsg(
        socket,
        &[IoSlice::new(message)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

fn readable(descriptor: &OwnedFd, timeout: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(timeout).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut watched = [PollFd::new(descriptor, PollFlags::IN)];
    loop {
        match poll(&mut watched, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}
