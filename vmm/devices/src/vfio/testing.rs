//! A device of the host for tests: keeps state like the kernel does, writes down what it was told,
//! can be told to fail, and holds the model to the contract of [`VfioOps`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex};

use super::bar_layout::{AllowedRanges, BarPlan, place_bars};
use super::function::VfioPci;
use super::ops::{
    Area, BarInfo, Description, InterruptCounts, Mappable, Region, VectorKind, VfioOps,
};
use super::probe::RefuseDevice;
use super::window;
use crate::bus::Bus;
use crate::guest_error::GuestErrors;
use crate::interrupt::{MsiMessage, MsiSender};
use crate::pci::PciFunction;
use crate::sync::lock;

/// One call of the model that changes something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Call {
    WriteConfig(u64, Vec<u8>),
    WriteBar(u8, u64, Vec<u8>),
    Reset,
    Enable(VectorKind, u16, u16),
    Disable,
    Route(u16, Option<u32>),
    Map(u8, Area, u64),
    Unmap(u8, Area, u64),
}

/// A kind of call that can be told to fail.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Failing {
    Describe,
    Read,
    Write,
    Reset,
    Enable,
    Route,
    Map,
}

#[derive(Default)]
pub(super) struct FakeState {
    pub(super) config: Vec<u8>,
    pub(super) description: Description,
    pub(super) bars: HashMap<(u8, u64), u8>,
    pub(super) calls: Vec<Call>,
    pub(super) failing: HashSet<Failing>,
    pub(super) is_gone: bool,
    kind: Option<VectorKind>,
    routes: Vec<Option<MsiMessage>>,
    fired: Vec<bool>,
    mapped: BTreeMap<(u8, Area), u64>,
    pub(super) power_register: Option<usize>,
}

/// A device, shared between the model and the test.
#[derive(Clone, Default)]
pub(super) struct FakeDevice {
    pub(super) state: Arc<Mutex<FakeState>>,
    pub(super) delivered: Arc<Delivered>,
}

/// Messages that reached the guest, whichever way.
#[derive(Default)]
pub(super) struct Delivered(Mutex<Vec<MsiMessage>>);

impl Delivered {
    pub(super) fn take(&self) -> Vec<u32> {
        lock(&self.0)
            .drain(..)
            .map(|message| message.data)
            .collect()
    }
}

impl MsiSender for Delivered {
    fn send(&self, message: MsiMessage) {
        lock(&self.0).push(message);
    }
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(5)
}

impl FakeState {
    fn check(&self, failing: Failing) -> io::Result<()> {
        if self.is_gone || self.failing.contains(&failing) {
            return Err(eio());
        }
        Ok(())
    }

    fn is_decoding(&self) -> bool {
        let is_awake = self
            .power_register
            .is_none_or(|register| self.config[register] & 3 != 3);
        is_awake && self.config[4] & 2 != 0
    }

    fn take_fired(&mut self, index: u16) -> bool {
        std::mem::take(&mut self.fired[usize::from(index)])
    }
}

impl FakeDevice {
    /// A device with 4096 bytes of configuration space, of which `registers` are set, and `bars`.
    pub(super) fn new(
        registers: &[(u16, u32)],
        bars: &[(usize, BarInfo)],
        interrupts: InterruptCounts,
    ) -> Self {
        let device = Self::default();
        {
            let mut state = lock(&device.state);
            state.config = vec![0; 4096];
            state.description.config_bytes = 4096;
            state.description.interrupts = interrupts;
            for (index, info) in bars {
                state.description.bars[*index] = info.clone();
            }
        }
        device.set_config(0x00, 0xa808_144d);
        for &(offset, value) in registers {
            device.set_config(offset, value);
        }
        device
    }

    pub(super) fn set_config(&self, offset: u16, value: u32) {
        let place = usize::from(offset);
        lock(&self.state).config[place..place + 4].copy_from_slice(&value.to_le_bytes());
    }

