//! A guest that breaks every rule it can reach. It may spoil itself; the VMM has to count, go on and
//! end in the ordinary way.

use std::ops::Range;

use berth_api::vmm::{Event, Exit, Request};
use berth_tests::tiny_guest::{Code, Width};
use berth_vmm_machine::layout::{
    COM1_PIN, COM1_PORT, COM1_PORTS, ECAM, EVENT_STATUS_PORT, HIGH_RAM_START, IOAPIC,
    KEYBOARD_COMMAND_PORT, PCI_WINDOW, RESET_PORT, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT,
};

use crate::machine::{Machine, Setup, require_kvm};
use crate::second_vcpu::start_others;
use crate::virtio::{Function, address, enable, functions, notify, slot, start_device};

const DONE: &[u8] = b"<done>";
/// Virtio functions of the machine: two disks and the entropy device, from slot 1 on.
const FUNCTIONS: u32 = 3;

fn setup(guest: &Code) -> Option<Setup> {
    let mut setup = Setup::new(require_kvm()?, guest);
    setup.add_disk(1 << 20);
    setup.add_disk(1 << 20);
    setup.start.entropy = true;
    Some(setup)
}

/// Makes the serial port usable again, whatever was written to it, and tells the end.
fn finish(guest: &mut Code) {
    for (register, value) in [(3, 0x03), (4, 0x00), (1, 0x00)] {
        guest.port_write(COM1_PORT + register, Width::Byte, value);
    }
    guest.print(COM1_PORT, DONE).halt();
}

/// Waits until the guest is done, asks for the counters and ends the machine.
#[track_caller]
fn guest_errors_at_end(mut machine: Machine) -> u64 {
    machine.expect_running();
    let mut output = Vec::new();
    while !output.ends_with(DONE) {
        output.extend(machine.read_output(1));
    }
    machine.vmm.send(&Request::Statistics).unwrap();
    let Event::Statistics { guest_errors, .. } = machine.event() else {
        panic!("another event than the one asked for");
    };
    machine.vmm.send(&Request::Stop).unwrap();
    machine.expect_end(Exit::Stopped);
    guest_errors
}

#[track_caller]
fn check(guest: &Code, least_errors: u64) {
    let Some(setup) = setup(guest) else { return };
    let errors = guest_errors_at_end(setup.launch_with_console());
    assert!(errors >= least_errors, "{errors} guest errors were counted");
}

/// Writes random values of all widths to `range` and reads them again, in steps of 4 bytes.
fn hammer(guest: &mut Code, range: Range<u32>, seed: u32) {
    hammer_every(4, guest, range, seed);
}

fn hammer_every(step: u32, guest: &mut Code, range: Range<u32>, seed: u32) {
    guest.set_ebx(seed).set_esi(range.start);
    let again = guest.label();
    for (width, offset) in [(Width::Double, 0), (Width::Word, 1), (Width::Byte, 3)] {
        guest.random_eax().store(width, offset).load(width, offset);
    }
    guest.random_eax().store(Width::Double, 2);
    guest.step_esi(again, step, range.end);
}

#[test]
fn addresses_without_a_device_read_all_ones() {
    let places = [
        PCI_WINDOW.end - 4,
        ECAM.start + u64::from(slot(31) - slot(0)),
        ECAM.end,
        IOAPIC.end,
        HIGH_RAM_START + (64 << 20),
    ];
    let ports = [0x80, 0x1234, 0xcf8, 0xcfc, 0xfffc];
    let mut guest = Code::new();
    for port in ports {
        guest.port_read(port, Width::Double).print_eax(COM1_PORT);
        // A narrower read leaves the upper bits zero: or eax, !mask
        for (width, mask) in [(Width::Byte, 0xff_u32), (Width::Word, 0xffff)] {
            guest
                .port_read(port, width)
                .raw(&[0x0d])
                .raw(&(!mask).to_le_bytes());
            guest.print_eax(COM1_PORT);
        }
    }
    guest.enter_long_mode();
    for place in places {
        guest
            .set_rsi(place)
            .set_eax(0)
            .load(Width::Double, 0)
            .print_eax(COM1_PORT);
        guest.set_eax(0x1234_5678).store(Width::Double, 0);
        guest.load(Width::Double, 0).print_eax(COM1_PORT);
    }
    guest.halt();
    let Some(setup) = setup(&guest) else { return };
    let mut machine = setup.launch_with_console();
    machine.expect_running();
    let count = 4 * (3 * ports.len() + 2 * places.len());
    assert_eq!(machine.read_output(count), vec![0xff; count]);
}

