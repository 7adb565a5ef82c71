//! The host's side of a virtio socket device over Unix sockets.
//!
//! Owns who may connect to the guest and how ([`berth_api::vmm::Vsock::listener`]), and how the guest's
//! connections are handed to whoever serves them ([`berth_api::vmm::Vsock::connector`]). It opens no
//! path. Packets, credit and the number of connections are the device's.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_api::vmm::VsockConnection;
use berth_vmm_devices::virtio::vsock::backend::{HostEvent, HostStream, Readiness, VsockHost};
use berth_vmm_devices::virtio::vsock::packet::{FIRST_HOST_PORT, PORT_ANY, Ports};
use berth_vmm_sys::vectored_io;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, accept_with, recv, send, sendmsg, shutdown, socketpair,
};
use vm_memory::VolatileSlice;

use crate::spec::VsockSpec;

/// Longest line of who connects: `CONNECT 4294967294\n`.
const MAX_LINE_BYTES: usize = 19;
/// How many may have connected without having said to which port. One more, and the one that has
/// waited longest is turned away.
const MAX_ASKING: usize = 64;
/// Events taken from the kernel at once.
const EVENT_BATCH: usize = 64;
/// The token of the listener.
const LISTENER: Ports = Ports {
    guest: PORT_ANY,
    host: 0,
};

/// The sockets of one device.
#[derive(Debug)]
pub struct VsockSockets {
    epoll: OwnedFd,
    listener: Option<OwnedFd>,
    connector: Option<OwnedFd>,
    /// Whether the listener may have somebody.
    has_callers: bool,
    /// Who has not said to which port yet, the oldest first.
    asking: VecDeque<SocketStream>,
    next_port: u32,
    ready: VecDeque<(Ports, EventFlags)>,
}

impl VsockSockets {
    /// The sockets that `spec` names.
    ///
    /// # Errors
    /// If there is no descriptor left, or the listener cannot be watched.
    pub fn new(spec: VsockSpec) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        if let Some(listener) = &spec.listener {
            let flags = fcntl_getfl(listener)?;
            fcntl_setfl(listener, flags | OFlags::NONBLOCK)?;
            let flags = EventFlags::IN | EventFlags::ET;
            epoll::add(&epoll, listener, token(LISTENER), flags)?;
        }
        Ok(Self {
            epoll,
            has_callers: spec.listener.is_some(),
            listener: spec.listener,
            connector: spec.connector,
            asking: VecDeque::new(),
            next_port: FIRST_HOST_PORT,
            ready: VecDeque::new(),
        })
    }

    /// Takes what the kernel has.
    fn take_ready(&mut self) {
        let mut events = Vec::with_capacity(EVENT_BATCH);
        let now = rustix::event::Timespec::default();
        let buffer = rustix::buffer::spare_capacity(&mut events);
        // It fails only for a signal, which leaves the events where they are.
        let _count = epoll::wait(&self.epoll, buffer, Some(&now));
        let named = |event: epoll::Event| (ports(event.data), event.flags);
        self.ready.extend(events.into_iter().map(named));
    }

    /// Takes one caller; `None` if there is none.
    fn accept(&mut self) -> Option<HostEvent> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let accepted = accept_with(self.listener.as_ref()?, flags);
        let socket = match accepted {
            Ok(socket) => socket,
            // Gone before we came.
            Err(Errno::CONNABORTED | Errno::INTR) => return Some(nothing(LISTENER)),
            Err(Errno::AGAIN) => {
                self.has_callers = false;
                return None;
            }
            // No descriptor is left: the caller waits until something else wakes the device.
            Err(_) => return None,
        };
        let ports = Ports {
            guest: PORT_ANY,
            host: self.take_port(),
        };
        if watch(&self.epoll, &socket, ports).is_ok() {
            self.asking.push_back(SocketStream { socket, ports });
        }
        if self.asking.len() > MAX_ASKING {
            self.asking.pop_front();
        }
        Some(nothing(ports))
    }

    /// A port of the host's for the next caller.
    fn take_port(&mut self) -> u32 {
        let port = self.next_port;
        self.next_port = match port + 1 {
            PORT_ANY => FIRST_HOST_PORT,
            next => next,
        };
        port
    }

    /// A caller said something, or left.
    fn hear(&mut self, caller: Ports, flags: EventFlags) -> Option<HostEvent> {
        let position = self.asking.iter().position(|it| it.ports == caller)?;
        let asked = self.asking.get(position).map(|it| asked_port(&it.socket));
        match asked? {
            Asked::Nothing if !is_gone(flags) => None,
            Asked::Nothing | Asked::Nonsense => {
                self.asking.remove(position);
                None
            }
            Asked::Port(guest) => {
                let mut stream = self.asking.remove(position)?;
                stream.ports.guest = guest;
                let ports = stream.ports;
                epoll::modify(&self.epoll, &stream.socket, token(ports), watched()).ok()?;
                let stream = Box::new(stream);
                Some(HostEvent::Asked { ports, stream })
            }
        }
    }
}

