//! The console as a driver meets it: bytes both ways, and all that may be wrong with a buffer.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, ReadVolatile, VolatileMemoryError, VolatileSlice};

use super::backend::ConsoleInput;
use super::{MAX_OUTPUT_BYTES, QUEUE_SIZE, RECEIVE, TRANSMIT, VirtioConsole};
use crate::guest_error::GuestError;
use crate::pci::DeviceSlot;
use crate::sync::lock;
use crate::virtio::executor::InlineExecutor;
use crate::virtio::testing::{BUFFERS, RAM_BYTES, Ring, SLOT, TestGuest, WRITE};

#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Input(UnixStream);

impl ConsoleInput for Input {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
    fn read(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut first = buffers[0].offset(0).unwrap();
        self.0.read_volatile(&mut first).map_err(|error| {
            if let VolatileMemoryError::IOError(error) = error {
                error
            } else {
                io::Error::other(error)
            }
        })
    }
}

struct World {
    guest: TestGuest,
    executor: Arc<InlineExecutor>,
    receive: Ring,
    transmit: Ring,
    output: Output,
    keyboard: UnixStream,
}

impl World {
    fn new() -> Self {
        let (input, keyboard) = UnixStream::pair().unwrap();
        input.set_nonblocking(true).unwrap();
        keyboard.set_nonblocking(true).unwrap();
        let (executor, output) = (Arc::new(InlineExecutor::default()), Output::default());
        let device = VirtioConsole::new(Box::new(output.clone()), Some(Box::new(Input(input))));
        let guest = TestGuest::with_executor(Box::new(device), executor.clone());
        guest.enable_msix(3);
        guest.negotiate(0);
        let [receive, transmit] =
            [RECEIVE, TRANSMIT].map(|queue| guest.set_up_queue(queue, QUEUE_SIZE));
        guest.set_status(0xf);
        Self {
            guest,
            executor,
            receive,
            transmit,
            output,
            keyboard,
        }
    }

    fn wake(&self) {
        self.executor
            .source_ready(DeviceSlot::new(SLOT).unwrap(), 0);
    }

    fn offer(&mut self, address: u64, bytes: u32) {
        self.receive.submit(&[(address, bytes, WRITE)]);
        self.guest.notify(RECEIVE);
    }

    fn bytes(&self, address: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let place = GuestAddress(address);
        self.guest.memory.read_slice(&mut bytes, place).unwrap();
        bytes
    }

    fn errors(&self) -> u64 {
        self.guest.errors.count(GuestError::VirtioRequest)
    }
}

#[test]
fn a_driver_finds_one_port_and_no_size() {
    let world = World::new();
    assert_eq!(world.guest.config(0, 4), 0x1043_1af4);
    assert_eq!(world.guest.offered_features() & 0xff_ffff, 0);
    let device = world.guest.at.device.unwrap();
    assert_eq!(world.guest.read(device, 4), 0, "columns and rows");
}

#[test]
fn output_is_handed_on_in_order_however_it_is_cut() {
    let mut world = World::new();
    let text: Vec<u8> = (0..10_000)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect();
    let memory = world.guest.memory.clone();
    memory.write_slice(&text, GuestAddress(BUFFERS)).unwrap();
    world
        .transmit
        .submit(&[(BUFFERS, 1, 0), (BUFFERS + 1, 8999, 0)]);
    world.transmit.submit(&[(BUFFERS + 9000, 1000, 0)]);
    world.guest.notify(TRANSMIT);
    assert_eq!(world.transmit.take_used().len(), 2);
    assert_eq!(*lock(&world.output.0), text);
    assert_eq!(world.errors(), 0);
}

