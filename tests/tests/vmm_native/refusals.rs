//! Every start message that has to be refused, and how: an event that names the field, status 65,
//! and no process.

use std::fs::{File, OpenOptions};
use std::process::{Command, Stdio};

use berth_api::vmm::{
    Console, Disk, Event, FdIndex, MAX_CMDLINE_BYTES, MAX_DISKS, MAX_MEMORY_MIB, MAX_MESSAGE_BYTES,
    MAX_VCPUS, MIN_MEMORY_MIB,
};
use berth_tests::launch::{ALLOW_UNJAILED, Descriptors, Heard, LaunchedVmm};
use berth_tests::tiny_guest::{Code, read_only_file};

use crate::machine::{Machine, PATIENCE, Setup, require_kvm, vmm_program};

const REFUSED: i32 = 65;
const USAGE: i32 = 64;

/// A machine that would start, after `spoil` has spoilt it.
fn spoilt(spoil: impl FnOnce(&mut Setup)) -> Option<Setup> {
    let mut setup = Setup::new(require_kvm()?, Code::new().halt());
    spoil(&mut setup);
    Some(setup)
}

#[track_caller]
fn expect_refusal(machine: &mut Machine, expected_field: Option<&str>) {
    let Event::Refused {
        field,
        problem,
        remedy,
    } = machine.event()
    else {
        panic!("another event than a refusal");
    };
    if let Some(expected) = expected_field {
        assert_eq!(field, expected, "{problem}; {remedy}");
    }
    assert!(!field.is_empty() && !problem.is_empty() && !remedy.is_empty());
    assert_eq!(machine.vmm.next_event(PATIENCE).unwrap(), Heard::Closed);
    assert_eq!(machine.status().code(), Some(REFUSED));
}

#[track_caller]
fn check(field: &str, spoil: impl FnOnce(&mut Setup)) {
    let Some(setup) = spoilt(spoil) else { return };
    expect_refusal(&mut setup.launch(), Some(field));
}

/// Sends `message` instead of a start message, with no descriptors.
#[track_caller]
fn check_message(message: &[u8], field: Option<&str>) {
    let mut command = Command::new(vmm_program());
    command.arg(ALLOW_UNJAILED);
    let vmm = LaunchedVmm::launch_with(&mut command, message, &Descriptors::new()).unwrap();
    expect_refusal(&mut Machine::of(vmm), field);
}

fn file_of(bytes: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    file
}

fn image() -> Vec<u8> {
    Code::new().halt().to_elf()
}

#[test]
fn another_contract_version_is_refused() {
    check("version", |setup| setup.start.version += 1);
    check("version", |setup| setup.start.version = 0);
}

#[test]
fn impossible_numbers_of_vcpus_are_refused() {
    for vcpus in [0, MAX_VCPUS + 1, 256, 257, u32::MAX] {
        check("vcpus", |setup| setup.start.vcpus = vcpus);
    }
}

#[test]
fn impossible_amounts_of_memory_are_refused() {
    for memory_mib in [0, MIN_MEMORY_MIB - 1, MAX_MEMORY_MIB + 1, 1 << 44, u64::MAX] {
        check("memory_mib", |setup| setup.start.memory_mib = memory_mib);
    }
}

#[test]
fn names_that_would_spoil_a_log_are_refused() {
    for name in ["", "two\nlines", "\u{1b}[2J", "ü", &"x".repeat(65)] {
        check("vm_id", |setup| setup.start.vm_id = name.to_owned());
    }
}

#[test]
fn command_lines_that_do_not_fit_or_print_are_refused() {
    for cmdline in [
        &"x".repeat(MAX_CMDLINE_BYTES + 1),
        "a\0b",
        "tab\there",
        "naïve",
        "a\nb",
    ] {
        check("cmdline", |setup| setup.start.cmdline = cmdline.to_owned());
    }
}

#[test]
fn the_longest_command_line_is_taken() {
    let Some(setup) = spoilt(|setup| setup.start.cmdline = "x".repeat(MAX_CMDLINE_BYTES)) else {
        return;
    };
    setup.launch().expect_running();
}

