//! The socket device as a driver and the host's peers meet it: data both ways through real sockets,
//! and all that either side may do wrong.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use vm_memory::{
    Bytes, GuestAddress, ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile,
};

use super::backend::{HostEvent, HostStream, Readiness, VsockHost};
use super::packet::{
    FIRST_HOST_PORT, HEADER_BYTES, Header, Operation, PORT_ANY, Ports, SHUTDOWN_RECEIVE,
    SHUTDOWN_SEND, TYPE_STREAM,
};
use super::table::{LARGE_BUFFER_BYTES, MAX_CONNECTIONS, MAX_RESETS, SMALL_BUFFER_BYTES, Table};
use super::{EVENT, RECEIVE, TRANSMIT, Vsock};
use crate::guest_error::GuestError;
use crate::pci::DeviceSlot;
use crate::sync::lock;
use crate::virtio::executor::InlineExecutor;
use crate::virtio::testing::{BUFFERS, RAM_BYTES, Ring, SLOT, TestGuest, WRITE};

const CID: u32 = 7;
const SIZE: u16 = 32;
const ROOM_BYTES: u64 = 0x2000;
/// Data that one of the guest's receive buffers holds.
const ROOM_DATA: u32 = 4096;
const PACKET: u64 = 0x30_0000;
const WEB: Ports = Ports {
    guest: 40_000,
    host: 80,
};
const BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// One end of a socket pair.
#[derive(Debug)]
struct Socket {
    stream: UnixStream,
    host_port: u32,
}

fn into_io(error: VolatileMemoryError) -> io::Error {
    if let VolatileMemoryError::IOError(error) = error {
        error
    } else {
        io::Error::other(error)
    }
}

impl HostStream for Socket {
    fn read(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut first = buffers[0].offset(0).unwrap();
        self.stream.read_volatile(&mut first).map_err(into_io)
    }
    fn write(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let first = buffers.iter().find(|buffer| !buffer.is_empty()).unwrap();
        self.stream.write_volatile(first).map_err(into_io)
    }
    fn shut_down(&mut self, direction: Shutdown) {
        self.stream.shutdown(direction).unwrap_or(());
    }
    fn tell_accepted(&mut self) -> io::Result<()> {
        writeln!(self.stream, "OK {}", self.host_port)
    }
}

/// A peer that neither reads nor writes.
#[derive(Debug)]
struct Silent;

