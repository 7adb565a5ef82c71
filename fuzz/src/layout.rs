//! Offsets that virtio 1.2 gives to registers, and those that the transport's capabilities name.

/// Common configuration: driver feature word to write.
pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
/// Common configuration: that word.
pub const DRIVER_FEATURE: u64 = 0x0c;
/// Common configuration: vector of configuration changes.
pub const CONFIG_VECTOR: u64 = 0x10;
/// Common configuration: device status.
pub const STATUS: u64 = 0x14;
/// Common configuration: the queue that the following registers are of.
pub const QUEUE_SELECT: u64 = 0x16;
/// Common configuration: its size.
pub const QUEUE_SIZE: u64 = 0x18;
/// Common configuration: its vector.
pub const QUEUE_VECTOR: u64 = 0x1a;
/// Common configuration: whether it is enabled.
pub const QUEUE_ENABLE: u64 = 0x1c;
/// Common configuration: descriptor table, available ring and used ring, 8 bytes each.
pub const QUEUE_ADDRESSES: u64 = 0x20;
/// Bytes of the common configuration.
pub const COMMON_BYTES: u64 = 0x38;
/// Where the BAR has notifications.
pub const NOTIFY: u64 = 0x3000;
/// Where the BAR has the vector table.
pub const TABLE: u64 = 0x4000;
/// Length of the BAR.
pub const BAR_BYTES: u64 = 0x8000;
/// `VIRTIO_F_VERSION_1`.
pub const VERSION_1: u64 = 1 << 32;
/// A descriptor continues at its `next`.
pub const NEXT: u16 = 1;
/// A descriptor is for the device to write.
pub const WRITE: u16 = 2;
/// No vector.
pub const NO_VECTOR: u16 = 0xffff;
