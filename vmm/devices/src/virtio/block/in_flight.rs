//! Requests that were started and are not answered.
//!
//! Owns their places. A place is named by us and never by the guest, so nothing that a driver does
//! can put one request in another's place; that no head is taken twice is the queue's part. Each
//! queue has a share of its own, so that no queue waits for another's requests.

use super::backend::RequestId;
use crate::virtio::queue::Chain;

/// Requests of one queue that are in progress at once. A driver may submit more: they wait in its
/// ring.
pub const REQUESTS_PER_QUEUE: u16 = 128;

/// What a completed request is answered with.
#[derive(Debug)]
pub(super) struct Pending {
    /// The queue that the chain is from.
    pub(super) queue: u16,
    /// The chain, whose buffers the request has.
    pub(super) chain: Chain,
    /// Guest physical address of the status byte.
    pub(super) status: u64,
    /// Bytes that success has written to guest memory, without the status.
    pub(super) written: u32,
    /// Whether success has to be made durable before it is told.
    pub(super) settles: bool,
}

/// All places of one disk.
#[derive(Debug)]
pub(super) struct InFlight {
    places: Box<[Option<Pending>]>,
    free: Vec<RequestId>,
    /// Places that each queue has left.
    room: Box<[u16]>,
}

impl InFlight {
    pub(super) fn new(queues: u16) -> Self {
        let count = queues.saturating_mul(REQUESTS_PER_QUEUE);
        Self {
            places: (0..count).map(|_| None).collect(),
            // The lowest comes first, so that few requests touch little memory.
            free: (0..count).rev().collect(),
            room: vec![REQUESTS_PER_QUEUE; usize::from(queues)].into(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    /// Whether another request of `queue` has a place.
    pub(super) fn has_room(&self, queue: u16) -> bool {
        self.room
            .get(usize::from(queue))
            .is_some_and(|&room| room > 0)
    }

    /// Gives `pending` a place.
    ///
    /// # Errors
    /// Gives it back if there is none.
    pub(super) fn insert(&mut self, pending: Pending) -> Result<RequestId, Pending> {
        let Some(room) = self
            .room
            .get_mut(usize::from(pending.queue))
            .filter(|room| **room > 0)
        else {
            return Err(pending);
        };
        let Some(id) = self.free.pop() else {
            return Err(pending);
        };
        let Some(place) = self.places.get_mut(usize::from(id)) else {
            return Err(pending);
        };
        *room -= 1;
        *place = Some(pending);
        Ok(id)
    }

    /// The request at `id`.
    pub(super) fn get(&mut self, id: RequestId) -> Option<&mut Pending> {
        self.places.get_mut(usize::from(id))?.as_mut()
    }

    /// Frees a place.
    pub(super) fn remove(&mut self, id: RequestId) -> Option<Pending> {
        let pending = self.places.get_mut(usize::from(id))?.take()?;
        self.free.push(id);
        if let Some(room) = self.room.get_mut(usize::from(pending.queue)) {
            *room += 1;
        }
        Some(pending)
    }
}
