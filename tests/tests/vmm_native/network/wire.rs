//! Frames, and a link in a namespace of its own: two taps on a bridge.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::process::Command;

use berth_tests::tap_host::open_tap;
use berth_vmm_devices::virtio::net::HEADER_BYTES;
use berth_vmm_devices::virtio::net::backend::NetBackend;
use berth_vmm_devices::virtio::net::wire::Wire;
use berth_vmm_sys::Tap;
use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::machine::PATIENCE;

/// The addresses of the driver and of the other end.
const DRIVER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
/// An Ethernet type for experiments.
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];
/// Ethernet, IPv4 and TCP headers.
pub(super) const HEADERS: usize = 14 + 20 + 20;
/// `TUN_F_CSUM`, `TSO4`, `TSO6`.
const OFFLOADS: u32 = 7;

/// A broadcast frame of `bytes` bytes behind an empty header.
pub(super) fn frame(bytes: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER_BYTES];
    frame.extend([0xff; 6]);
    frame.extend(OTHER);
    frame.extend(EXPERIMENT);
    frame.extend((0..bytes - 14).map(|at| (at % 251).to_le_bytes()[0]));
    frame
}

/// A TCP segment with `payload` bytes, to be cut into segments of `segment` bytes by whoever sends it
/// on a link, its checksum left open.
pub(super) fn segments(payload: usize, segment: u16) -> Vec<u8> {
    // NEEDS_CSUM, GSO_TCPV4, length of headers, of segments, start and place of the checksum.
    let mut packet = vec![1, 1];
    for field in [54, segment, 34, 16, 0] {
        packet.extend(field.to_le_bytes());
    }
    packet.extend([0xff; 6]);
    packet.extend(OTHER);
    packet.extend([8, 0]);
    let length = u16::try_from(20 + 20 + payload).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend(length.to_be_bytes());
    ip.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
    let checksum = !sum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut pseudo = ip[12..20].to_vec();
    pseudo.extend([0, 6]);
    pseudo.extend((length - 20).to_be_bytes());
    packet.extend(ip);
    // Ports, sequence, acknowledgement, length of the header, ACK, window.
    packet.extend([
        0x80, 1, 0x80, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff,
    ]);
    packet.extend(sum(&pseudo).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend((0..payload).map(|at| (at % 249).to_le_bytes()[0]));
    packet
}

/// The ones' complement sum of 16-bit words.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// The other end of a back end.
pub(super) trait Frames {
    /// Sends a frame to the back end.
    fn put(&mut self, frame: &[u8]);
    /// What the back end sent next.
    fn next(&mut self) -> Vec<u8>;
    /// Waits until the back end has something to receive.
    fn wait_for(&self, backend: &dyn NetBackend);
}

impl Frames for Wire {
    fn put(&mut self, frame: &[u8]) {
        Wire::put(self, frame.to_vec());
    }

    fn next(&mut self) -> Vec<u8> {
        let mut sent = self.take();
        assert_eq!(sent.len(), 1);
        sent.remove(0)
    }

    fn wait_for(&self, _backend: &dyn NetBackend) {
        assert!(self.waiting() > 0);
    }
}

/// Two taps on a bridge.
pub(super) struct Link {
    /// The queues of the device's tap.
    pub(super) device: Vec<Tap>,
    other: File,
}

impl Link {
    /// A link whose device's tap has `queues` queues, or `None` after saying why there is none.
    pub(super) fn new(queues: usize) -> Option<Self> {
        // Of this thread alone: what it starts from here on is in there, too.
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            println!("SKIPPED: no network namespace can be made: {error}");
            return None;
        }
        if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
            println!("SKIPPED: /dev/net/tun cannot be opened: {error}");
            return None;
        }
        // Neighbour discovery would send frames of its own.
        for scope in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
            // A kernel without IPv6 does not have the file.
            let _quiet = std::fs::write(path, "1");
        }
        let open = |name: &str, is_multiqueue| open_tap(name, is_multiqueue).unwrap();
        let device = (0..queues).map(|_| open("device", queues > 1)).collect();
        let other = open("other", false);
        other.set_header_bytes(12).unwrap();
        other.set_offloads(OFFLOADS).unwrap();
        ip("link add bridge type bridge mcast_snooping 0");
        for name in ["device", "other"] {
            ip(&format!("link set {name} master bridge up"));
        }
        ip("link set bridge up");
        let other = File::from(other.into_descriptor());
        Some(Self { device, other })
    }
}

impl Frames for Link {
    fn put(&mut self, frame: &[u8]) {
        assert_eq!(self.other.write(frame).unwrap(), frame.len());
    }

    fn next(&mut self) -> Vec<u8> {
        loop {
            wait_readable(self.other.as_fd());
            let mut frame = vec![0; 70_000];
            let bytes = self.other.read(&mut frame).unwrap();
            frame.truncate(bytes);
            if is_ours(&frame) {
                return frame;
            }
        }
    }

    fn wait_for(&self, backend: &dyn NetBackend) {
        wait_readable(backend.descriptor().unwrap());
    }
}

/// Whether a frame is of a test, and not of the host's own protocols.
pub(super) fn is_ours(frame: &[u8]) -> bool {
    let source = frame.get(HEADER_BYTES + 6..HEADER_BYTES + 12);
    source == Some(&OTHER) || source == Some(&DRIVER)
}

/// Waits until a descriptor is readable.
pub(super) fn wait_readable(descriptor: BorrowedFd<'_>) {
    let timeout = Timespec::try_from(PATIENCE).unwrap();
    let mut watched = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    let ready = rustix::io::retry_on_intr(|| poll(&mut watched, Some(&timeout))).unwrap();
    assert!(ready > 0, "no frame came");
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "ip {arguments}");
}
