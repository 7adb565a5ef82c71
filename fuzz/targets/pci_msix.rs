//! PCI configuration space with BARs of both widths, and MSI-X beside a model of what it may send.
//!
//! Holds: what the guest may not write never changes, a BAR reads its address or its size, a
//! message leaves only what is enabled and unmasked, and an unmasked vector keeps none back.
#![no_main]

use std::sync::{Arc, Mutex};

use berth_fuzz::guest::ECAM;
use berth_fuzz::input::Input;
use berth_fuzz::messages::Messages;
use berth_vmm_devices::bus::{Bus, BusRange};
use berth_vmm_devices::guest_error::GuestErrors;
use berth_vmm_devices::pci::bar::{BarKind, BarRequest};
use berth_vmm_devices::pci::config_space::{ConfigSpace, PciIdentity};
use berth_vmm_devices::pci::msix::Msix;
use berth_vmm_devices::pci::root::{BarWindows, ECAM_BYTES, PciRoot};
use berth_vmm_devices::pci::{DeviceSlot, PciFunction};
use libfuzzer_sys::fuzz_target;

const MOVES: usize = 200;
const VECTORS: u16 = 70;
const SLOT: u8 = 5;
const FUNCTION: u64 = ECAM + ((SLOT as u64) << 15);
const SMALL: BarRequest = BarRequest {
    index: 0,
    bytes: 0x1000,
    kind: BarKind::Memory32,
};
const LARGE: BarRequest = BarRequest {
    index: 2,
    bytes: 1 << 33,
    kind: BarKind::Memory64,
};

/// A function with two BARs, the vector table in the small one.
struct Function {
    space: Mutex<ConfigSpace>,
    capability: u16,
    msix: Mutex<Msix>,
}

impl Function {
    fn new(messages: Arc<Messages>, errors: Arc<GuestErrors>) -> Self {
        let mut space = ConfigSpace::new(PciIdentity {
            vendor: 0x1af4,
            device: 0x1041,
            revision: 1,
            class: 0x02_00_00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1041,
        });
        let body = [VECTORS.to_le_bytes()[0] - 1, 0, 0, 0, 0, 0, 0, 8, 0, 0];
        let start = space
            .add_capability(0x11, &body, &[0, 0xc0])
            .expect("there is room");
        Self {
            space: Mutex::new(space),
            capability: start.into(),
            msix: Mutex::new(Msix::new(VECTORS, messages, errors)),
        }
    }
}

impl PciFunction for Function {
    fn bar_requests(&self) -> Vec<BarRequest> {
        vec![SMALL, LARGE]
    }
    fn assign_bar(&self, index: u8, address: u64) {
        let request = if index == SMALL.index { SMALL } else { LARGE };
        self.space
            .lock()
            .expect("one thread")
            .add_bar(request, address);
    }
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4) && usize::from(offset) % data.len() == 0);
        self.space.lock().expect("one thread").read(offset, data);
    }
    fn config_write(&self, offset: u16, data: &[u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4) && usize::from(offset) % data.len() == 0);
        let mut space = self.space.lock().expect("one thread");
        space.write(offset, data);
        let control = space.value(self.capability + 2, 2);
        let control = u16::try_from(control).expect("two bytes were read");
        self.msix.lock().expect("one thread").set_control(control);
    }
    fn bar_read(&self, index: u8, offset: u64, data: &mut [u8]) {
        assert!(index == SMALL.index || index == LARGE.index);
        match offset {
            0..0x800 => self
                .msix
                .lock()
                .expect("one thread")
                .table_read(offset, data),
            _ => self
                .msix
                .lock()
                .expect("one thread")
                .pending_read(offset - 0x800, data),
        }
    }
    fn bar_write(&self, index: u8, offset: u64, data: &[u8]) {
        if index == SMALL.index {
            self.msix
                .lock()
                .expect("one thread")
                .table_write(offset, data);
        }
    }
}

struct Machine {
    bus: Bus,
    function: Arc<Function>,
    messages: Arc<Messages>,
    small: u64,
    large: u64,
}

impl Machine {
    fn new() -> Self {
        let (messages, errors) = (Arc::<Messages>::default(), Arc::<GuestErrors>::default());
        let function = Arc::new(Function::new(messages.clone(), errors.clone()));
        let slot = DeviceSlot::new(SLOT).expect("the slot exists");
        let windows = BarWindows {
            low: 0xc000_0000..0xd000_0000,
            high: 1 << 40..1 << 41,
        };
        let functions = vec![(slot, function.clone() as Arc<dyn PciFunction>)];
        let root = PciRoot::new(functions, &windows, errors.clone()).expect("the BARs fit");
        let root = Arc::new(root);
        let mut ranges = root.bar_ranges().to_vec();
        ranges.push(BusRange {
            base: ECAM,
            bytes: ECAM_BYTES,
            device: root,
        });
        let bus = Bus::new(ranges, errors).expect("nothing overlaps");
        let mut machine = Self {
            bus,
            function,
            messages,
            small: 0,
            large: 0,
        };
        machine.small = machine.config(0x10, 4) & !0xf;
        machine.large = machine.config(0x18, 4) & !0xf | machine.config(0x1c, 4) << 32;
        machine
    }

    fn read(&self, address: u64, width: usize) -> u64 {
        let mut bytes = [0; 16];
        self.bus.read(address, &mut bytes[..width]);
        u64::from_le_bytes(*bytes.first_chunk().expect("16 bytes"))
    }

