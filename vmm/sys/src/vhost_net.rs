//! One queue pair of a network device that the host's kernel serves: a descriptor of
//! `/dev/vhost-net`.
//!
//! Owns the promise that makes it sound: the kernel learns of guest memory alone, every ring lies in
//! one region of it, and the memory stays mapped until the kernel has let go. What the features mean,
//! when to start and whom to interrupt is decided elsewhere.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use libc::{c_int, c_ulong};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress,
};
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref};

use crate::event::Event;

// `_IO`, `_IOW`, `_IOR` and `_IOWR` of the type 0xaf, <linux/vhost.h>.
const GET_FEATURES: c_ulong = 0x8008_af00;
const SET_FEATURES: c_ulong = 0x4008_af00;
const SET_OWNER: c_ulong = 0xaf01;
const SET_MEM_TABLE: c_ulong = 0x4008_af03;
const SET_VRING_NUM: c_ulong = 0x4008_af10;
const SET_VRING_ADDR: c_ulong = 0x4028_af11;
const SET_VRING_BASE: c_ulong = 0x4008_af12;
const GET_VRING_BASE: c_ulong = 0xc008_af12;
const SET_VRING_KICK: c_ulong = 0x4008_af20;
const SET_VRING_CALL: c_ulong = 0x4008_af21;
const SET_VRING_ERR: c_ulong = 0x4008_af22;
const NET_SET_BACKEND: c_ulong = 0x4008_af30;

/// Bytes of a descriptor, and of both rings around and in their elements.
const DESCRIPTOR_BYTES: u64 = 16;
const RING_FRAME_BYTES: u64 = 6;
const AVAILABLE_BYTES: u64 = 2;
const USED_BYTES: u64 = 8;

/// Where one ring is, in guest physical addresses, and where it goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VhostRing {
    /// Number of descriptors.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available (driver) ring.
    pub available: u64,
    /// Used (device) ring.
    pub used: u64,
    /// The available index that is taken next.
    pub next: u16,
}

/// `struct vhost_vring_state`.
#[repr(C)]
struct RingState {
    index: u32,
    value: u32,
}

/// `struct vhost_vring_file`.
#[repr(C)]
struct RingFile {
    index: u32,
    file: c_int,
}

/// `struct vhost_vring_addr`.
#[repr(C)]
struct RingAddresses {
    index: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

const _: () = assert!(size_of::<RingState>() == 8);
const _: () = assert!(size_of::<RingFile>() == 8);
const _: () = assert!(size_of::<RingAddresses>() == 40);

/// A queue pair in the kernel: ring 0 receives, ring 1 sends.
#[derive(Debug)]
pub struct VhostNet {
    // Declared first, so closed first: the kernel lets go before the memory may.
    /// `None` once the kernel would not stop, which closing makes it do.
    file: Option<OwnedFd>,
    kicks: [Arc<Event>; 2],
    calls: [Event; 2],
    error: Event,
    memory: GuestMemoryMmap<()>,
}

impl VhostNet {
    /// Makes a fresh `/dev/vhost-net` this process' own, and tells it of all of `memory`. Whether it
    /// is that file is checked by the caller; on others the first request fails.
    ///
    /// # Errors
    /// What the kernel says, for instance that the descriptor has an owner already.
    pub fn new(file: OwnedFd, memory: GuestMemoryMmap<()>) -> io::Result<Self> {
        let vhost = Self {
            file: Some(file),
            kicks: [Arc::new(Event::new()?), Arc::new(Event::new()?)],
            calls: [Event::new()?, Event::new()?],
            error: Event::new()?,
            memory,
        };
        let file = vhost.file()?;
        // SAFETY: the request takes no argument and touches no memory.
        checked(unsafe { ioctl(file, SET_OWNER) })?;
        vhost.set_memory()?;
        for (index, (kick, call)) in (0u32..).zip(vhost.kicks.iter().zip(&vhost.calls)) {
            vhost.set_file(SET_VRING_KICK, index, Some(kick.as_fd()))?;
            vhost.set_file(SET_VRING_CALL, index, Some(call.as_fd()))?;
            vhost.set_file(SET_VRING_ERR, index, Some(vhost.error.as_fd()))?;
        }
        Ok(vhost)
    }

