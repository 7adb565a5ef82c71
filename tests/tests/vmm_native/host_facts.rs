//! Starts with what the agent found out about the host once, and with what is no such thing.

use std::fs::File;

use berth_api::vmm::{Event, Exit};
use berth_tests::tiny_guest::Code;

use crate::machine::{PATIENCE, Setup, require_kvm, vmm_program};

/// The ACPI sleep control register and what powers off.
const SLEEP_PORT: u16 = 0x600;
const SLEEP_VALUE: u32 = 0x34;

fn guest_that_powers_off(host_facts: File) -> Option<Setup> {
    let mut guest = Code::new();
    guest.port_write(
        SLEEP_PORT,
        berth_tests::tiny_guest::Width::Byte,
        SLEEP_VALUE,
    );
    let mut setup = Setup::new(require_kvm()?, guest.halt());
    setup.start.host_facts = Some(setup.descriptors.add(host_facts));
    Some(setup)
}

#[test]
fn a_guest_runs_with_the_facts_that_its_host_was_asked_for_once() {
    if require_kvm().is_none() {
        return;
    }
    let facts = berth_agent_host::host_facts::collect(&vmm_program()).unwrap();
    let Some(setup) = guest_that_powers_off(facts) else {
        return;
    };
    let mut machine = setup.launch();
    machine.expect_running();
    machine.expect_end(Exit::PowerOff);
}

#[test]
fn facts_that_somebody_could_still_change_are_refused() {
    let Some(setup) = guest_that_powers_off(tempfile::tempfile().unwrap()) else {
        return;
    };
    let machine = setup.launch();
    let Ok(berth_tests::launch::Heard::Event(Event::Refused { field, .. })) =
        machine.vmm.next_event(PATIENCE)
    else {
        panic!("another event than a refusal");
    };
    assert_eq!(field, "host_facts");
}