#[test]
fn ports_take_every_width_and_string_instructions() {
    let ports = (COM1_PORT..COM1_PORT + u16::from(COM1_PORTS)).chain([
        KEYBOARD_COMMAND_PORT,
        SLEEP_CONTROL_PORT - 2,
        SLEEP_CONTROL_PORT,
        SLEEP_STATUS_PORT,
        RESET_PORT,
        EVENT_STATUS_PORT,
        0xcf8,
        0xffff,
    ]);
    let mut guest = Code::new();
    for port in ports {
        for width in Width::ALL {
            guest
                .port_write(port, width, u32::MAX)
                .port_read(port, width);
        }
        // mov esi and edi, free RAM; cld; mov ecx, 40; rep outsd, outsw, outsb, insd, insw, insb
        guest.set_esi(0x18_0000).raw(&[0xbf, 0, 0, 0x18, 0, 0xfc]);
        for string in [&[0xf3, 0x6f][..], &[0xf3, 0x66, 0x6f], &[0xf3, 0x6e]] {
            guest.raw(&[0xb9, 40, 0, 0, 0]).raw(string);
        }
        for string in [&[0xf3, 0x6d][..], &[0xf3, 0x66, 0x6d], &[0xf3, 0x6c]] {
            guest.raw(&[0xb9, 40, 0, 0, 0]).raw(string);
        }
    }
    finish(&mut guest);
    check(&guest, 1);
}

#[test]
fn configuration_space_takes_every_width_at_every_offset() {
    let mut guest = Code::new();
    // The host bridge, every function, a slot without any, and functions that are not the first.
    for first in [0, 1, 2, 3, 9, 31]
        .map(slot)
        .into_iter()
        .chain([slot(1) + 0x1000])
    {
        guest.set_esi(first).set_ebx(first | 1);
        let again = guest.label();
        for offset in 0..4 {
            for width in Width::ALL {
                guest.random_eax().store(width, offset).load(width, offset);
            }
        }
        guest.step_esi(again, 4, first + 0x200);
    }
    let end = address(ECAM.end);
    hammer(&mut guest, end - 0x100..end + 0x100, 5);
    finish(&mut guest);
    check(&guest, 1000);
}

#[test]
fn interrupt_controllers_survive_garbage() {
    let mut guest = Code::new();
    let ioapic = address(IOAPIC.start);
    hammer(&mut guest, ioapic..ioapic + 0x400, 11);
    // The index register decides what the data register is: all 256, all widths.
    for index in 0..=255 {
        guest.set_esi(ioapic).set_eax(index).store(Width::Double, 0);
        for width in Width::ALL {
            guest.random_eax().store(width, 0x10).load(width, 0x10);
        }
    }
    let Some(mut setup) = setup(&{
        finish(&mut guest);
        guest
    }) else {
        return;
    };
    setup.start.vcpus = 2;
    // The serial port's and the button's lines now go wherever garbage sent them.
    let machine = setup.launch_with_console();
    machine.vmm.send(&Request::PowerButton).unwrap();
    guest_errors_at_end(machine);
}

#[test]
fn an_interrupt_that_no_processor_can_take_is_counted() {
    let mut guest = Code::new();
    let ioapic = address(IOAPIC.start);
    let entry = 0x10 + 2 * u32::from(COM1_PIN);
    // Vector 0x31, unmasked, for whichever of all processors has the lowest priority: local APICs
    // that are switched off, as they are after a reset, do not take part.
    for (register, value) in [(entry + 1, 0xff << 24), (entry, 0x931)] {
        guest.set_esi(ioapic);
        guest.set_eax(register).store(Width::Double, 0);
        guest.set_eax(value).store(Width::Double, 0x10);
    }
    // The transmitter is empty: enabling its interrupt raises it.
    guest.port_write(COM1_PORT + 1, Width::Byte, 0x02);
    finish(&mut guest);
    check(&guest, 1);
}

