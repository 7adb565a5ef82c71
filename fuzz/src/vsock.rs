//! A guest of the socket device that does what it likes, and a host whose peers do, too.
//!
//! Both are scripts of the same input. Holds what the guest can see: packets are well-formed, data
//! stays within the credit that the guest gave last, and the credit that it gets back is for bytes
//! that it sent.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use berth_vmm_devices::guest_error::GuestErrors;
use berth_vmm_devices::memory::Memory;
use berth_vmm_devices::pci::msix::Msix;
use berth_vmm_devices::virtio::device::Served;
use berth_vmm_devices::virtio::executor::ActiveDevice;
use berth_vmm_devices::virtio::interrupt::VirtioInterrupt;
use berth_vmm_devices::virtio::queue::{QueueAddresses, VirtQueue};
use berth_vmm_devices::virtio::vsock::backend::{HostEvent, HostStream, Readiness, VsockHost};
use berth_vmm_devices::virtio::vsock::packet::{
    FIRST_HOST_PORT, HEADER_BYTES, HOST_CID, Header, MAX_DATA_BYTES, Operation, Ports, TYPE_STREAM,
};
use berth_vmm_devices::virtio::vsock::{RECEIVE, TRANSMIT, Vsock};
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use crate::input::Input;
use crate::layout::WRITE;
use crate::messages::Messages;

/// The guest's context id.
pub const CID: u32 = 3;
const RAM_BYTES: usize = 0x2_0000;
const SIZE: u16 = 16;
const PACKET: u64 = 0x1000;
const ROOMS: u64 = 0x4000;
const ROOM_BYTES: u64 = 0x1000;
const USED_INDEX: u64 = 2;
/// Moves of one run.
const MOVES: usize = 256;

/// What the host's peers do at present, and what is yet to be told.
#[derive(Debug, Default)]
pub struct HostState {
    events: VecDeque<HostEvent>,
    /// What a call to read or to write gives: 0 nothing, 255 an error, else as much.
    reads: u8,
    writes: u8,
}

/// A host for tests of the device without a script.
#[derive(Clone, Debug, Default)]
pub struct Host(Arc<Mutex<HostState>>);

impl Host {
    fn state(&self) -> std::sync::MutexGuard<'_, HostState> {
        self.0.lock().expect("nobody panics with it")
    }
}

#[derive(Debug)]
struct Stream(Host);

fn outcome(what: u8, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let most: usize = buffers.iter().map(VolatileSlice::len).sum();
    assert!(most > 0, "a call for nothing");
    assert!(
        most <= 2 * MAX_DATA_BYTES as usize,
        "more than is ever kept"
    );
    match what {
        0 => Err(io::ErrorKind::WouldBlock.into()),
        255 => Err(io::ErrorKind::ConnectionReset.into()),
        254 => Ok(most),
        some => Ok(most.min(usize::from(some - 1) * 64)),
    }
}

impl HostStream for Stream {
    fn read(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        outcome(self.0.state().reads, buffers)
    }
    fn write(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        outcome(self.0.state().writes, buffers)
    }
    fn shut_down(&mut self, _: Shutdown) {}
    fn tell_accepted(&mut self) -> io::Result<()> {
        match self.0.state().writes {
            255 => Err(io::ErrorKind::BrokenPipe.into()),
            _ => Ok(()),
        }
    }
}

impl VsockHost for Host {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn next_event(&mut self) -> Option<HostEvent> {
        self.state().events.pop_front()
    }
    fn connect(&mut self, ports: Ports) -> Option<Box<dyn HostStream>> {
        assert!(ports.host < FIRST_HOST_PORT);
        (ports.host != 3).then(|| Box::new(Stream(self.clone())) as _)
    }
}

/// What the guest knows of a connection.
#[derive(Clone, Copy, Default)]
struct Known {
    buffer_bytes: u32,
    forwarded: u32,
    received: u32,
    sent: u32,
}

struct Guest {
    memory: Arc<Memory>,
    device: ActiveDevice,
    host: Host,
    known: BTreeMap<Ports, Known>,
    /// Available indices.
    transmitted: u16,
    offered: u16,
    /// Receive buffers that came back.
    taken: u16,
    /// Receive buffers that the device has, one bit each. It gives back at once what is no room.
    lent: u16,
}

