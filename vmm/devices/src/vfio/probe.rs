//! Whether a device of the host can be given to a guest at all, decided before the guest runs.
//!
//! Owns the checks of what the device and the kernel say, and the refusals. What passes is what
//! [`super::function`] starts from.

use std::io;
use std::sync::Arc;

use super::bars::{FunctionBars, ReadBarsError};
use super::capabilities::{
    CONFIG_BYTES, CONFIG_BYTES_EXTENDED, Capabilities, Capability, ReadCapabilitiesError, id,
};
use super::config_policy::{self, ConfigPolicy};
use super::effects::EffectRegisters;
use super::msi::PassedMsi;
use super::msix::{PassedMsix, ReadMsixError};
use super::ops::{BAR_COUNT, Description, Region, VfioOps};
use crate::guest_error::GuestErrors;
use crate::interrupt::MsiSender;

const VENDOR: u16 = 0x00;
const NO_VENDOR: u16 = 0xffff;
const HEADER_TYPE_BITS: u8 = 0x7f;
const EXPRESS_CAPABILITIES: u16 = 4;
const EXPRESS_CAN_RESET: u32 = 1 << 28;
const FEATURES_CAPABILITIES: u16 = 3;
const FEATURES_CAN_RESET: u8 = 1 << 1;

/// Why a device is not given to the guest. `Display` is the problem, [`RefuseDevice::remedy`] what
/// helps; the field, such as `vfio.devices[0]`, is the caller's to name.
#[derive(Debug, thiserror::Error)]
pub enum RefuseDevice {
    /// The kernel does not say what the device is made of.
    #[error("the kernel does not describe the device")]
    Describe(#[source] io::Error),
    /// Configuration space is shorter than PCI's.
    #[error("configuration space has {bytes} bytes, fewer than the 256 that every function has")]
    ShortConfig {
        /// Its length.
        bytes: u64,
    },
    /// Configuration space cannot be accessed.
    #[error("configuration space cannot be accessed at {offset:#x}")]
    Config {
        /// Where.
        offset: u16,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The vendor id reads all ones.
    #[error("the device does not answer: its vendor id reads 0xffff")]
    Gone,
    /// A bridge.
    #[error("the device has a header of type {header_type}, so it is a bridge and no endpoint")]
    NotEndpoint {
        /// The header type.
        header_type: u8,
    },
    /// Neither MSI nor MSI-X.
    #[error("the device offers only INTx interrupts")]
    OnlyIntx,
    /// The capability lists are broken.
    #[error("the device's capabilities cannot be used")]
    Capabilities(#[source] ReadCapabilitiesError),
    /// The BARs are broken.
    #[error("the device's BARs cannot be used")]
    Bars(#[source] ReadBarsError),
    /// MSI-X is broken.
    #[error("the device's MSI-X cannot be used")]
    Msix(#[source] ReadMsixError),
}

impl RefuseDevice {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Describe(_) | Self::Config { .. } => {
                "look at the host's kernel log for the device, reset it and try again"
            }
            Self::Gone => "reset the device or power it off and on; it is lost to the host, too",
            Self::NotEndpoint { .. } => "pass the endpoints below the bridge",
            Self::OnlyIntx => "use a device with MSI or MSI-X",
            Self::ShortConfig { .. } | Self::Capabilities(_) | Self::Bars(_) | Self::Msix(_) => {
                "reset the device; if it still says so, it is broken or malicious: take it out"
            }
        }
    }
}

/// A device that can be given to the guest.
#[derive(Debug)]
pub(super) struct Probed {
    pub(super) policy: ConfigPolicy,
    pub(super) bars: FunctionBars,
    pub(super) msi: Option<PassedMsi>,
    pub(super) msix: Option<PassedMsix>,
    pub(super) effects: EffectRegisters,
    pub(super) hidden_port_bars: Vec<u8>,
}

/// Examines the device behind `ops`.
pub(super) fn probe(
    ops: &dyn VfioOps,
    sender: &Arc<dyn MsiSender>,
    errors: &Arc<GuestErrors>,
) -> Result<Probed, RefuseDevice> {
    let description = ops.describe().map_err(RefuseDevice::Describe)?;
    let config = Config(ops);
    let config_bytes = config_bytes(description.config_bytes)?;
    check_header(&config)?;
    let registers = bar_registers(&config)?;
    let mut bars = FunctionBars::read(&description, registers).map_err(RefuseDevice::Bars)?;
    let capabilities = Capabilities::read(config_bytes, |offset| config.long_io(offset))
        .map_err(RefuseDevice::Capabilities)?;
    let mut policy = ConfigPolicy::new(config_bytes, &capabilities);
    let interrupts = description.interrupts;
    let hide = |policy: &mut ConfigPolicy, capability: &Capability| {
        let end = config_policy::end_of(&capabilities, capability.offset);
        policy.hide_standard(capability, end);
    };
    let msi = capabilities.find(id::MSI).and_then(|capability| {
        let msi = PassedMsi::new(&capability, interrupts.msi, Arc::clone(sender), &mut policy);
        if msi.is_none() {
            hide(&mut policy, &capability);
        }
        msi
    });
    let mut msix = None;
    if let Some(capability) = capabilities.find(id::MSIX) {
        let registers = [
            config.long(capability.offset + 4)?,
            config.long(capability.offset + 8)?,
        ];
        let (sender, errors) = (Arc::clone(sender), Arc::clone(errors));
        msix = PassedMsix::new(&capability, registers, interrupts, &bars, sender, errors)
            .map_err(RefuseDevice::Msix)?;
        match &msix {
            Some(msix) => {
                msix.install(registers, &mut policy);
                keep_trapping(&mut bars, msix, &description);
            }
            None => hide(&mut policy, &capability),
        }
    }
    let has_pin = interrupts.intx > 0 || config.byte(config_policy::INTERRUPT_PIN)? != 0;
    if msi.is_none() && msix.is_none() && has_pin {
        return Err(RefuseDevice::OnlyIntx);
    }
    let effects = effect_registers(&config, &capabilities)?;
    let hidden_port_bars = port_bars(&description, registers);
    Ok(Probed {
        policy,
        bars,
        msi,
        msix,
        effects,
        hidden_port_bars,
    })
}

fn config_bytes(bytes: u64) -> Result<u16, RefuseDevice> {
    if bytes >= u64::from(CONFIG_BYTES_EXTENDED) {
        Ok(CONFIG_BYTES_EXTENDED)
    } else if bytes >= u64::from(CONFIG_BYTES) {
        Ok(CONFIG_BYTES)
    } else {
        Err(RefuseDevice::ShortConfig { bytes })
    }
}

fn check_header(config: &Config<'_>) -> Result<(), RefuseDevice> {
    let [low, high, ..] = config.long(VENDOR)?.to_le_bytes();
    if u16::from_le_bytes([low, high]) == NO_VENDOR {
        return Err(RefuseDevice::Gone);
    }
    match config.byte(config_policy::HEADER_TYPE)? & HEADER_TYPE_BITS {
        0 => Ok(()),
        header_type => Err(RefuseDevice::NotEndpoint { header_type }),
    }
}

fn bar_registers(config: &Config<'_>) -> Result<[u32; BAR_COUNT], RefuseDevice> {
    let mut registers = [0; BAR_COUNT];
    for (offset, register) in (config_policy::BARS..).step_by(4).zip(&mut registers) {
        *register = config.long(offset)?;
    }
    Ok(registers)
}

fn port_bars(description: &Description, registers: [u32; BAR_COUNT]) -> Vec<u8> {
    let bars = (0..).zip(&description.bars).zip(registers);
    bars.filter(|((_, info), register)| info.bytes != 0 && register & 0b11 == 1)
        .map(|((index, _), _)| index)
        .collect()
}

fn keep_trapping(bars: &mut FunctionBars, msix: &PassedMsix, description: &Description) {
    for place in msix.places() {
        if let Some(info) = description.bars.get(usize::from(place.bar)) {
            bars.trap(place.bar, place.area, info);
        }
    }
}

fn effect_registers(
    config: &Config<'_>,
    capabilities: &Capabilities,
) -> Result<EffectRegisters, RefuseDevice> {
    let mut effects = EffectRegisters::default();
    let at = |id| capabilities.find(id).map(|capability| capability.offset);
    effects.power = at(id::POWER_MANAGEMENT).map(|start| start + config_policy::POWER_CONTROL);
    effects.product_data =
        at(id::VITAL_PRODUCT_DATA).map(|start| start + config_policy::PRODUCT_DATA_ADDRESS + 1);
    if let Some(start) = at(id::EXPRESS) {
        let control = start + config_policy::EXPRESS_CONTROL + 1;
        if config.long(start + EXPRESS_CAPABILITIES)? & EXPRESS_CAN_RESET != 0 {
            effects.express_reset = Some(control);
        } else {
            effects.express_no_reset = Some(control);
        }
    }
    if let Some(start) = at(id::ADVANCED_FEATURES)
        && config.byte(start + FEATURES_CAPABILITIES)? & FEATURES_CAN_RESET != 0
    {
        effects.features_reset = Some(start + config_policy::FEATURES_CONTROL);
    }
    Ok(effects)
}

/// Configuration space before the guest runs, when a failure is a refusal.
struct Config<'a>(&'a dyn VfioOps);

impl Config<'_> {
    fn long_io(&self, offset: u16) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.0.read(Region::Config, u64::from(offset), &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn long(&self, offset: u16) -> Result<u32, RefuseDevice> {
        self.long_io(offset)
            .map_err(|cause| RefuseDevice::Config { offset, cause })
    }

    fn byte(&self, offset: u16) -> Result<u8, RefuseDevice> {
        let register = self.long(offset & !0b11)?.to_le_bytes();
        Ok(register[usize::from(offset & 0b11)])
    }
}
