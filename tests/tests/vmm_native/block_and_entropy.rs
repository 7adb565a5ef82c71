//! The virtio devices at work: data really moves between a guest's memory, a disk image and the
//! host's random numbers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use berth_api::vmm::{Denial, Disk, Event, Exit, RateLimit, Request};
use berth_tests::tiny_guest::{Code, Width, read_only_file};
use berth_vmm_machine::layout::COM1_PORT;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::machine::{Machine, Setup, require_kvm};
use crate::virtio::{Function, functions, notify, start_device, start_device_with};

const DESCRIPTORS: u32 = 0x30_0000;
const AVAILABLE: u32 = 0x30_1000;
const USED: u32 = 0x30_2000;
const HEADER: u32 = 0x31_0000;
const DATA: u32 = 0x32_0000;
const STATUS: u32 = 0x33_0000;

const SECTOR_BYTES: u32 = 512;
const DISK_SECTORS: u32 = 2048;

/// Descriptor flags: another one follows; the device writes.
const NEXT: u32 = 1;
const WRITE: u32 = 2;
/// Block request types.
const READ_REQUEST: u32 = 0;
const WRITE_REQUEST: u32 = 1;
const FLUSH_REQUEST: u32 = 4;
const IDENTITY_REQUEST: u32 = 8;
const DISCARD_REQUEST: u32 = 11;
const ZEROES_REQUEST: u32 = 13;
/// `VIRTIO_BLK_F_FLUSH`.
const FLUSH_FEATURE: u32 = 1 << 9;
/// `VIRTIO_BLK_F_DISCARD` and `VIRTIO_BLK_F_WRITE_ZEROES`.
const RANGE_FEATURES: u32 = 1 << 13 | 1 << 14;
/// The flag of a range of zeroes that may free storage.
const UNMAP: u32 = 1;
/// Block request results.
const OK: u8 = 0;
const FAILED: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn put(guest: &mut Code, place: u32, value: u32) {
    guest.set_esi(place).set_eax(value).store(Width::Double, 0);
}

/// Makes the chain that begins at descriptor 0, publishes it as the `count`th request and waits for
/// its end.
fn offer(guest: &mut Code, function: Function, chain: &[(u32, u32, u32)], count: u32) {
    submit(guest, function, [DESCRIPTORS, AVAILABLE], chain, count);
    // again: pause; cmp word [esi], count; jne again
    let low = count.to_le_bytes()[0];
    guest
        .set_esi(USED + 2)
        .raw(&[0xf3, 0x90, 0x66, 0x83, 0x3e, low, 0x75, 0xf8]);
}

/// The same without the wait, in rings that lie at other places.
fn submit(
    guest: &mut Code,
    function: Function,
    [descriptors, available]: [u32; 2],
    chain: &[(u32, u32, u32)],
    count: u32,
) {
    for (index, &(place, bytes, flags)) in (0..).zip(chain) {
        let descriptor = descriptors + 16 * index;
        put(guest, descriptor, place);
        put(guest, descriptor + 4, 0);
        put(guest, descriptor + 8, bytes);
        // Where NEXT is set, the next one is the one after.
        put(guest, descriptor + 12, flags | (index + 1) << 16);
    }
    // Entries 0 and 1 name chain 0; no flags, and the index.
    put(guest, available + 4, 0);
    put(guest, available, count << 16);
    notify(guest, function, 0);
}

fn start(guest: &mut Code, function: Function) {
    let rings = [DESCRIPTORS, AVAILABLE, USED].map(u64::from);
    start_device(guest, function, rings);
}

/// A request for one sector, after which its status is printed.
fn request(guest: &mut Code, function: Function, kind: u32, sector: u32, count: u32) {
    let transfer = if kind == WRITE_REQUEST { 0 } else { WRITE };
    let bytes = if kind == IDENTITY_REQUEST {
        20
    } else {
        SECTOR_BYTES
    };
    for (offset, value) in [(0, kind), (4, 0), (8, sector), (12, 0)] {
        put(guest, HEADER + offset, value);
    }
    put(guest, STATUS, 0xff);
    let chain = [
        (HEADER, 16, NEXT),
        (DATA, bytes, NEXT | transfer),
        (STATUS, 1, WRITE),
    ];
    offer(guest, function, &chain, count);
    print_memory(guest, STATUS, 1);
}

