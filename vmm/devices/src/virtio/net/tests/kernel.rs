//! Pairs that the host's kernel serves: when it has the rings, and who is told.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use super::*;
use crate::sync::lock;
use crate::virtio::net::vhost::LentRing;

/// What a kernel was asked, and what it is to answer.
#[derive(Default)]
struct Kernel {
    serving: Option<[LentRing; 2]>,
    features: u64,
    starts: usize,
    kicks: Vec<usize>,
    next: [u16; 2],
    has_error: bool,
    refuses: bool,
}

struct FakeVhost {
    kernel: Arc<Mutex<Kernel>>,
    sources: [UnixStream; 3],
}

fn fake() -> (Arc<Mutex<Kernel>>, Option<Box<dyn VhostBackend>>) {
    let kernel = Arc::new(Mutex::new(Kernel::default()));
    let vhost = FakeVhost {
        kernel: kernel.clone(),
        sources: [(), (), ()].map(|()| UnixStream::pair().unwrap().0),
    };
    (kernel, Some(Box::new(vhost)))
}

impl VhostBackend for FakeVhost {
    fn features(&self) -> u64 {
        u64::MAX
    }

    fn calls(&self) -> [BorrowedFd<'_>; 2] {
        [self.sources[0].as_fd(), self.sources[1].as_fd()]
    }