    /// Feature bits that the kernel knows, its own among them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn features(&self) -> io::Result<u64> {
        let mut features: u64 = 0;
        // SAFETY: the request writes one `u64`, which is borrowed mutably for the call.
        let result = unsafe { ioctl_with_mut_ref(self.file()?, GET_FEATURES, &mut features) };
        checked(result).map(|()| features)
    }

    /// What the guest's notifications of a ring are to signal.
    #[must_use]
    pub fn kicks(&self) -> &[Arc<Event>; 2] {
        &self.kicks
    }

    /// Signalled when the driver wants to be interrupted for a ring.
    #[must_use]
    pub fn calls(&self) -> &[Event; 2] {
        &self.calls
    }

    /// Signalled when the driver broke a ring.
    #[must_use]
    pub fn error(&self) -> &Event {
        &self.error
    }

    /// Starts to serve `rings` with packets of `tap`.
    ///
    /// # Errors
    /// If a ring is not wholly in one region of memory, or what the kernel says. Nothing is served
    /// then.
    pub fn start(
        &self,
        features: u64,
        rings: &[VhostRing; 2],
        tap: BorrowedFd<'_>,
    ) -> io::Result<()> {
        // SAFETY: the request reads one `u64`, which lives through the call.
        let result = unsafe { ioctl_with_ref(self.file()?, SET_FEATURES, &features) };
        checked(result)?;
        for (index, ring) in (0u32..).zip(rings) {
            self.set_ring(index, ring)?;
        }
        for index in 0..2 {
            self.set_file(NET_SET_BACKEND, index, Some(tap))?;
        }
        for kick in &self.kicks {
            // What came before nobody has seen.
            kick.signal();
        }
        Ok(())
    }

    /// Stops serving. On return the kernel touches guest memory no more; the result is where each
    /// ring goes on.
    ///
    /// # Errors
    /// What the kernel says; the descriptor is closed then and serves no more.
    pub fn stop(&mut self) -> io::Result<[u16; 2]> {
        let stopped = self
            .detach()
            .and_then(|()| Ok([self.next(0)?, self.next(1)?]));
        if stopped.is_err() {
            self.file = None;
        }
        stopped
    }

    fn detach(&self) -> io::Result<()> {
        self.set_file(NET_SET_BACKEND, 0, None)?;
        self.set_file(NET_SET_BACKEND, 1, None)
    }