/// A request about a range of sectors, after which its status is printed.
fn range_request(
    guest: &mut Code,
    function: Function,
    kind: u32,
    [sector, sectors, flags]: [u32; 3],
    count: u32,
) {
    for (offset, value) in [(0, kind), (4, 0), (8, 0), (12, 0)] {
        put(guest, HEADER + offset, value);
    }
    for (offset, value) in [(0, sector), (4, 0), (8, sectors), (12, flags)] {
        put(guest, DATA + offset, value);
    }
    put(guest, STATUS, 0xff);
    let chain = [(HEADER, 16, NEXT), (DATA, 16, NEXT), (STATUS, 1, WRITE)];
    offer(guest, function, &chain, count);
    print_memory(guest, STATUS, 1);
}

fn print_memory(guest: &mut Code, place: u32, bytes: u32) {
    // mov edx, COM1
    guest
        .raw(&[0xba])
        .raw(&u32::from(COM1_PORT).to_le_bytes())
        .set_esi(place);
    let again = guest.label();
    // out dx, al
    guest
        .load(Width::Byte, 0)
        .raw(&[0xee])
        .step_esi(again, 1, place + bytes);
}

/// A machine with `disk` as its only disk.
fn machine_with(guest: &Code, disk: &File, read_only: bool) -> Option<Setup> {
    let mut setup = Setup::new(require_kvm()?, guest);
    let fd = setup.descriptors.add(disk.try_clone().unwrap());
    setup.start.disks.push(Disk {
        read_only,
        serial: "a-serial-number".to_owned(),
        ..Disk::new(fd, u64::from(DISK_SECTORS * SECTOR_BYTES))
    });
    Some(setup)
}

/// Runs a guest that drives the disk, and returns `count` bytes of its output.
#[track_caller]
fn drive(
    disk: &File,
    read_only: bool,
    count: usize,
    emit: impl FnOnce(&mut Code, Function),
) -> Option<Vec<u8>> {
    let found = functions(|guest| machine_with(guest, disk, read_only), 1)?;
    let mut guest = Code::new();
    start(&mut guest, found[0]);
    emit(&mut guest, found[0]);
    guest.halt();
    let mut machine = machine_with(&guest, disk, read_only)?.launch_with_console();
    machine.expect_running();
    let output = machine.read_output(count);
    machine.vmm.send(&Request::Stop).unwrap();
    machine.expect_end(Exit::Stopped);
    Some(output)
}

fn pattern() -> Vec<u8> {
    (0..DISK_SECTORS * SECTOR_BYTES)
        .map(|at| (at / 3).to_le_bytes()[0])
        .collect()
}

fn writable_disk() -> File {
    let disk = tempfile::tempfile().unwrap();
    disk.write_all_at(&pattern(), 0).unwrap();
    disk
}

fn sector_of(content: &[u8], sector: u32) -> &[u8] {
    let start = usize::try_from(sector * SECTOR_BYTES).unwrap();
    &content[start..start + usize::try_from(SECTOR_BYTES).unwrap()]
}

#[test]
fn a_guest_reads_the_sectors_of_its_disk() {
    for sector in [0, 7, DISK_SECTORS - 1] {
        let output = drive(&writable_disk(), false, 1 + 512, |guest, disk| {
            request(guest, disk, READ_REQUEST, sector, 1);
            print_memory(guest, DATA, SECTOR_BYTES);
        });
        let Some(output) = output else { return };
        assert_eq!(output[0], OK);
        assert_eq!(&output[1..], sector_of(&pattern(), sector));
    }
}

