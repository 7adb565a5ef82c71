//! What the end of a VMM's process means.

use berth_api::vmm::Exit;

use crate::phase::End;

/// What `waitid` said about a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessEnd {
    /// It never ran.
    NotRun,
    /// It exited with a status.
    Exited(i32),
    /// A signal ended it.
    Killed(i32),
}

/// `SIGTERM`, by which systemd stops a process that has no handler yet.
const SIGTERM: i32 = 15;

impl ProcessEnd {
    /// What the end means for the guest. `unit_result` is systemd's own word for it, such as
    /// `oom-kill`.
    #[must_use]
    pub fn meaning(self, unit_result: &str) -> End {
        let crashed = |message: String| End::Crashed { message };
        match self {
            Self::Exited(status) => match Exit::from_code(status) {
                Some(Exit::PowerOff) => End::PowerOff,
                Some(Exit::Reset) => End::Reset,
                Some(Exit::Stopped) => End::Stopped,
                Some(Exit::GuestCrash) => {
                    crashed("KVM could not run the guest any further".to_owned())
                }
                None => crashed(format!(
                    "the VMM ended with status {status} ({unit_result})"
                )),
            },
            Self::Killed(SIGTERM) => End::Stopped,
            Self::Killed(signal) => crashed(format!(
                "the VMM was ended by signal {signal} ({unit_result})"
            )),
            Self::NotRun => crashed(format!("the VMM's process never ran ({unit_result})")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_of_the_contract_has_its_meaning() {
        for (exit, end) in [
            (Exit::PowerOff, End::PowerOff),
            (Exit::Reset, End::Reset),
            (Exit::Stopped, End::Stopped),
        ] {
            let status = ProcessEnd::Exited(exit.code().into());
            assert_eq!(status.meaning("success"), end);
        }
    }

    #[test]
    fn every_other_end_is_a_crash_with_its_number() {
        for (end, words) in [
            (ProcessEnd::Exited(70), "status 70 (exit-code)"),
            (ProcessEnd::Killed(9), "signal 9 (exit-code)"),
            (ProcessEnd::NotRun, "never ran (exit-code)"),
        ] {
            let End::Crashed { message } = end.meaning("exit-code") else {
                panic!("{end:?} is a crash");
            };
            assert!(message.ends_with(words), "{message}");
        }
    }
}