impl HostStream for Silent {
    fn read(&mut self, _: &[VolatileSlice<'_>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
    fn write(&mut self, _: &[VolatileSlice<'_>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
    fn shut_down(&mut self, _: Shutdown) {}
    fn tell_accepted(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A host whose ports below 1000 are served, those below 100 by real sockets.
#[derive(Default)]
struct HostState {
    events: VecDeque<HostEvent>,
    served: BTreeMap<Ports, UnixStream>,
}

#[derive(Clone, Default)]
struct Host(Arc<Mutex<HostState>>);

fn pair(host_port: u32) -> (Box<dyn HostStream>, UnixStream) {
    let (stream, peer) = UnixStream::pair().unwrap();
    stream.set_nonblocking(true).unwrap();
    peer.set_nonblocking(true).unwrap();
    (Box::new(Socket { stream, host_port }), peer)
}

impl VsockHost for Host {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn next_event(&mut self) -> Option<HostEvent> {
        lock(&self.0).events.pop_front()
    }
    fn connect(&mut self, ports: Ports) -> Option<Box<dyn HostStream>> {
        match ports.host {
            0..100 => {
                let (stream, peer) = pair(ports.host);
                lock(&self.0).served.insert(ports, peer);
                Some(stream)
            }
            100..1000 => Some(Box::new(Silent)),
            _ => None,
        }
    }
}

/// A driver and the host's peers.
struct World {
    guest: TestGuest,
    executor: Arc<InlineExecutor>,
    host: Host,
    receive: Ring,
    transmit: Ring,
    events: Ring,
    /// What the guest says about its buffer.
    window: u32,
    forwarded: u32,
}

impl World {
    fn new() -> Self {
        let mut world = Self::without_rooms();
        world.offer_rooms(SIZE);
        world
    }

    fn without_rooms() -> Self {
        let (executor, host) = (Arc::new(InlineExecutor::default()), Host::default());
        let device = Vsock::new(CID, Box::new(host.clone()));
        let guest = TestGuest::with_executor(Box::new(device), executor.clone());
        guest.enable_msix(4);
        guest.negotiate(1);
        let [receive, transmit, events] =
            [RECEIVE, TRANSMIT, EVENT].map(|queue| guest.set_up_queue(queue, SIZE));
        guest.set_status(0xf);
        Self {
            guest,
            executor,
            host,
            receive,
            transmit,
            events,
            window: 1 << 20,
            forwarded: 0,
        }
    }

    fn offer_rooms(&mut self, count: u16) {
        for _ in 0..count {
            self.offer_room();
        }
        self.guest.notify(RECEIVE);
    }

    fn offer_room(&mut self) {
        // The ring's descriptors are used in turn, one for each buffer.
        let room = self.receive.submit(&[(0, HEADER_BYTES + ROOM_DATA, WRITE)]);
        let (address, bytes) = (room_address(room.into()), HEADER_BYTES + ROOM_DATA);
        let next = (room + 1) % SIZE;
        self.receive.describe(room, address, bytes, WRITE, next);
    }

    fn header(&self, ports: Ports, operation: Operation) -> Header {
        Header {
            source_cid: CID.into(),
            destination_cid: 2,
            source_port: ports.guest,
            destination_port: ports.host,
            length: 0,
            kind: TYPE_STREAM,
            operation: operation.number(),
            flags: 0,
            buffer_bytes: self.window,
            forwarded: self.forwarded,
        }
    }

    /// Sends any header with any bytes behind it.
    fn send_raw(&mut self, header: &Header, data: &[u8]) {
        let bytes = [&header.to_bytes()[..], data].concat();
        let memory = &self.guest.memory;
        memory.write_slice(&bytes, GuestAddress(PACKET)).unwrap();
        let length = u32::try_from(bytes.len()).unwrap();
        self.transmit.submit(&[(PACKET, length, 0)]);
        self.guest.notify(TRANSMIT);
        assert_eq!(self.transmit.take_used().len(), 1);
    }

    fn send(&mut self, ports: Ports, operation: Operation) {
        self.send_raw(&self.header(ports, operation), &[]);
    }

    fn send_data(&mut self, ports: Ports, data: &[u8]) {
        let header = Header {
            length: u32::try_from(data.len()).unwrap(),
            ..self.header(ports, Operation::Data)
        };
        self.send_raw(&header, data);
    }

    fn shut_down(&mut self, ports: Ports, flags: u32) {
        let header = Header {
            flags,
            ..self.header(ports, Operation::Shutdown)
        };
        self.send_raw(&header, &[]);
    }

    /// What came for the guest since the last call. Its buffers are offered again.
    fn take(&mut self) -> Vec<(Header, Vec<u8>)> {
        let used = self.receive.take_used();
        let packets = used.iter().map(|&(room, written)| self.read(room, written));
        let packets: Vec<_> = packets.collect();
        for _ in &used {
            self.offer_room();
        }
        if !used.is_empty() {
            self.guest.notify(RECEIVE);
        }
        packets
    }

    fn read(&self, room: u32, written: u32) -> (Header, Vec<u8>) {
        let mut bytes = vec![0; usize::try_from(written).unwrap()];
        let place = GuestAddress(room_address(room));
        self.guest.memory.read_slice(&mut bytes, place).unwrap();
        let header = Header::from_bytes(bytes.first_chunk().unwrap());
        assert_eq!((header.source_cid, header.destination_cid), (2, CID.into()));
        assert_eq!(header.length + HEADER_BYTES, written);
        (header, bytes[44..].to_vec())
    }

    /// Operations and flags of what came, without what is only about credit.
    fn take_operations(&mut self) -> Vec<(Operation, u32)> {
        let packets = self.take().into_iter().map(|(header, _)| {
            let operation = Operation::from_number(header.operation).unwrap();
            (operation, header.flags)
        });
        packets
            .filter(|(operation, _)| {
                !matches!(
                    operation,
                    Operation::CreditUpdate | Operation::CreditRequest
                )
            })
            .collect()
    }

    fn host_says(&self, event: HostEvent) {
        lock(&self.host.0).events.push_back(event);
        self.wake();
    }

    fn wake(&self) {
        self.executor
            .source_ready(DeviceSlot::new(SLOT).unwrap(), 0);
    }

    fn ready(&self, ports: Ports) {
        let readiness = Readiness {
            input: true,
            room: true,
            is_gone: false,
        };
        self.host_says(HostEvent::Ready { ports, readiness });
    }

    fn gone(&self, ports: Ports) {
        let readiness = Readiness {
            input: true,
            room: true,
            is_gone: true,
        };
        self.host_says(HostEvent::Ready { ports, readiness });
    }

    /// Connects the guest with a real socket, which is returned.
    fn connect(&mut self, ports: Ports) -> UnixStream {
        self.send(ports, Operation::Request);
        assert_eq!(self.take_operations(), [(Operation::Response, 0)]);
        lock(&self.host.0).served.remove(&ports).unwrap()
    }

    /// Asks the guest for a connection on behalf of a peer, which is returned.
    fn ask(&mut self, ports: Ports) -> UnixStream {
        let (stream, peer) = pair(ports.host);
        self.host_says(HostEvent::Asked { ports, stream });
        peer
    }

    fn violations(&self) -> u64 {
        self.guest.errors.count(GuestError::VirtioRequest)
    }
}

fn room_address(room: u32) -> u64 {
    BUFFERS + u64::from(room) * ROOM_BYTES
}

fn pattern(position: usize) -> u8 {
    u8::try_from((position * 7 + position / 251) % 256).unwrap()
}

fn read_now(peer: &mut UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    let mut filled = 0;
    while let Ok(read) = peer.read(&mut bytes[filled..])
        && read > 0
    {
        filled += read;
    }
    bytes.truncate(filled);
    bytes
}

const ASKED: Ports = Ports {
    guest: 22,
    host: FIRST_HOST_PORT,
};

#[test]
fn the_driver_finds_its_context_id() {
    let world = World::without_rooms();
    assert_eq!(world.guest.config(0, 4), 0x1053_1af4);
    let device = world.guest.at.device.unwrap();
    assert_eq!(world.guest.read(device, 8), u64::from(CID));
    assert_eq!(world.guest.offered_features() & 0xff_ffff, 1);
}

/// Echoes `total` bytes: the guest sends, the peer sends back what it reads.
fn echo(world: &mut World, ports: Ports, peer: &mut UnixStream, total: usize) {
    let chunk: Vec<u8> = (0..total.min(1 << 20)).map(pattern).collect();
    let expected = |position: usize| chunk[position % chunk.len()];
    let (mut sent, mut received) = (0_usize, 0_usize);
    let (mut host_buffer, mut host_forwarded) = (LARGE_BUFFER_BYTES, 0_u32);
    let mut kept = VecDeque::new();
    while received < total {
        // The guest, as far as it has credit and little more is under way than it can take back.
        let unread = u32::try_from(sent % (1 << 32))
            .unwrap()
            .wrapping_sub(host_forwarded);
        let credit = usize::try_from(host_buffer - unread).unwrap();
        let place = sent % chunk.len();
        let now = credit
            .min(total - sent)
            .min(60_000)
            .min(chunk.len() - place);
        if now > 0 {
            world.send_data(ports, &chunk[place..place + now]);
            sent += now;
        } else {
            world.send(ports, Operation::CreditUpdate);
        }
        // The peer.
        kept.extend(read_now(peer));
        let (front, _) = kept.as_slices();
        let written = peer.write(front).unwrap_or(0);
        kept.drain(..written);
        world.ready(ports);
        // The guest again.
        for (header, data) in world.take() {
            assert_ne!(header.operation, Operation::Reset.number());
            (host_buffer, host_forwarded) = (header.buffer_bytes, header.forwarded);
            for byte in &data {
                assert_eq!(*byte, expected(received), "at {received}");
                received += 1;
            }
            world.forwarded = world.forwarded.wrapping_add(header.length);
        }
    }
    assert_eq!((sent, received), (total, total));
}

#[test]
fn a_guest_gets_back_64_mib_from_the_host_through_a_window_of_5000_bytes() {
    let mut world = World::new();
    world.window = 5000;
    let mut peer = world.connect(WEB);
    echo(&mut world, WEB, &mut peer, 64 << 20);
    assert_eq!(world.violations(), 0);
}

#[test]
fn a_peer_of_the_host_gets_64_mib_through_the_guest() {
    let mut world = World::new();
    world.window = 3000;
    let mut peer = world.ask(ASKED);
    let operations = world.take_operations();
    assert_eq!(operations, [(Operation::Request, 0)]);
    assert_eq!(read_now(&mut peer), b"", "nothing before the guest accepts");
    world.send(ASKED, Operation::Response);
    assert_eq!(
        read_now(&mut peer),
        format!("OK {FIRST_HOST_PORT}\n").as_bytes()
    );
    let block: Vec<u8> = (0..50_000).map(pattern).collect();
    let total = (64 << 20) / block.len() * block.len();
    let (mut given, mut got) = (0, 0);
    while got < total {
        let place = given % block.len();
        let end = block.len().min(place + total - given);
        given += peer.write(&block[place..end]).unwrap_or(0);
        world.ready(ASKED);
        for (header, data) in world.take() {
            let place = got % block.len();
            let (front, back) = block.split_at(place);
            let wrapped = [back, front].concat();
            assert_eq!(data, wrapped[..data.len()]);
            got += data.len();
            world.forwarded = world.forwarded.wrapping_add(header.length);
        }
        world.send(ASKED, Operation::CreditUpdate);
    }
    assert_eq!(got, total);
}

#[test]
fn the_guest_is_never_sent_more_than_it_has_room_for() {
    let mut world = World::new();
    world.window = 100;
    let mut peer = world.connect(WEB);
    peer.write_all(&[1; 300]).unwrap();
    world.ready(WEB);
    let packets = world.take();
    let lengths: Vec<_> = packets.iter().map(|(header, _)| header.length).collect();
    assert_eq!(lengths, [100, 0]);
    assert_eq!(packets[1].0.operation, Operation::CreditRequest.number());
    world.ready(WEB);
    assert_eq!(world.take().len(), 0, "it was asked already");
    world.forwarded = 40;
    world.send(WEB, Operation::CreditUpdate);
    assert_eq!(world.take()[0].0.length, 40);
    // More than was ever sent, and a buffer that shrank below what is in it.
    for (window, forwarded) in [(100, 1000), (10, 100), (0, 140)] {
        (world.window, world.forwarded) = (window, forwarded);
        world.send(WEB, Operation::CreditUpdate);
        assert!(world.take().iter().all(|(header, _)| header.length == 0));
    }
}

#[test]
fn a_guest_that_sends_more_than_it_may_is_reset_and_costs_no_memory() {
    let mut world = World::new();
    let mut ports = WEB;
    ports.host = 500;
    world.send(ports, Operation::Request);
    world.take();
    world.send_data(ports, &vec![7; 60_000]);
    assert_eq!(world.violations(), 0);
    world.send_data(ports, &vec![7; 5537]);
    assert_eq!(world.violations(), 1);
    assert_eq!(world.take_operations(), [(Operation::Reset, 0)]);
    world.send_data(ports, b"x");
    assert_eq!(world.take_operations(), [(Operation::Reset, 0)]);
}

#[test]
fn a_peer_that_does_not_read_stalls_nobody_else() {
    let mut world = World::new();
    let mut other = WEB;
    other.guest += 1;
    let (_stalled, mut peer) = (world.connect(WEB), world.connect(other));
    let mut accepted = 0;
    while world.violations() == 0 {
        world.send_data(WEB, &vec![1; 60_000]);
        accepted += 60_000;
        world.take();
        assert!(
            accepted < 4 << 20,
            "the guest would have been out of credit"
        );
    }
    world.send_data(other, b"hello");
    assert_eq!(read_now(&mut peer), b"hello");
    peer.write_all(b"there").unwrap();
    world.ready(other);
    assert_eq!(world.take()[0].1, b"there");
}

#[test]
fn what_a_slow_peer_had_no_room_for_comes_later_and_gives_credit() {
    let mut world = World::new();
    let mut peer = world.connect(WEB);
    let mut sent = Vec::new();
    // Until the socket is full and 50,000 bytes or more are kept.
    for _ in 0.. {
        let header = Header::default();
        let next: Vec<u8> = (sent.len()..sent.len() + 50_000).map(pattern).collect();
        world.send_data(WEB, &next);
        sent.extend(next);
        let last = world.take().last().map_or(header, |(header, _)| *header);
        let told = usize::try_from(last.forwarded).unwrap();
        if sent.len() - told > 30_000 {
            break;
        }
    }
    let mut got = Vec::new();
    while got.len() < sent.len() {
        let now = read_now(&mut peer);
        assert!(!now.is_empty());
        got.extend(now);
        world.ready(WEB);
    }
    assert_eq!(got, sent);
    let told = world.take().last().unwrap().0.forwarded;
    assert!(sent.len() - usize::try_from(told).unwrap() <= 32_768);
    assert_eq!(world.violations(), 0);
}

#[test]
fn either_side_may_end_one_direction_and_go_on_in_the_other() {
    let mut world = World::new();
    let mut peer = world.connect(WEB);
    world.send_data(WEB, b"question");
    world.shut_down(WEB, SHUTDOWN_SEND);
    let mut question = String::new();
    peer.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    peer.write_all(b"answer").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    world.ready(WEB);
    let packets = world.take();
    assert_eq!(packets[0].1, b"answer");
    assert_eq!(packets[1].0.flags, SHUTDOWN_SEND);
    world.shut_down(WEB, BOTH);
    assert_eq!(world.take_operations(), [(Operation::Reset, 0)]);
    // Both ports are free again.
    world.connect(WEB);
}

#[test]
fn a_guest_that_leaves_is_answered_and_what_it_sent_still_arrives() {
    let mut world = World::new();
    let mut peer = world.connect(WEB);
    let mut sent = 0;
    for _ in 0.. {
        world.send_data(WEB, &[7; 50_000]);
        sent += 50_000;
        let told = world
            .take()
            .last()
            .map_or(0, |(header, _)| header.forwarded);
        if sent - usize::try_from(told).unwrap() > 30_000 {
            break;
        }
    }
    world.shut_down(WEB, BOTH);
    assert_eq!(world.take_operations(), [(Operation::Reset, 0)]);
    // The guest's own reset changes nothing for what it sent before.
    world.send(WEB, Operation::Reset);
    assert_eq!(
        peer.write(b"x").unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
    let mut got = 0;
    loop {
        let now = read_now(&mut peer).len();
        got += now;
        world.ready(WEB);
        if now == 0 {
            break;
        }
    }
    assert_eq!(got, sent);
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "and then the end");
    assert_eq!(world.take_operations(), []);
}

#[test]
fn a_peer_that_disappears_is_the_end_after_what_it_sent() {
    let mut world = World::new();
    let mut peer = world.connect(WEB);
    peer.write_all(b"last words").unwrap();
    drop(peer);
    world.gone(WEB);
    let packets = world.take();
    assert_eq!(packets[0].1, b"last words");
    assert_eq!(packets[1].0.operation, Operation::Shutdown.number());
    assert_eq!(packets[1].0.flags, BOTH);
    world.send(WEB, Operation::Reset);
    assert_eq!(world.take().len(), 0, "a reset is never answered");
    // One that is found to be gone by writing to it.
    let mut other = WEB;
    other.guest += 1;
    drop(world.connect(other));
    world.send_data(other, b"hello?");
    assert_eq!(world.take_operations(), [(Operation::Shutdown, BOTH)]);
    assert_eq!(world.violations(), 0);
}

#[test]
fn a_peer_that_leaves_before_the_guest_answers_is_taken_back() {
    let mut world = World::new();
    drop(world.ask(ASKED));
    world.gone(ASKED);
    let operations = world.take_operations();
    assert_eq!(operations, [(Operation::Request, 0), (Operation::Reset, 0)]);
    world.send(ASKED, Operation::Response);
    assert_eq!(world.take_operations(), [(Operation::Reset, 0)]);
}

#[test]
fn a_peer_whose_connection_the_guest_refuses_sees_the_end() {
    let mut world = World::new();
    let mut peer = world.ask(ASKED);
    world.take();
    world.send(ASKED, Operation::Reset);
    assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(world.take_operations(), []);
}

#[test]
fn a_port_that_nobody_serves_refuses() {
    let mut world = World::new();
    for host in [1000, FIRST_HOST_PORT - 1, FIRST_HOST_PORT, u32::MAX] {
        world.send(Ports { guest: 9, host }, Operation::Request);
        assert_eq!(world.take_operations(), [(Operation::Reset, 0)]);
    }
    let nowhere = Ports {
        guest: PORT_ANY,
        host: 80,
    };
    world.send(nowhere, Operation::Request);
    assert_eq!(world.take_operations(), [(Operation::Reset, 0)]);
}

#[test]
fn packets_that_the_guest_may_not_send_are_counted_and_harm_no_other() {
    let mut world = World::new();
    let mut peer = world.connect(WEB);
    let fine = world.header(WEB, Operation::Data);
    let mut other = WEB;
    other.guest += 1;
    // From or to another machine: not even an answer.
    for header in [
        Header {
            source_cid: 8,
            ..fine
        },
        Header {
            source_cid: u64::from(CID) | 1 << 32,
            ..fine
        },
        Header {
            destination_cid: 1,
            ..fine
        },
        Header {
            destination_cid: u64::MAX,
            ..fine
        },
    ] {
        world.send_raw(&header, b"");
        assert_eq!(world.take_operations(), []);
    }
    assert_eq!(world.violations(), 4);
    // Longer than its descriptors, of unknown kinds, out of order: the connection is over.
    let request = world.header(other, Operation::Request);
    let data = world.header(other, Operation::Data);
    let response = world.header(other, Operation::Response);
    for bad in [
        Header { length: 1, ..data },
        Header {
            length: 65_537,
            ..data
        },
        Header {
            length: u32::MAX,
            ..data
        },
        Header { kind: 2, ..data },
        Header {
            operation: 0,
            ..data
        },
        Header {
            operation: 8,
            ..data
        },
        Header {
            operation: u16::MAX,
            ..data
        },
        response,
        request,
    ] {
        let before = world.violations();
        world.connect(other);
        world.send_raw(&bad, b"");
        assert_eq!(world.take_operations(), [(Operation::Reset, 0)], "{bad:?}");
        world.send_raw(&data, b"");
        assert_eq!(world.take_operations(), [(Operation::Reset, 0)]);
        assert_eq!(world.violations(), before + 1);
    }
    world.send_data(WEB, b"still here");
    assert_eq!(read_now(&mut peer), b"still here");
}

#[test]
fn chains_that_are_no_packets_are_counted_and_given_back() {
    let mut world = World::without_rooms();
    for parts in [
        &[(PACKET, 43, 0)][..],
        &[(PACKET, 64, WRITE)],
        &[(RAM_BYTES, 44, 0)],
        &[(u64::MAX, u32::MAX, 0)],
    ] {
        world.transmit.submit(parts);
    }
    world.guest.notify(TRANSMIT);
    assert_eq!(world.transmit.take_used().len(), 4);
    assert_eq!(world.violations(), 4);
    // Room for a packet that is none.
    for parts in [
        &[(BUFFERS, 44, WRITE)][..],
        &[(BUFFERS, 1000, 0)],
        &[(RAM_BYTES - 50, 1000, WRITE)],
        &[(RAM_BYTES, 1000, WRITE)],
    ] {
        world.receive.submit(parts);
    }
    world.guest.notify(RECEIVE);
    world.send(WEB, Operation::Data);
    let used = world.receive.take_used();
    assert_eq!(used.iter().map(|used| used.1).collect::<Vec<_>>(), [0; 4]);
    assert_eq!(world.violations(), 8);
    world.offer_rooms(1);
    assert_eq!(world.receive.take_used().len(), 1, "and the answer came");
}

#[test]
fn a_packet_may_be_cut_anywhere() {
    let mut world = World::without_rooms();
    let header = Header {
        length: 5,
        ..world.header(WEB, Operation::Request)
    };
    let memory = world.guest.memory.clone();
    let bytes = [&header.to_bytes()[..], b"tail?"].concat();
    memory.write_slice(&bytes, GuestAddress(PACKET)).unwrap();
    let cuts = [(PACKET, 10, 0), (PACKET + 10, 36, 0), (PACKET + 46, 3, 0)];
    world.transmit.submit(&cuts);
    world.guest.notify(TRANSMIT);
    let mut peer = lock(&world.host.0).served.remove(&WEB).unwrap();
    peer.write_all(b"0123456789").unwrap();
    for part in [0, 1] {
        let at = BUFFERS + part * 0x1000;
        world
            .receive
            .submit(&[(at, 10, WRITE), (at + 10, 40, WRITE)]);
    }
    world.guest.notify(RECEIVE);
    assert_eq!(world.receive.take_used(), [(0, 44), (2, 50)]);
    let mut data = [0; 6];
    memory
        .read_slice(&mut data, GuestAddress(BUFFERS + 0x1000 + 44))
        .unwrap();
    assert_eq!(&data, b"012345");
}

#[test]
fn without_room_the_work_waits_and_is_bounded() {
    let mut world = World::without_rooms();
    let mut peer = {
        world.send(WEB, Operation::Request);
        lock(&world.host.0).served.remove(&WEB).unwrap()
    };
    for round in 0..2 * u32::try_from(MAX_RESETS).unwrap() {
        let nowhere = Ports {
            guest: round,
            host: 5000,
        };
        world.send(nowhere, Operation::Data);
    }
    peer.write_all(b"late").unwrap();
    world.ready(WEB);
    assert_eq!(world.take().len(), 0);
    let mut answers = Vec::new();
    world.offer_rooms(SIZE);
    loop {
        let more = world.take();
        if more.is_empty() {
            break;
        }
        answers.extend(more);
    }
    assert_eq!(answers.len(), MAX_RESETS + 2);
    assert_eq!(answers.last().unwrap().1, b"late");
}

#[test]
fn connections_take_turns() {
    let mut world = World::without_rooms();
    let all: Vec<_> = (0..4).map(|guest| Ports { guest, host: 80 }).collect();
    let mut peers = Vec::new();
    for &ports in &all {
        world.send(ports, Operation::Request);
        let mut peer = lock(&world.host.0).served.remove(&ports).unwrap();
        peer.write_all(&vec![1; 100_000]).unwrap();
        peers.push(peer);
    }
    world.offer_rooms(16);
    let used = world.receive.take_used();
    let guests: Vec<_> = used
        .iter()
        .map(|&(room, written)| world.read(room, written).0.destination_port)
        .collect();
    assert_eq!(guests, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]);
}

fn silent_table() -> Table {
    Table::new(CID, Box::new(Host::default()))
}

#[test]
fn connections_and_what_is_kept_for_them_are_bounded() {
    let mut table = silent_table();
    let header = |guest, operation: Operation, length| Header {
        source_cid: CID.into(),
        destination_cid: 2,
        source_port: guest,
        destination_port: 500,
        length,
        kind: TYPE_STREAM,
        operation: operation.number(),
        buffer_bytes: 1000,
        ..Header::default()
    };
    let mut space = [0; 64];
    let mut next = |table: &mut Table| table.next_packet(&[VolatileSlice::from(&mut space[..])]);
    let count = u32::try_from(MAX_CONNECTIONS).unwrap();
    for guest in 0..count {
        let request = header(guest, Operation::Request, 0);
        table.take_packet(&request, Some(&[])).unwrap();
        let answer = next(&mut table).unwrap();
        assert_eq!(answer.operation, Operation::Response.number());
        let mut data = vec![0; usize::try_from(answer.buffer_bytes).unwrap()];
        let full = header(guest, Operation::Data, answer.buffer_bytes);
        let data = [VolatileSlice::from(&mut data[..])];
        table.take_packet(&full, Some(&data)).unwrap();
        assert!([LARGE_BUFFER_BYTES, SMALL_BUFFER_BYTES].contains(&answer.buffer_bytes));
    }
    assert!(table.backlog_bytes() <= 16 << 20);
    let request = header(count, Operation::Request, 0);
    table.take_packet(&request, Some(&[])).unwrap();
    assert_eq!(table.connection_count(), MAX_CONNECTIONS);
    // A large buffer is free again with its connection.
    table
        .take_packet(&header(3, Operation::Reset, 0), Some(&[]))
        .unwrap();
    table.take_packet(&request, Some(&[])).unwrap();
    let mut last = None;
    while let Some(packet) = next(&mut table) {
        last = Some(packet);
    }
    let last = last.unwrap();
    assert_eq!(
        (last.destination_port, last.buffer_bytes),
        (count, LARGE_BUFFER_BYTES)
    );
}

#[test]
fn opening_and_leaving_without_end_keeps_nothing() {
    let mut world = World::without_rooms();
    let ports = Ports {
        guest: 1,
        host: 500,
    };
    for _ in 0..5000 {
        world.send(ports, Operation::Request);
        world.send(ports, Operation::Reset);
    }
    world.send(ports, Operation::Request);
    world.offer_rooms(4);
    assert_eq!(world.take_operations(), [(Operation::Response, 0)]);
}

#[test]
fn a_reset_of_the_device_ends_all_and_keeps_nothing() {
    let mut world = World::new();
    let mut peer = world.connect(WEB);
    world.events.submit(&[(BUFFERS, 64, WRITE)]);
    world.guest.notify(EVENT);
    assert_eq!(world.events.take_used(), [], "there are no events");
    world.guest.set_status(0);
    assert_eq!(world.guest.status(), 0);
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    world.ready(WEB);
    world.guest.negotiate(1);
    let rings = [RECEIVE, TRANSMIT].map(|queue| world.guest.set_up_queue(queue, SIZE));
    [world.receive, world.transmit] = rings;
    world.guest.set_status(0xf);
    world.offer_rooms(SIZE);
    world.send(WEB, Operation::Data);
    assert_eq!(world.take_operations(), [(Operation::Reset, 0)]);
}
