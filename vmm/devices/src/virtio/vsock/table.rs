//! All connections of one guest, and whose turn it is to send to it.
//!
//! Owns the checks of what a packet claims, the bounds on the number of connections and on what is
//! kept for them, and the order in which they are served. It sees no ring.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::backend::{HostEvent, HostStream, VsockHost};
use super::connection::{Connection, Fate, Phase, Violation};
use super::packet::{FIRST_HOST_PORT, HOST_CID, Header, Operation, PORT_ANY, Ports, TYPE_STREAM};
use crate::counters::Counters;

/// Connections at once; more are refused.
pub(super) const MAX_CONNECTIONS: usize = 1024;
/// What is kept at most of data that a guest sent on one connection.
pub(super) const LARGE_BUFFER_BYTES: u32 = 64 * 1024;
/// The same for connections beyond the first [`LARGE_BUFFERS`].
pub(super) const SMALL_BUFFER_BYTES: u32 = 8 * 1024;
/// How many connections have a large buffer. Together all buffers are below 16 MiB.
pub(super) const LARGE_BUFFERS: usize = 128;
const _: () = assert!(
    LARGE_BUFFERS * LARGE_BUFFER_BYTES as usize
        + (MAX_CONNECTIONS - LARGE_BUFFERS) * SMALL_BUFFER_BYTES as usize
        <= 16 << 20
);
/// Resets that wait for the guest to offer buffers; more are lost to it.
pub(super) const MAX_RESETS: usize = 1024;

/// What is counted, in the order of [`COUNTERS`].
#[derive(Clone, Copy)]
pub(super) enum Count {
    OpenedByGuest,
    OpenedByHost,
    Refused,
    BytesToGuest,
    BytesFromGuest,
    Violations,
    LostResets,
}

/// Names of counters.
pub(super) const COUNTERS: &[&str] = &[
    "opened_by_guest",
    "opened_by_host",
    "refused",
    "bytes_to_guest",
    "bytes_from_guest",
    "violations",
    "lost_resets",
];

pub(super) struct Table {
    cid: u64,
    host: Box<dyn VsockHost>,
    connections: BTreeMap<Ports, Connection>,
    /// Connections that have something for the guest, each once.
    turns: VecDeque<Ports>,
    resets: VecDeque<Header>,
    large_buffers: usize,
    counters: Arc<Counters>,
}

impl Table {
    pub(super) fn new(cid: u32, host: Box<dyn VsockHost>) -> Self {
        Self {
            cid: u64::from(cid),
            host,
            connections: BTreeMap::new(),
            turns: VecDeque::new(),
            resets: VecDeque::new(),
            large_buffers: 0,
            counters: Arc::new(Counters::new(COUNTERS)),
        }
    }

