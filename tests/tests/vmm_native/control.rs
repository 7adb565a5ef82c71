//! The control socket of a running machine.

use std::io;

use berth_api::vmm::{Denial, Event, Exit, Request};
use berth_tests::launch::Heard;
use berth_tests::tiny_guest::{Code, Width};
use berth_vmm_machine::layout::{COM1_PORT, EVENT_STATUS_PORT, SLEEP_CONTROL_PORT};

use crate::ending::POWER_OFF;
use crate::machine::{Machine, PATIENCE, Setup, require_kvm};

/// About a third of a second on today's processors: long enough for a test to act in between.
const A_WHILE_CYCLES: u32 = 1_000_000_000;

/// A port that no device answers: each write is an exit that is counted.
const COUNTED_PORT: u16 = 0x80;

/// Writes to a port for ever.
fn counting_guest() -> Code {
    let mut guest = Code::new();
    guest.print(COM1_PORT, b"!");
    // mov dx, port; again: out dx, al; jmp again
    guest.port_write(COUNTED_PORT, Width::Byte, 0);
    guest.raw(&[0xee, 0xeb, 0xfd]);
    guest
}

fn counting_machine() -> Option<Machine> {
    let setup = Setup::new(require_kvm()?, &counting_guest());
    let mut machine = setup.launch_with_console();
    machine.expect_running();
    assert_eq!(machine.read_output(1), b"!");
    Some(machine)
}

/// How often the guest has written to a port.
#[track_caller]
fn port_writes(machine: &Machine) -> u64 {
    machine.vmm.send(&Request::Statistics).unwrap();
    let event = machine.event();
    let Event::Statistics { exits, .. } = event else {
        panic!("{event:?} instead of statistics");
    };
    exits["port_write"]
}

#[track_caller]
fn ask(machine: &Machine, request: &Request) -> Event {
    machine.vmm.send(request).unwrap();
    machine.event()
}

#[track_caller]
fn expect_denied(machine: &Machine, name: &str, why: Denial) {
    let event = machine.event();
    let Event::Denied {
        request,
        reason,
        remedy,
    } = event
    else {
        panic!("{event:?} instead of a denial");
    };
    assert_eq!((request.as_str(), reason), (name, why));
    assert!(!remedy.is_empty());
}

#[track_caller]
fn expect_counting(machine: &Machine) {
    let before = port_writes(machine);
    while port_writes(machine) == before {}
}

#[track_caller]
fn expect_at_rest(machine: &Machine) {
    let before = port_writes(machine);
    for _ in 0..50 {
        assert_eq!(port_writes(machine), before);
    }
}

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
        b"{\"request\":\"balloon\",\"target_mib\":-1}",
        &[b'['; 60_000],
    ] {
        machine.vmm.send_bytes(nonsense).unwrap();
        expect_denied(&machine, "", Denial::Malformed);
    }
    machine.vmm.send(&Request::Statistics).unwrap();
    assert!(matches!(machine.event(), Event::Statistics { .. }));
    machine.vmm.send(&Request::Stop).unwrap();
    machine.expect_end(Exit::Stopped);
}

/// A guest that powers off when the power button is pressed.
fn machine_that_waits_for_the_button() -> Option<Machine> {
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
    let mut machine = Setup::new(require_kvm()?, &guest).launch_with_console();
    machine.expect_running();
    assert_eq!(machine.read_output(1), b"!");
    Some(machine)
}

#[test]
fn the_power_button_shows_in_the_event_status_register() {
    let Some(mut machine) = machine_that_waits_for_the_button() else {
        return;
    };
    machine.vmm.send(&Request::PowerButton).unwrap();
    machine.expect_end(Exit::PowerOff);
}

#[test]
fn a_paused_guest_stands_still_and_goes_on_when_resumed() {
    let Some(mut machine) = counting_machine() else {
        return;
    };
    for _ in 0..5 {
        expect_counting(&machine);
        assert_eq!(ask(&machine, &Request::Pause), Event::Paused);
        expect_at_rest(&machine);
        assert_eq!(ask(&machine, &Request::Resume), Event::Resumed);
    }
    expect_counting(&machine);
    machine.vmm.send(&Request::Stop).unwrap();
    machine.expect_end(Exit::Stopped);
}

