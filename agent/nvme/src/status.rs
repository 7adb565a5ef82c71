//! The status of a completed command (NVMe Base 2.0, 4.2.3 and figures 94 to 97).

use std::fmt;

/// What a drive says of a command that it has completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(u16);

/// Statuses that this driver has something to say about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StatusKind {
    /// Done.
    Success,
    /// The drive does not know the command.
    InvalidOpcode,
    /// The drive does not take a value of the command.
    InvalidField,
    /// The transfer failed.
    DataTransferError,
    /// Aborted because power is about to fail.
    PowerLoss,
    /// Something inside the drive.
    InternalError,
    /// Not a namespace, or not one for this command.
    InvalidNamespace,
    /// The order of commands is wrong, as in security protocols.
    CommandSequence,
    /// Access denied by a lock.
    OperationDenied,
    /// The last sanitize failed; the drive gives no access before one succeeds.
    SanitizeFailed,
    /// A sanitize is running.
    SanitizeInProgress,
    /// The namespace is write-protected.
    NamespaceWriteProtected,
    /// Locked away by the Lockdown command.
    ProhibitedByLockdown,
    /// Beyond the end.
    LbaOutOfRange,
    /// More than there is room for.
    CapacityExceeded,
    /// The namespace is not ready.
    NamespaceNotReady,
    /// A format is running.
    FormatInProgress,
    /// Not an LBA format of this drive.
    InvalidFormat,
    /// Takes effect only after a reset.
    NeedsReset,
    /// The feature cannot be saved.
    FeatureNotSaveable,
    /// The feature cannot be changed.
    FeatureNotChangeable,
    /// Not enough unallocated capacity.
    InsufficientCapacity,
    /// Attached already.
    AlreadyAttached,
    /// A self-test is running.
    SelfTestInProgress,
    /// The log page is not there.
    InvalidLogPage,
    /// A block that cannot be read.
    UnrecoveredRead,
    /// A block that cannot be written.
    WriteFault,
    /// Something else; the numbers say it.
    Other,
}

impl Status {
    /// Done.
    pub const SUCCESS: Self = Self(0);

    /// From the upper half of a completion's last dword, with or without its phase bit.
    #[must_use]
    pub fn from_completion(word: u16) -> Self {
        Self(word & !1)
    }

    /// From code type and code.
    #[must_use]
    pub fn new(code_type: u8, code: u8) -> Self {
        Self((u16::from(code_type & 7) << 9) | (u16::from(code) << 1))
    }

    /// The same, not to be tried again.
    #[must_use]
    pub fn do_not_retry(self) -> Self {
        Self(self.0 | 1 << 15)
    }

    /// The word as it is in a completion, phase bit zero.
    #[must_use]
    pub fn word(self) -> u16 {
        self.0
    }

    /// Status code type (SCT).
    #[must_use]
    pub fn code_type(self) -> u8 {
        self.0.to_be_bytes()[0] >> 1 & 7
    }

    /// Status code (SC).
    #[must_use]
    pub fn code(self) -> u8 {
        (self.0 >> 1).to_le_bytes()[0]
    }

    /// Whether trying again is useless (DNR).
    #[must_use]
    pub fn is_final(self) -> bool {
        self.0 & 1 << 15 != 0
    }

    /// Whether the command did what it was to do.
    #[must_use]
    pub fn is_success(self) -> bool {
        self.kind() == StatusKind::Success
    }