/// Every register of every function twice, with memory decoding on, and a sample of the addresses
/// between them.
fn hammer_registers(guest: &mut Code, functions: &[Function], seed: u32) {
    const BAR_BYTES: u32 = 0x8000;
    const REGISTERS_BYTES: u32 = 0x100;
    for function in functions {
        let number = function.number;
        for pass in 0..2 {
            enable(guest, number);
            let seed = seed * 7 + number * 2 + pass;
            for page in (function.bar..function.bar + BAR_BYTES).step_by(0x1000) {
                hammer(guest, page..page + REGISTERS_BYTES, seed ^ page);
            }
            hammer_every(0x34, guest, function.bar..function.bar + BAR_BYTES, seed);
        }
    }
}

#[test]
fn virtio_registers_survive_garbage() {
    let Some(functions) = functions(setup, FUNCTIONS) else {
        return;
    };
    let mut guest = Code::new();
    // First with memory decoding off: nothing may answer.
    for function in &functions {
        hammer(&mut guest, function.bar..function.bar + 0x100, 77);
    }
    hammer_registers(&mut guest, &functions, 1);
    finish(&mut guest);
    check(&guest, 1000);
}

#[test]
fn two_vcpus_race_over_the_same_registers() {
    let Some(functions) = functions(setup, FUNCTIONS) else {
        return;
    };
    let mut guest = Code::new();
    let other = functions.clone();
    start_others(&mut guest, 1, |code| {
        hammer_registers(code, &other, 1000);
        code.halt();
    });
    hammer_registers(&mut guest, &functions, 2000);
    finish(&mut guest);
    let Some(mut setup) = setup(&guest) else {
        return;
    };
    setup.start.vcpus = 2;
    assert!(guest_errors_at_end(setup.launch_with_console()) >= 1000);
}

/// Starts the device and notifies three queues, of which some do not exist.
fn start_and_notify(guest: &mut Code, function: Function, rings: [u64; 3]) {
    start_device(guest, function, rings);
    for queue in [0, 1, 0xffff] {
        notify(guest, function, queue);
    }
}

#[test]
fn rings_outside_of_memory_are_counted() {
    let Some(functions) = functions(setup, FUNCTIONS) else {
        return;
    };
    let mut guest = Code::new();
    let mut attempts = 0;
    for bad in [
        u64::MAX - 0xf,
        0xffff_ffff_0000_0000,
        ECAM.start,
        0x30_0001,
        HIGH_RAM_START,
    ] {
        for &function in &functions {
            for which in 0..3 {
                let mut rings = [0x30_0000, 0x30_1000, 0x30_2000];
                rings[which] = bad;
                start_and_notify(&mut guest, function, rings);
                attempts += 1;
            }
        }
    }
    finish(&mut guest);
    check(&guest, attempts);
}

#[test]
fn rings_full_of_garbage_break_the_queue_and_not_the_vmm() {
    const RINGS: Range<u32> = 0x30_0000..0x30_3000;
    let Some(functions) = functions(setup, FUNCTIONS) else {
        return;
    };
    let mut guest = Code::new();
    for seed in 1..=64 {
        fill_with_garbage(&mut guest, RINGS, seed);
        if seed % 2 == 0 {
            // An index that is only a few ahead, so that chains are really followed.
            guest
                .set_esi(RINGS.start + 0x1002)
                .set_eax(3)
                .store(Width::Word, 0);
        }
        for &function in &functions {
            let start = u64::from(RINGS.start);
            start_and_notify(
                &mut guest,
                function,
                [start, start + 0x1000, start + 0x2000],
            );
        }
    }
    // A chain without end: descriptor 0 leads to itself.
    for (offset, value) in [
        (0, 0x40_0000),
        (4, 0),
        (8, 16),
        (12, 1),
        (0x1000, 1 << 16),
        (0x1004, 0),
    ] {
        guest
            .set_esi(RINGS.start + offset)
            .set_eax(value)
            .store(Width::Double, 0);
    }
    for &function in &functions {
        start_and_notify(&mut guest, function, [0x30_0000, 0x30_1000, 0x30_2000]);
    }
    guest.spin(100_000_000);
    finish(&mut guest);
    check(&guest, 10);
}

fn fill_with_garbage(guest: &mut Code, range: Range<u32>, seed: u32) {
    guest.set_ebx(seed).set_esi(range.start);
    let again = guest.label();
    guest
        .random_eax()
        .store(Width::Double, 0)
        .step_esi(again, 4, range.end);
}
