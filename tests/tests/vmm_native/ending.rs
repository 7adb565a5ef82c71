//! How a machine ends, by the guest's doing, by its parent's and by force.

use std::io::Read as _;

use berth_api::vmm::{Exit, Request, ResetCause};
use berth_tests::launch::Heard;
use berth_tests::tiny_guest::{Code, Width};
use berth_vmm_devices::power::{KEYBOARD_RESET_COMMAND, RESET_VALUE, SLEEP_ENABLE, SLEEP_TYPE_S5};
use berth_vmm_machine::layout::{COM1_PORT, KEYBOARD_COMMAND_PORT, RESET_PORT, SLEEP_CONTROL_PORT};

use crate::machine::{PATIENCE, Setup, require_kvm};

/// What an operating system writes to the sleep control register for power-off.
pub(crate) const POWER_OFF: u32 = (SLEEP_TYPE_S5 << 2 | SLEEP_ENABLE) as u32;

/// Runs `guest`, which first prints `!`, to its power-off.
#[track_caller]
fn check_power_off(guest: &Code) {
    let Some(kvm) = require_kvm() else { return };
    let mut machine = Setup::new(kvm, guest).launch_with_console();
    machine.expect_running();
    machine.expect_end(Exit::PowerOff);
    assert_eq!(machine.output_to_end(), b"!");
}

/// Runs `guest`, which first prints `!`, to its reset, and looks for `logged` in the log's line of it.
#[track_caller]
fn check_reset(guest: &Code, cause: ResetCause, logged: &str) {
    let Some(kvm) = require_kvm() else { return };
    let (mut machine, mut log) = Setup::new(kvm, guest).launch_with_console_and_log();
    machine.expect_running();
    machine.expect_reset(cause);
    assert_eq!(machine.output_to_end(), b"!");
    let mut lines = String::new();
    log.read_to_string(&mut lines).unwrap();
    let told = format!("event=exited vm=native-test exit=reset {logged}");
    assert!(lines.contains(&told), "{lines}");
}

#[test]
fn a_guest_prints_a_byte_and_powers_off() {
    let mut guest = Code::new();
    guest
        .print(COM1_PORT, b"!")
        .port_write(SLEEP_CONTROL_PORT, Width::Byte, POWER_OFF)
        .halt();
    check_power_off(&guest);
}

#[test]
fn nothing_runs_after_the_write_that_powers_off() {
    let mut guest = Code::new();
    guest
        .print(COM1_PORT, b"!")
        .port_write(SLEEP_CONTROL_PORT, Width::Byte, POWER_OFF);
    guest.print(COM1_PORT, b"late").halt();
    check_power_off(&guest);
}

#[test]
fn the_reset_register_asks_for_another_start() {
    let mut guest = Code::new();
    guest
        .print(COM1_PORT, b"!")
        .port_write(RESET_PORT, Width::Byte, RESET_VALUE.into())
        .halt();
    check_reset(&guest, ResetCause::Register, "cause=register\n");
}

#[test]
fn the_keyboard_controllers_reset_pulse_asks_for_another_start() {
    let mut guest = Code::new();
    let command = KEYBOARD_RESET_COMMAND.into();
    guest
        .print(COM1_PORT, b"!")
        .port_write(KEYBOARD_COMMAND_PORT, Width::Byte, command)
        .halt();
    check_reset(&guest, ResetCause::Keyboard, "cause=keyboard\n");
}

#[test]
fn a_triple_fault_is_a_reset_and_its_place_is_logged() {
    check_reset(
        Code::new().print(COM1_PORT, b"!").triple_fault(),
        ResetCause::TripleFault,
        "cause=triple_fault vcpu=0 registers=\"rip=0x",
    );
}

#[test]
fn a_stop_request_ends_a_guest_that_listens_to_nobody() {
    let Some(kvm) = require_kvm() else { return };
    let mut machine =
        Setup::new(kvm, Code::new().print(COM1_PORT, b"!").halt()).launch_with_console();
    machine.expect_running();
    assert_eq!(machine.read_output(1), b"!");
    machine.vmm.send(&Request::Stop).unwrap();
    machine.expect_end(Exit::Stopped);
}

#[test]
fn a_stop_request_ends_a_guest_that_never_leaves_guest_mode() {
    let Some(kvm) = require_kvm() else { return };
    // jmp to itself
    let mut machine = Setup::new(kvm, Code::new().print(COM1_PORT, b"!").raw(&[0xeb, 0xfe]))
        .launch_with_console();
    machine.expect_running();
    assert_eq!(machine.read_output(1), b"!");
    machine.vmm.send(&Request::Stop).unwrap();
    machine.expect_end(Exit::Stopped);
}

#[test]
fn sigterm_stops_the_machine_like_a_request() {
    let Some(kvm) = require_kvm() else { return };
    let mut machine =
        Setup::new(kvm, Code::new().print(COM1_PORT, b"!").halt()).launch_with_console();
    machine.expect_running();
    assert_eq!(machine.read_output(1), b"!");
    let pid = i32::try_from(machine.vmm.pid())
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(pid.unwrap(), rustix::process::Signal::TERM).unwrap();
    machine.expect_end(Exit::Stopped);
}

#[test]
fn sigkill_leaves_no_process_and_no_open_descriptor() {
    let Some(kvm) = require_kvm() else { return };
    let mut setup = Setup::new(kvm, Code::new().print(COM1_PORT, b"!").halt());
    setup.add_disk(1 << 20);
    setup.start.vcpus = 2;
    let mut machine = setup.launch_with_console();
    machine.expect_running();
    assert_eq!(machine.read_output(1), b"!");
    assert!(!machine.vmm.kill().unwrap().success());
    // Both ends close only when no process holds them any more.
    assert_eq!(machine.vmm.next_event(PATIENCE).unwrap(), Heard::Closed);
    assert_eq!(machine.output_to_end(), b"");
}