fn rings(queue: u16) -> QueueAddresses {
    let start = u64::from(queue) * 0x400;
    QueueAddresses {
        size: SIZE,
        descriptors: start,
        available: start + 0x200,
        used: start + 0x300,
    }
}

impl Guest {
    fn new() -> Self {
        let ranges = [(GuestAddress(0), RAM_BYTES)];
        let memory = Arc::new(Memory::from_ranges(&ranges).expect("RAM can be mapped"));
        let errors = Arc::new(GuestErrors::default());
        let host = Host::default();
        let device = Box::new(Vsock::new(CID, Box::new(host.clone())));
        let mut queues: Vec<_> = [RECEIVE, TRANSMIT]
            .map(|queue| VirtQueue::new(rings(queue), false, &memory, errors.clone()).ok())
            .into();
        queues.push(None);
        let msix = Msix::new(4, Arc::new(Messages::default()), errors.clone());
        let interrupt = Arc::new(VirtioInterrupt::new(3, msix));
        Self {
            device: ActiveDevice::new(device, queues, memory.clone(), interrupt, errors),
            memory,
            host,
            known: BTreeMap::new(),
            transmitted: 0,
            offered: 0,
            taken: 0,
            lent: 0,
        }
    }

    fn put<T: vm_memory::ByteValued>(&self, value: T, address: u64) {
        let place = GuestAddress(address);
        self.memory.write_obj(value, place).expect("it is RAM");
    }

    fn word(&self, address: u64) -> u16 {
        let place = GuestAddress(address);
        self.memory.read_obj(place).expect("it is RAM")
    }

    /// Makes the descriptor `head` the next available one.
    fn submit(&self, queue: u16, index: u16, head: u16, part: (u64, u32, u16)) {
        let ring = rings(queue);
        let place = ring.descriptors + u64::from(head) * 16;
        let (address, bytes, flags) = part;
        self.put(address, place);
        self.put(bytes, place + 8);
        self.put(flags, place + 12);
        self.put(head, ring.available + 4 + u64::from(index % SIZE) * 2);
        self.put(index.wrapping_add(1), ring.available + 2);
    }

    /// Sends whatever the input says, which is mostly nearly right.
    fn send(&mut self, input: &mut Input<'_>) {
        let choice = input.byte();
        let ports = some_ports(input);
        let bytes = u32::from(input.word() % 0x1800);
        let wrong = |bit: u8| choice >> bit & 1 == 1;
        let header = Header {
            source_cid: u64::from(CID) + u64::from(wrong(0) && wrong(1)),
            destination_cid: HOST_CID + u64::from(wrong(0) && wrong(2)),
            source_port: ports.guest,
            destination_port: ports.host,
            length: if wrong(3) { input.long() } else { bytes },
            kind: TYPE_STREAM + u16::from(wrong(4) && wrong(5)),
            operation: u16::from(input.byte() % 9),
            flags: u32::from(input.byte() % 4),
            buffer_bytes: if wrong(6) { input.long() } else { 0x1000 },
            forwarded: if wrong(7) {
                input.long()
            } else {
                self.known.get(&ports).map_or(0, |known| known.received)
            },
        };
        self.learn(ports, &header);
        let place = GuestAddress(PACKET);
        let text = header.to_bytes();
        self.memory.write_slice(&text, place).expect("it is RAM");
        let part = (PACKET, HEADER_BYTES + bytes, 0);
        self.submit(TRANSMIT, self.transmitted, 0, part);
        self.transmitted = self.transmitted.wrapping_add(1);
        self.serve(|device| device.serve(TRANSMIT));
        assert_eq!(
            self.word(rings(TRANSMIT).used + USED_INDEX),
            self.transmitted
        );
    }

    fn learn(&mut self, ports: Ports, header: &Header) {
        if header.source_cid != u64::from(CID) || header.destination_cid != HOST_CID {
            return;
        }
        let known = self.known.entry(ports).or_default();
        known.buffer_bytes = header.buffer_bytes;
        known.forwarded = header.forwarded;
        match Operation::from_number(header.operation) {
            Some(Operation::Request) => (known.sent, known.received) = (0, 0),
            Some(Operation::Data) => known.sent = known.sent.saturating_add(header.length),
            _ => {}
        }
    }

