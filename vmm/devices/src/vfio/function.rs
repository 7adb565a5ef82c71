//! One passed-through function: the guest's accesses and what they do to the device.
//!
//! Owns the order of effects. Memory is decoded with the command's memory bit set in power state
//! D0; only then are BARs mapped, and they are unmapped before the device hears that it is no
//! longer so. Bus mastering reaches the device only once all guest memory is mapped for DMA. INTx
//! stays disabled in the device whatever the guest writes.
//!
//! ```text
//! reset by the guest -> BARs unmapped, vectors off, device reset, registers as after power-on
//!                       (BAR addresses stay: the guest finds the function where it was)
//! D0 -> sleep        -> BARs unmapped, then the device's register
//! sleep -> D0        -> the device's register, command, vectors armed again, BARs mapped
//! ```

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::bar_layout::WantedBar;
use super::bars::{BarOffset, FunctionBars};
use super::config_policy::{
    BARS, BARS_END, COMMAND, COMMAND_BUS_MASTER, COMMAND_ERRORS, COMMAND_MEMORY, COMMAND_NO_INTX,
    ConfigPolicy, Rule,
};
use super::effects::{EffectRegisters, POWER_STATE};
use super::host::{Host, VfioCounter};
use super::msi::PassedMsi;
use super::msix::PassedMsix;
use super::ops::{Region, VfioOps};
use super::probe::{Probed, RefuseDevice, probe};
use super::vectors::HostVectors;
use crate::counters::Counters;
use crate::guest_error::{GuestError, GuestErrors};
use crate::interrupt::MsiSender;
use crate::pci::PciFunction;
use crate::pci::bar::BarRequest;
use crate::sync::lock;

/// A passed-through function. Its BARs are placed by [`super::window::place`], not by the bus.
pub struct VfioPci {
    host: Host,
    errors: Arc<GuestErrors>,
    hidden_port_bars: Vec<u8>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    policy: ConfigPolicy,
    bars: FunctionBars,
    msi: Option<PassedMsi>,
    msix: Option<PassedMsix>,
    vectors: HostVectors,
    effects: EffectRegisters,
    is_awake: bool,
    is_dma_allowed: bool,
    /// Whether the device took a command with memory decoding on. A mapping without it would not
    /// read all ones but end the guest.
    is_device_decoding: bool,
}

impl fmt::Debug for VfioPci {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("VfioPci")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl VfioPci {
    /// Examines the device behind `ops` and makes it quiet: no decoding, no bus mastering, no INTx.
    /// `msi` sends what was held back while a vector was masked.
    ///
    /// # Errors
    /// If the device cannot be given to a guest.
    pub fn probe(
        ops: Box<dyn VfioOps>,
        msi: &Arc<dyn MsiSender>,
        errors: &Arc<GuestErrors>,
    ) -> Result<Self, RefuseDevice> {
        let probed = probe(ops.as_ref(), msi, errors)?;
        ops.write(
            Region::Config,
            u64::from(COMMAND),
            &COMMAND_NO_INTX.to_le_bytes(),
        )
        .map_err(|cause| RefuseDevice::Config {
            offset: COMMAND,
            cause,
        })?;
        let host = Host::new(ops);
        let Probed {
            policy,
            bars,
            msi,
            msix,
            effects,
            hidden_port_bars,
        } = probed;
        let mut state = State {
            policy,
            bars,
            msi,
            msix,
            vectors: HostVectors::default(),
            effects,
            is_awake: true,
            is_dma_allowed: false,
            is_device_decoding: false,
        };
        state.read_power_state(&host, 0);
        Ok(Self {
            host,
            errors: Arc::clone(errors),
            hidden_port_bars,
            state: Mutex::new(state),
        })
    }

    /// The BARs that want addresses; `function` is this one's position among those that are placed
    /// together.
    #[must_use]
    pub fn wanted_bars(&self, function: usize) -> Vec<WantedBar> {
        let state = lock(&self.state);
        let wanted = state.bars.wanted().map(|(bar, bytes, kind)| WantedBar {
            function,
            bar,
            bytes,
            kind,
        });
        wanted.collect()
    }

    /// Puts a BAR at `address`; the guest can move it within `window`.
    pub(super) fn place_bar(&self, bar: u8, address: u64, window: &Range<u64>) {
        lock(&self.state).bars.place(bar, address, window);
    }

    /// BARs for port I/O, which the guest does not see: worth a line in the log, as a few devices
    /// want them.
    #[must_use]
    pub fn hidden_port_bars(&self) -> &[u8] {
        &self.hidden_port_bars
    }

    /// Lets the device become a bus master when the guest wishes. To be called when all guest
    /// memory is mapped for its DMA.
    pub fn allow_dma(&self) {
        let mut state = lock(&self.state);
        state.is_dma_allowed = true;
        state.write_command(&self.host);
    }

