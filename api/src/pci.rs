//! Names of PCI functions and of what they are, as text that sorts, compares and parses one way only.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where a function is now, as the kernel writes it: `0000:01:00.0`. Changes with the host's firmware
/// and with what is plugged; identity is [`crate::slot::DeviceIdentity`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    /// Domain; most hosts have only 0.
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

text_schema!(
    PciAddress,
    "^[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\\.[0-7]$"
);

/// Why a text is not a PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a PCI address is written as 0000:01:00.0")]
pub struct ParsePciAddressError;

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PciAddress {
    type Err = ParsePciAddressError;

    fn from_str(text: &str) -> Result<Self, ParsePciAddressError> {
        let parse = || {
            let (domain, rest) = text.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            let address = Self {
                domain: u32::from_str_radix(domain, 16).ok()?,
                bus: u8::from_str_radix(bus, 16).ok()?,
                device: u8::from_str_radix(device, 16).ok()?,
                function: function.parse().ok()?,
            };
            (address.device < 32 && address.function < 8).then_some(address)
        };
        let address = parse().ok_or(ParsePciAddressError)?;
        // One spelling only: no signs, no upper case, no missing or additional zeroes.
        if address.to_string() == text {
            Ok(address)
        } else {
            Err(ParsePciAddressError)
        }
    }
}

impl Serialize for PciAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PciAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One of the 16-bit numbers by which a function says what it is, written as four hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciId(pub u16);

text_schema!(PciId, "^[0-9a-f]{4}$");

/// Why a text is not such a number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a PCI id is four lower-case hex digits, such as 1b36")]
pub struct ParsePciIdError;

impl fmt::Display for PciId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

impl fmt::Debug for PciId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PciId {
    type Err = ParsePciIdError;

    fn from_str(text: &str) -> Result<Self, ParsePciIdError> {
        u16::from_str_radix(text, 16)
            .ok()
            .map(Self)
            .filter(|id| id.to_string() == text)
            .ok_or(ParsePciIdError)
    }
}

impl Serialize for PciId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PciId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Base class, subclass and programming interface, as config space has them from offset 9 on:
/// `0x010802` is an NVMe drive.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct PciClass(pub u32);

impl PciClass {
    /// An NVMe controller with the I/O command sets.
    pub const NVME: Self = Self(0x01_08_02);

    /// The base class: 1 storage, 2 network, 3 display, 6 bridge.
    #[must_use]
    pub fn base(self) -> u8 {
        let [_, base, _, _] = self.0.to_be_bytes();
        base
    }

    /// Whether it is a display adapter or a compute accelerator (classes 03h and 12h).
    #[must_use]
    pub fn is_gpu(self) -> bool {
        matches!(self.base(), 0x03 | 0x12)
    }

    /// Whether it is a bridge.
    #[must_use]
    pub fn is_bridge(self) -> bool {
        self.base() == 0x06
    }

    /// Whether it is an NVMe drive.
    #[must_use]
    pub fn is_nvme(self) -> bool {
        self == Self::NVME
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_spelling() {
        let address: PciAddress = "0000:3b:1f.7".parse().unwrap();
        assert_eq!(
            (address.bus, address.device, address.function),
            (0x3b, 31, 7)
        );
        assert_eq!(address.to_string(), "0000:3b:1f.7");
        for wrong in [
            "",
            "0:3b:1f.7",
            "0000:3B:1f.7",
            "0000:3b:20.0",
            "0000:3b:1f.8",
            "0000:3b:1f",
            "0000:3b:+f.1",
            "../../etc",
            "0000:03b:1f.7",
        ] {
            assert_eq!(
                wrong.parse::<PciAddress>(),
                Err(ParsePciAddressError),
                "{wrong}"
            );
        }
    }

    #[test]
    fn an_id_is_four_digits() {
        assert_eq!("1b36".parse(), Ok(PciId(0x1b36)));
        for wrong in ["1B36", "0x1b36", "b36", "+b36", "01b36"] {
            assert_eq!(wrong.parse::<PciId>(), Err(ParsePciIdError), "{wrong}");
        }
    }

    #[test]
    fn classes_tell_their_kind() {
        assert!(PciClass(0x01_08_02).is_nvme());
        assert!(PciClass(0x03_80_00).is_gpu());
        assert!(PciClass(0x06_04_00).is_bridge());
        assert!(!PciClass(0x02_00_00).is_gpu());
    }
}
