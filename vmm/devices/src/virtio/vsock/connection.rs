//! One connection: its state, its credit in both directions, and the bounded backlog of data that the
//! host's peer had no room for.
//!
//! Owns what may be sent when. It sees neither rings nor other connections.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;

use vm_memory::VolatileSlice;

use super::backend::{HostStream, Readiness};
use super::packet::{Header, MAX_DATA_BYTES, Operation, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// Where a connection is in its life.
///
/// ```text
/// host asks ──► Asked ──► guest accepts ──► Open ──► both ends are over: removed
/// guest asks ─────────────────────────────► Open ──► guest is over, data left ──► Draining ──► removed
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// The guest has not answered the host's peer yet.
    Asked,
    /// Data may flow.
    Open,
    /// The guest has left; the host's peer still gets what the guest sent.
    Draining,
}

/// What becomes of a connection after something happened to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(super) enum Fate {
    /// It goes on.
    Stays,
    /// It is over for the host's peer; the guest is told by a reset.
    ResetGuest,
    /// It is over and the guest knows.
    Ends,
}

/// The guest did what the connection's state does not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Violation;

pub(super) struct Connection {
    stream: Box<dyn HostStream>,
    phase: Phase,
    /// A packet that opens the connection and is not sent yet.
    opening: Option<Operation>,
    /// What the guest sent and the host's peer had no room for; at most `buffer_bytes`.
    backlog: VecDeque<u8>,
    buffer_bytes: u32,
    /// Bytes from the guest that left the backlog, or went by it, modulo 2^32.
    forwarded: u32,
    /// The `forwarded` that the guest knows of.
    forwarded_told: u32,
    /// Bytes sent to the guest, modulo 2^32.
    sent: u32,
    guest_buffer_bytes: u32,
    guest_forwarded: u32,
    /// Whether reading may give something.
    has_input: bool,
    owes_credit: bool,
    has_asked_for_credit: bool,
    /// `SHUTDOWN_*` flags that the guest sent.
    guest_ended: u32,
    /// `SHUTDOWN_*` flags that hold for the host's peer.
    host_ended: u32,
    /// Those of them that the guest was told.
    host_ended_told: u32,
    is_peer_gone: bool,
    /// Whether it waits for its turn to send to the guest.
    pub(super) is_queued: bool,
}

impl Connection {
    /// A connection that the guest asked for by `request`.
    pub(super) fn accepted(
        stream: Box<dyn HostStream>,
        buffer_bytes: u32,
        request: &Header,
    ) -> Self {
        let mut connection = Self::new(stream, buffer_bytes, Phase::Open, Operation::Response);
        connection.take_credit(request);
        connection
    }

    /// A connection that the host's peer asked for.
    pub(super) fn asked(stream: Box<dyn HostStream>, buffer_bytes: u32) -> Self {
        Self::new(stream, buffer_bytes, Phase::Asked, Operation::Request)
    }