    /// Counters of the device.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        self.host.counters()
    }

    /// Counts an unrecoverable error that the device reported (VFIO's error interrupt).
    pub fn note_host_error(&self) {
        self.host.count(VfioCounter::DeviceError);
    }

    /// Counts a wish of the host to have the device back (VFIO's request interrupt).
    pub fn note_host_request(&self) {
        self.host.count(VfioCounter::ReturnRequested);
    }

    /// Answers a read at guest physical `address` if a BAR decodes it.
    pub(super) fn read_memory(&self, address: u64, data: &mut [u8]) -> bool {
        let mut state = lock(&self.state);
        let place = state.decode(address, data.len());
        if let Some(place) = place
            && !state.read_msix(&self.host, place, data)
        {
            drop(state);
            self.forward_read(place, data);
        }
        place.is_some()
    }

    /// Takes a write at guest physical `address` if a BAR decodes it.
    pub(super) fn write_memory(&self, address: u64, data: &[u8]) -> bool {
        let mut state = lock(&self.state);
        let place = state.decode(address, data.len());
        if let Some(place) = place
            && !state.write_msix(&self.host, place, data)
        {
            drop(state);
            self.forward_write(place, data);
        }
        place.is_some()
    }

    /// Without the lock: a device may take its time. Should decoding go off meanwhile, the kernel
    /// refuses the access.
    fn forward_read(&self, place: BarOffset, data: &mut [u8]) {
        self.host.count(VfioCounter::BarAccessForwarded);
        self.host.read(Region::Bar(place.bar), place.offset, data);
    }

    fn forward_write(&self, place: BarOffset, data: &[u8]) {
        self.host.count(VfioCounter::BarAccessForwarded);
        self.host.write(Region::Bar(place.bar), place.offset, data);
    }
}

impl PciFunction for VfioPci {
    /// None: [`super::window::place`] places them, where they can move.
    fn bar_requests(&self) -> Vec<BarRequest> {
        Vec::new()
    }

    fn assign_bar(&self, _: u8, _: u64) {}

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        lock(&self.state).config_read(&self.host, offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        lock(&self.state).config_write(&self.host, offset, data);
    }

    /// Not reached by a bus, which knows no BAR of this function.
    fn bar_read(&self, _: u8, _: u64, data: &mut [u8]) {
        self.errors.bump(GuestError::PciBarDisabled);
        data.fill(0xff);
    }

    fn bar_write(&self, _: u8, _: u64, _: &[u8]) {
        self.errors.bump(GuestError::PciBarDisabled);
    }
}

impl State {
    fn config_read(&mut self, host: &Host, offset: u16, data: &mut [u8]) {
        let bytes = u16::try_from(data.len()).unwrap_or(u16::MAX);
        if let Some(msi) = self
            .msi
            .as_mut()
            .filter(|msi| msi.is_touched(offset, bytes))
        {
            msi.collect(host, &self.vectors, &mut self.policy);
        }
        data.fill(0xff);
        let is_devices = |rule| matches!(rule, Some(Rule::Pass | Rule::Drop));
        if (offset..)
            .take(data.len())
            .any(|at| is_devices(self.policy.rule(at)))
        {
            host.read_config(offset, data);
        }
        for (at, byte) in (offset..).zip(data) {
            match self.policy.rule(at) {
                Some(Rule::Shadow) => *byte = self.policy.value(at),
                Some(Rule::Bar) => {
                    let [register, within] = bar_register(at);
                    let value = self.bars.read_register(register).to_le_bytes();
                    *byte = value.get(usize::from(within)).copied().unwrap_or(0xff);
                }
                Some(Rule::Pass | Rule::Drop) | None => (),
            }
        }
    }

    fn config_write(&mut self, host: &Host, offset: u16, data: &[u8]) {
        let bytes = u16::try_from(data.len()).unwrap_or(u16::MAX);
        let end = offset.saturating_add(bytes);
        if let (BARS..BARS_END, Ok(value)) = (offset, data.try_into()) {
            let [register, _] = bar_register(offset);
            let decodes = self.policy.word(COMMAND) & COMMAND_MEMORY != 0;
            let value = u32::from_le_bytes(value);
            self.bars.write_register(host, register, value, decodes);
            return;
        }
        let is_msi = self
            .msi
            .as_ref()
            .is_some_and(|msi| msi.is_touched(offset, bytes));
        if let Some(msi) = self.msi.as_mut().filter(|_| is_msi) {
            msi.collect(host, &self.vectors, &mut self.policy);
        }
        let old_command = self.policy.word(COMMAND);
        if self.policy.write(offset, data) {
            host.count(VfioCounter::ConfigWriteDropped);
        }
        for (at, width) in self.policy.passed(offset, data.len()) {
            let from = usize::from(at - offset);
            if let Some(part) = data.get(from..from + width) {
                self.write_device(host, at, part);
            }
        }
        if offset < COMMAND + 2 && COMMAND < end {
            self.command_written(host, old_command);
        }
        if let Some(msi) = self.msi.as_mut().filter(|_| is_msi) {
            msi.update(host, &mut self.vectors, &mut self.policy);
        }
        if let Some(msix) = &mut self.msix
            && msix.is_control_touched(offset, bytes)
        {
            msix.set_control(host, &mut self.vectors, &self.policy);
        }
    }