impl VsockHost for VsockSockets {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn next_event(&mut self) -> Option<HostEvent> {
        if self.ready.is_empty()
            && self.has_callers
            && let Some(event) = self.accept()
        {
            return Some(event);
        }
        if self.ready.is_empty() {
            self.take_ready();
        }
        let (ports, flags) = self.ready.pop_front()?;
        if ports == LISTENER {
            self.has_callers = true;
        } else if ports.guest == PORT_ANY {
            return Some(self.hear(ports, flags).unwrap_or(nothing(ports)));
        }
        let readiness = Readiness {
            input: flags.intersects(EventFlags::IN | EventFlags::RDHUP),
            room: flags.contains(EventFlags::OUT),
            is_gone: is_gone(flags),
        };
        Some(HostEvent::Ready { ports, readiness })
    }

    fn connect(&mut self, ports: Ports) -> Option<Box<dyn HostStream>> {
        let connector = self.connector.as_ref()?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let (socket, theirs) = pair.ok()?;
        watch(&self.epoll, &socket, ports).ok()?;
        hand_over(connector, ports, &theirs).ok()?;
        Some(Box::new(SocketStream { socket, ports }))
    }
}

/// One connection's socket.
#[derive(Debug)]
struct SocketStream {
    socket: OwnedFd,
    ports: Ports,
}

impl HostStream for SocketStream {
    fn read(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        vectored_io::read_some(self.socket.as_fd(), buffers)
    }

    fn write(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        vectored_io::write_some(self.socket.as_fd(), buffers)
    }

    fn shut_down(&mut self, direction: Shutdown) {
        let how = match direction {
            Shutdown::Read => rustix::net::Shutdown::Read,
            Shutdown::Write => rustix::net::Shutdown::Write,
            Shutdown::Both => rustix::net::Shutdown::Both,
        };
        // It fails only if the peer is gone, and then there is nobody to tell.
        shutdown(&self.socket, how).unwrap_or(());
    }

    fn tell_accepted(&mut self) -> io::Result<()> {
        let answer = format!("OK {}\n", self.ports.host);
        let sent = send(&self.socket, answer.as_bytes(), SendFlags::NOSIGNAL)?;
        if sent == answer.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }
}

/// What a caller has said so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    /// No whole line.
    Nothing,
    /// This port of the guest's.
    Port(u32),
    /// Not what the contract says, or it left.
    Nonsense,
}

/// Takes the line from `socket` if it is there, and not a byte more: what follows is for the guest.
fn asked_port(socket: &OwnedFd) -> Asked {
    let mut line = [0; MAX_LINE_BYTES];
    let heard = match recv(socket, &mut line[..], RecvFlags::PEEK) {
        Ok((_, heard)) => heard,
        Err(Errno::AGAIN | Errno::INTR) => return Asked::Nothing,
        Err(_) => return Asked::Nonsense,
    };
    let line = line.get(..heard).unwrap_or(&[]);
    let asked = parse_line(line);
    if let Asked::Port(_) = asked {
        let length = line.iter().position(|&byte| byte == b'\n').unwrap_or(0) + 1;
        let mut taken = [0; MAX_LINE_BYTES];
        let taken = taken.get_mut(..length).unwrap_or(&mut []);
        if !recv(socket, taken, RecvFlags::empty()).is_ok_and(|(_, bytes)| bytes == length) {
            return Asked::Nonsense;
        }
    }
    asked
}

fn parse_line(heard: &[u8]) -> Asked {
    let Some(end) = heard.iter().position(|&byte| byte == b'\n') else {
        let may_go_on = !heard.is_empty() && heard.len() < MAX_LINE_BYTES;
        return if may_go_on {
            Asked::Nothing
        } else {
            Asked::Nonsense
        };
    };
    let line = heard.get(..end).unwrap_or(&[]);
    let digits = line.strip_prefix(b"CONNECT ").unwrap_or(&[]);
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(digits).ok().filter(|_| is_number);
    match number.and_then(|number| number.parse().ok()) {
        Some(PORT_ANY) | None => Asked::Nonsense,
        Some(port) => Asked::Port(port),
    }
}

/// Sends `socket` to whoever serves the guest's connections. Never waits.
fn hand_over(connector: &OwnedFd, ports: Ports, socket: &OwnedFd) -> io::Result<()> {
    let text = serde_json::to_vec(&VsockConnection {
        port: ports.host,
        guest_port: ports.guest,
    })?;
    let descriptors = [socket.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(connector, &[IoSlice::new(&text)], &mut ancillary, flags)?;
    Ok(())
}

/// What an event without a meaning for the device is.
fn nothing(ports: Ports) -> HostEvent {
    HostEvent::Ready {
        ports,
        readiness: Readiness::default(),
    }
}

fn is_gone(flags: EventFlags) -> bool {
    flags.intersects(EventFlags::HUP | EventFlags::ERR)
}

fn watched() -> EventFlags {
    EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET
}

fn watch(epoll: &OwnedFd, socket: &OwnedFd, ports: Ports) -> io::Result<()> {
    Ok(epoll::add(epoll, socket, token(ports), watched())?)
}

fn token(ports: Ports) -> EventData {
    EventData::new_u64(u64::from(ports.guest) << 32 | u64::from(ports.host))
}

fn ports(token: EventData) -> Ports {
    let [g0, g1, g2, g3, h0, h1, h2, h3] = token.u64().to_be_bytes();
    Ports {
        guest: u32::from_be_bytes([g0, g1, g2, g3]),
        host: u32::from_be_bytes([h0, h1, h2, h3]),
    }
}