    fn error(&self) -> BorrowedFd<'_> {
        self.sources[2].as_fd()
    }

    fn take_error(&mut self) -> bool {
        std::mem::take(&mut lock(&self.kernel).has_error)
    }

    fn kick(&mut self, ring: usize) {
        lock(&self.kernel).kicks.push(ring);
    }

    fn start(&mut self, features: u64, rings: &[LentRing; 2]) -> io::Result<()> {
        let mut kernel = lock(&self.kernel);
        if kernel.refuses {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        assert!(kernel.serving.is_none(), "the kernel has rings already");
        kernel.serving = Some(*rings);
        kernel.features = features;
        kernel.starts += 1;
        Ok(())
    }

    fn stop(&mut self) -> io::Result<[u16; 2]> {
        let mut kernel = lock(&self.kernel);
        assert!(kernel.serving.take().is_some(), "the kernel has no rings");
        if kernel.refuses {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(kernel.next)
    }
}

fn interface(features: u64, pairs: usize) -> (Interface, Vec<Arc<Mutex<Kernel>>>) {
    let (kernels, backends): (Vec<_>, _) = (0..pairs).map(|_| fake()).unzip();
    let interface = Interface::over(features, backends, &[]);
    (interface, kernels)
}

fn signal(interface: &Interface, source: u16) {
    let slot = DeviceSlot::new(3).unwrap();
    interface.executor.source_ready(slot, source);
}

#[test]
fn the_kernel_gets_both_rings_and_whoever_notifies_reaches_it() {
    let (interface, kernels) = interface(MERGEABLE, 1);
    let rings = lock(&kernels[0]).serving.unwrap();
    for (lent, ring) in rings.iter().zip(&interface.rings) {
        assert_eq!(lent.addresses.size, SIZE);
        assert_eq!(lent.addresses.descriptors, ring.descriptors);
        assert_eq!(lent.addresses.available, ring.available);
        assert_eq!(lent.addresses.used, ring.used);
        assert_eq!(lent.next, 0);
    }
    assert!(has(lock(&kernels[0]).features, VIRTIO_NET_F_MRG_RXBUF));
    lock(&kernels[0]).kicks.clear();
    interface.guest.notify(1);
    interface.guest.notify(0);
    assert_eq!(lock(&kernels[0]).kicks, [1, 0]);
    assert_eq!(lock(&kernels[0]).starts, 1);
}

#[test]
fn the_rings_are_nobodys_but_the_kernels() {
    let (mut interface, kernels) = interface(MERGEABLE, 1);
    interface.rings[0].submit(&[(BUFFERS, 2048, WRITE)]);
    interface.rings[1].submit(&[(BUFFERS, 100, 0)]);
    interface.guest.notify(0);
    interface.guest.notify(1);
    assert_eq!(interface.rings[0].take_used(), []);
    assert_eq!(interface.rings[1].take_used(), []);
    assert!(interface.wires[0].take().is_empty());
    // The first call of a queue begins before the rings are lent, so this says nothing of it.
    for ring in &interface.rings[..2] {
        let flags: u16 = interface
            .guest
            .memory
            .read_obj(GuestAddress(ring.used))
            .unwrap();
        interface.guest.notify(0);
        interface.guest.notify(1);
        let after: u16 = interface
            .guest
            .memory
            .read_obj(GuestAddress(ring.used))
            .unwrap();
        assert_eq!(flags, after);
    }
    assert_eq!(lock(&kernels[0]).starts, 1);
}

#[test]
fn a_call_of_the_kernel_is_an_interrupt_that_masking_holds_back() {
    let (interface, _kernels) = interface(MERGEABLE, 1);
    let guest = &interface.guest;
    guest.messages.take();
    signal(&interface, 0);
    assert_eq!(guest.messages.take(), [1]);
    signal(&interface, 1);
    assert_eq!(guest.messages.take(), [2]);
    let vector = guest.at.table + 16;
    guest.write(vector + 12, 4, 1);
    signal(&interface, 0);
    assert!(guest.messages.take().is_empty());
    guest.write(vector + 12, 4, 0);
    assert_eq!(guest.messages.take(), [1]);
}

#[test]
fn a_reset_returns_when_the_kernel_has_let_go() {
    let (mut interface, kernels) = interface(MERGEABLE, 1);
    lock(&kernels[0]).next = [7, 9];
    interface.guest.set_status(0);
    assert_eq!(interface.guest.status(), 0);
    assert!(lock(&kernels[0]).serving.is_none());
    interface.activate(MERGEABLE, &[]);
    let rings = lock(&kernels[0]).serving.unwrap();
    assert_eq!(rings.map(|ring| ring.next), [0, 0], "new rings begin anew");
}

#[test]
fn pairs_are_the_kernels_while_the_driver_uses_them() {
    let (mut interface, kernels) = interface(MERGEABLE | MULTIQUEUE, 2);
    let serving = |kernels: &[Arc<Mutex<Kernel>>]| -> Vec<bool> {
        let serving = kernels.iter().map(|kernel| lock(kernel).serving.is_some());
        serving.collect()
    };
    assert_eq!(serving(&kernels), [true, false]);
    assert_eq!(interface.command(4, 4, 0, &[2, 0]), 0);
    assert_eq!(serving(&kernels), [true, true]);
    let messages = interface.guest.messages.take();
    signal(&interface, 3);
    assert_eq!(interface.guest.messages.take(), [3], "not {messages:?}");
    lock(&kernels[1]).next = [5, 6];
    assert_eq!(interface.command(4, 4, 0, &[1, 0]), 0);
    assert_eq!(serving(&kernels), [true, false]);
    interface.guest.notify(3);
    assert_eq!(interface.command(4, 4, 0, &[2, 0]), 0);
    let rings = lock(&kernels[1]).serving.unwrap();
    assert_eq!(rings.map(|ring| ring.next), [5, 6], "where they stopped");
    assert_eq!(lock(&kernels[0]).starts, 1);
}

#[test]
fn a_ring_that_the_kernel_finds_broken_asks_for_a_reset() {
    let (mut interface, kernels) = interface(MERGEABLE, 1);
    signal(&interface, 2);
    assert_eq!(interface.guest.status(), 0xf, "nothing was said");
    lock(&kernels[0]).has_error = true;
    signal(&interface, 2);
    assert_eq!(interface.guest.status(), 0x4f);
    lock(&kernels[0]).has_error = true;
    interface.guest.set_status(0);
    interface.activate(MERGEABLE, &[]);
    assert_eq!(interface.guest.status(), 0xf, "that was another driver's");
}

#[test]
fn a_kernel_that_does_not_start_asks_for_a_reset_and_may_start_later() {
    let (mut interface, kernels) = interface(MERGEABLE, 1);
    interface.guest.set_status(0);
    lock(&kernels[0]).refuses = true;
    interface.activate(MERGEABLE, &[]);
    assert_eq!(interface.guest.status(), 0x4f);
    assert_eq!(interface.count("host_errors"), 1);
    lock(&kernels[0]).refuses = false;
    interface.guest.set_status(0);
    interface.activate(MERGEABLE, &[]);
    assert_eq!(interface.guest.status(), 0xf);
    assert_eq!(lock(&kernels[0]).starts, 2);
}

#[test]
fn a_driver_that_enables_no_rings_lends_none() {
    let (kernel, backend) = fake();
    let options = NetOptions {
        mac: MAC,
        mtu: None,
    };
    let backend = PairBackend {
        queue: Wire::new().port(),
        vhost: backend,
    };
    let guest = TestGuest::new(Box::new(Net::new(vec![backend], options)));
    guest.negotiate(MERGEABLE);
    guest.set_up_queue(0, SIZE);
    guest.set_status(0xf);
    guest.notify(0);
    assert_eq!(guest.status(), 0xf);
    assert_eq!(lock(&kernel).starts, 0);
}
