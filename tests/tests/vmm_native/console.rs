//! Serial output: bounded segments across restarts, and streams that nobody reads.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::path::Path;

use berth_api::vmm::console_segment::{HEADER_BYTES, MAGIC};
use berth_api::vmm::{Console, Event, Exit, Request};
use berth_tests::tiny_guest::{Code, Width};
use berth_vmm_machine::layout::{COM1_PORT, SLEEP_CONTROL_PORT};

use crate::ending::POWER_OFF;
use crate::machine::{PATIENCE, Setup, require_kvm};

const SEGMENT_BYTES: u64 = 4096;

/// Prints `count` bytes, each the low part of its position in the output of this guest.
fn print_positions(guest: &mut Code, count: u32) -> &mut Code {
    // mov edx, COM1
    guest
        .raw(&[0xba])
        .raw(&u32::from(COM1_PORT).to_le_bytes())
        .set_esi(0);
    let again = guest.label();
    // mov eax, esi; out dx, al
    guest.raw(&[0x89, 0xf0, 0xee]).step_esi(again, 1, count)
}

fn positions(from: u64, to: u64) -> Vec<u8> {
    (from..to)
        .map(|position| position.to_le_bytes()[0])
        .collect()
}

fn power_off(guest: &mut Code) -> Code {
    guest
        .port_write(SLEEP_CONTROL_PORT, Width::Byte, POWER_OFF)
        .halt()
        .clone()
}

/// One segment file: where its output begins, and the output. `None` if it was never used.
fn segment(path: &Path) -> Option<(u64, Vec<u8>)> {
    let mut content = Vec::new();
    File::open(path).unwrap().read_to_end(&mut content).unwrap();
    if content.is_empty() {
        return None;
    }
    assert_eq!(content[..MAGIC.len()], MAGIC);
    let header = usize::try_from(HEADER_BYTES).unwrap();
    let position = u64::from_le_bytes(content[MAGIC.len()..header].try_into().unwrap());
    Some((position, content[header..].to_vec()))
}

/// Two segment files that outlive the machines that write them.
struct Segments {
    folder: tempfile::TempDir,
}

impl Segments {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn open(&self, index: usize) -> File {
        let path = self.folder.path().join(index.to_string());
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap()
    }

    fn read(&self) -> [Option<(u64, Vec<u8>)>; 2] {
        [0, 1].map(|index: usize| segment(&self.folder.path().join(index.to_string())))
    }

    /// Runs a guest that prints and ends.
    fn run(&self, kvm: File, guest: &Code) {
        let mut setup = Setup::new(kvm, guest);
        let fds = [0, 1].map(|index| setup.descriptors.add(self.open(index)));
        setup.start.console = Some(Console::Segments {
            fds,
            segment_bytes: SEGMENT_BYTES,
        });
        let mut machine = setup.launch();
        machine.expect_running();
        machine.expect_end(Exit::PowerOff);
    }
}

#[test]
fn the_first_output_goes_to_one_segment_after_its_header() {
    let Some(kvm) = require_kvm() else { return };
    let segments = Segments::new();
    segments.run(kvm, &power_off(Code::new().print(COM1_PORT, b"hello")));
    assert_eq!(segments.read(), [Some((0, b"hello".to_vec())), None]);
}

#[test]
fn a_full_segment_is_followed_by_the_other() {
    let Some(kvm) = require_kvm() else { return };
    let segments = Segments::new();
    segments.run(kvm, &power_off(print_positions(&mut Code::new(), 6000)));
    assert_eq!(
        segments.read(),
        [
            Some((0, positions(0, 4096))),
            Some((4096, positions(4096, 6000)))
        ]
    );
}

#[test]
fn a_restarted_vmm_appends_to_the_newer_segment() {
    let segments = Segments::new();
    for _ in 0..2 {
        let Some(kvm) = require_kvm() else { return };
        segments.run(kvm, &power_off(print_positions(&mut Code::new(), 4100)));
    }
    let second = [positions(4096, 4100), positions(0, 4092)].concat();
    // The second run filled the second segment and reached the first one again.
    assert_eq!(
        segments.read(),
        [Some((8192, positions(4092, 4100))), Some((4096, second))]
    );
}

#[test]
fn endless_output_keeps_its_newest_part_in_bounded_files() {
    let Some(kvm) = require_kvm() else { return };
    let segments = Segments::new();
    segments.run(kvm, &power_off(print_positions(&mut Code::new(), 50_000)));
    let [first, second] = segments
        .read()
        .map(|segment| segment.expect("both are in use"));
    let (older, newer) = if first.0 < second.0 {
        (first, second)
    } else {
        (second, first)
    };
    assert_eq!(older.1.len() as u64, SEGMENT_BYTES);
    assert!(newer.1.len() as u64 <= SEGMENT_BYTES);
    assert_eq!(older.0 + SEGMENT_BYTES, newer.0);
    assert_eq!([older.1, newer.1].concat(), positions(older.0, 50_000));
}

#[test]
fn a_stream_that_nobody_reads_costs_output_and_not_the_guest() {
    const PRINTED: u32 = 200_000;
    let Some(kvm) = require_kvm() else { return };
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut guest = Code::new();
    // One more exit afterwards, so that all output was taken when that many are counted.
    print_positions(&mut guest, PRINTED)
        .port_write(0x80, Width::Byte, 0)
        .halt();
    let mut setup = Setup::new(kvm, &guest);
    setup.start.console = Some(Console::Stream {
        fd: setup.descriptors.add(writer),
    });
    let mut machine = setup.launch();
    machine.expect_running();
    let deadline = std::time::Instant::now() + PATIENCE;
    let dropped = loop {
        machine.vmm.send(&Request::Statistics).unwrap();
        let Event::Statistics {
            console_dropped_bytes,
            exits,
            ..
        } = machine.event()
        else {
            panic!("another event than the one asked for");
        };
        if exits.values().sum::<u64>() > u64::from(PRINTED) {
            break console_dropped_bytes;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "the guest does not get on: {exits:?}"
        );
    };
    machine.vmm.send(&Request::Stop).unwrap();
    machine.expect_end(Exit::Stopped);
    let mut kept = Vec::new();
    reader.read_to_end(&mut kept).unwrap();
    assert!(dropped > 0);
    assert_eq!(kept.len() as u64 + dropped, u64::from(PRINTED));
    assert_eq!(kept, positions(0, kept.len() as u64));
}

#[test]
fn a_reader_that_went_away_does_not_end_the_guest() {
    let Some(kvm) = require_kvm() else { return };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut setup = Setup::new(kvm, &power_off(print_positions(&mut Code::new(), 100)));
    setup.start.console = Some(Console::Stream {
        fd: setup.descriptors.add(writer),
    });
    let mut machine = setup.launch();
    machine.expect_running();
    machine.expect_end(Exit::PowerOff);
}