    /// What it means.
    #[must_use]
    pub fn kind(self) -> StatusKind {
        use StatusKind as Kind;
        match (self.code_type(), self.code()) {
            (0, 0x00) => Kind::Success,
            (0, 0x01) => Kind::InvalidOpcode,
            (0, 0x02) => Kind::InvalidField,
            (0, 0x04) => Kind::DataTransferError,
            (0, 0x05) => Kind::PowerLoss,
            (0, 0x06) => Kind::InternalError,
            (0, 0x0b) => Kind::InvalidNamespace,
            (0, 0x0c) => Kind::CommandSequence,
            (0, 0x15) | (2, 0x86) => Kind::OperationDenied,
            (0, 0x1c) => Kind::SanitizeFailed,
            (0, 0x1d) => Kind::SanitizeInProgress,
            (0, 0x20) => Kind::NamespaceWriteProtected,
            (0, 0x23) => Kind::ProhibitedByLockdown,
            (0, 0x80) => Kind::LbaOutOfRange,
            (0, 0x81) => Kind::CapacityExceeded,
            (0, 0x82) => Kind::NamespaceNotReady,
            (0, 0x84) => Kind::FormatInProgress,
            (1, 0x09) => Kind::InvalidLogPage,
            (1, 0x0a) => Kind::InvalidFormat,
            (1, 0x0b | 0x10 | 0x11) => Kind::NeedsReset,
            (1, 0x0d) => Kind::FeatureNotSaveable,
            (1, 0x0e) => Kind::FeatureNotChangeable,
            (1, 0x15) => Kind::InsufficientCapacity,
            (1, 0x18) => Kind::AlreadyAttached,
            (1, 0x1d) => Kind::SelfTestInProgress,
            (2, 0x80) => Kind::WriteFault,
            (2, 0x81) => Kind::UnrecoveredRead,
            _ => Kind::Other,
        }
    }

    fn name(self) -> &'static str {
        use StatusKind as Kind;
        match self.kind() {
            Kind::Success => "successful completion",
            Kind::InvalidOpcode => "invalid command opcode",
            Kind::InvalidField => "invalid field in command",
            Kind::DataTransferError => "data transfer error",
            Kind::PowerLoss => "aborted due to power loss",
            Kind::InternalError => "internal error",
            Kind::InvalidNamespace => "invalid namespace or format",
            Kind::CommandSequence => "command sequence error",
            Kind::OperationDenied => "access denied",
            Kind::SanitizeFailed => "sanitize failed",
            Kind::SanitizeInProgress => "sanitize in progress",
            Kind::NamespaceWriteProtected => "namespace is write protected",
            Kind::ProhibitedByLockdown => "prohibited by command and feature lockdown",
            Kind::LbaOutOfRange => "LBA out of range",
            Kind::CapacityExceeded => "capacity exceeded",
            Kind::NamespaceNotReady => "namespace not ready",
            Kind::FormatInProgress => "format in progress",
            Kind::InvalidFormat => "invalid format",
            Kind::NeedsReset => "needs a reset",
            Kind::FeatureNotSaveable => "feature identifier not saveable",
            Kind::FeatureNotChangeable => "feature not changeable",
            Kind::InsufficientCapacity => "namespace insufficient capacity",
            Kind::AlreadyAttached => "namespace already attached",
            Kind::SelfTestInProgress => "device self-test in progress",
            Kind::InvalidLogPage => "invalid log page",
            Kind::UnrecoveredRead => "unrecovered read error",
            Kind::WriteFault => "write fault",
            Kind::Other => "no name known",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, code) = (self.code_type(), self.code());
        write!(formatter, "{} (sct {kind}, sc {code:02x}h", self.name())?;
        formatter.write_str(if self.is_final() { ", dnr)" } else { ")" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_named_by_type_and_code_and_ignores_the_phase() {
        let status = Status::from_completion(0x8039);
        assert_eq!(status.kind(), StatusKind::SanitizeFailed);
        assert_eq!(status.to_string(), "sanitize failed (sct 0, sc 1ch, dnr)");
        assert_eq!(Status::new(1, 0x1d).kind(), StatusKind::SelfTestInProgress);
        assert_eq!(Status::new(0, 0x1d).kind(), StatusKind::SanitizeInProgress);
        assert_eq!(Status::new(7, 0xff).kind(), StatusKind::Other);
        assert_eq!(Status::new(7, 0xff).code_type(), 7);
    }

    #[test]
    fn only_zero_is_success() {
        for word in (0..=u16::MAX).step_by(2) {
            let is_zero = word & 0x0ffe == 0;
            assert_eq!(
                Status::from_completion(word).is_success(),
                is_zero,
                "{word:x}"
            );
        }
    }
}
