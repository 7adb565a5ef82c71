//! A passed-through device as a script: its registers, its failures and what the host was told.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use berth_vmm_devices::interrupt::MsiMessage;
use berth_vmm_devices::vfio::bar_layout::BarPlan;
use berth_vmm_devices::vfio::ops::{
    Area, BarInfo, Description, InterruptCounts, Mappable, Region, VectorKind, VfioOps,
};

use crate::input::Input;

const PAGE_BYTES: u64 = 4096;
const COMMAND: usize = 4;
const BUS_MASTER: u8 = 1 << 2;
const NO_INTX: u8 = 1 << 2;
/// Vector counts stay small enough to look at all of them after every move.
const MOST_VECTORS: u32 = 96;

/// What a capability of the script is, so that most scripts get past the first checks.
const STANDARD_IDS: [u8; 8] = [0x01, 0x03, 0x05, 0x10, 0x11, 0x13, 0x14, 0x09];

struct State {
    config: Vec<u8>,
    description: Description,
    /// Where the vector table and the pending bits were when the model looked.
    structures: Vec<(u8, Area)>,
    is_dma_allowed: bool,
    /// The next accesses that fail, one bit each.
    failures: u64,
    is_all_ones: bool,
    kind: Option<VectorKind>,
    routes: Vec<Option<MsiMessage>>,
    fired: Vec<bool>,
    mapped: BTreeMap<(u8, Area), u64>,
}

/// The device, shared between the model and the target.
#[derive(Clone)]
pub struct PassedDevice(Arc<Mutex<State>>);

impl std::fmt::Debug for PassedDevice {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("PassedDevice")
    }
}

