//! `berth-vmm probe`: what this host's KVM can do, as one JSON document.
//!
//! Owns the opening of `/dev/kvm` and the answer's form. The trials are the machine's.

use std::fs::OpenOptions;
use std::io::Write;

use berth_vmm_machine::preflight;
use berth_vmm_sys::kvm_from_descriptor;
use serde::Serialize;

use crate::exit_code::ExitCode;

const KVM_PATH: &str = "/dev/kvm";
/// What every kernel since 2.6.22 says.
const KVM_API_VERSION: i32 = 12;

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Answer {
    /// Whether `/dev/kvm` is there and can be used.
    kvm: bool,
    /// The version of its interface; 0 without KVM.
    api_version: i32,
    /// Whether it runs an operating system that knows nothing of this host.
    runs_unmodified_guest: bool,
    /// What is wrong, and what helps.
    problem: Option<String>,
}

/// Answers on standard output.
pub(crate) fn run() -> ExitCode {
    let Ok(mut line) = serde_json::to_string(&answer()) else {
        return ExitCode::FAILED;
    };
    line.push('\n');
    match std::io::stdout().write_all(line.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILED,
    }
}

fn answer() -> Answer {
    let without = |problem| Answer {
        kvm: false,
        api_version: 0,
        runs_unmodified_guest: false,
        problem: Some(problem),
    };
    let device = match OpenOptions::new().read(true).write(true).open(KVM_PATH) {
        Ok(device) => device,
        Err(error) => {
            return without(format!(
                "{KVM_PATH} cannot be opened: {error}; switch virtualisation on in the firmware, \
                 load kvm_intel or kvm_amd, and run this as root or in group kvm"
            ));
        }
    };
    let kvm = kvm_from_descriptor(device.into());
    let api_version = kvm.get_api_version();
    if api_version != KVM_API_VERSION {
        return without(format!(
            "{KVM_PATH} speaks version {api_version} of the KVM interface"
        ));
    }
    let problem = preflight::runs_unmodified_guest(&kvm).err();
    Answer {
        kvm: true,
        api_version,
        runs_unmodified_guest: problem.is_none(),
        problem,
    }
}
