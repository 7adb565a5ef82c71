//! Callers and the guest's connections, over real sockets.

use std::io::{IoSliceMut, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, recvmsg};

use super::*;

struct Place {
    folder: tempfile::TempDir,
    sockets: VsockSockets,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("vsock")).unwrap();
        let sockets = VsockSockets::new(VsockSpec {
            cid: 3,
            listener: Some(listener.into()),
            connector: None,
        });
        let sockets = sockets.unwrap();
        Self { folder, sockets }
    }

    fn call(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("vsock")).unwrap()
    }

    /// What happened that means something.
    fn events(&mut self) -> Vec<HostEvent> {
        let mut events = Vec::new();
        while let Some(event) = self.sockets.next_event() {
            let is_nothing = matches!(
                &event,
                HostEvent::Ready { ports, .. } if ports.guest == PORT_ANY
            );
            if !is_nothing {
                events.push(event);
            }
        }
        events
    }

    fn asked(&mut self) -> Option<(Ports, Box<dyn HostStream>)> {
        self.events().into_iter().find_map(|event| match event {
            HostEvent::Asked { ports, stream } => Some((ports, stream)),
            HostEvent::Ready { .. } => None,
        })
    }
}

fn read(stream: &mut dyn HostStream) -> io::Result<Vec<u8>> {
    let mut bytes = [0; 100];
    let read = stream.read(&[VolatileSlice::from(&mut bytes[..])])?;
    Ok(bytes[..read].to_vec())
}

#[test]
fn a_caller_says_a_port_in_pieces_and_what_follows_is_for_the_guest() {
    let mut place = Place::new();
    let mut caller = place.call();
    for piece in ["CON", "NECT 5", "2"] {
        caller.write_all(piece.as_bytes()).unwrap();
        assert!(place.asked().is_none(), "after {piece}");
    }
    caller.write_all(b"00\nhello").unwrap();
    let (ports, mut stream) = place.asked().unwrap();
    assert_eq!((ports.guest, ports.host), (5200, FIRST_HOST_PORT));
    stream.tell_accepted().unwrap();
    let mut answer = [0; 14];
    caller.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"OK 2147483648\n");
    assert_eq!(read(stream.as_mut()).unwrap(), b"hello");
    let blocked = read(stream.as_mut()).unwrap_err();
    assert_eq!(blocked.kind(), io::ErrorKind::WouldBlock);
    // The next caller has another port.
    let mut caller = place.call();
    caller.write_all(b"CONNECT 5200\n").unwrap();
    assert_eq!(place.asked().unwrap().0.host, FIRST_HOST_PORT + 1);
}

#[test]
fn readiness_is_told_once_for_what_is_new() {
    let mut place = Place::new();
    let mut caller = place.call();
    caller.write_all(b"CONNECT 1\n").unwrap();
    let (at, _stream) = place.asked().unwrap();
    place.events();
    let mut next = || {
        let events = place.events().into_iter().map(|event| match event {
            HostEvent::Ready { ports, readiness } if ports == at => readiness,
            asked @ HostEvent::Asked { .. } | asked @ HostEvent::Ready { .. } => {
                panic!("{asked:?}")
            }
        });
        events.collect::<Vec<_>>()
    };
    assert_eq!(next(), []);
    caller.write_all(b"x").unwrap();
    assert!(next()[0].input);
    assert_eq!(next(), [], "although nobody took it");
    drop(caller);
    assert!(next()[0].is_gone);
}

#[test]
fn callers_that_say_nonsense_or_leave_are_turned_away() {
    let mut place = Place::new();
    for nonsense in [
        "\n",
        "CONNECT\n",
        "CONNECT \n",
        "CONNECT +1\n",
        "CONNECT -1\n",
        "CONNECT 4294967295\n",
        "CONNECT 4294967296\n",
        "CONNECT 1\r\n",
        " CONNECT 1\n",
        "connect 1\n",
        "CONNECT 00000000001",
        "GET / HTTP/1.1 and much more",
    ] {
        let mut caller = place.call();
        caller.write_all(nonsense.as_bytes()).unwrap();
        assert!(place.asked().is_none(), "{nonsense:?}");
        // Closed, whether or not it was read to the end.
        assert_eq!(caller.read(&mut [0]).unwrap_or(0), 0, "{nonsense:?}");
    }
    for words in ["", "CONN"] {
        let mut caller = place.call();
        caller.write_all(words.as_bytes()).unwrap();
        drop(caller);
        assert!(place.asked().is_none());
    }
    assert_eq!(place.sockets.asking.len(), 0);
}

