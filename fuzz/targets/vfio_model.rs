//! The model of a passed-through function between a guest and a device that are both hostile.
//!
//! The device's configuration space, its BARs and its interrupts come from the input; it changes
//! its registers, fails and goes away while the guest writes whatever it likes. Holds: the contract
//! of the host's side, that bus mastering waits for the DMA map, that INTx stays off, that only
//! allowed registers are written, that a mapping lies in its window and leaves the vector table
//! out, that only interrupt messages are routed, and that nothing panics or runs on.
#![no_main]

use std::sync::Arc;

use berth_fuzz::input::Input;
use berth_fuzz::messages::Messages;
use berth_fuzz::passed_device::PassedDevice;
use berth_vmm_devices::bus::Bus;
use berth_vmm_devices::guest_error::GuestErrors;
use berth_vmm_devices::interrupt::MsiSender;
use berth_vmm_devices::pci::PciFunction;
use berth_vmm_devices::vfio::bar_layout::{AllowedRanges, BarPlan, place_bars};
use berth_vmm_devices::vfio::function::VfioPci;
use berth_vmm_devices::vfio::window;
use libfuzzer_sys::fuzz_target;

const MOVES: usize = 200;

struct Guest {
    device: PassedDevice,
    function: Arc<VfioPci>,
    plan: BarPlan,
    bus: Bus,
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let device = PassedDevice::new(&mut input);
    let Some(guest) = Guest::new(device) else {
        return;
    };
    for _ in 0..MOVES {
        if input.is_empty() {
            break;
        }
        make_move(&guest, &mut input);
        guest.device.check(&guest.plan);
    }
});

impl Guest {
    /// `None` if the device is refused, which is most devices' fate.
    fn new(device: PassedDevice) -> Option<Self> {
        let sender: Arc<dyn MsiSender> = Arc::<Messages>::default();
        let errors = Arc::<GuestErrors>::default();
        let function = VfioPci::probe(Box::new(device.clone()), &sender, &errors);
        let function = Arc::new(function.ok()?);
        let allowed = AllowedRanges {
            low: 0xd000_0000..0xe000_0000,
            high: vec![0x1_8000_0000..1 << 39],
        };
        let plan = place_bars(&function.wanted_bars(0), &allowed).ok()?;
        let ranges = window::place(std::slice::from_ref(&function), &plan, &errors);
        let bus = Bus::new(ranges, errors).expect("the windows do not overlap");
        Some(Self {
            device,
            function,
            plan,
            bus,
        })
    }

    fn set_config(&self, offset: u16, width: usize, value: u32) {
        let bytes = value.to_le_bytes();
        self.function.config_write(offset, &bytes[..width]);
    }
}

/// A configuration access as the bus lets it through: aligned, 1, 2 or 4 bytes.
fn config_place(input: &mut Input<'_>) -> (u16, usize) {
    let width = 1 << (input.byte() % 3);
    let offset = input.word() % 0x1000;
    let aligned = offset - offset % u16::try_from(width).expect("at most 4");
    (aligned, width)
}

fn make_move(guest: &Guest, input: &mut Input<'_>) {
    match input.byte() % 10 {
        0 | 1 => {
            let (offset, width) = config_place(input);
            guest.set_config(offset, width, input.long());
        }
        2 => {
            let (offset, width) = config_place(input);
            let mut bytes = [0; 4];
            guest.function.config_read(offset, &mut bytes[..width]);
        }
        3 => guest.set_config(4, 2, input.byte().into()),
        4 | 5 => {
            // An access near a BAR, or near one of the device's structures in it.
            let Some(address) = guest.device.interesting_address(&guest.plan, input) else {
                return;
            };
            let width = input.width();
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&input.quad().to_le_bytes());
            guest.bus.write(address, &bytes[..width]);
            guest.bus.read(address, &mut bytes[..width]);
        }
        6 => {
            // A move of a BAR: both halves, somewhere in or near its window.
            let register = 0x10 + u16::from(input.byte() % 6) * 4;
            let target = guest
                .plan
                .high
                .start
                .wrapping_add(u64::from(input.long()) << 8);
            let [low, high] = [target & 0xffff_ffff, target >> 32];
            guest.set_config(register, 4, u32::try_from(low).expect("32 bits"));
            if input.byte() % 2 == 0 {
                guest.set_config(register + 4, 4, u32::try_from(high).expect("32 bits"));
            }
        }
        7 => guest.device.fire(input.word()),
        8 => guest.device.misbehave(input),
        _ => {
            guest.device.allow_dma();
            guest.function.allow_dma();
        }
    }
}
