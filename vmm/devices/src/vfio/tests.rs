//! The model over sane devices and over devices that lie, fail or go away.

mod hostile;
mod interrupts;
mod life;

use super::ops::{BarInfo, InterruptCounts};
use super::testing::{FakeDevice, whole};

const NO_INTERRUPTS: InterruptCounts = InterruptCounts {
    intx: 0,
    msi: 0,
    msix: 0,
    can_add_msix: false,
};

/// Where the MSI capability of [`msi_device`] is.
const MSI_DEVICE: u16 = 0x50;

/// A drive: one 64-bit BAR of 16 KiB with 16 vectors at 0x3000 and pending bits at 0x2000.
fn drive(can_add_msix: bool) -> FakeDevice {
    let registers = [
        (0x04, 0x0010_0000),
        (0x08, 0x0108_0200),
        (0x10, 0xf000_0004),
        (0x34, 0x40),
        (0x40, 0x0003_8001), // power management
        (0x80, 0x000f_a011), // MSI-X, 16 vectors
        (0x84, 0x3000),
        (0x88, 0x2000),
        (0xa0, 0x0002_d010), // PCI Express, version 2
        (0xa4, 1 << 28),     // which can reset the function
        (0xd0, 0x0306_e013), // advanced features, which can, too
        (0xe0, 0x0000_0003), // vital product data
        (0x100, 0x1402_0001),
        (0x140, 0x0001_000e), // alternative routing id
    ];
    let interrupts = InterruptCounts {
        intx: 1,
        msi: 0,
        msix: 16,
        can_add_msix,
    };
    let device = FakeDevice::new(&registers, &[(0, whole(0x4000))], interrupts);
    if let Ok(mut state) = device.state.lock() {
        state.power_register = Some(0x44);
    }
    device
}

/// A display-class device: 16 MiB of registers, 64 GiB and 32 MiB of prefetchable memory, ports,
/// and MSI alone.
fn gpu() -> FakeDevice {
    let registers = [
        (0x04, 0x0010_0000),
        (0x08, 0x0300_00a1),
        (0x10, 0x0000_0000),
        (0x14, 0x0000_000c),
        (0x1c, 0x0000_000c),
        (0x24, 0x0000_0001),
        (0x34, 0x60),
        (0x60, 0x0003_6801), // power management
        (0x68, 0x0080_7805), // MSI, one vector, 64 bits
        (0x78, 0x0002_0010), // PCI Express, version 2
        (0x100, 0x2501_0019),
        (0x250, 0x4201_0015), // resizable BARs
        (0x420, 0x0001_0001),
    ];
    let interrupts = InterruptCounts {
        intx: 1,
        msi: 1,
        msix: 0,
        can_add_msix: false,
    };
    let ports = BarInfo {
        bytes: 128,
        is_readable: true,
        is_writable: true,
        ..BarInfo::default()
    };
    let bars = [
        (0, whole(16 << 20)),
        (1, whole(64 << 30)),
        (3, whole(32 << 20)),
        (5, ports),
    ];
    let device = FakeDevice::new(&registers, &bars, interrupts);
    if let Ok(mut state) = device.state.lock() {
        state.power_register = Some(0x64);
    }
    device
}

/// A device with four maskable 64-bit MSI vectors and nothing else.
fn msi_device() -> FakeDevice {
    let registers = [
        (0x04, 0x0010_0000),
        (0x34, u32::from(MSI_DEVICE)),
        (MSI_DEVICE, 0x0184_0005),
    ];
    let interrupts = InterruptCounts {
        intx: 1,
        msi: 4,
        msix: 0,
        can_add_msix: false,
    };
    FakeDevice::new(&registers, &[], interrupts)
}