#[test]
fn output_that_is_none_is_counted_and_bounded() {
    let mut world = World::new();
    let room = u32::try_from(RAM_BYTES - BUFFERS).unwrap();
    world.transmit.submit(&[(BUFFERS, room, 0)]);
    world.transmit.submit(&[(RAM_BYTES, 1, 0)]);
    world.transmit.submit(&[(u64::MAX, u32::MAX, 0)]);
    world.transmit.submit(&[(BUFFERS, 1, WRITE)]);
    world.guest.notify(TRANSMIT);
    assert_eq!(world.transmit.take_used().len(), 4);
    let written = u32::try_from(lock(&world.output.0).len()).unwrap();
    assert_eq!(written, MAX_OUTPUT_BYTES);
    assert_eq!(world.errors(), 3);
}

#[test]
fn input_waits_where_it_is_until_the_guest_has_room() {
    let mut world = World::new();
    world.keyboard.write_all(b"0123456789").unwrap();
    world.wake();
    world.offer(BUFFERS, 4);
    assert_eq!(world.receive.take_used(), [(0, 4)]);
    assert_eq!(world.bytes(BUFFERS, 5), b"0123\0");
    world.offer(BUFFERS + 0x100, 100);
    assert_eq!(world.receive.take_used(), [(1, 6)]);
    world.offer(BUFFERS + 0x200, 100);
    assert_eq!(world.receive.take_used(), []);
    world.keyboard.write_all(b"more").unwrap();
    world.wake();
    assert_eq!(world.receive.take_used(), [(2, 4)]);
    assert_eq!(world.bytes(BUFFERS + 0x200, 4), b"more");
}

#[test]
fn a_sender_without_end_is_held_up_by_a_guest_that_does_not_read() {
    let mut world = World::new();
    let mut sent = 0;
    while let Ok(now) = world.keyboard.write(&[1; 4096]) {
        sent += now;
        world.wake();
        assert!(sent < 4 << 20, "somebody took it without room");
    }
    let mut got = 0;
    while got < sent {
        world.offer(BUFFERS, 0x10_0000);
        let used = world.receive.take_used();
        assert!(!used.is_empty());
        got += used
            .iter()
            .map(|used| usize::try_from(used.1).unwrap())
            .sum::<usize>();
    }
    assert_eq!(got, sent);
}

#[test]
fn a_sender_that_leaves_is_no_end_of_the_console() {
    let mut world = World::new();
    world.offer(BUFFERS, 100);
    world.keyboard.shutdown(std::net::Shutdown::Write).unwrap();
    world.wake();
    assert_eq!(world.receive.take_used(), []);
    world.transmit.submit(&[(BUFFERS, 1, 0)]);
    world.guest.notify(TRANSMIT);
    assert_eq!(lock(&world.output.0).len(), 1);
    assert_eq!(
        world.keyboard.read(&mut [0]).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
}

#[test]
fn room_that_is_none_is_given_back_and_input_goes_to_the_next() {
    let mut world = World::new();
    world.receive.submit(&[(BUFFERS, 10, 0)]);
    world.receive.submit(&[(BUFFERS, 0, WRITE)]);
    world.receive.submit(&[(RAM_BYTES - 1, 2, WRITE)]);
    world.offer(BUFFERS, 10);
    world.keyboard.write_all(b"x").unwrap();
    world.wake();
    let lengths: Vec<_> = world
        .receive
        .take_used()
        .iter()
        .map(|used| used.1)
        .collect();
    assert_eq!(lengths, [0, 0, 0, 1]);
    assert_eq!(world.errors(), 3);
}

#[test]
fn a_reset_forgets_the_guests_buffers() {
    let mut world = World::new();
    world.offer(BUFFERS, 100);
    world.guest.set_status(0);
    assert_eq!(world.guest.status(), 0);
    world.keyboard.write_all(b"x").unwrap();
    world.wake();
    assert_eq!(world.bytes(BUFFERS, 1), [0]);
    world.guest.negotiate(0);
    world.receive = world.guest.set_up_queue(RECEIVE, QUEUE_SIZE);
    world.guest.set_status(0xf);
    world.offer(BUFFERS + 8, 100);
    assert_eq!(world.receive.take_used(), [(0, 1)]);
    assert_eq!(world.bytes(BUFFERS, 9), b"\0\0\0\0\0\0\0\0x");
}
