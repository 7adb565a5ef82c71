//! Sizes that VMs can be asked for by name, and prices. Nothing is reckoned with a price here: what the
//! operator wrote is shown.

use serde::{Deserialize, Serialize};

/// What one thing costs, as the operator says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Price {
    /// A decimal number as text, such as `0.045`, so that no reader rounds it.
    pub amount: String,
    /// Three letters of ISO 4217, such as `EUR`.
    pub currency: String,
    /// The time that the amount is for.
    pub per: PricePeriod,
}

/// The time that a price is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PricePeriod {
    /// 60 minutes.
    Hour,
    /// 24 hours.
    Day,
    /// A calendar month.
    Month,
}

impl PricePeriod {
    /// As it is sent.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }
}

/// `GET /v1/sizes`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Size {
    /// Its name, as `POST /v1/vms` takes it in `size`.
    pub name: String,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Memory.
    pub memory_mb: u64,
    /// Root disk, unless the request has its own.
    pub disk_gb: u32,
    /// What a VM of this size costs, if the operator says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
}
