//! The interrupt state that the transport and the active device share.

/// MSI-X and ISR of one virtio function.
#[derive(Debug)]
pub struct VirtioInterrupt;