#[test]
fn an_image_that_begins_like_another_format_is_bytes_all_the_same() {
    // A qcow2 header that names a file of the host as what lies behind it.
    let mut header = b"QFI\xfb\0\0\0\x03".to_vec();
    header.extend(104_u64.to_be_bytes());
    header.extend(11_u32.to_be_bytes());
    header.resize(104, 0);
    header.extend(b"/etc/passwd");
    let disk = writable_disk();
    disk.write_all_at(&header, 0).unwrap();
    let mut expected = sector_of(&pattern(), 0).to_vec();
    expected[..header.len()].copy_from_slice(&header);
    let output = drive(&disk, false, 1 + 512, |guest, disk| {
        request(guest, disk, READ_REQUEST, 0, 1);
        print_memory(guest, DATA, SECTOR_BYTES);
    });
    let Some(output) = output else { return };
    assert_eq!(output[0], OK);
    assert_eq!(&output[1..], expected);
}

#[test]
fn a_guests_write_lands_in_the_image_and_nowhere_else() {
    let disk = writable_disk();
    let output = drive(&disk, false, 2 + 512, |guest, disk| {
        put(guest, DATA, 0x6474_6562);
        request(guest, disk, WRITE_REQUEST, 5, 1);
        request(guest, disk, READ_REQUEST, 5, 2);
        print_memory(guest, DATA, SECTOR_BYTES);
    });
    let Some(output) = output else { return };
    let mut written = vec![0; 512];
    written[..4].copy_from_slice(b"betd");
    assert_eq!(output[..2], [OK, OK]);
    assert_eq!(output[2..], written);
    let mut expected = pattern();
    expected[5 * 512..6 * 512].copy_from_slice(&written);
    let mut content = vec![0; expected.len()];
    disk.read_exact_at(&mut content, 0).unwrap();
    assert!(
        content == expected,
        "the image differs from what was written"
    );
    assert_eq!(disk.metadata().unwrap().len(), expected.len() as u64);
}

#[test]
fn a_request_beyond_the_disk_fails_and_grows_nothing() {
    let disk = writable_disk();
    let output = drive(&disk, false, 2, |guest, function| {
        request(guest, function, WRITE_REQUEST, DISK_SECTORS, 1);
        request(guest, function, READ_REQUEST, u32::MAX, 2);
    });
    let Some(output) = output else { return };
    assert_eq!(output, [FAILED, FAILED]);
    assert_eq!(
        disk.metadata().unwrap().len(),
        u64::from(DISK_SECTORS * SECTOR_BYTES)
    );
}

#[test]
fn a_write_to_a_read_only_disk_fails() {
    let disk = read_only_file(&pattern()).unwrap();
    let output = drive(&disk, true, 2, |guest, function| {
        request(guest, function, WRITE_REQUEST, 0, 1);
        request(guest, function, READ_REQUEST, 0, 2);
    });
    let Some(output) = output else { return };
    assert_eq!(output, [FAILED, OK]);
}

#[test]
fn a_guest_discards_and_writes_zeroes_and_the_host_gets_the_space_back() {
    let disk = writable_disk();
    disk.sync_all().unwrap();
    let before = disk.metadata().unwrap().blocks();
    let output = drive(&disk, false, 5 + 512, |guest, function| {
        // The device was started without features: start it again.
        let rings = [DESCRIPTORS, AVAILABLE, USED].map(u64::from);
        put(guest, USED, 0);
        start_device_with(guest, function, RANGE_FEATURES, rings);
        let requests = [
            (DISCARD_REQUEST, [64, 128, 0]),
            (ZEROES_REQUEST, [256, 64, UNMAP]),
            (ZEROES_REQUEST, [1001, 3, 0]),
            (DISCARD_REQUEST, [DISK_SECTORS - 1, 2, 0]),
        ];
        for (count, (kind, range)) in (1..).zip(requests) {
            range_request(guest, function, kind, range, count);
        }
        request(guest, function, READ_REQUEST, 1003, 5);
        print_memory(guest, DATA, SECTOR_BYTES);
    });
    let Some(output) = output else { return };
    assert_eq!(output[..5], [OK, OK, OK, FAILED, OK]);
    assert_eq!(output[5..], [0; 512]);
    let mut expected = pattern();
    for sectors in [64..192, 256..320, 1001..1004] {
        expected[sectors.start * 512..sectors.end * 512].fill(0);
    }
    let mut content = vec![0; expected.len()];
    disk.read_exact_at(&mut content, 0).unwrap();
    assert!(content == expected, "other sectors were touched");
    let after = disk.metadata().unwrap();
    assert_eq!(before - after.blocks(), 128 + 64);
    assert_eq!(after.len(), expected.len() as u64);
}