#[test]
fn of_many_callers_that_say_nothing_the_oldest_goes() {
    let mut place = Place::new();
    let mut callers: Vec<_> = (0..MAX_ASKING).map(|_| place.call()).collect();
    assert!(place.asked().is_none());
    callers.push(place.call());
    assert!(place.asked().is_none());
    assert_eq!(place.sockets.asking.len(), MAX_ASKING);
    assert_eq!(callers[0].read(&mut [0]).unwrap(), 0);
    callers[1].write_all(b"CONNECT 9\n").unwrap();
    assert_eq!(place.asked().unwrap().0.guest, 9);
}

const WEB: Ports = Ports {
    guest: 1025,
    host: 80,
};

fn with_connector(connector: Option<OwnedFd>) -> VsockSockets {
    VsockSockets::new(VsockSpec {
        cid: 3,
        listener: None,
        connector,
    })
    .unwrap()
}

fn seqpacket() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

#[test]
fn the_guests_connection_is_handed_over_with_its_ports() {
    let (ours, theirs) = seqpacket();
    let mut sockets = with_connector(Some(theirs));
    let mut stream = sockets.connect(WEB).unwrap();
    let mut text = [0; 100];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut text)];
    let received = recvmsg(&ours, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    let message: VsockConnection = serde_json::from_slice(&text[..received.bytes]).unwrap();
    assert_eq!((message.port, message.guest_port), (80, 1025));
    let socket = ancillary.drain().find_map(|message| {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            descriptors.next()
        } else {
            None
        }
    });
    let mut peer = UnixStream::from(socket.unwrap());
    peer.write_all(b"served").unwrap();
    assert_eq!(read(stream.as_mut()).unwrap(), b"served");
    let mut bytes = *b"thanks";
    assert_eq!(
        stream
            .write(&[VolatileSlice::from(&mut bytes[..])])
            .unwrap(),
        6
    );
    stream.shut_down(Shutdown::Write);
    let mut text = String::new();
    peer.set_nonblocking(false).unwrap();
    peer.read_to_string(&mut text).unwrap();
    assert_eq!(text, "thanks");
}

#[test]
fn where_nobody_takes_connections_there_are_none() {
    assert!(with_connector(None).connect(WEB).is_none());
    let (ours, theirs) = seqpacket();
    let mut sockets = with_connector(Some(theirs));
    // Nobody reads: full at some time, and never waited for.
    let mut streams = Vec::new();
    while let Some(stream) = sockets.connect(WEB) {
        streams.push(stream);
        assert!(streams.len() < 10_000);
    }
    drop(ours);
    assert!(sockets.connect(WEB).is_none());
}

#[test]
fn the_one_descriptor_wakes_whoever_waits_for_edges() {
    let mut place = Place::new();
    let outer = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let flags = EventFlags::IN | EventFlags::ET;
    let inner = place.sockets.descriptor().unwrap();
    epoll::add(&outer, inner, EventData::new_u64(0), flags).unwrap();
    let wakes = |place: &mut Place| {
        let mut events = Vec::with_capacity(4);
        let now = rustix::event::Timespec::default();
        let buffer = rustix::buffer::spare_capacity(&mut events);
        let count = epoll::wait(&outer, buffer, Some(&now)).unwrap();
        let _asked = place.asked();
        count == 1
    };
    assert!(!wakes(&mut place));
    let mut caller = place.call();
    assert!(wakes(&mut place), "for a caller");
    assert!(!wakes(&mut place), "once");
    caller.write_all(b"CONNECT").unwrap();
    assert!(wakes(&mut place), "for part of a line");
    let _other = place.call();
    caller.write_all(b" 1").unwrap();
    assert!(wakes(&mut place), "for two things at once");
    assert!(!wakes(&mut place));
    drop(caller);
    assert!(wakes(&mut place), "for one who leaves");
    assert!(!wakes(&mut place));
}
