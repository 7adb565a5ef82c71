//! One file's io_uring: transfers between the file and guest memory that go on after the call that
//! starts them.
//!
//! Owns what makes that sound: as long as the kernel may touch a buffer, the guest's memory stays
//! mapped and the list of buffers stays where it is, whatever the caller does. Owns as well the
//! carrying on after a short transfer, and the narrowing of the ring: its requests are run without
//! this process's seccomp filters, so before the first one it is bound to one file and to few
//! operations for good. What a request means and the check of its range are the caller's.
//!
//! Any one thread at a time may use a ring.

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode};
use libc::iovec;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use crate::vectored_io::{MAX_BUFFERS, skip, zeroes};

/// The only file of a ring.
const FILE: Fixed = Fixed(0);
/// All that a ring may ever do.
const ALLOWED: [u8; 4] = [
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];
/// Kernel threads that carry out what would block, for each of the kernel's two kinds. Requests on
/// files and disks are of the first.
const MAX_WORKERS: [u32; 2] = [4, 1];

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the file to guest memory.
    Read,
    /// From guest memory to the file.
    Write,
}

/// Why a request was not started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StartError {
    /// A part of a buffer is not RAM.
    #[error("a buffer is not in guest memory")]
    NotMemory,
    /// The number is that of another request, or none.
    #[error("the request's number is taken or too high")]
    NoPlace,
}

/// A ring for one file.
pub struct IoRing {
    ring: IoUring,
    /// Given up only when the kernel is done with all of it.
    held: ManuallyDrop<Held>,
    in_flight: usize,
}

/// What the kernel may be using.
struct Held {
    memory: GuestMemoryMmap<()>,
    requests: Box<[Request]>,
}

/// The place of one request.
#[derive(Default)]
struct Request {
    work: Option<Work>,
    /// Not changed while the kernel may read it.
    buffers: Vec<iovec>,
}

/// What is in progress at a place.
#[derive(Clone, Copy)]
enum Work {
    /// Buffers from `first` on are left to move, to or from `offset` of the file.
    Transfer {
        direction: Direction,
        first: usize,
        offset: u64,
        /// Whether one of the kernel's threads may wait for the transfer from the start.
        may_wait: bool,
    },
    SyncData,
    Allocate {
        mode: i32,
        offset: u64,
        bytes: u64,
    },
}

// SAFETY: the raw pointers in `buffers` are to guest memory and static zeroes, which are there for
// every thread; nothing in a ring belongs to the thread that made it.
unsafe impl Send for IoRing {}

impl IoRing {
    /// A ring that moves bytes between `file` and `memory`, with up to `requests` requests at once,
    /// numbered from 0.
    ///
    /// # Errors
    /// What the kernel says, above all if it has no io_uring for us.
    pub fn new(
        file: BorrowedFd<'_>,
        memory: GuestMemoryMmap<()>,
        requests: u16,
    ) -> io::Result<Self> {
        let ring = narrowed_ring(file, u32::from(requests))?;
        let held = Held {
            memory,
            requests: (0..requests).map(|_| Request::default()).collect(),
        };
        Ok(Self {
            ring,
            held: ManuallyDrop::new(held),
            in_flight: 0,
        })
    }

    /// Starts to move all of `segments` (guest physical address and length in bytes), in order, to
    /// or from `offset` of the file.
    ///
    /// # Errors
    /// If a segment is not RAM or `id` is not free.
    pub fn transfer(
        &mut self,
        id: u16,
        direction: Direction,
        offset: u64,
        segments: impl IntoIterator<Item = (u64, u32)>,
    ) -> Result<(), StartError> {
        let Held { memory, requests } = &mut *self.held;
        let request = free_place(requests, id)?;
        let access = match direction {
            Direction::Read => Permissions::Write,
            Direction::Write => Permissions::Read,
        };
        for (address, bytes) in segments {
            let bytes = usize::try_from(bytes).map_err(|_| StartError::NotMemory)?;
            let parts = memory
                .get_slices(GuestAddress(address), bytes, access)
                .map_err(|_| StartError::NotMemory)?;
            for part in parts {
                let part = part.map_err(|_| StartError::NotMemory)?;
                // No guard outlives this call: the mapping does, as `held` has a share in it.
                request.buffers.push(iovec {
                    iov_base: part.ptr_guard_mut().as_ptr().cast(),
                    iov_len: part.len(),
                });
            }
        }
        self.begin(id, transfer(direction, offset))
    }