    fn write(&self, address: u64, width: usize, value: u64) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&value.to_le_bytes());
        self.bus.write(address, &bytes[..width]);
    }

    fn config(&self, offset: u64, width: usize) -> u64 {
        self.read(FUNCTION + offset, width)
    }

    fn entry(&self, vector: u16) -> [u64; 2] {
        let at = self.small + u64::from(vector) * 16;
        [self.read(at, 8), self.read(at + 8, 8)]
    }

    /// Whether vector `vector` may send now.
    fn is_open(&self, vector: u16) -> bool {
        let mut entry = [0; 16];
        let msix = self.function.msix.lock().expect("one thread");
        msix.table_read(u64::from(vector) * 16, &mut entry[..8]);
        msix.table_read(u64::from(vector) * 16 + 8, &mut entry[8..]);
        self.control() == 0x8000 && entry[12] & 1 == 0
    }

    fn control(&self) -> u64 {
        self.config(u64::from(self.function.capability) + 2, 2) & 0xc000
    }

    fn is_pending(&self, vector: u16) -> bool {
        let mut bits = [0; 8];
        let msix = self.function.msix.lock().expect("one thread");
        msix.pending_read(u64::from(vector / 64) * 8, &mut bits);
        u64::from_le_bytes(bits) >> (vector % 64) & 1 != 0
    }

    fn check_constants(&self) {
        assert_eq!(self.config(0, 4), 0x1041_1af4);
        assert_eq!(self.config(8, 4), 0x0200_0001);
        assert_eq!(self.config(6, 2), 0x10);
        assert_eq!(self.config(0x34, 1), u64::from(self.function.capability));
        let low = self.config(0x10, 4);
        assert!(low == self.small || low == 0xffff_f000, "BAR 0 is {low:#x}");
        let [low, high] = [self.config(0x18, 4), self.config(0x1c, 4)];
        assert!(
            low == (self.large & 0xffff_ffff | 4) || low == 4,
            "BAR 2 is {low:#x}"
        );
        assert!(
            high == self.large >> 32 || high == 0xffff_fffe,
            "BAR 3 is {high:#x}"
        );
        for offset in [0x14, 0x20, 0x24, 0x30] {
            assert_eq!(self.config(offset, 4), 0);
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let machine = Machine::new();
    let mut input = Input::new(bytes);
    for _ in 0..MOVES {
        if input.is_empty() {
            break;
        }
        make_move(&machine, &mut input);
        machine.check_constants();
        for vector in 0..VECTORS {
            assert!(
                !(machine.is_open(vector) && machine.is_pending(vector)),
                "one is kept back"
            );
        }
        // Taken after every move, or those of an open moment would be blamed on a later mask.
        let sent = machine.messages.take();
        assert!(
            machine.control() == 0x8000 || sent.is_empty(),
            "MSI-X is off or masked"
        );
    }
});

fn make_move(machine: &Machine, input: &mut Input<'_>) {
    match input.byte() % 9 {
        0 => {
            let (offset, width) = (u64::from(input.byte()), input.width());
            machine.write(FUNCTION + offset, width, input.quad());
        }
        1 => {
            machine.read(ECAM + u64::from(input.long()) % ECAM_BYTES, input.width());
        }
        2 => {
            let (offset, width) = (u64::from(input.long()), input.width());
            machine.write(ECAM + offset % ECAM_BYTES, width, input.quad());
        }
        3 => {
            let (offset, width) = (u64::from(input.word()) % 0x1000, input.width());
            machine.write(machine.small + offset, width, input.quad());
        }
        4 => {
            machine.read(machine.large + u64::from(input.long()) * 2, input.width());
        }
        5 => signal(machine, u16::from(input.byte())),
        6 => {
            let control = u64::from(input.byte()) << 8;
            machine.write(
                FUNCTION + u64::from(machine.function.capability) + 2,
                2,
                control,
            );
        }
        7 => {
            // Unmask or mask one vector; the upper bits say which.
            let vector = u64::from(input.byte()) % u64::from(VECTORS);
            machine.write(machine.small + vector * 16 + 12, 4, input.byte().into());
        }
        _ => move_bars(machine, input),
    }
}

/// Moves of BARs, half-written ones too, with and without decoding: the function stays where it is.
fn move_bars(machine: &Machine, input: &mut Input<'_>) {
    let before = machine.entry(0);
    let (command, halves, target) = (input.byte(), input.byte(), input.quad() & !0xfff);
    machine.write(FUNCTION + 4, 1, command.into());
    for (half, register) in [(0, 0x10), (1, 0x18), (2, 0x1c)] {
        if halves >> half & 1 != 0 {
            let shift = if half == 2 { 32 } else { 0 };
            machine.write(FUNCTION + register, 4, target >> shift);
        }
    }
    machine.write(FUNCTION + 4, 1, 2);
    assert_eq!(machine.entry(0), before, "the table answers where it was");
}

/// The device interrupts: compared with what the table says.
fn signal(machine: &Machine, vector: u16) {
    machine.messages.take();
    let is_there = vector < VECTORS;
    let is_open = is_there && machine.is_open(vector);
    let was_pending = is_there && machine.is_pending(vector);
    machine.write(FUNCTION + 4, 2, 2);
    let [address, rest] = machine.entry(vector.min(VECTORS - 1));
    machine
        .function
        .msix
        .lock()
        .expect("one thread")
        .signal(vector);
    let sent = machine.messages.take();
    assert_eq!(sent.len(), usize::from(is_open));
    if let [message] = sent.as_slice() {
        assert_eq!(
            (message.address, u64::from(message.data)),
            (address, rest & 0xffff_ffff)
        );
    }
    if is_there && !is_open {
        let is_enabled = machine.control() & 0x8000 != 0;
        assert_eq!(machine.is_pending(vector), was_pending || is_enabled);
    }
}