    pub(super) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.host.descriptor()
    }

    /// Ends all connections without a word.
    pub(super) fn clear(&mut self) {
        self.connections.clear();
        self.turns.clear();
        self.resets.clear();
        self.large_buffers = 0;
    }

    /// Whether there may be a packet for the guest.
    pub(super) fn wants_room(&self) -> bool {
        !self.resets.is_empty() || !self.turns.is_empty()
    }

    /// Takes a packet of the guest. `data` is `None` if it is not what the header says.
    pub(super) fn take_packet(
        &mut self,
        header: &Header,
        data: Option<&[VolatileSlice<'_>]>,
    ) -> Result<(), Violation> {
        if header.source_cid != self.cid || header.destination_cid != HOST_CID {
            return Err(self.violation());
        }
        let ports = Ports {
            guest: header.source_port,
            host: header.destination_port,
        };
        let operation = Operation::from_number(header.operation);
        let operation = operation.filter(|_| header.kind == TYPE_STREAM);
        let (Some(operation), Some(data)) = (operation, data) else {
            self.remove(ports);
            self.reset_guest(ports, header.kind);
            return Err(self.violation());
        };
        match operation {
            Operation::Reset => {
                self.reset_by_guest(ports);
                Ok(())
            }
            Operation::Request => self.take_request(ports, header),
            Operation::Response => self.change(ports, header, Connection::accept),
            Operation::Shutdown => self.change(ports, header, |it| it.end(header.flags)),
            Operation::Data => {
                self.count(Count::BytesFromGuest, header.length.into());
                self.change(ports, header, |it| it.take_data(data))
            }
            Operation::CreditUpdate => self.change(ports, header, |_| Ok(Fate::Stays)),
            Operation::CreditRequest => self.change(ports, header, |it| {
                it.owe_credit();
                Ok(Fate::Stays)
            }),
        }
    }

    /// Takes up to `most` events of the host; true if there may be more.
    pub(super) fn take_events(&mut self, most: usize) -> bool {
        for _ in 0..most {
            match self.host.next_event() {
                None => return false,
                Some(HostEvent::Asked { ports, stream }) => self.ask_guest(ports, stream),
                Some(HostEvent::Ready { ports, readiness }) => {
                    if let Some(connection) = self.connections.get_mut(&ports) {
                        let fate = connection.take_readiness(readiness);
                        self.settle(ports, fate);
                    }
                }
            }
        }
        true
    }

    /// The next packet for the guest, its data moved to `room` already. Each connection has one
    /// packet per turn.
    pub(super) fn next_packet(&mut self, room: &[VolatileSlice<'_>]) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(ports) = self.turns.pop_front() {
            let Some(connection) = self.connections.get_mut(&ports) else {
                continue;
            };
            connection.is_queued = false;
            let Some(outgoing) = connection.next_packet(room) else {
                continue;
            };
            let mut header = Header {
                length: outgoing.bytes,
                flags: outgoing.flags,
                ..addressed(self.cid, ports, outgoing.operation, TYPE_STREAM)
            };
            connection.give_credit(&mut header);
            if connection.is_over() {
                self.remove(ports);
            } else {
                self.queue(ports);
            }
            self.count(Count::BytesToGuest, header.length.into());
            return Some(header);
        }
        None
    }

    /// The guest asks for a connection.
    fn take_request(&mut self, ports: Ports, header: &Header) -> Result<(), Violation> {
        if self.connections.contains_key(&ports) {
            self.settle(ports, Fate::ResetGuest);
            return Err(self.violation());
        }
        let is_allowed = ports.host < FIRST_HOST_PORT
            && ports.guest != PORT_ANY
            && self.connections.len() < MAX_CONNECTIONS;
        let stream = if is_allowed {
            self.host.connect(ports)
        } else {
            None
        };
        let Some(stream) = stream else {
            self.count(Count::Refused, 1);
            self.reset_guest(ports, TYPE_STREAM);
            return Ok(());
        };
        self.count(Count::OpenedByGuest, 1);
        let buffer_bytes = self.reserve();
        let connection = Connection::accepted(stream, buffer_bytes, header);
        self.connections.insert(ports, connection);
        self.queue(ports);
        Ok(())
    }

    /// The host's peer asks for a connection. It sees its stream close if it cannot have one.
    fn ask_guest(&mut self, ports: Ports, stream: Box<dyn HostStream>) {
        let is_free = !self.connections.contains_key(&ports);
        if !is_free || self.connections.len() >= MAX_CONNECTIONS {
            self.count(Count::Refused, 1);
            return;
        }
        self.count(Count::OpenedByHost, 1);
        let buffer_bytes = self.reserve();
        self.connections
            .insert(ports, Connection::asked(stream, buffer_bytes));
        self.queue(ports);
    }

    /// Lets a packet of the guest change the connection that it is about. Where there is none the
    /// guest is told so.
    fn change(
        &mut self,
        ports: Ports,
        header: &Header,
        change: impl FnOnce(&mut Connection) -> Result<Fate, Violation>,
    ) -> Result<(), Violation> {
        let connection = self.connections.get_mut(&ports);
        let Some(connection) = connection.filter(|it| it.phase() != Phase::Draining) else {
            self.reset_guest(ports, TYPE_STREAM);
            return Ok(());
        };
        connection.take_credit(header);
        match change(connection) {
            Ok(fate) => {
                self.settle(ports, fate);
                Ok(())
            }
            Err(Violation) => {
                self.settle(ports, Fate::ResetGuest);
                Err(self.violation())
            }
        }
    }

    /// Does what follows from a change of a connection.
    fn settle(&mut self, ports: Ports, fate: Fate) {
        match fate {
            Fate::Stays => self.queue(ports),
            Fate::Ends => self.remove(ports),
            Fate::ResetGuest => {
                let connection = self.connections.get(&ports);
                if connection.is_some_and(|it| it.phase() != Phase::Draining) {
                    self.remove(ports);
                }
                self.reset_guest(ports, TYPE_STREAM);
            }
        }
    }

    /// The guest says that a connection is over. What it sent before it left properly is still
    /// passed on.
    fn reset_by_guest(&mut self, ports: Ports) {
        match self.connections.get(&ports).map(Connection::phase) {
            Some(Phase::Asked) => {
                self.count(Count::Refused, 1);
                self.remove(ports);
            }
            Some(Phase::Open) => self.remove(ports),
            Some(Phase::Draining) | None => {}
        }
    }

    /// Gives the connection a turn if it has something to send.
    fn queue(&mut self, ports: Ports) {
        if let Some(connection) = self.connections.get_mut(&ports)
            && !connection.is_queued
            && connection.wants_turn()
        {
            connection.is_queued = true;
            self.turns.push_back(ports);
        }
    }

    fn remove(&mut self, ports: Ports) {
        let Some(connection) = self.connections.remove(&ports) else {
            return;
        };
        if connection.is_queued {
            self.turns.retain(|turn| *turn != ports);
        }
        if connection.buffer_bytes() == LARGE_BUFFER_BYTES {
            self.large_buffers -= 1;
        }
    }

    /// The size of a new connection's buffer.
    fn reserve(&mut self) -> u32 {
        if self.large_buffers < LARGE_BUFFERS {
            self.large_buffers += 1;
            LARGE_BUFFER_BYTES
        } else {
            SMALL_BUFFER_BYTES
        }
    }

    fn reset_guest(&mut self, ports: Ports, kind: u16) {
        if self.resets.len() < MAX_RESETS {
            let reset = addressed(self.cid, ports, Operation::Reset, kind);
            self.resets.push_back(reset);
        } else {
            self.count(Count::LostResets, 1);
        }
    }

    fn violation(&self) -> Violation {
        self.count(Count::Violations, 1);
        Violation
    }

    fn count(&self, what: Count, amount: u64) {
        self.counters.add(what as usize, amount);
    }

    /// Bytes that are kept for all connections.
    #[cfg(test)]
    pub(super) fn backlog_bytes(&self) -> usize {
        self.connections
            .values()
            .map(Connection::backlog_bytes)
            .sum()
    }

    #[cfg(test)]
    pub(super) fn connection_count(&self) -> usize {
        self.connections.len()
    }
}

/// A header from the host to the guest.
fn addressed(cid: u64, ports: Ports, operation: Operation, kind: u16) -> Header {
    Header {
        source_cid: HOST_CID,
        destination_cid: cid,
        source_port: ports.host,
        destination_port: ports.guest,
        kind,
        operation: operation.number(),
        ..Header::default()
    }
}