impl PassedDevice {
    /// A device from the input: a few capabilities in a chain, then patches anywhere.
    #[must_use]
    pub fn new(input: &mut Input<'_>) -> Self {
        let mut config = vec![0; 4096];
        config[..4].copy_from_slice(&[0x4d, 0x14, 0x08, 0xa8]);
        chain(&mut config, input);
        let mut description = Description {
            config_bytes: if input.byte() % 8 == 0 { 256 } else { 4096 },
            interrupts: interrupts(input),
            ..Description::default()
        };
        for index in 0..description.bars.len() {
            let kind = input.byte();
            let info = bar(kind, input);
            config[0x10 + index * 4] = kind & 0xf;
            if let Some(place) = description.bars.get_mut(index) {
                *place = info;
            }
        }
        for _ in 0..input.byte() % 8 {
            let place = usize::from(input.word() % 4096);
            config[place] = input.byte();
        }
        let structures = structures(&config);
        Self(Arc::new(Mutex::new(State {
            config,
            description,
            structures,
            is_dma_allowed: false,
            failures: 0,
            is_all_ones: false,
            kind: None,
            routes: Vec::new(),
            fired: Vec::new(),
            mapped: BTreeMap::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0
            .lock()
            .expect("a panic is a finding and ends the run")
    }

    /// From here on the device may be a bus master.
    pub fn allow_dma(&self) {
        self.state().is_dma_allowed = true;
    }

    /// The device interrupts.
    pub fn fire(&self, index: u16) {
        let mut state = self.state();
        let index = usize::from(index) % state.routes.len().max(1);
        if let Some(None) = state.routes.get(index)
            && let Some(fired) = state.fired.get_mut(index)
        {
            *fired = true;
        }
    }

    /// The device changes a register, starts to fail or goes away, or recovers.
    pub fn misbehave(&self, input: &mut Input<'_>) {
        let mut state = self.state();
        match input.byte() % 4 {
            0 => {
                let place = usize::from(input.word() % 4096);
                let byte = input.byte();
                // Command bits are the model's to write; what it wrote is checked.
                if !(COMMAND..COMMAND + 2).contains(&place) {
                    state.config[place] = byte;
                }
            }
            1 => state.failures = input.quad(),
            2 => state.is_all_ones = true,
            _ => (state.failures, state.is_all_ones) = (0, false),
        }
    }

    /// An address in or near a BAR, often near the vector table.
    #[must_use]
    pub fn interesting_address(&self, plan: &BarPlan, input: &mut Input<'_>) -> Option<u64> {
        let (choice, offset) = (usize::from(input.byte()), u64::from(input.word()));
        let placed = plan.bars.get(choice % plan.bars.len().max(1))?;
        let state = self.state();
        let structure = state
            .structures
            .iter()
            .find(|(bar, _)| *bar == placed.bar && offset % 2 == 0);
        let start = structure.map_or(0, |(_, area)| area.offset.saturating_sub(16));
        Some(
            placed
                .address
                .saturating_add(start)
                .saturating_add(offset % 2048),
        )
    }

    /// What must hold between two moves.
    ///
    /// # Panics
    /// If it does not.
    pub fn check(&self, plan: &BarPlan) {
        let state = self.state();
        for (&(bar, area), &address) in &state.mapped {
            let end = address + area.bytes;
            let is_inside = [&plan.low, &plan.high]
                .iter()
                .any(|window| window.start <= address && end <= window.end);
            assert!(
                is_inside,
                "BAR {bar} is mapped at {address:#x}, out of its window"
            );
        }
        for message in state.routes.iter().flatten() {
            assert_eq!(message.address & !0xf_ffff, 0xfee0_0000);
        }
    }
}

/// Up to eight standard capabilities at regular places, and up to four extended ones.
fn chain(config: &mut [u8], input: &mut Input<'_>) {
    config[6] = 0x10;
    let mut pointer = 0x34;
    for place in (0x40..0x100)
        .step_by(24)
        .take(usize::from(input.byte() % 9))
    {
        let id = STANDARD_IDS[usize::from(input.byte() % 8)];
        config[pointer] = u8::try_from(place).expect("below 256");
        config[place] = id;
        let body = input.bytes(10);
        config[place + 2..place + 2 + body.len()].copy_from_slice(body);
        pointer = place + 1;
    }
    let mut last: Option<usize> = None;
    for place in (0x100_u16..0x1000)
        .step_by(0x80)
        .take(usize::from(input.byte() % 5))
    {
        let at = usize::from(place);
        config[at] = input.byte() % 0x40;
        config[at + 2] = 1;
        if let Some(last) = last {
            let next = (place << 4).to_le_bytes();
            config[last + 2] |= next[0];
            config[last + 3] = next[1];
        }
        last = Some(at);
    }
}

fn interrupts(input: &mut Input<'_>) -> InterruptCounts {
    let flags = input.byte();
    InterruptCounts {
        intx: u32::from(flags & 1),
        msi: u32::from(input.byte()) % (MOST_VECTORS + 1),
        msix: u32::from(input.byte()) % (MOST_VECTORS + 1),
        can_add_msix: flags & 2 != 0,
    }
}

fn bar(kind: u8, input: &mut Input<'_>) -> BarInfo {
    let size = input.byte();
    if size % 3 == 0 {
        return BarInfo::default();
    }
    let bytes = match size {
        255 => input.quad(),
        _ => 1 << (4 + u32::from(size) % 36),
    };
    let mappable = match kind >> 4 & 3 {
        0 => Mappable::Nothing,
        1 | 2 => Mappable::Whole,
        _ => {
            let area = |input: &mut Input<'_>| Area {
                offset: u64::from(input.word()) << 8,
                bytes: u64::from(input.word()) << 8,
            };
            Mappable::Areas((0..input.byte() % 4).map(|_| area(input)).collect())
        }
    };
    BarInfo {
        bytes,
        is_readable: true,
        is_writable: kind & 0x40 == 0,
        mappable,
        is_msix_mappable: kind & 0x80 == 0,
    }
}

/// The MSI-X structures that the configuration space tells of, found without the model's help.
fn structures(config: &[u8]) -> Vec<(u8, Area)> {
    if config.get(6).is_none_or(|status| status & 0x10 == 0) {
        return Vec::new();
    }
    let mut pointer = config
        .get(0x34)
        .copied()
        .map_or(0, |pointer| pointer & 0xfc);
    for _ in 0..48 {
        let at = usize::from(pointer);
        let Some(header) = config.get(at..at + 12).filter(|_| at >= 0x40) else {
            break;
        };
        if header[0] == 0x11 {
            let vectors = u64::from(u16::from_le_bytes([header[2], header[3]]) & 0x7ff) + 1;
            let place = |at: usize, bytes| {
                let register = [header[at], header[at + 1], header[at + 2], header[at + 3]];
                let register = u32::from_le_bytes(register);
                let [bar, ..] = (register & 7).to_le_bytes();
                let offset = u64::from(register & !7);
                (bar, Area { offset, bytes })
            };
            return vec![place(4, vectors * 16), place(8, vectors.div_ceil(64) * 8)];
        }
        pointer = header[1] & 0xfc;
    }
    Vec::new()
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(5)
}

impl State {
    fn fails(&mut self) -> io::Result<()> {
        let fails = self.failures & 1 != 0;
        self.failures = self.failures.rotate_right(1);
        if fails { Err(eio()) } else { Ok(()) }
    }

    fn check_bar(&self, bar: u8, offset: u64, bytes: usize) {
        let info = &self.description.bars[usize::from(bar)];
        let end = offset + u64::try_from(bytes).expect("at most 8");
        assert!(end <= info.bytes, "an access ends inside its BAR");
        let touches_structure = self.structures.iter().any(|(in_bar, area)| {
            *in_bar == bar && offset < area.offset + area.bytes && area.offset < end
        });
        let has_msix = self.description.interrupts.msix > 0;
        assert!(
            !touches_structure || !has_msix,
            "the vector table is the model's"
        );
    }
}

impl VfioOps for PassedDevice {
    fn describe(&self) -> io::Result<Description> {
        Ok(self.state().description.clone())
    }

    fn read(&self, region: Region, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        assert!(matches!(data.len(), 1 | 2 | 4 | 8));
        if let Region::Bar(bar) = region {
            state.check_bar(bar, offset, data.len());
        }
        state.fails()?;
        data.fill(0xff);
        if region == Region::Config && !state.is_all_ones {
            let place = usize::try_from(offset).expect("below 4096");
            data.copy_from_slice(&state.config[place..place + data.len()]);
        }
        Ok(())
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let place = match region {
            Region::Bar(bar) => {
                state.check_bar(bar, offset, data.len());
                return state.fails();
            }
            Region::Config => usize::try_from(offset).expect("below 4096"),
        };
        assert!(matches!(data.len(), 1 | 2 | 4));
        if place < 0x40 {
            assert_eq!(
                (place, data.len()),
                (COMMAND, 2),
                "only the command is written"
            );
            assert!(data[1] & NO_INTX != 0, "INTx stays off");
            assert!(data[0] & 1 == 0, "ports are not decoded");
            assert!(data[0] & BUS_MASTER == 0 || state.is_dma_allowed);
            assert!(
                data[0] & 2 != 0 || state.mapped.is_empty(),
                "unmapped first"
            );
        }
        state.fails()?;
        if let Some(bytes) = state.config.get_mut(place..place + data.len()) {
            bytes.copy_from_slice(data);
        }
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        let mut state = self.state();
        assert!(state.mapped.is_empty() && state.kind.is_none());
        state.fails()
    }

    fn enable_vectors(&self, kind: VectorKind, first: u16, count: u16) -> io::Result<()> {
        let mut state = self.state();
        let interrupts = state.description.interrupts;
        let end = usize::from(first) + usize::from(count);
        let most = match kind {
            VectorKind::Msi => interrupts.msi,
            VectorKind::MsiX => interrupts.msix,
        };
        assert!(count > 0 && usize::from(first) == state.routes.len());
        assert!(u32::try_from(end).is_ok_and(|end| end <= most));
        assert!(first == 0 || (interrupts.can_add_msix && state.kind == Some(VectorKind::MsiX)));
        state.fails()?;
        state.kind = Some(kind);
        state.routes.resize(end, None);
        state.fired.resize(end, false);
        Ok(())
    }

    fn disable_vectors(&self) -> io::Result<()> {
        let mut state = self.state();
        state.kind = None;
        state.routes.clear();
        state.fired.clear();
        state.fails()
    }

    fn route_vector(&self, index: u16, message: Option<MsiMessage>) -> io::Result<()> {
        let mut state = self.state();
        let index = usize::from(index);
        assert!(
            index < state.routes.len(),
            "only an enabled vector is routed"
        );
        state.routes[index] = None;
        state.fails()?;
        state.routes[index] = message;
        if message.is_some() {
            state.fired[index] = false;
        }
        Ok(())
    }

    fn take_fired(&self, index: u16) -> bool {
        let mut state = self.state();
        let index = usize::from(index);
        assert!(
            state.routes[index].is_none(),
            "only an unrouted vector is asked"
        );
        std::mem::take(&mut state.fired[index])
    }

    fn map_area(&self, bar: u8, area: Area, address: u64) -> io::Result<()> {
        let mut state = self.state();
        for number in [area.offset, area.bytes, address] {
            assert!(number.is_multiple_of(PAGE_BYTES));
        }
        let info = &state.description.bars[usize::from(bar)];
        assert!(area.bytes > 0 && area.offset + area.bytes <= info.bytes);
        assert!(info.mappable != Mappable::Nothing && info.is_readable && info.is_writable);
        if state.description.interrupts.msix > 0 {
            for (in_bar, structure) in &state.structures {
                let is_apart = area.offset + area.bytes <= structure.offset
                    || structure.offset + structure.bytes <= area.offset;
                assert!(*in_bar != bar || is_apart, "the vector table traps");
            }
        }
        state.fails()?;
        assert_eq!(state.mapped.insert((bar, area), address), None);
        Ok(())
    }

    fn unmap_area(&self, bar: u8, area: Area, address: u64) -> io::Result<()> {
        let mut state = self.state();
        assert_eq!(state.mapped.remove(&(bar, area)), Some(address));
        state.fails()
    }
}
