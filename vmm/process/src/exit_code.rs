//! The numbered exit statuses of the process.

use berth_api::vmm::Exit;

/// An exit status. Those of a machine's end are [`Exit::code`]'s.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ExitCode(u8);

impl ExitCode {
    /// All went well.
    pub(crate) const SUCCESS: Self = Self(0);
    /// The command line makes no sense.
    pub(crate) const USAGE: Self = Self(64);
    /// The start message or the kernel was refused.
    pub(crate) const REFUSED: Self = Self(65);
    /// The host or this program failed.
    pub(crate) const FAILED: Self = Self(70);

    /// Ends the process without running destructors: the kernel takes everything back, faster.
    pub(crate) fn exit(self) -> ! {
        berth_vmm_sys::exit_now(self.0)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statuses_of_failures_are_those_of_the_contract() {
        for code in [ExitCode::USAGE, ExitCode::REFUSED, ExitCode::FAILED] {
            assert!(code.0 >= 64);
            assert_eq!(Exit::from_code(i32::from(code.0)), None);
        }
    }
}