    pub(super) fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut lock(&self.state).calls)
    }

    pub(super) fn fail(&self, failing: Failing) {
        lock(&self.state).failing.insert(failing);
    }

    pub(super) fn heal(&self) {
        lock(&self.state).failing.clear();
    }

    pub(super) fn command(&self) -> u16 {
        let state = lock(&self.state);
        u16::from_le_bytes([state.config[4], state.config[5]])
    }

    pub(super) fn mapped(&self) -> Vec<(u8, u64, u64, u64)> {
        let state = lock(&self.state);
        let entry =
            |(&(bar, area), &address): (&(u8, Area), &u64)| (bar, area.offset, area.bytes, address);
        state.mapped.iter().map(entry).collect()
    }

    pub(super) fn enabled(&self) -> (Option<VectorKind>, usize) {
        let state = lock(&self.state);
        (state.kind, state.routes.len())
    }

    /// The device interrupts through vector `index`.
    pub(super) fn fire(&self, index: usize) {
        let mut state = lock(&self.state);
        match state.routes.get(index).copied() {
            Some(Some(message)) => self.delivered.send(message),
            Some(None) => state.fired[index] = true,
            None => (),
        }
    }

    pub(super) fn probe(&self) -> Result<VfioPci, RefuseDevice> {
        let sender: Arc<dyn MsiSender> = self.delivered.clone();
        VfioPci::probe(Box::new(self.clone()), &sender, &Arc::default())
    }
}

impl VfioOps for FakeDevice {
    fn describe(&self) -> io::Result<Description> {
        let state = lock(&self.state);
        state.check(Failing::Describe)?;
        Ok(state.description.clone())
    }

    fn read(&self, region: Region, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let state = lock(&self.state);
        state.check(Failing::Read)?;
        assert!(matches!(data.len(), 1 | 2 | 4 | 8));
        match region {
            Region::Config => {
                let place = usize::try_from(offset).unwrap();
                data.copy_from_slice(&state.config[place..place + data.len()]);
            }
            Region::Bar(bar) => {
                let info = &state.description.bars[usize::from(bar)];
                assert!(offset + u64::try_from(data.len()).unwrap() <= info.bytes);
                if !state.is_decoding() {
                    return Err(eio());
                }
                for (at, byte) in (offset..).zip(data) {
                    *byte = state.bars.get(&(bar, at)).copied().unwrap_or(0);
                }
            }
        }
        Ok(())
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = lock(&self.state);
        match region {
            Region::Config => {
                assert!(matches!(data.len(), 1 | 2 | 4));
                state.calls.push(Call::WriteConfig(offset, data.to_vec()));
                state.check(Failing::Write)?;
                let place = usize::try_from(offset).unwrap();
                state.config[place..place + data.len()].copy_from_slice(data);
                assert!(
                    state.is_decoding() || state.mapped.is_empty(),
                    "BARs are unmapped before decoding goes off"
                );
            }
            Region::Bar(bar) => {
                let info = &state.description.bars[usize::from(bar)];
                assert!(offset + u64::try_from(data.len()).unwrap() <= info.bytes);
                state.calls.push(Call::WriteBar(bar, offset, data.to_vec()));
                state.check(Failing::Write)?;
                if !state.is_decoding() {
                    return Err(eio());
                }
                for (at, &byte) in (offset..).zip(data) {
                    state.bars.insert((bar, at), byte);
                }
            }
        }
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        assert!(state.mapped.is_empty() && state.kind.is_none());
        state.calls.push(Call::Reset);
        state.check(Failing::Reset)
    }

    fn enable_vectors(&self, kind: VectorKind, first: u16, count: u16) -> io::Result<()> {
        let mut state = lock(&self.state);
        let interrupts = state.description.interrupts;
        let end = usize::from(first) + usize::from(count);
        assert!(count > 0);
        assert_eq!(usize::from(first), state.routes.len());
        let most = match kind {
            VectorKind::Msi => interrupts.msi,
            VectorKind::MsiX => interrupts.msix,
        };
        assert!(end <= usize::try_from(most).unwrap());
        assert!(first == 0 || (interrupts.can_add_msix && state.kind == Some(VectorKind::MsiX)));
        state.calls.push(Call::Enable(kind, first, count));
        state.check(Failing::Enable)?;
        state.kind = Some(kind);
        state.routes.resize(end, None);
        state.fired.resize(end, false);
        Ok(())
    }

    fn disable_vectors(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.calls.push(Call::Disable);
        state.kind = None;
        state.routes.clear();
        state.fired.clear();
        state.check(Failing::Enable)
    }