#[test]
fn a_descriptor_out_of_range_is_refused() {
    for index in [2, 64, u32::MAX] {
        check("kernel", |setup| setup.start.kernel = FdIndex(index));
        check("initrd", |setup| setup.start.initrd = Some(FdIndex(index)));
    }
}

#[test]
fn a_descriptor_used_twice_is_refused() {
    check("initrd", |setup| {
        setup.start.initrd = Some(setup.start.kernel)
    });
    check("console.fds[1]", |setup| {
        let fd = setup.descriptors.add(file_of(0));
        setup.start.console = Some(Console::Segments {
            fds: [fd, fd],
            segment_bytes: 4096,
        });
    });
}

#[test]
fn a_descriptor_that_no_field_names_is_refused() {
    check("start", |setup| {
        setup.descriptors.add(file_of(0));
    });
}

#[test]
fn more_descriptors_than_the_contract_has_are_refused() {
    let Some(setup) = spoilt(|setup| {
        for _ in 0..65 {
            setup.descriptors.add(file_of(0));
        }
    }) else {
        return;
    };
    expect_refusal(&mut setup.launch(), None);
}

#[test]
fn descriptors_of_the_wrong_kind_are_refused() {
    check("kvm", |setup| {
        setup.start.kvm = setup.descriptors.add(file_of(4096))
    });
    check("kvm", |setup| {
        setup.start.kvm = setup.descriptors.add(File::open("/dev/null").unwrap());
    });
    check("kvm", |setup| {
        setup.start.kvm = setup.descriptors.add(File::open("/dev/kvm").unwrap());
    });
    check("kernel", |setup| {
        setup.start.kernel = setup.descriptors.add(std::io::pipe().unwrap().0);
    });
    check("kernel", |setup| {
        setup.start.kernel = setup.descriptors.add(File::open("/").unwrap());
    });
    check("initrd", |setup| {
        setup.start.initrd = Some(setup.descriptors.add(File::open("/dev/zero").unwrap()));
    });
    check("disks[1].fd", |setup| {
        setup.add_disk(512);
        setup.add_disk(512);
        setup.start.disks[1].fd = setup.descriptors.add(std::io::pipe().unwrap().0);
    });
    check("console.fds[0]", |setup| {
        let pipe = setup.descriptors.add(std::io::pipe().unwrap().1);
        let file = setup.descriptors.add(file_of(0));
        setup.start.console = Some(Console::Segments {
            fds: [pipe, file],
            segment_bytes: 4096,
        });
    });
}

#[test]
fn a_writable_kernel_is_refused() {
    check("kernel", |setup| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), image()).unwrap();
        let writable = OpenOptions::new()
            .read(true)
            .write(true)
            .open(file.path())
            .unwrap();
        setup.start.kernel = setup.descriptors.add(writable);
    });
}

#[track_caller]
fn check_kernel(field: &str, content: &[u8]) {
    let Some(kvm) = require_kvm() else { return };
    let setup = Setup::with_kernel(kvm, read_only_file(content).unwrap());
    expect_refusal(&mut setup.launch(), Some(field));
}

#[test]
fn a_kernel_that_is_none_is_refused() {
    check_kernel("kernel", b"");
    check_kernel("kernel", b"#!/bin/sh\nexit 0\n");
    check_kernel("kernel", &[0; 65536]);
    check_kernel("kernel", b"\x7fELF");
}

#[test]
fn a_truncated_elf_is_refused_wherever_it_is_cut() {
    let whole = image();
    for length in [5, 63, 64, 100, 175, 180, 195, 4096, whole.len() - 1] {
        check_kernel("kernel", &whole[..length]);
    }
}

#[test]
fn an_elf_with_impossible_headers_is_refused() {
    let spoil: [(usize, &[u8]); 8] = [
        // The class, the machine, and the number and the place of the program headers.
        (4, &[1]),
        (18, &[0xb7]),
        (56, &[0, 0]),
        (32, &[0xff; 8]),
        // The segment's offset, place and lengths.
        (64 + 8, &[0xff; 8]),
        (64 + 24, &[0; 8]),
        (64 + 32, &[0xff; 8]),
        (64 + 40, &[0xff; 8]),
    ];
    for (place, bytes) in spoil {
        let mut content = image();
        content[place..place + bytes.len()].copy_from_slice(bytes);
        check_kernel("kernel", &content);
    }
}

