//! The pvpanic device, by which a guest says that it panicked.

use berth_api::vmm::{DeviceStatistics, Event, Exit, Request, Warning};
use berth_tests::tiny_guest::{Code, Width};
use berth_vmm_machine::layout::{COM1_PORT, PANIC_PORT, SLEEP_CONTROL_PORT};

use crate::ending::POWER_OFF;
use crate::machine::{Setup, require_kvm};

#[test]
fn a_guest_that_panics_is_heard_once_for_each_kind() {
    let Some(kvm) = require_kvm() else { return };
    let mut guest = Code::new();
    guest
        .port_read(PANIC_PORT, Width::Byte)
        .print_eax(COM1_PORT);
    for value in [1, 1, 0xf0, 3] {
        guest.port_write(PANIC_PORT, Width::Byte, value);
    }
    guest.print(COM1_PORT, b"!").halt();
    let mut setup = Setup::new(kvm, &guest);
    setup.start.panic_device = true;
    let mut machine = setup.launch_with_console();
    machine.expect_running();
    for crash_kernel in [false, true] {
        let about = Warning::GuestPanicked { crash_kernel };
        assert_eq!(machine.event(), Event::Warning { about });
    }
    assert_eq!(machine.read_output(5), b"\x03\0\0\0!");
    machine.vmm.send(&Request::Statistics).unwrap();
    let Event::Statistics { devices, .. } = machine.event() else {
        panic!("another event than the one asked for");
    };
    let counters = [("panicked", 3), ("crash_loaded", 1)];
    let expected = DeviceStatistics {
        device: "panic".to_owned(),
        counters: counters
            .map(|(name, count)| (name.to_owned(), count))
            .into(),
    };
    assert_eq!(devices, [expected]);
    machine.vmm.send(&Request::Stop).unwrap();
    machine.expect_end(Exit::Stopped);
}

#[test]
fn a_machine_without_the_device_takes_the_port_for_nothing() {
    let Some(kvm) = require_kvm() else { return };
    let mut guest = Code::new();
    guest
        .port_read(PANIC_PORT, Width::Byte)
        .print_eax(COM1_PORT);
    guest.port_write(PANIC_PORT, Width::Byte, 1);
    guest
        .port_write(SLEEP_CONTROL_PORT, Width::Byte, POWER_OFF)
        .halt();
    let mut machine = Setup::new(kvm, &guest).launch_with_console();
    machine.expect_running();
    machine.expect_end(Exit::PowerOff);
    assert_eq!(machine.output_to_end(), b"\xff\0\0\0");
}