    fn route_vector(&self, index: u16, message: Option<MsiMessage>) -> io::Result<()> {
        let mut state = lock(&self.state);
        let place = usize::from(index);
        assert!(place < state.routes.len());
        let data = message.map(|message| message.data);
        state.calls.push(Call::Route(index, data));
        state.routes[place] = None;
        state.check(Failing::Route)?;
        state.routes[place] = message;
        if let Some(message) = message
            && state.take_fired(index)
        {
            self.delivered.send(message);
        }
        Ok(())
    }

    fn take_fired(&self, index: u16) -> bool {
        let mut state = lock(&self.state);
        assert!(state.routes[usize::from(index)].is_none());
        state.take_fired(index)
    }

    fn map_area(&self, bar: u8, area: Area, address: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        for number in [area.offset, area.bytes, address] {
            assert!(number.is_multiple_of(4096));
        }
        assert!(area.bytes > 0 && state.is_decoding());
        let info = &state.description.bars[usize::from(bar)];
        assert!(area.offset + area.bytes <= info.bytes && info.mappable != Mappable::Nothing);
        state.calls.push(Call::Map(bar, area, address));
        state.check(Failing::Map)?;
        assert_eq!(state.mapped.insert((bar, area), address), None);
        Ok(())
    }

    fn unmap_area(&self, bar: u8, area: Area, address: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.calls.push(Call::Unmap(bar, area, address));
        assert_eq!(state.mapped.remove(&(bar, area)), Some(address));
        state.check(Failing::Map)
    }
}

/// A BAR of `bytes` bytes that can be mapped as a whole.
pub(super) fn whole(bytes: u64) -> BarInfo {
    BarInfo {
        bytes,
        is_readable: true,
        is_writable: true,
        mappable: Mappable::Whole,
        is_msix_mappable: true,
    }
}

/// A guest with one passed-through function.
pub(super) struct Guest {
    pub(super) device: FakeDevice,
    pub(super) function: Arc<VfioPci>,
    pub(super) plan: BarPlan,
    pub(super) errors: Arc<GuestErrors>,
    bus: Bus,
}

impl Guest {
    pub(super) fn new(device: FakeDevice) -> Self {
        let sender: Arc<dyn MsiSender> = device.delivered.clone();
        let errors = Arc::new(GuestErrors::default());
        let function = VfioPci::probe(Box::new(device.clone()), &sender, &errors);
        let function = Arc::new(function.expect("the device is sane"));
        let allowed = AllowedRanges {
            low: 0xd000_0000..0xe000_0000,
            high: std::iter::once(8 << 30..1 << 39).collect(),
        };
        let plan = place_bars(&function.wanted_bars(0), &allowed).expect("there is room");
        let ranges = window::place(std::slice::from_ref(&function), &plan, &errors);
        let bus = Bus::new(ranges, errors.clone()).expect("windows do not overlap");
        device.take_calls();
        Self {
            device,
            function,
            plan,
            errors,
            bus,
        }
    }

    /// Where the plan put BAR `bar`.
    pub(super) fn address(&self, bar: u8) -> u64 {
        let mut bars = self.plan.bars.iter();
        bars.find(|placed| placed.bar == bar).unwrap().address
    }

    pub(super) fn config(&self, offset: u16, width: usize) -> u32 {
        let mut bytes = [0; 4];
        self.function.config_read(offset, &mut bytes[..width]);
        u32::from_le_bytes(bytes)
    }

    pub(super) fn set_config(&self, offset: u16, width: usize, value: u32) {
        self.function
            .config_write(offset, &value.to_le_bytes()[..width]);
    }

    pub(super) fn read(&self, address: u64, width: usize) -> u64 {
        let mut bytes = [0; 8];
        self.bus.read(address, &mut bytes[..width]);
        u64::from_le_bytes(bytes)
    }

    pub(super) fn write(&self, address: u64, width: usize, value: u64) {
        self.bus.write(address, &value.to_le_bytes()[..width]);
    }

    pub(super) fn counter(&self, name: &str) -> u64 {
        let counters = self.function.counters();
        counters.iter().find(|(known, _)| *known == name).unwrap().1
    }
}