#[test]
fn ranges_on_a_read_only_disk_are_unsupported() {
    let disk = read_only_file(&pattern()).unwrap();
    let output = drive(&disk, true, 2, |guest, function| {
        range_request(guest, function, DISCARD_REQUEST, [0, 8, 0], 1);
        range_request(guest, function, ZEROES_REQUEST, [0, 8, 0], 2);
    });
    let Some(output) = output else { return };
    assert_eq!(output, [UNSUPPORTED; 2]);
}

#[test]
fn a_failing_host_disk_is_an_error_for_the_guest_and_a_line_in_the_log() {
    let disk = File::from(memfd_create("disk", MemfdFlags::ALLOW_SEALING).unwrap());
    disk.write_all_at(&pattern(), 0).unwrap();
    // The descriptor stays writable; each write fails.
    fcntl_add_seals(&disk, SealFlags::WRITE).unwrap();
    let Some(found) = functions(|guest| machine_with(guest, &disk, false), 1) else {
        return;
    };
    let mut guest = Code::new();
    start(&mut guest, found[0]);
    request(&mut guest, found[0], WRITE_REQUEST, 5, 1);
    request(&mut guest, found[0], READ_REQUEST, 5, 2);
    guest.halt();
    let Some(setup) = machine_with(&guest, &disk, false) else {
        return;
    };
    let (mut machine, mut log) = setup.launch_with_console_and_log();
    machine.expect_running();
    assert_eq!(machine.read_output(2), [FAILED, OK]);
    machine.vmm.send(&Request::Statistics).unwrap();
    let Event::Statistics { guest_errors, .. } = machine.event() else {
        panic!("another event than the one asked for");
    };
    assert_eq!(guest_errors, 0, "the guest did nothing wrong");
    machine.vmm.send(&Request::Stop).unwrap();
    machine.expect_end(Exit::Stopped);
    let mut lines = String::new();
    log.read_to_string(&mut lines).unwrap();
    let told = "event=disk_failed vm=native-test disk=0 error=\"Operation not permitted (os error 1)\" total=1";
    assert!(lines.contains(told), "{lines}");
}

/// The counters of the only disk.
fn disk_counters(machine: &Machine) -> BTreeMap<String, u64> {
    machine.vmm.send(&Request::Statistics).unwrap();
    let Event::Statistics {
        devices,
        guest_errors,
        ..
    } = machine.event()
    else {
        panic!("another event than the one asked for");
    };
    assert_eq!(guest_errors, 0, "the guest did nothing wrong");
    let disk = devices.into_iter().find(|it| it.device == "disk0").unwrap();
    disk.counters.into_iter().collect()
}

#[test]
fn a_guest_resets_its_disk_while_flushes_are_in_flight_and_goes_on() {
    const ROUNDS: u32 = 8;
    let disk = writable_disk();
    let Some(found) = functions(|guest| machine_with(guest, &disk, false), 1) else {
        return;
    };
    let mut guest = Code::new();
    for round in 0..ROUNDS {
        // Rings of its own for each round, as a driver may not clear those of a running device.
        let base = 0x40_0000 + round * 0x4000;
        let rings = [base, base + 0x1000, base + 0x2000];
        start_device_with(&mut guest, found[0], FLUSH_FEATURE, rings.map(u64::from));
        for (count, kind) in [(1, WRITE_REQUEST), (2, FLUSH_REQUEST)] {
            let header = base + 0x3000 + 16 * count;
            put(&mut guest, header, kind);
            put(&mut guest, header + 8, round);
            let parts = [(header, 16, NEXT), (DATA, 512, NEXT), (STATUS, 1, WRITE)];
            let flush = [(header, 16, NEXT), (STATUS, 1, WRITE)];
            let chain = if kind == FLUSH_REQUEST {
                &flush[..]
            } else {
                &parts
            };
            submit(&mut guest, found[0], [rings[0], rings[1]], chain, count);
            if kind == WRITE_REQUEST {
                guest
                    .set_esi(rings[2] + 2)
                    .raw(&[0xf3, 0x90, 0x66, 0x83, 0x3e, 1, 0x75, 0xf8]);
            }
        }
    }
    start(&mut guest, found[0]);
    request(&mut guest, found[0], READ_REQUEST, ROUNDS, 1);
    guest.halt();
    let Some(setup) = machine_with(&guest, &disk, false) else {
        return;
    };
    let mut machine = setup.launch_with_console();
    machine.expect_running();
    assert_eq!(machine.read_output(1), [OK]);
    let counters = disk_counters(&machine);
    assert_eq!(
        (counters["writes"], counters["reads"]),
        (u64::from(ROUNDS), 1)
    );
    assert_eq!(counters["errors"], 0);
    machine.vmm.send(&Request::Stop).unwrap();
    machine.expect_end(Exit::Stopped);
    let mut content = vec![0; pattern().len()];
    disk.read_exact_at(&mut content, 0).unwrap();
    let written = usize::try_from(ROUNDS * SECTOR_BYTES).unwrap();
    assert!(content[..written].iter().all(|&byte| byte == 0));
    assert!(content[written..] == pattern()[written..]);
}

