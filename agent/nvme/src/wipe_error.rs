//! Why a wipe is not proved.

use std::io;

use crate::error::DriveError;
use crate::identify::layout::LayoutMalformed;

/// Why a wipe is not proved. After any of them the drive has to be taken as full of its last tenant's
/// data.
#[derive(Debug, thiserror::Error)]
pub enum WipeError {
    /// The drive did not do what it was asked.
    #[error(transparent)]
    Drive(#[from] DriveError),
    /// The journal could not be written, so nothing was begun.
    #[error("the wipe could not be noted")]
    Journal(#[from] io::Error),
    /// The agent is about to end.
    #[error("the wipe was broken off because the agent ends; it goes on when the agent runs again")]
    Cancelled,
    /// Other controllers reach the same media.
    #[error(
        "the drive's media can be reached by other controllers (CMIC {cmic:#04x}); take it out of the \
         shared subsystem"
    )]
    Shared {
        /// CMIC.
        cmic: u8,
    },
    /// Nothing that the policy allows is there.
    #[error("the drive has none of the methods that the slot's policy allows; it has: {has}")]
    NoMethod {
        /// What it has.
        has: String,
    },
    /// The approval's layout does not read as one.
    #[error("the approved namespaces cannot be read; approve the slot again")]
    ApprovedLayout(#[from] LayoutMalformed),
    /// Somebody owns the drive's locks.
    #[error(
        "the drive is locked or owned ({found}); revert it with the PSID on its label, which erases it"
    )]
    Locked {
        /// What says so.
        found: String,
    },
    /// Write protection that does not go away.
    #[error("namespace {nsid} stays write-protected ({state}); {remedy}")]
    WriteProtected {
        /// Which namespace.
        nsid: u32,
        /// How it is protected.
        state: &'static str,
        /// What may help.
        remedy: &'static str,
    },
    /// SSTAT says so.
    #[error(
        "the drive's sanitize failed (SSTAT {sstat:#06x}); it gives no access to its media until one \
         succeeds: wipe the slot again or retire the drive"
    )]
    SanitizeFailed {
        /// SSTAT.
        sstat: u16,
    },
    /// The log is of another command.
    #[error(
        "the drive's log is of another sanitize: its command is {found:#x}, ours was {issued:#x}"
    )]
    SanitizeNotOurs {
        /// CDW10 as given.
        issued: u32,
        /// SCDW10.
        found: u32,
    },
    /// Nothing shows that our command ran.
    #[error("nothing shows that the erase ran: no canary could be written, and no log tells of it")]
    EraseNotShown,
    /// The log does not tell of our command.
    #[error("nothing shows that the sanitize ran that the drive accepted (SSTAT {sstat:#06x})")]
    SanitizeNotShown {
        /// SSTAT.
        sstat: u16,
    },
    /// No progress.
    #[error("the wipe stands still at {percent} percent since {seconds} seconds")]
    Stalled {
        /// How far it came.
        percent: u8,
        /// Since when.
        seconds: u64,
    },
    /// It takes too long.
    #[error("the wipe did not end within {seconds} seconds")]
    TooLong {
        /// How long was waited.
        seconds: u64,
    },
    /// A format says that it is not done.
    #[error("the drive completed a format of {target} and says that {left} percent are left")]
    FormatNotDone {
        /// Which namespaces.
        target: String,
        /// FPI.
        left: u8,
    },
    /// The layout is not what was approved.
    #[error("the drive's namespaces are {found}, not {wanted}, and could not be made so")]
    LayoutNotRestored {
        /// As approved.
        wanted: String,
        /// As they are.
        found: String,
    },
    /// What was written is not what is read.
    #[error("the drive accepted blocks and does not give them back ({blocks}, first: {first})")]
    WritesNotKept {
        /// How many.
        blocks: u64,
        /// The first one.
        first: String,
    },
    /// Something is still there.
    #[error("{blocks} blocks hold after the wipe what they held before it, first: {first}")]
    ContentLeft {
        /// How many.
        blocks: u64,
        /// The first one.
        first: String,
    },
    /// It is not the drive that it was.
    #[error("the drive calls itself {found} after a reset, and was {wanted}")]
    IdentityChanged {
        /// Model and serial number before.
        wanted: String,
        /// And after.
        found: String,
    },
}
