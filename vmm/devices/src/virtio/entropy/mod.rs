//! virtio-rng: the host's randomness for the guest.

/// An entropy device.
#[derive(Debug, Default)]
pub struct Entropy;

impl Entropy {
    /// A device over the host's `getrandom`.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}