    /// Starts to write `bytes` zeroes from `offset` of the file on.
    ///
    /// # Errors
    /// If `id` is not free.
    pub fn write_zeroes(&mut self, id: u16, offset: u64, bytes: u64) -> Result<(), StartError> {
        let request = free_place(&mut self.held.requests, id)?;
        request.buffers = zeroes(bytes).map_err(|_| StartError::NotMemory)?;
        self.begin(id, transfer(Direction::Write, offset))
    }

    /// Starts to make durable what was written by requests that are complete.
    ///
    /// # Errors
    /// If `id` is not free.
    pub fn sync_data(&mut self, id: u16) -> Result<(), StartError> {
        self.begin(id, Work::SyncData)
    }

    /// Starts `fallocate` with `mode` on `bytes` bytes from `offset` on.
    ///
    /// # Errors
    /// If `id` is not free.
    pub fn allocate(
        &mut self,
        id: u16,
        mode: i32,
        offset: u64,
        bytes: u64,
    ) -> Result<(), StartError> {
        let work = Work::Allocate {
            mode,
            offset,
            bytes,
        };
        self.begin(id, work)
    }

    /// A request that is complete, and how it ended: [`io::ErrorKind::UnexpectedEof`] if the file
    /// ended first, [`io::ErrorKind::WriteZero`] if it took no more. With `None` the kernel has all
    /// that was started, and the ring becomes readable (an edge) when there may be more.
    pub fn next_completed(&mut self) -> Option<(u16, io::Result<()>)> {
        loop {
            // Bound to a name, so that the queue is given back before the entry is looked at.
            let entry = self.ring.completion().next();
            match entry {
                Some(entry) => {
                    let id = u16::try_from(entry.user_data()).unwrap_or(u16::MAX);
                    if let Some(result) = self.step(id, entry.result()) {
                        return Some((id, result));
                    }
                }
                None if self.has_work_for_kernel() => self.enter(0),
                None => return None,
            }
        }
    }

    /// Blocks until the kernel has completed something, if anything is in progress.
    pub fn wait(&mut self) {
        if self.in_flight > 0 && self.ring.completion().is_empty() {
            self.enter(1);
        }
    }

    /// Puts `work` on the place `id`, which is free and has its buffers, and hands it over.
    fn begin(&mut self, id: u16, work: Work) -> Result<(), StartError> {
        let request = self.held.requests.get_mut(usize::from(id));
        let request = request.filter(|request| request.work.is_none());
        request.ok_or(StartError::NoPlace)?.work = Some(work);
        self.in_flight += 1;
        self.push(id);
        Ok(())
    }

    /// Takes the end of one step of request `id`; `None` if the request goes on.
    fn step(&mut self, id: u16, result: i32) -> Option<io::Result<()>> {
        let request = self.held.requests.get_mut(usize::from(id))?;
        let end = request.step(result);
        if end.is_some() {
            request.work = None;
            self.in_flight -= 1;
        } else {
            self.push(id);
        }
        end
    }

    /// Queues what is left to do at `id`.
    fn push(&mut self, id: u16) {
        let Some(entry) = self
            .held
            .requests
            .get(usize::from(id))
            .and_then(Request::entry)
        else {
            return;
        };
        let entry = entry.user_data(u64::from(id));
        // SAFETY: the entry names buffers of the place `id` and nothing else. They lie in guest
        // memory, which `held` keeps mapped, or in a static; no Rust reference to guest memory
        // exists. Their list is in `held`, too, and is changed only while the place is free
        // (`free_place`) or its last step is over (`Request::step`). A place becomes free when the
        // kernel's completion was seen, and `held` goes only when all places are free (`drop`).
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the queue has an entry for each place, and a place has one in it at most");
    }

    fn has_work_for_kernel(&mut self) -> bool {
        let submission = self.ring.submission();
        !submission.is_empty() || submission.taskrun()
    }

    /// Hands over what is queued, and waits until `least` entries are complete.
    fn enter(&mut self, least: usize) {
        loop {
            let entered = self.ring.submit_and_wait(least);
            // A signal, or a host that is short of memory at the moment.
            if entered.as_ref().is_err_and(is_passing) {
                std::thread::yield_now();
                continue;
            }
            entered.expect("the kernel serves a ring that it has set up");
            if self.ring.submission().is_empty() {
                return;
            }
        }
    }
}

