//! The serial port, the I/O APIC, the power registers and the power button on one bus.
//!
//! Holds: input for the guest is bounded, interrupts are messages to local APICs, and the machine
//! ends for the documented values only.
#![no_main]

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use berth_fuzz::input::Input;
use berth_fuzz::messages::Messages;
use berth_vmm_devices::bus::{Bus, BusDevice, BusRange};
use berth_vmm_devices::guest_error::GuestErrors;
use berth_vmm_devices::ioapic::{IOAPIC_BYTES, IOAPIC_PINS, IoApic};
use berth_vmm_devices::power::{
    KEYBOARD_RESET_COMMAND, OnPowerRequest, PowerPort, PowerRegister, RESET_VALUE, SLEEP_ENABLE,
    SLEEP_TYPE_S5,
};
use berth_vmm_devices::power_button::{PowerButton, STATUS_BYTES};
use berth_vmm_devices::serial::{SERIAL_BYTES, Serial};
use libfuzzer_sys::fuzz_target;

const MOVES: usize = 400;
const SERIAL: u64 = 0x3f8;
const BUTTON: u64 = 0x600;
const KEYBOARD: u64 = 0x64;
const SLEEP: u64 = 0x700;
const IOAPIC: u64 = 0xfec0_0000;
/// No port holds more input than its FIFO.
const FIFO_BYTES: usize = 64;

#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut output = self.0.lock().expect("one thread");
        output.extend_from_slice(bytes);
        // Every eighth byte is lost, as with a reader that is gone.
        if output.len() % 8 == 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Machine {
    bus: Bus,
    serial: Arc<Serial>,
    output: Output,
    ioapic: Arc<IoApic>,
    button: Arc<PowerButton>,
    messages: Arc<Messages>,
    ends: Arc<AtomicUsize>,
}

impl Machine {
    fn new() -> Self {
        let (messages, errors) = (Arc::<Messages>::default(), Arc::<GuestErrors>::default());
        let ioapic = Arc::new(IoApic::new(messages.clone()));
        let output = Output::default();
        let serial = Arc::new(Serial::new(
            Arc::new(ioapic.line(4)),
            Box::new(output.clone()),
        ));
        let button = Arc::new(PowerButton::new(Arc::new(ioapic.line(9))));
        let ends = Arc::new(AtomicUsize::new(0));
        let on_request: OnPowerRequest = Arc::new({
            let ends = ends.clone();
            move |_| {
                ends.fetch_add(1, Ordering::SeqCst);
            }
        });
        let port = |register| PowerPort::new(register, on_request.clone(), errors.clone());
        let devices: [(u64, u64, Arc<dyn BusDevice>); 7] = [
            (SERIAL, SERIAL_BYTES, serial.clone()),
            (BUTTON, STATUS_BYTES, button.clone()),
            (SLEEP, 1, Arc::new(port(PowerRegister::SleepControl))),
            (SLEEP + 1, 1, Arc::new(port(PowerRegister::SleepStatus))),
            (SLEEP + 2, 1, Arc::new(port(PowerRegister::Reset))),
            (KEYBOARD, 1, Arc::new(port(PowerRegister::KeyboardCommand))),
            (IOAPIC, IOAPIC_BYTES, ioapic.clone()),
        ];
        let ranges = devices.map(|(base, bytes, device)| BusRange {
            base,
            bytes,
            device,
        });
        Self {
            bus: Bus::new(ranges.to_vec(), errors).expect("nothing overlaps"),
            serial,
            output,
            ioapic,
            button,
            messages,
            ends,
        }
    }

    fn write(&self, address: u64, width: usize, value: u64) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&value.to_le_bytes());
        let before = self.ends.load(Ordering::SeqCst);
        self.bus.write(address, &bytes[..width]);
        let ended = self.ends.load(Ordering::SeqCst) - before;
        assert_eq!(
            ended,
            usize::from(width == 1 && ends_the_machine(address, bytes[0]))
        );
    }
}

fn ends_the_machine(address: u64, value: u8) -> bool {
    match address {
        SLEEP => value & SLEEP_ENABLE != 0 && value >> 2 & 7 == SLEEP_TYPE_S5,
        KEYBOARD => value == KEYBOARD_RESET_COMMAND,
        _ => address == SLEEP + 2 && value == RESET_VALUE,
    }
}

/// Where a guest pokes: the devices and their surroundings.
fn address(input: &mut Input<'_>) -> u64 {
    let (place, offset) = (input.byte(), u64::from(input.byte()));
    match place % 7 {
        0 | 1 => SERIAL + offset % 10,
        2 => BUTTON + offset % 2,
        3 => SLEEP + offset % 4,
        4 => KEYBOARD,
        5 => IOAPIC + [0, 0x10, 0x10, 0, offset, offset * 16][usize::from(place) % 6],
        _ => u64::from(place) << 8 | offset,
    }
}

fuzz_target!(|bytes: &[u8]| {
    let machine = Machine::new();
    let mut input = Input::new(bytes);
    let mut written = 0;
    for _ in 0..MOVES {
        if input.is_empty() {
            break;
        }
        match input.byte() % 8 {
            0..=2 => {
                let (address, width) = (address(&mut input), input.width());
                machine.write(address, width, input.long().into());
                written += usize::from(width == 1);
            }
            3 | 4 => {
                let (address, width) = (address(&mut input), input.width());
                machine.bus.read(address, &mut [0; 16][..width]);
            }
            5 => {
                let count = usize::from(input.byte());
                let offered = input.bytes(count);
                let taken = machine.serial.enqueue(offered);
                assert!(taken <= offered.len().min(FIFO_BYTES));
            }
            6 => machine.button.press(),
            _ => machine.ioapic.pulse(input.byte() % (IOAPIC_PINS + 2)),
        }
        for message in machine.messages.take() {
            assert_eq!(message.address & !0xf_fff0 & !0xc, 0xfee0_0000);
            assert!(message.data <= 0x7ff);
        }
    }
    assert!(machine.output.0.lock().expect("one thread").len() <= written);
});