    /// Writes `data` (1, 2 or 4 bytes) to registers that the policy passes, with their effects.
    fn write_device(&mut self, host: &Host, offset: u16, data: &[u8]) {
        let write = self.effects.of_write(offset, data);
        if write.is_refused {
            return host.count(VfioCounter::ConfigWriteDropped);
        }
        if write.power_state.is_some_and(|state| state != 0) {
            self.bars.unmap(host);
        }
        host.write_config(offset, write.part.as_slice());
        if write.is_reset {
            self.reset(host);
        } else if let Some(written) = write.power_state {
            self.power_written(host, written);
        }
    }

    fn power_written(&mut self, host: &Host, written: u8) {
        let was_awake = self.is_awake;
        self.read_power_state(host, written);
        if self.is_awake && !was_awake {
            host.count(VfioCounter::Woken);
            self.write_command(host);
            self.vectors.arm_again(host);
        }
        self.map_if_decoded(host);
    }

    /// The device may stay in the state that it was in; if it does not say, it does as `written`.
    fn read_power_state(&mut self, host: &Host, written: u8) {
        let Some(register) = self.effects.power else {
            return;
        };
        let mut now = [0; 2];
        host.read_config(register, &mut now);
        let is_known = now != [0xff; 2];
        let state = if is_known {
            now[0] & POWER_STATE
        } else {
            written
        };
        self.is_awake = state == 0;
    }

    fn reset(&mut self, host: &Host) {
        self.bars.unmap(host);
        self.vectors.turn_off(host);
        if let Some(msi) = &mut self.msi {
            msi.reset(&mut self.policy);
        }
        if let Some(msix) = &mut self.msix {
            msix.reset(&mut self.policy);
        }
        self.policy.set(COMMAND, &[0; 2]);
        host.reset();
        self.write_command(host);
        self.read_power_state(host, 0);
    }

    fn command_written(&mut self, host: &Host, old: u16) {
        let new = self.policy.word(COMMAND);
        if new & COMMAND_MEMORY == 0 {
            self.bars.unmap(host);
        } else if old & COMMAND_MEMORY == 0 {
            self.bars.take_moves(host);
        }
        self.write_command(host);
        self.map_if_decoded(host);
    }

    /// Gives the device what of the guest's command it may have.
    fn write_command(&mut self, host: &Host) {
        let mut allowed = COMMAND_MEMORY | COMMAND_ERRORS;
        if self.is_dma_allowed {
            allowed |= COMMAND_BUS_MASTER;
        }
        let command = self.policy.word(COMMAND) & allowed | COMMAND_NO_INTX;
        let is_taken = host.write_config(COMMAND, &command.to_le_bytes());
        self.is_device_decoding = is_taken && command & COMMAND_MEMORY != 0;
    }

    fn decodes_memory(&self) -> bool {
        self.is_awake && self.is_device_decoding
    }

    fn map_if_decoded(&mut self, host: &Host) {
        if self.decodes_memory() {
            self.bars.map(host);
        } else {
            self.bars.unmap(host);
        }
    }

    fn decode(&self, address: u64, width: usize) -> Option<BarOffset> {
        let width = u64::try_from(width).ok()?;
        self.decodes_memory()
            .then(|| self.bars.locate(address, width))?
    }

    /// Serves a read of the vector table or the pending bits, if it is one.
    fn read_msix(&mut self, host: &Host, place: BarOffset, data: &mut [u8]) -> bool {
        let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let Some(msix) = &mut self.msix else {
            return false;
        };
        let touched = msix.touched(place.bar, place.offset, bytes);
        if let Some(touched) = touched {
            msix.read(host, &self.vectors, touched, data);
        }
        touched.is_some()
    }

    /// Takes a write to the vector table or the pending bits, if it is one.
    fn write_msix(&mut self, host: &Host, place: BarOffset, data: &[u8]) -> bool {
        let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let Some(msix) = &mut self.msix else {
            return false;
        };
        let touched = msix.touched(place.bar, place.offset, bytes);
        if let Some(touched) = touched {
            msix.write(host, &mut self.vectors, touched, data);
        }
        touched.is_some()
    }
}

/// The BAR register that byte `offset` of configuration space belongs to, and the byte in it.
fn bar_register(offset: u16) -> [u8; 2] {
    let [within, _] = offset.saturating_sub(BARS).to_le_bytes();
    [within / 4, within % 4]
}