    fn offer(&mut self, input: &mut Input<'_>) {
        for _ in 0..=input.byte() % 4 {
            let free = u16::try_from(self.lent.trailing_ones()).expect("it has 16 bits");
            if free < SIZE {
                let bytes = u32::from(input.word() % 0x1001);
                let room = ROOMS + u64::from(free) * ROOM_BYTES;
                self.submit(RECEIVE, self.offered, free, (room, bytes, WRITE));
                self.offered = self.offered.wrapping_add(1);
                self.lent |= 1 << free;
            }
        }
        self.serve(|device| device.serve(RECEIVE));
    }

    fn host_event(&mut self, input: &mut Input<'_>) {
        let ports = some_ports(input);
        let what = input.byte();
        let event = if what & 1 == 0 {
            HostEvent::Asked {
                ports: Ports {
                    host: ports.host | FIRST_HOST_PORT,
                    ..ports
                },
                stream: Box::new(Stream(self.host.clone())),
            }
        } else {
            let readiness = Readiness {
                input: what & 2 != 0,
                room: what & 4 != 0,
                is_gone: what & 8 != 0,
            };
            HostEvent::Ready { ports, readiness }
        };
        self.host.state().events.push_back(event);
        self.serve(|device| device.source_ready(0));
    }

    /// Serves until the device has nothing left, and looks at what came.
    fn serve(&mut self, serve: impl Fn(&mut ActiveDevice) -> Served) {
        let mut rounds = 0;
        while serve(&mut self.device) == Served::More {
            rounds += 1;
            assert!(rounds < 64, "work without end");
        }
        let ring = rings(RECEIVE);
        let used = self.word(ring.used + USED_INDEX);
        while self.taken != used {
            let element = GuestAddress(ring.used + 4 + u64::from(self.taken % SIZE) * 8);
            let [id, written]: [u32; 2] = self.memory.read_obj(element).expect("it is RAM");
            assert!(self.lent >> id & 1 == 1, "a buffer that was not offered");
            self.lent &= !(1 << id);
            if written > 0 {
                self.look_at(ROOMS + u64::from(id) * ROOM_BYTES, written);
            }
            self.taken = self.taken.wrapping_add(1);
        }
    }

    fn look_at(&mut self, room: u64, written: u32) {
        let mut bytes = [0; HEADER_BYTES as usize];
        let place = GuestAddress(room);
        self.memory
            .read_slice(&mut bytes, place)
            .expect("it is RAM");
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.source_cid, HOST_CID);
        assert_eq!(header.destination_cid, u64::from(CID));
        assert_eq!(header.length + HEADER_BYTES, written);
        let operation = Operation::from_number(header.operation).expect("it is known");
        let ports = Ports {
            guest: header.destination_port,
            host: header.source_port,
        };
        let known = self.known.entry(ports).or_default();
        match operation {
            Operation::Reset => return,
            Operation::Request => *known = Known::default(),
            Operation::Data => {
                known.received = known.received.wrapping_add(header.length);
                let unread = known.received.wrapping_sub(known.forwarded);
                assert!(unread <= known.buffer_bytes, "more than there is room for");
            }
            Operation::Response
            | Operation::Shutdown
            | Operation::CreditUpdate
            | Operation::CreditRequest => {}
        }
        assert!(operation == Operation::Data || header.length == 0);
        assert_eq!(header.kind, TYPE_STREAM);
        assert!(
            header.forwarded <= known.sent,
            "credit for bytes never sent"
        );
    }
}

/// One of few, so that scripts meet their own connections.
fn some_ports(input: &mut Input<'_>) -> Ports {
    let byte = input.byte();
    let high = if byte & 0x80 == 0 { 0 } else { FIRST_HOST_PORT };
    Ports {
        guest: if byte & 0x70 == 0x70 {
            u32::MAX
        } else {
            u32::from(byte & 3)
        },
        host: u32::from(byte >> 2 & 3) | high,
    }
}

/// Runs the script that `input` is.
///
/// # Panics
/// If the guest sees what it must not.
pub fn run(input: &mut Input<'_>) {
    let mut guest = Guest::new();
    for _ in 0..MOVES {
        if input.is_empty() {
            return;
        }
        match input.byte() % 5 {
            0 | 1 => guest.send(input),
            2 => guest.offer(input),
            3 => guest.host_event(input),
            _ => {
                let mut state = guest.host.state();
                (state.reads, state.writes) = (input.byte(), input.byte());
            }
        }
    }
}
