//! The control socket of a running machine.

use berth_api::vmm::{Event, Exit, Request};
use berth_tests::tiny_guest::{Code, Width};
use berth_vmm_machine::layout::{COM1_PORT, EVENT_STATUS_PORT, SLEEP_CONTROL_PORT};

use crate::ending::POWER_OFF;
use crate::machine::{Machine, Setup, require_kvm};

/// About a third of a second on today's processors: long enough for a test to act in between.
const A_WHILE_CYCLES: u32 = 1_000_000_000;

fn guest_that_takes_a_while() -> Code {
    let mut guest = Code::new();
    guest
        .print(COM1_PORT, b"1")
        .spin(A_WHILE_CYCLES)
        .print(COM1_PORT, b"2");
    guest
        .port_write(SLEEP_CONTROL_PORT, Width::Byte, POWER_OFF)
        .halt();
    guest
}

fn idle_machine() -> Option<Machine> {
    let setup = Setup::new(require_kvm()?, Code::new().print(COM1_PORT, b"!").halt());
    let mut machine = setup.launch_with_console();
    machine.expect_running();
    assert_eq!(machine.read_output(1), b"!");
    Some(machine)
}

#[test]
fn a_closed_socket_leaves_the_guest_running_to_its_end() {
    let Some(kvm) = require_kvm() else { return };
    let mut machine = Setup::new(kvm, &guest_that_takes_a_while()).launch_with_console();
    machine.expect_running();
    assert_eq!(machine.read_output(1), b"1");
    machine.vmm.close_socket();
    assert_eq!(machine.output_to_end(), b"2");
    assert_eq!(
        machine.status().code(),
        Some(i32::from(Exit::PowerOff.code()))
    );
}

#[test]
fn a_socket_closed_before_the_first_event_leaves_the_guest_running_too() {
    let Some(kvm) = require_kvm() else { return };
    let mut machine = Setup::new(kvm, &guest_that_takes_a_while()).launch_with_console();
    machine.vmm.close_socket();
    assert_eq!(machine.output_to_end(), b"12");
    assert_eq!(
        machine.status().code(),
        Some(i32::from(Exit::PowerOff.code()))
    );
}

#[test]
fn statistics_count_the_guests_exits() {
    let Some(mut machine) = idle_machine() else {
        return;
    };
    machine.vmm.send(&Request::Statistics).unwrap();
    let Event::Statistics {
        exits,
        guest_errors,
        console_dropped_bytes,
        devices: _,
    } = machine.event()
    else {
        panic!("another event than the one asked for");
    };
    assert!(
        exits.values().sum::<u64>() >= 1,
        "the byte that was printed is an exit: {exits:?}"
    );
    assert_eq!((guest_errors, console_dropped_bytes), (0, 0));
    machine.vmm.send(&Request::Stop).unwrap();
    machine.expect_end(Exit::Stopped);
}

#[test]
fn nonsense_on_the_socket_does_not_harm_the_guest() {
    let Some(mut machine) = idle_machine() else {
        return;
    };
    for nonsense in [
        b"{".as_slice(),
        b"\xff\xfe",
        b"{\"request\":\"fly\"}",
        &[b'['; 60_000],
    ] {
        machine.vmm.send_bytes(nonsense).unwrap();
    }
    machine.vmm.send(&Request::Statistics).unwrap();
    assert!(matches!(machine.event(), Event::Statistics { .. }));
    machine.vmm.send(&Request::Stop).unwrap();
    machine.expect_end(Exit::Stopped);
}

#[test]
fn the_power_button_shows_in_the_event_status_register() {
    let Some(kvm) = require_kvm() else { return };
    let mut guest = Code::new();
    guest.print(COM1_PORT, b"!");
    let again = guest.address();
    // Poll the register until it is not 0.
    guest.port_read(EVENT_STATUS_PORT, Width::Byte);
    // test al, al; jz again
    let distance = i64::from(again) - i64::from(guest.address()) - 4;
    guest.raw(&[
        0x84,
        0xc0,
        0x74,
        i8::try_from(distance).unwrap().to_le_bytes()[0],
    ]);
    guest
        .port_write(SLEEP_CONTROL_PORT, Width::Byte, POWER_OFF)
        .halt();
    let mut machine = Setup::new(kvm, &guest).launch_with_console();
    machine.expect_running();
    assert_eq!(machine.read_output(1), b"!");
    machine.vmm.send(&Request::PowerButton).unwrap();
    machine.expect_end(Exit::PowerOff);
}
