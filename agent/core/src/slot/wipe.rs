//! How a slot's devices may be wiped, and where a wipe stands that a crash may interrupt.

use std::collections::BTreeMap;

use berth_api::slot::WipeMethod;
use serde::{Deserialize, Serialize};

/// How a slot's devices may be wiped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WipePolicy {
    /// Methods that are good enough, best first; the first that the device has is taken. Failing is
    /// never a reason to take the next one.
    pub methods: Vec<WipeMethod>,
    /// Blocks that are read back beside the first and the last ones.
    pub sample_blocks: u32,
    /// Seconds after which a wipe has failed when the device tells no estimate; with an estimate,
    /// three times that, and this at the least.
    pub deadline_s: u64,
}

impl Default for WipePolicy {
    fn default() -> Self {
        Self {
            methods: vec![
                WipeMethod::NvmeSanitizeCrypto,
                WipeMethod::NvmeSanitizeBlock,
                WipeMethod::NvmeFormatCrypto,
                WipeMethod::NvmeFormatUserData,
                WipeMethod::NvmeOverwrite,
                WipeMethod::MemoryOverwrite,
                WipeMethod::Reset,
            ],
            sample_blocks: 1024,
            deadline_s: 3600,
        }
    }
}

/// Where the wipe of one device stands. Persisted before the command that it names is given, so that an
/// agent that comes after a crash can tell from the drive's own log whether it ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WipeRun {
    /// The method.
    pub method: WipeMethod,
    /// When it was begun, milliseconds since the epoch.
    pub started_at_ms: i64,
    /// What the driver needs to recognise its own command in the drive's log, by name.
    pub marks: BTreeMap<String, String>,
}

/// Where a wiping driver writes down what it is about to do. Returns after that is durable.
pub trait WipeJournal {
    /// Note a run before its first destructive command.
    ///
    /// # Errors
    /// If it could not be made durable: nothing may be done then.
    fn note(&mut self, run: &WipeRun) -> std::io::Result<()>;

    /// Tell how far it is, in percent; with seconds left if the device says so.
    fn progress(&mut self, percent: u8, seconds_left: Option<u64>);

    /// Whether the agent is about to end; a driver returns as soon as it can, leaving the device as
    /// it is.
    fn is_cancelled(&self) -> bool;
}