    fn new(
        stream: Box<dyn HostStream>,
        buffer_bytes: u32,
        phase: Phase,
        opening: Operation,
    ) -> Self {
        Self {
            stream,
            phase,
            opening: Some(opening),
            backlog: VecDeque::new(),
            buffer_bytes,
            forwarded: 0,
            forwarded_told: 0,
            sent: 0,
            guest_buffer_bytes: 0,
            guest_forwarded: 0,
            has_input: true,
            owes_credit: false,
            has_asked_for_credit: false,
            guest_ended: 0,
            host_ended: 0,
            host_ended_told: 0,
            is_peer_gone: false,
            is_queued: false,
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn buffer_bytes(&self) -> u32 {
        self.buffer_bytes
    }

    /// Bytes that wait for the host's peer.
    #[cfg(test)]
    pub(super) fn backlog_bytes(&self) -> usize {
        self.backlog.len()
    }

    /// Whether there is a packet to send to the guest.
    pub(super) fn wants_turn(&self) -> bool {
        self.opening.is_some()
            || self.phase == Phase::Open
                && (self.owes_credit
                    || self.host_ended & !self.host_ended_told != 0
                    || self.may_read() && (self.credit() > 0 || !self.has_asked_for_credit))
    }

    fn may_read(&self) -> bool {
        self.has_input
            && self.guest_ended & SHUTDOWN_RECEIVE == 0
            && self.host_ended & SHUTDOWN_SEND == 0
    }

    /// Bytes that the guest has room for. A guest that claims to have passed on more than it got
    /// gets nothing more.
    fn credit(&self) -> u32 {
        let unread = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_buffer_bytes.saturating_sub(unread)
    }

    /// Takes what every header of the guest says about its buffer.
    pub(super) fn take_credit(&mut self, header: &Header) {
        self.guest_buffer_bytes = header.buffer_bytes;
        self.guest_forwarded = header.forwarded;
        if self.credit() > 0 {
            self.has_asked_for_credit = false;
        }
    }

    /// The guest asks what it may send.
    pub(super) fn owe_credit(&mut self) {
        self.owes_credit = true;
    }

    /// The guest accepts what the host's peer asked for.
    pub(super) fn accept(&mut self) -> Result<Fate, Violation> {
        if self.phase != Phase::Asked || self.opening.is_some() {
            return Err(Violation);
        }
        self.phase = Phase::Open;
        Ok(match self.stream.tell_accepted() {
            Ok(()) => Fate::Stays,
            Err(_) => Fate::ResetGuest,
        })
    }

    /// Passes the guest's `data` on, or keeps it. Returns what becomes of the connection.
    pub(super) fn take_data(&mut self, data: &[VolatileSlice<'_>]) -> Result<Fate, Violation> {
        let bytes = data.iter().map(VolatileSlice::len).sum::<usize>();
        let room = usize::try_from(self.buffer_bytes)
            .unwrap_or(usize::MAX)
            .saturating_sub(self.backlog.len());
        if self.phase != Phase::Open || self.guest_ended & SHUTDOWN_SEND != 0 || bytes > room {
            return Err(Violation);
        }
        let mut written = 0;
        if self.host_ended & SHUTDOWN_RECEIVE != 0 {
            written = bytes;
        } else if self.backlog.is_empty() && bytes > 0 {
            match self.stream.write(data) {
                Ok(moved) => written = moved.min(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.refuse_more();
                    written = bytes;
                }
            }
        }
        self.forward(written);
        keep(&mut self.backlog, data, written);
        Ok(Fate::Stays)
    }

    /// The guest ends directions.
    pub(super) fn end(&mut self, flags: u32) -> Result<Fate, Violation> {
        if self.phase != Phase::Open {
            return Err(Violation);
        }
        let new = flags & !self.guest_ended;
        self.guest_ended |= flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
        if new & SHUTDOWN_RECEIVE != 0 {
            self.stream.shut_down(Shutdown::Read);
        }
        if new & SHUTDOWN_SEND != 0 && self.backlog.is_empty() {
            self.stream.shut_down(Shutdown::Write);
        }
        if self.guest_ended != SHUTDOWN_RECEIVE | SHUTDOWN_SEND {
            return Ok(Fate::Stays);
        }
        if !self.backlog.is_empty() {
            self.phase = Phase::Draining;
            self.opening = None;
        }
        Ok(Fate::ResetGuest)
    }

    /// The host's side changed.
    pub(super) fn take_readiness(&mut self, readiness: Readiness) -> Fate {
        if readiness.is_gone {
            if self.phase == Phase::Asked {
                return Fate::ResetGuest;
            }
            self.is_peer_gone = true;
            // Whatever is left to read comes first: only then may the guest hear of the end.
            self.has_input = true;
            if self.host_ended & SHUTDOWN_SEND != 0 {
                self.refuse_more();
            }
        }
        self.has_input |= readiness.input;
        if (readiness.room || readiness.is_gone) && !self.backlog.is_empty() {
            self.flush();
        }
        if self.phase == Phase::Draining && self.backlog.is_empty() {
            return Fate::Ends;
        }
        Fate::Stays
    }

    fn flush(&mut self) {
        while !self.backlog.is_empty() {
            let (front, back) = self.backlog.as_mut_slices();
            let parts = [VolatileSlice::from(front), VolatileSlice::from(back)];
            match self.stream.write(&parts) {
                Ok(moved) => {
                    let moved = moved.min(self.backlog.len());
                    self.backlog.drain(..moved);
                    self.forward(moved);
                    if moved == 0 {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.refuse_more(),
            }
        }
        // The memory of a burst is not kept for the next one.
        self.backlog = VecDeque::new();
        if self.guest_ended & SHUTDOWN_SEND != 0 {
            self.stream.shut_down(Shutdown::Write);
        }
    }

    /// The host's peer takes no more: what is kept for it and what comes is dropped.
    fn refuse_more(&mut self) {
        self.host_ended |= SHUTDOWN_RECEIVE;
        // Most likely it is gone, which only reading tells.
        self.has_input = true;
        let dropped = self.backlog.len();
        self.backlog = VecDeque::new();
        self.forward(dropped);
    }

    /// Counts bytes that left the buffer; the guest hears of it once it is half of the buffer.
    fn forward(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).expect("a buffer is smaller than 4 GiB");
        self.forwarded = self.forwarded.wrapping_add(bytes);
        let untold = self.forwarded.wrapping_sub(self.forwarded_told);
        self.owes_credit |= untold >= self.buffer_bytes / 2;
    }

    /// The next packet for the guest, its data moved to `room` already: operation, flags and number
    /// of bytes. `None` if there is none after all.
    pub(super) fn next_packet(&mut self, room: &[VolatileSlice<'_>]) -> Option<Outgoing> {
        if let Some(operation) = self.opening.take() {
            return Some(Outgoing::control(operation));
        }
        if self.phase != Phase::Open {
            return None;
        }
        if self.may_read() && self.credit() > 0 {
            let bytes = self.read(room);
            if bytes > 0 {
                self.sent = self.sent.wrapping_add(bytes);
                return Some(Outgoing {
                    bytes,
                    ..Outgoing::control(Operation::Data)
                });
            }
        }
        let flags = self.host_ended & !self.host_ended_told;
        if flags != 0 {
            self.host_ended_told |= flags;
            return Some(Outgoing {
                flags,
                ..Outgoing::control(Operation::Shutdown)
            });
        }
        if self.may_read() && self.credit() == 0 && !self.has_asked_for_credit {
            self.has_asked_for_credit = true;
            return Some(Outgoing::control(Operation::CreditRequest));
        }
        std::mem::take(&mut self.owes_credit).then(|| Outgoing::control(Operation::CreditUpdate))
    }

    fn read(&mut self, room: &[VolatileSlice<'_>]) -> u32 {
        let most = self.credit().min(MAX_DATA_BYTES);
        let room = first_bytes(room, usize::try_from(most).unwrap_or(usize::MAX));
        if room.is_empty() {
            return 0;
        }
        match self.stream.read(&room) {
            Ok(0) => self.host_ended |= SHUTDOWN_SEND,
            Ok(bytes) => return u32::try_from(bytes).unwrap_or(most).min(most),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.has_input = false;
                return 0;
            }
            Err(_) => self.host_ended |= SHUTDOWN_SEND | SHUTDOWN_RECEIVE,
        }
        if self.is_peer_gone || self.host_ended & SHUTDOWN_RECEIVE != 0 {
            self.refuse_more();
        }
        0
    }

    /// Fills in what every header to the guest says about the buffer.
    pub(super) fn give_credit(&mut self, header: &mut Header) {
        header.buffer_bytes = self.buffer_bytes;
        header.forwarded = self.forwarded;
        self.forwarded_told = self.forwarded;
        self.owes_credit = false;
    }

    /// Whether the guest knows that the host's peer neither sends nor receives.
    pub(super) fn is_over(&self) -> bool {
        self.host_ended_told == SHUTDOWN_RECEIVE | SHUTDOWN_SEND
    }
}

/// One packet for the guest, but for what all headers of a connection have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Outgoing {
    pub(super) operation: Operation,
    pub(super) flags: u32,
    pub(super) bytes: u32,
}

impl Outgoing {
    fn control(operation: Operation) -> Self {
        Self {
            operation,
            flags: 0,
            bytes: 0,
        }
    }
}

/// The first `most` bytes of `slices`.
pub(super) fn first_bytes<'a>(
    slices: &[VolatileSlice<'a>],
    mut most: usize,
) -> Vec<VolatileSlice<'a>> {
    let mut found = Vec::with_capacity(slices.len());
    for slice in slices {
        let bytes = slice.len().min(most);
        if bytes == 0 {
            break;
        }
        found.extend(slice.subslice(0, bytes));
        most -= bytes;
    }
    found
}

/// Appends all of `data` but the first `skip` bytes.
fn keep(backlog: &mut VecDeque<u8>, data: &[VolatileSlice<'_>], mut skip: usize) {
    let mut chunk = [0; 4096];
    for slice in data {
        let mut at = skip.min(slice.len());
        skip -= at;
        while let Ok(rest) = slice.offset(at)
            && !rest.is_empty()
        {
            let copied = rest.copy_to(&mut chunk[..]);
            backlog.reserve_exact(copied);
            backlog.extend(&chunk[..copied]);
            at += copied;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer that sends and takes without end.
    #[derive(Debug)]
    struct Endless;

    impl HostStream for Endless {
        fn read(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
            Ok(buffers.iter().map(VolatileSlice::len).sum())
        }
        fn write(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
            Ok(buffers.iter().map(VolatileSlice::len).sum())
        }
        fn shut_down(&mut self, _: Shutdown) {}
        fn tell_accepted(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn credit(buffer_bytes: u32, forwarded: u32) -> Header {
        Header {
            buffer_bytes,
            forwarded,
            ..Header::default()
        }
    }

    #[test]
    fn credit_goes_on_when_the_counts_pass_four_gib() {
        let near = u32::MAX - 99;
        let mut connection = Connection::accepted(Box::new(Endless), 4096, &credit(300, near));
        (connection.sent, connection.forwarded) = (near, near);
        connection.forwarded_told = near;
        connection.opening = None;
        let mut bytes = [0; 1000];
        let mut send = |connection: &mut Connection| {
            let room = [VolatileSlice::from(&mut bytes[..])];
            connection.next_packet(&room).map(|packet| packet.bytes)
        };
        assert_eq!(send(&mut connection), Some(300));
        assert_eq!(connection.sent, 200);
        assert_eq!(send(&mut connection), Some(0), "it asks for credit");
        connection.take_credit(&credit(300, 50));
        assert_eq!(send(&mut connection), Some(150));
        let mut data = [0; 2048];
        let data = [VolatileSlice::from(&mut data[..])];
        assert_eq!(connection.take_data(&data), Ok(Fate::Stays));
        let mut header = Header::default();
        assert!(connection.owes_credit);
        connection.give_credit(&mut header);
        assert_eq!(header.forwarded, 2048 - 100);
    }

    #[test]
    fn the_first_bytes_of_buffers_end_in_the_middle_of_one() {
        let mut bytes = [0; 10];
        let (front, back) = bytes.split_at_mut(4);
        let slices = [VolatileSlice::from(front), VolatileSlice::from(back)];
        let lengths = |most| {
            let found = first_bytes(&slices, most);
            found.iter().map(VolatileSlice::len).collect::<Vec<_>>()
        };
        assert_eq!(lengths(0), Vec::<usize>::new());
        assert_eq!(lengths(4), [4]);
        assert_eq!(lengths(7), [4, 3]);
        assert_eq!(lengths(99), [4, 6]);
    }
}
