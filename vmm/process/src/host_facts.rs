//! `berth-vmm host-facts`: what every start on this host needs to know of its KVM, as bytes.
//!
//! Owns the opening of `/dev/kvm`. The form of the bytes is the machine's.

use std::fs::OpenOptions;
use std::io::{self, Write as _};

use berth_vmm_machine::host_facts::HostFacts;
use berth_vmm_sys::kvm_from_descriptor;

use crate::exit_code::ExitCode;

/// Writes the facts to standard output.
pub(crate) fn run() -> ExitCode {
    match ask().and_then(|facts| io::stdout().write_all(&facts)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = format!("berth-vmm host-facts: /dev/kvm does not answer: {error}\n");
            // Nobody is left to tell if standard error is gone.
            io::stderr().write_all(text.as_bytes()).unwrap_or(());
            ExitCode::FAILED
        }
    }
}

fn ask() -> io::Result<Vec<u8>> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
    let facts = HostFacts::ask(&kvm_from_descriptor(device.into()))?;
    Ok(facts.to_bytes())
}
