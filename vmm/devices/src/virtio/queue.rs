//! A checked layer over virtio-queue.

/// One enabled queue.
#[derive(Debug)]
pub struct VirtQueue;

/// The driver broke the ring; only a reset helps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the driver broke the ring")]
pub struct QueueBroken;