#[test]
fn a_kernel_larger_than_memory_is_refused() {
    let mut content = image();
    let beyond = MIN_MEMORY_MIB << 20;
    content[64 + 40..64 + 48].copy_from_slice(&beyond.to_le_bytes());
    check_kernel("memory_mib", &content);
}

#[test]
fn an_initial_ram_disk_larger_than_memory_is_refused() {
    let Some(setup) = spoilt(|setup| {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(MIN_MEMORY_MIB << 20).unwrap();
        setup.start.initrd = Some(setup.descriptors.add(File::open(file.path()).unwrap()));
    }) else {
        return;
    };
    expect_refusal(&mut setup.launch(), None);
}

/// A start message with one spoilt disk.
#[track_caller]
fn check_disk(field: &str, spoil: impl FnOnce(&mut Disk)) {
    check(field, |setup| {
        setup.add_disk(1 << 20);
        spoil(&mut setup.start.disks[0]);
    });
}

#[test]
fn a_disk_shorter_than_expected_is_refused() {
    check_disk("disks[0].fd", |disk| disk.expected_bytes += 512);
    check_disk("disks[0].fd", |disk| disk.expected_bytes = !511);
}

#[test]
fn a_disk_without_whole_sectors_is_refused() {
    check_disk("disks[0].expected_bytes", |disk| disk.expected_bytes = 0);
    check_disk("disks[0].expected_bytes", |disk| disk.expected_bytes = 513);
}

#[test]
fn a_disk_whose_mode_disagrees_is_refused() {
    check_disk("disks[0].fd", |disk| disk.read_only = true);
    check("disks[0].fd", |setup| {
        setup.add_disk(512);
        let file = read_only_file(&[0; 512]).unwrap();
        setup.start.disks[0].fd = setup.descriptors.add(file);
    });
}

#[test]
fn a_disk_serial_that_does_not_fit_is_refused() {
    check_disk("disks[0].serial", |disk| disk.serial = "x".repeat(21));
    check_disk("disks[0].serial", |disk| disk.serial = "a\nb".to_owned());
}

#[test]
fn more_disks_than_slots_are_refused() {
    check("disks", |setup| {
        for _ in 0..=MAX_DISKS {
            setup.add_disk(512);
        }
    });
}

#[test]
fn consoles_that_cannot_be_written_or_bounded_are_refused() {
    check("console.fd", |setup| {
        let fd = setup.descriptors.add(std::io::pipe().unwrap().0);
        setup.start.console = Some(Console::Stream { fd });
    });
    for segment_bytes in [0, 4095, u64::MAX] {
        check("console.segment_bytes", |setup| {
            let fds = [0, 1].map(|_| setup.descriptors.add(file_of(0)));
            setup.start.console = Some(Console::Segments { fds, segment_bytes });
        });
    }
}

#[test]
fn a_message_without_descriptors_is_refused() {
    let Some(setup) = spoilt(|_| ()) else { return };
    check_message(&serde_json::to_vec(&setup.start).unwrap(), Some("kvm"));
}

#[test]
fn messages_that_are_none_are_refused() {
    for message in [
        b"{".as_slice(),
        b"\0",
        b"[]",
        b"null",
        b"{}",
        b"{\"version\":1}",
        &[b'['; 60_000],
    ] {
        check_message(message, None);
    }
    check_message(&vec![b' '; MAX_MESSAGE_BYTES + 1], None);
}

#[test]
fn an_unknown_field_is_refused() {
    let Some(setup) = spoilt(|_| ()) else { return };
    let mut message = serde_json::to_value(&setup.start).unwrap();
    message["turbo"] = true.into();
    check_message(&serde_json::to_vec(&message).unwrap(), None);
}

#[test]
fn a_parent_that_goes_away_without_a_message_leaves_no_process() {
    let mut child = Command::new(vmm_program())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let code = child.wait().unwrap().code().unwrap();
    assert!(code >= USAGE, "{code}");
}