#[test]
fn vcpus_that_spin_halt_or_wait_to_be_started_are_paused_alike() {
    for rest in [[0xeb, 0xfe], [0xf4, 0xf4]] {
        let Some(kvm) = require_kvm() else { return };
        let mut guest = Code::new();
        // jmp to itself, or hlt with interrupts off.
        guest.print(COM1_PORT, b"!").raw(&rest).halt();
        let mut setup = Setup::new(kvm, &guest);
        setup.start.vcpus = 3;
        let mut machine = setup.launch_with_console();
        machine.expect_running();
        assert_eq!(machine.read_output(1), b"!");
        for _ in 0..20 {
            assert_eq!(ask(&machine, &Request::Pause), Event::Paused);
            assert_eq!(ask(&machine, &Request::Resume), Event::Resumed);
        }
        machine.vmm.send(&Request::Stop).unwrap();
        machine.expect_end(Exit::Stopped);
    }
}

#[test]
fn what_a_machine_cannot_do_now_is_denied_with_the_reason() {
    let Some(mut machine) = idle_machine() else {
        return;
    };
    machine.vmm.send(&Request::Resume).unwrap();
    expect_denied(&machine, "resume", Denial::NotPaused);
    machine
        .vmm
        .send(&Request::Balloon { target_mib: 1 })
        .unwrap();
    expect_denied(&machine, "balloon", Denial::NoDevice);
    assert_eq!(ask(&machine, &Request::Pause), Event::Paused);
    machine.vmm.send(&Request::Pause).unwrap();
    expect_denied(&machine, "pause", Denial::AlreadyPaused);
    machine.vmm.send(&Request::Stop).unwrap();
    machine.expect_end(Exit::Stopped);
}

#[test]
fn requests_that_follow_a_stop_are_denied_before_the_end_is_told() {
    let Some(mut machine) = idle_machine() else {
        return;
    };
    // While it is paused nothing else happens, and one message is taken at a time.
    for request in [Request::Pause, Request::Stop] {
        machine.vmm.send(&request).unwrap();
    }
    // If the end was faster than this request, it is not read any more, or finds nobody.
    let late = machine.vmm.send(&Request::Resume);
    assert!(
        late.is_ok() || late.is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe),
        "it cannot be asked"
    );
    assert_eq!(machine.event(), Event::Paused);
    let next = machine.event();
    let Event::Exited { exit, .. } = next else {
        let Event::Denied {
            request, reason, ..
        } = next
        else {
            panic!("{next:?} instead of a denial or the end");
        };
        assert_eq!((request.as_str(), reason), ("resume", Denial::Ending));
        machine.expect_end(Exit::Stopped);
        return;
    };
    assert_eq!(exit, Exit::Stopped);
}

#[test]
fn the_power_button_pressed_in_a_pause_is_seen_after_it() {
    let Some(mut machine) = machine_that_waits_for_the_button() else {
        return;
    };
    assert_eq!(ask(&machine, &Request::Pause), Event::Paused);
    machine.vmm.send(&Request::PowerButton).unwrap();
    machine.vmm.send(&Request::Statistics).unwrap();
    assert!(matches!(machine.event(), Event::Statistics { .. }));
    assert_eq!(ask(&machine, &Request::Resume), Event::Resumed);
    machine.expect_end(Exit::PowerOff);
}

#[test]
fn a_flood_of_requests_whose_answers_nobody_reads_harms_nothing() {
    let Some(mut machine) = counting_machine() else {
        return;
    };
    for round in 0..2000 {
        let request = [
            Request::Pause,
            Request::Statistics,
            Request::Resume,
            Request::Balloon { target_mib: round },
        ];
        for request in request {
            machine.vmm.send(&request).unwrap();
        }
        machine.vmm.send_bytes(b"?").unwrap();
    }
    machine.vmm.send(&Request::Stop).unwrap();
    // What fitted the socket is there; the rest was dropped, perhaps even the last word.
    let mut answers = 0;
    loop {
        match machine.vmm.next_event(PATIENCE).unwrap() {
            Heard::Event(Event::Exited {
                exit: Exit::Stopped,
                ..
            })
            | Heard::Closed => break,
            Heard::Event(_) => answers += 1,
            Heard::Nothing => panic!("the VMM tells nothing"),
        }
    }
    assert!(answers > 0);
    assert_eq!(
        machine.status().code(),
        Some(i32::from(Exit::Stopped.code()))
    );
}