impl Request {
    /// What the kernel is asked to do next.
    fn entry(&self) -> Option<Entry> {
        let entry = match self.work? {
            Work::Transfer {
                direction,
                first,
                offset,
                may_wait,
            } => {
                let buffers = self.buffers.get(first..)?;
                let count = u32::try_from(buffers.len().min(MAX_BUFFERS)).ok()?;
                let start = buffers.as_ptr();
                let entry = match direction {
                    Direction::Read => opcode::Readv::new(FILE, start, count)
                        .offset(offset)
                        .build(),
                    Direction::Write => opcode::Writev::new(FILE, start, count)
                        .offset(offset)
                        .build(),
                };
                let how = if may_wait {
                    Flags::ASYNC
                } else {
                    Flags::empty()
                };
                entry.flags(how)
            }
            Work::SyncData => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
            Work::Allocate {
                mode,
                offset,
                bytes,
            } => opcode::Fallocate::new(FILE, bytes)
                .offset(offset)
                .mode(mode)
                .build(),
        };
        Some(entry)
    }

    /// Takes the result of a step; `None` if there has to be another one.
    fn step(&mut self, result: i32) -> Option<io::Result<()>> {
        let Ok(moved) = usize::try_from(result) else {
            return self.failed(io::Error::from_raw_os_error(-result));
        };
        let Some(Work::Transfer {
            direction,
            first,
            offset,
            ..
        }) = &mut self.work
        else {
            return Some(Ok(()));
        };
        let left = self
            .buffers
            .get_mut(*first..)
            .map_or(0, |rest| skip(rest, moved).len());
        if left == 0 {
            return Some(Ok(()));
        }
        if moved == 0 {
            return Some(Err(match direction {
                Direction::Read => io::ErrorKind::UnexpectedEof.into(),
                Direction::Write => io::ErrorKind::WriteZero.into(),
            }));
        }
        *first = self.buffers.len() - left;
        *offset = offset.saturating_add(u64::try_from(moved).unwrap_or(u64::MAX));
        None
    }

    fn failed(&mut self, error: io::Error) -> Option<io::Result<()>> {
        if error.kind() == io::ErrorKind::Interrupted {
            return None;
        }
        match &mut self.work {
            // The kernel did not want to wait: one of its threads has to.
            Some(Work::Transfer { may_wait, .. })
                if error.kind() == io::ErrorKind::WouldBlock && !*may_wait =>
            {
                *may_wait = true;
                None
            }
            _ => Some(Err(error)),
        }
    }
}

fn transfer(direction: Direction, offset: u64) -> Work {
    Work::Transfer {
        direction,
        first: 0,
        offset,
        may_wait: false,
    }
}

/// The place `id`, if nothing is in progress there, without buffers.
fn free_place(requests: &mut [Request], id: u16) -> Result<&mut Request, StartError> {
    let request = requests.get_mut(usize::from(id));
    let request = request
        .filter(|request| request.work.is_none())
        .ok_or(StartError::NoPlace)?;
    request.buffers.clear();
    Ok(request)
}

fn is_passing(error: &io::Error) -> bool {
    let errors = [libc::EINTR, libc::EAGAIN, libc::EBUSY, libc::ENOMEM];
    error
        .raw_os_error()
        .is_some_and(|number| errors.contains(&number))
}

/// A ring that can do nothing but what [`ALLOWED`] says, with `file`.
fn narrowed_ring(file: BorrowedFd<'_>, entries: u32) -> io::Result<IoUring> {
    let ring = quiet_ring(entries).or_else(|error| match error.raw_os_error() {
        // Linux before 5.19 knows fewer flags.
        Some(libc::EINVAL) => IoUring::builder().setup_r_disabled().build(entries),
        _ => Err(error),
    })?;
    let submitter = ring.submitter();
    submitter.register_files(&[file.as_raw_fd()])?;
    let mut workers = MAX_WORKERS;
    submitter.register_iowq_max_workers(&mut workers)?;
    let mut restrictions: Vec<_> = ALLOWED.into_iter().map(Restriction::sqe_op).collect();
    let fixed = Flags::FIXED_FILE.bits();
    restrictions.push(Restriction::sqe_flags_allowed(fixed | Flags::ASYNC.bits()));
    restrictions.push(Restriction::sqe_flags_required(fixed));
    submitter.register_restrictions(&mut restrictions)?;
    submitter.register_enable_rings()?;
    Ok(ring)
}

/// A ring whose completions do not interrupt the thread that started the requests while it runs.
fn quiet_ring(entries: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_r_disabled()
        .setup_submit_all()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .dontfork()
        .build(entries)
}

impl AsFd for IoRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `self`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for IoRing {
    fn drop(&mut self) {
        while self.in_flight > 0 {
            if self.next_completed().is_none() {
                self.wait();
            }
        }
        // SAFETY: nothing is in progress, so the kernel has no use for the buffers any more; this
        // is the only place that drops `held`, and it runs once.
        unsafe { ManuallyDrop::drop(&mut self.held) };
    }
}

impl fmt::Debug for IoRing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("IoRing")
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