    fn next(&self, index: u32) -> io::Result<u16> {
        let mut state = RingState { index, value: 0 };
        // SAFETY: the request reads and writes one `vhost_vring_state`, borrowed for the call.
        let result = unsafe { ioctl_with_mut_ref(self.file()?, GET_VRING_BASE, &mut state) };
        checked(result)?;
        u16::try_from(state.value).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    fn file(&self) -> io::Result<&OwnedFd> {
        let file = self.file.as_ref();
        file.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Tells the kernel of all guest memory.
    fn set_memory(&self) -> io::Result<()> {
        let count = u64::try_from(self.memory.num_regions()).map_err(io::Error::other)?;
        // `struct vhost_memory`: the number of regions and padding, then the regions.
        let mut table = vec![count];
        for region in self.memory.iter() {
            let start = region.start_addr().0;
            table.extend([start, region.len(), host_address(region, 0, 0)?, 0]);
        }
        // SAFETY: the table is what the request reads: a header of 8 bytes and as many regions of 32
        // as the header says. The kernel keeps the addresses and reads and writes there when told to
        // by `start`, as devices do: they are those of `self.memory`, which nothing but volatile
        // accesses reaches, and which is unmapped only after `self.file` is closed.
        let result = unsafe { ioctl_with_ptr(self.file()?, SET_MEM_TABLE, table.as_ptr()) };
        checked(result)
    }

    fn set_ring(&self, index: u32, ring: &VhostRing) -> io::Result<()> {
        let size = u64::from(ring.size);
        let addresses = RingAddresses {
            index,
            flags: 0,
            descriptors: self.place(ring.descriptors, DESCRIPTOR_BYTES * size)?,
            used: self.place(ring.used, RING_FRAME_BYTES + USED_BYTES * size)?,
            available: self.place(ring.available, RING_FRAME_BYTES + AVAILABLE_BYTES * size)?,
            log: 0,
        };
        self.set_state(SET_VRING_NUM, index, ring.size)?;
        self.set_state(SET_VRING_BASE, index, ring.next)?;
        // SAFETY: the request reads one `vhost_vring_addr`, which lives through the call. The kernel
        // keeps the addresses and reads and writes whole rings there once it is started: `place`
        // found each to lie in guest memory as long as the ring is.
        let result = unsafe { ioctl_with_ref(self.file()?, SET_VRING_ADDR, &addresses) };
        checked(result)
    }

    /// The host address of `bytes` bytes of guest memory, all in one region.
    fn place(&self, address: u64, bytes: u64) -> io::Result<u64> {
        let address = GuestAddress(address);
        let region = self.memory.find_region(address);
        let region = region.ok_or(io::ErrorKind::InvalidInput)?;
        host_address(region, address.0 - region.start_addr().0, bytes)
    }

    fn set_state(&self, number: c_ulong, index: u32, value: u16) -> io::Result<()> {
        let value = u32::from(value);
        let state = RingState { index, value };
        // SAFETY: the callers' requests read one `vhost_vring_state`, which lives through the call.
        checked(unsafe { ioctl_with_ref(self.file()?, number, &state) })
    }

    fn set_file(
        &self,
        number: c_ulong,
        index: u32,
        file: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let file = file.map_or(-1, |file| file.as_raw_fd());
        let ring = RingFile { index, file };
        // SAFETY: the callers' requests read one `vhost_vring_file`, which lives through the call.
        checked(unsafe { ioctl_with_ref(self.file()?, number, &ring) })
    }
}

/// The host address of `offset` in `region`, if `bytes` bytes from there on are in it.
fn host_address(
    region: &vm_memory::GuestRegionMmap<()>,
    offset: u64,
    bytes: u64,
) -> io::Result<u64> {
    let end = offset.checked_add(bytes);
    if end.is_none_or(|end| end > region.len()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let host = region
        .get_host_address(MemoryRegionAddress(offset))
        .map_err(io::Error::other)?;
    u64::try_from(host.addr()).map_err(io::Error::other)
}

fn checked(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    /// Two regions with a gap, without a kernel behind.
    fn unconnected() -> VhostNet {
        let ranges = [(GuestAddress(0), 0x4000), (GuestAddress(0x8000), 0x4000)];
        VhostNet {
            file: Some(null()),
            kicks: [(), ()].map(|()| Arc::new(Event::new().unwrap())),
            calls: [(), ()].map(|()| Event::new().unwrap()),
            error: Event::new().unwrap(),
            memory: GuestMemoryMmap::from_ranges(&ranges).unwrap(),
        }
    }

    #[test]
    fn a_ring_lies_in_one_region_or_nowhere() {
        let vhost = unconnected();
        let first = vhost.place(0, 1).unwrap();
        assert_eq!(vhost.place(0x3000, 0x1000).unwrap(), first + 0x3000);
        vhost.place(0x8000, 0x4000).unwrap();
        for (address, bytes) in [
            (0x3000, 0x1001),
            (0x4000, 1),
            (0x7fff, 2),
            (0xbfff, 2),
            (u64::MAX, 1),
            (0x8000, u64::MAX),
        ] {
            let kind = vhost.place(address, bytes).unwrap_err().kind();
            assert_eq!(kind, io::ErrorKind::InvalidInput, "{address:#x} {bytes:#x}");
        }
    }

    #[test]
    fn a_file_that_is_no_vhost_is_refused_and_one_that_fails_is_closed() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        VhostNet::new(null(), memory).unwrap_err();
        let mut vhost = unconnected();
        vhost.stop().unwrap_err();
        assert_eq!(
            vhost.stop().unwrap_err().kind(),
            io::ErrorKind::NotConnected
        );
    }
}