#[test]
fn a_limited_disk_serves_every_request_in_the_end() {
    const READS: u32 = 6;
    let disk = writable_disk();
    let Some(found) = functions(|guest| machine_with(guest, &disk, false), 1) else {
        return;
    };
    let mut guest = Code::new();
    start(&mut guest, found[0]);
    for count in 1..=READS {
        request(&mut guest, found[0], READ_REQUEST, count, count);
    }
    guest.halt();
    let Some(mut setup) = machine_with(&guest, &disk, false) else {
        return;
    };
    setup.start.disks[0].rate_limit = RateLimit {
        bytes_per_second: 0,
        requests_per_second: 3,
    };
    let mut machine = setup.launch_with_console();
    machine.expect_running();
    assert_eq!(machine.read_output(6), [OK; 6]);
    let counters = disk_counters(&machine);
    assert_eq!(counters["reads"], u64::from(READS));
    assert_eq!(counters["read_bytes"], u64::from(READS * SECTOR_BYTES));
    assert!(counters["throttled"] > 0, "{counters:?}");
    machine.vmm.send(&Request::Stop).unwrap();
    machine.expect_end(Exit::Stopped);
}

#[test]
fn a_disk_tells_its_serial_number() {
    let output = drive(&writable_disk(), false, 1 + 20, |guest, disk| {
        request(guest, disk, IDENTITY_REQUEST, 0, 1);
        print_memory(guest, DATA, 20);
    });
    let Some(output) = output else { return };
    assert_eq!(output[0], OK);
    assert_eq!(&output[1..], b"a-serial-number\0\0\0\0\0");
}

#[test]
fn the_entropy_device_gives_bytes_that_differ_every_time() {
    let setup = |guest: &Code| {
        let mut setup = Setup::new(require_kvm()?, guest);
        setup.start.entropy = true;
        Some(setup)
    };
    let Some(found) = functions(setup, 1) else {
        return;
    };
    let mut guest = Code::new();
    start(&mut guest, found[0]);
    for count in 1..=2 {
        offer(&mut guest, found[0], &[(DATA, 32, WRITE)], count);
        print_memory(&mut guest, USED + 8 * count, 4);
        print_memory(&mut guest, DATA, 32);
    }
    guest.halt();
    let Some(setup) = setup(&guest) else { return };
    let mut machine = setup.launch_with_console();
    machine.expect_running();
    let output = machine.read_output(2 * 36);
    let (first, second) = output.split_at(36);
    // The used ring tells that all 32 bytes were filled.
    assert_eq!([&first[..4], &second[..4]], [[32, 0, 0, 0]; 2]);
    assert_ne!(first[4..], second[4..]);
    assert_ne!(first[4..], [0; 32]);
}

/// What `pid` has open, by the names that the kernel has for it.
fn open_files(pid: u32) -> Vec<String> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|path| path.to_string_lossy().into_owned())
        .collect()
}

