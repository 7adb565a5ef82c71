//! How a device interrupts the guest. The machine implements both traits over KVM; tests record.

/// One message-signalled interrupt: the write that the device would do on a real bus.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct MsiMessage {
    /// Guest physical address of the write, `0xfee?_????` on x86.
    pub address: u64,
    /// The 32-bit value written.
    pub data: u32,
}

/// Sends message-signalled interrupts. Called from vCPU threads and from the I/O thread, with the
/// sending device's MSI-X table locked: it must not block for long and must not call back into a
/// device. A message that the host cannot deliver is the implementer's to count.
pub trait MsiSender: Send + Sync {
    /// Delivers `message` to the guest's interrupt controllers.
    fn send(&self, message: MsiMessage);
}

/// One edge-triggered input of the I/O APIC.
pub trait IrqLine: Send + Sync {
    /// Raises and lowers the line once. May be called with the device's lock held.
    fn pulse(&self);
}
