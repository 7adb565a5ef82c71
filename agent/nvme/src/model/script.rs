//! What a modelled drive can do, what is on it, and where it lies, fails or falls silent.

use std::time::Duration;

use crate::status::Status;

/// A modelled drive's abilities and its misdeeds. The default is an honest drive with everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Namespaces that it comes with, ids from 1 on.
    pub namespaces: Vec<NewNamespace>,
    /// Bytes of all namespaces together; what they do not use is unallocated.
    pub capacity_bytes: u64,
    /// OACS.
    pub admin_commands: u16,
    /// ONCS.
    pub nvm_commands: u16,
    /// FNA.
    pub format_attributes: u8,
    /// SANICAP.
    pub sanitize: u32,
    /// CMIC.
    pub sharing: u8,
    /// MDTS.
    pub transfer_shift: u8,
    /// RPMBS.
    pub protected_blocks: u32,
    /// Seconds that it says a sanitize takes; `u32::MAX` if it does not say.
    pub estimate_s: u32,
    /// How long a sanitize takes.
    pub sanitize_takes: Duration,
    /// How long a format of one namespace takes.
    pub format_takes: Duration,
    /// Whether it knows what was written since a sanitize (SSTAT bit 8).
    pub tells_erased_data: bool,
    /// Flags of the locking feature in its Level 0 discovery, if it has that.
    pub locking: Option<u8>,
    /// How its sanitize goes.
    pub sanitizing: Sanitizing,
    /// How its format goes.
    pub formatting: Formatting,
    /// Whether it forgets what it is told to write.
    pub drops_writes: bool,
    /// Whether deleting a namespace leaves its blocks for the next one to read.
    pub keeps_deleted_blocks: bool,
    /// Opcodes of admin commands that it refuses.
    pub refuses: Vec<(u8, Status)>,
    /// When it breaks, counted in commands since it was made.
    pub breaks: Option<(u64, Break)>,
    /// Bytes that are put over what it identifies itself with.
    pub patches: Vec<Patch>,
    /// CAP, if it is not the usual one.
    pub capabilities: Option<u64>,
}

/// A namespace that a drive comes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewNamespace {
    /// Blocks.
    pub blocks: u64,
    /// Index of its LBA format: 0 has 512 bytes, 1 has 4096, 2 has 4096 with 8 of metadata.
    pub format: u8,
    /// Whether metadata is inside the block.
    pub is_extended: bool,
}

/// How a sanitize goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sanitizing {
    /// As the specification says.
    Honest,
    /// It says that it is done and has erased nothing.
    ErasesNothing,
    /// It accepts the command, does nothing, and leaves its log as it was.
    KeepsItsLog,
    /// Its log is of a command that nobody gave.
    LogsAnother,
    /// It fails when this many percent are done; FFFFh is its progress from then on.
    FailsAt(u8),
    /// It stands still at this many percent.
    StallsAt(u8),
    /// It creeps on and never ends.
    NeverEnds,
}

/// How a format goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Formatting {
    /// As the specification says.
    Honest,
    /// It says that it is done and has erased nothing.
    ErasesNothing,
    /// It says that it is done and has erased every other block.
    ErasesHalf,
    /// It says that it is done and has erased what was written since it was switched on.
    ErasesRecent,
    /// It never ends.
    NeverEnds,
    /// It ends and says that this many percent are left.
    LeavesPercent(u8),
    /// It takes another LBA format than it is told.
    TakesAnotherFormat,
}

/// How a drive breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// Its registers read as all ones.
    Gone,
    /// Accesses fail.
    Unreachable,
    /// CSTS.CFS.
    Fatal,
    /// It completes nothing any more.
    Silent,
    /// It completes a command that it was not given.
    UnknownId,
    /// It reports another head of the submission queue than there can be.
    WrongHead,
    /// It completes in the name of another queue.
    WrongQueue,
    /// It turns the phase of all completions over at once.
    PhaseGarbage,
}

/// Bytes that are put over a structure that Identify returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// CNS.
    pub structure: u8,
    /// Where.
    pub offset: usize,
    /// What.
    pub bytes: Vec<u8>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            namespaces: vec![NewNamespace {
                blocks: 256,
                format: 1,
                is_extended: false,
            }],
            capacity_bytes: 256 * 4096,
            // Format, namespace management.
            admin_commands: 0b1010,
            // Dataset management, saved features.
            nvm_commands: 0b1_0100,
            // Crypto erase by format.
            format_attributes: 0b100,
            // Crypto, block and overwrite; the media can be read after it.
            sanitize: 0b111 | 2 << 30,
            sharing: 0,
            transfer_shift: 5,
            protected_blocks: 0,
            estimate_s: 60,
            sanitize_takes: Duration::from_secs(40),
            format_takes: Duration::from_secs(20),
            tells_erased_data: true,
            locking: None,
            sanitizing: Sanitizing::Honest,
            formatting: Formatting::Honest,
            drops_writes: false,
            keeps_deleted_blocks: true,
            refuses: Vec::new(),
            breaks: None,
            patches: Vec::new(),
            capabilities: None,
        }
    }
}