/// A guest that reads its disk, waits until that has no sectors, and reads it again.
fn reads_until_the_medium_is_gone(guest: &mut Code, function: Function) {
    request(guest, function, READ_REQUEST, 5, 1);
    // again: pause; cmp dword [esi], 0; jne again
    guest
        .set_esi(function.device)
        .raw(&[0xf3, 0x90, 0x83, 0x3e, 0x00, 0x75, 0xf9]);
    for kind in [READ_REQUEST, FLUSH_REQUEST] {
        put(guest, DATA, 0x5555_5555);
        let count = 2 + u32::from(kind == FLUSH_REQUEST);
        request(guest, function, kind, 5, count);
    }
    print_memory(guest, DATA, 4);
    request(guest, function, IDENTITY_REQUEST, 0, 4);
    print_memory(guest, DATA, 4);
}

#[test]
fn a_medium_that_is_taken_out_is_closed_and_the_guest_goes_on_without_it() {
    let memory = memfd_create("given-to-a-guest", MemfdFlags::CLOEXEC).unwrap();
    let disk = File::from(memory);
    disk.write_all_at(&pattern(), 0).unwrap();
    let read_only = std::fs::File::open(format!("/proc/self/fd/{}", disk.as_raw_fd())).unwrap();
    let Some(found) = functions(|guest| machine_with(guest, &read_only, true), 1) else {
        return;
    };
    let mut guest = Code::new();
    start(&mut guest, found[0]);
    reads_until_the_medium_is_gone(&mut guest, found[0]);
    guest.halt();
    let Some(setup) = machine_with(&guest, &read_only, true) else {
        return;
    };
    let (mut machine, mut log) = setup.launch_with_console_and_log();
    machine.expect_running();
    assert_eq!(machine.read_output(1), [OK]);
    let has_medium = |machine: &Machine| {
        let open = open_files(machine.vmm.pid());
        open.iter().any(|name| name.contains("given-to-a-guest"))
    };
    assert!(has_medium(&machine));
    // No other disk than the one that is named.
    let eject = |serial: &str| Request::EjectDisk {
        serial: serial.to_owned(),
    };
    machine.vmm.send(&eject("another")).unwrap();
    let denied = machine.event();
    let Event::Denied {
        request, reason, ..
    } = denied
    else {
        panic!("{denied:?} instead of a denial");
    };
    assert_eq!((request.as_str(), reason), ("eject_disk", Denial::NoDevice));
    assert!(has_medium(&machine));
    let serial = "a-serial-number".to_owned();
    for _ in 0..2 {
        machine.vmm.send(&eject(&serial)).unwrap();
        let serial = serial.clone();
        assert_eq!(machine.event(), Event::DiskEjected { serial });
        assert!(!has_medium(&machine));
    }
    let rings = open_files(machine.vmm.pid());
    assert!(
        rings.iter().all(|name| !name.contains("io_uring")),
        "{rings:?}"
    );
    let mut expected = vec![FAILED, FAILED, 0x55, 0x55, 0x55, 0x55, OK];
    expected.extend(b"a-se");
    assert_eq!(machine.read_output(expected.len()), expected);
    assert_eq!(disk_counters(&machine)["errors"], 2);
    machine.vmm.send(&Request::Stop).unwrap();
    machine.expect_end(Exit::Stopped);
    let mut lines = String::new();
    log.read_to_string(&mut lines).unwrap();
    assert!(lines.contains("event=disk_ejected"), "{lines}");
    assert!(!lines.contains("event=disk_failed"), "{lines}");
}

#[test]
fn a_disk_that_the_guest_writes_keeps_its_medium() {
    let disk = writable_disk();
    let mut guest = Code::new();
    guest.halt();
    let Some(setup) = machine_with(&guest, &disk, false) else {
        return;
    };
    let mut machine = setup.launch();
    machine.expect_running();
    let serial = "a-serial-number".to_owned();
    machine.vmm.send(&Request::EjectDisk { serial }).unwrap();
    let denied = machine.event();
    assert!(
        matches!(
            denied,
            Event::Denied {
                reason: Denial::NoDevice,
                ..
            }
        ),
        "{denied:?}"
    );
    machine.vmm.send(&Request::Stop).unwrap();
    machine.expect_end(Exit::Stopped);
}
