//! What a guest finds at its start: memory, the structures of the boot protocol, and its vCPUs.

use berth_api::vmm::Exit;
use berth_tests::tiny_guest::{Code, Width, read_only_file};
use berth_vmm_machine::layout::{
    COM1_PORT, COM1_PORTS, HIGH_RAM_START, LOW_RAM_END, PAGE_BYTES, RESET_PORT, SLEEP_CONTROL_PORT,
};

use crate::ending::POWER_OFF;
use crate::machine::{Setup, require_kvm};
use crate::second_vcpu::start_others;

const MIB: u64 = 1 << 20;
/// Offsets into the start info of a PVH boot.
const START_INFO_MODULES: u8 = 16;
const START_INFO_CMDLINE: u8 = 24;
const START_INFO_MEMORY_MAP: u8 = 40;
const START_INFO_MAP_ENTRIES: u8 = 48;
const MAP_ENTRY_BYTES: usize = 24;

fn words(bytes: &[u8]) -> Vec<u32> {
    let word = |chunk: &[u8]| u32::from_le_bytes(chunk.try_into().unwrap());
    bytes.chunks_exact(4).map(word).collect()
}

fn power_off(guest: &mut Code) -> &mut Code {
    guest
        .port_write(SLEEP_CONTROL_PORT, Width::Byte, POWER_OFF)
        .halt()
}

/// Puts the number at an offset of the start info, whose address is in EBX, into ESI.
fn follow_start_info(guest: &mut Code, offset: u8) -> &mut Code {
    // mov esi, ebx; ... ; mov esi, eax
    guest
        .raw(&[0x89, 0xde])
        .load(Width::Double, offset)
        .raw(&[0x89, 0xc6])
}

#[test]
fn memory_beyond_the_hole_is_its_own() {
    let Some(kvm) = require_kvm() else { return };
    let places = [
        3 * MIB,
        LOW_RAM_END - PAGE_BYTES,
        HIGH_RAM_START,
        HIGH_RAM_START + 3 * MIB,
        HIGH_RAM_START + 128 * MIB - 4,
    ];
    let values = [
        0x1111_1111,
        0x2222_2222,
        0x3333_3333,
        0x4444_4444,
        0x5555_5555,
    ];
    let mut guest = Code::new();
    guest.enter_long_mode();
    for (place, value) in places.into_iter().zip(values) {
        guest.set_rsi(place).set_eax(value).store(Width::Double, 0);
    }
    // The first address after RAM has nobody.
    for place in places.into_iter().chain([HIGH_RAM_START + 128 * MIB]) {
        guest
            .set_rsi(place)
            .set_eax(0)
            .load(Width::Double, 0)
            .print_eax(COM1_PORT);
    }
    power_off(&mut guest);
    let mut setup = Setup::new(kvm, &guest);
    setup.start.memory_mib = LOW_RAM_END / MIB + 128;
    let mut machine = setup.launch_with_console();
    machine.expect_running();
    machine.expect_end(Exit::PowerOff);
    let mut expected = values.to_vec();
    expected.push(u32::MAX);
    assert_eq!(words(&machine.output_to_end()), expected);
}

/// The map that a guest with `memory_mib` is told: start, length and kind of each entry.
fn memory_map(memory_mib: u64) -> Option<Vec<(u64, u64, u32)>> {
    const MOST_ENTRIES: usize = 16;
    let mut guest = Code::new();
    // mov esi, ebx
    guest
        .raw(&[0x89, 0xde])
        .load(Width::Double, START_INFO_MAP_ENTRIES)
        .print_eax(COM1_PORT);
    follow_start_info(&mut guest, START_INFO_MEMORY_MAP);
    for _ in 0..MOST_ENTRIES * MAP_ENTRY_BYTES / 4 {
        // add esi, 4
        guest
            .load(Width::Double, 0)
            .print_eax(COM1_PORT)
            .raw(&[0x83, 0xc6, 0x04]);
    }
    power_off(&mut guest);
    let mut setup = Setup::new(require_kvm()?, &guest);
    setup.start.memory_mib = memory_mib;
    let mut machine = setup.launch_with_console();
    machine.expect_running();
    machine.expect_end(Exit::PowerOff);
    let output = machine.output_to_end();
    let count = usize::try_from(words(&output[..4])[0]).unwrap();
    assert!(count <= MOST_ENTRIES, "{count} entries");
    let wide = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    let entries = output[4..]
        .chunks_exact(MAP_ENTRY_BYTES)
        .take(count)
        .map(words);
    Some(
        entries
            .map(|e| (wide(e[0], e[1]), wide(e[2], e[3]), e[4]))
            .collect(),
    )
}

#[test]
fn the_memory_map_tells_all_memory_but_the_hole_of_old_video_memory() {
    for memory_mib in [32, 3072, 5000] {
        let Some(map) = memory_map(memory_mib) else {
            return;
        };
        assert!(
            map.windows(2)
                .all(|pair| pair[0].0 + pair[0].1 <= pair[1].0),
            "{map:x?}"
        );
        let usable: u64 = map
            .iter()
            .filter(|entry| entry.2 == 1)
            .map(|entry| entry.1)
            .sum();
        let lost = memory_mib * MIB - usable;
        assert_eq!(lost, MIB - 640 * 1024, "{map:x?}");
        let reaches_high = map
            .iter()
            .any(|entry| entry.0 == HIGH_RAM_START && entry.2 == 1);
        assert_eq!(reaches_high, memory_mib > 3072, "{map:x?}");
    }
}

#[test]
fn a_guest_reads_its_command_line_and_its_initial_ram_disk() {
    const CMDLINE: &str = "root=/dev/vda1 quiet  nested=\"a b\"";
    const INITRD: &[u8] = b"070701 is how an archive begins, and this is how it ends";
    let Some(kvm) = require_kvm() else { return };
    let mut guest = Code::new();
    follow_start_info(&mut guest, START_INFO_CMDLINE);
    print_memory(&mut guest, CMDLINE.len() + 1);
    follow_start_info(&mut guest, START_INFO_MODULES);
    guest.load(Width::Double, 8).print_eax(COM1_PORT);
    // Follow the module's address: mov eax, [esi]; mov esi, eax
    guest.load(Width::Double, 0).raw(&[0x89, 0xc6]);
    print_memory(&mut guest, INITRD.len());
    power_off(&mut guest);
    let mut setup = Setup::new(kvm, &guest);
    setup.start.cmdline = CMDLINE.to_owned();
    setup.start.initrd = Some(setup.descriptors.add(read_only_file(INITRD).unwrap()));
    let mut machine = setup.launch_with_console();
    machine.expect_running();
    machine.expect_end(Exit::PowerOff);
    let output = machine.output_to_end();
    let (cmdline, rest) = output.split_at(CMDLINE.len() + 1);
    assert_eq!(cmdline, format!("{CMDLINE}\0").as_bytes());
    assert_eq!(words(&rest[..4])[0], u32::try_from(INITRD.len()).unwrap());
    assert_eq!(&rest[4..], INITRD);
}

fn print_memory(guest: &mut Code, bytes: usize) {
    // mov edx, COM1
    guest.raw(&[0xba]).raw(&u32::from(COM1_PORT).to_le_bytes());
    for _ in 0..bytes {
        // out dx, al; inc esi
        guest.load(Width::Byte, 0).raw(&[0xee, 0x46]);
    }
}

#[test]
fn every_vcpu_starts_and_there_is_none_beyond() {
    for vcpus in [4, 64] {
        every_vcpu_starts(vcpus);
    }
}

fn every_vcpu_starts(vcpus: u8) {
    let Some(kvm) = require_kvm() else { return };
    let mut guest = Code::new();
    // The others have nothing to do but to be counted.
    let counter = start_others(&mut guest, vcpus - 1, |code| {
        code.halt();
    });
    guest
        .spin(100_000_000)
        .set_esi(counter)
        .load(Width::Double, 0)
        .print_eax(COM1_PORT);
    power_off(&mut guest);
    let mut setup = Setup::new(kvm, &guest);
    setup.start.vcpus = u32::from(vcpus);
    let mut machine = setup.launch_with_console();
    machine.expect_running();
    machine.expect_end(Exit::PowerOff);
    assert_eq!(words(&machine.output_to_end()), [u32::from(vcpus) - 1]);
}

#[test]
fn a_machine_without_console_has_no_serial_port() {
    let Some(kvm) = require_kvm() else { return };
    let mut guest = Code::new();
    for port in COM1_PORT..COM1_PORT + u16::from(COM1_PORTS) {
        guest.port_read(port, Width::Byte);
        // cmp al, 0xff; je over the reset, whose code is 5 + 5 + 1 bytes
        guest
            .raw(&[0x3c, 0xff, 0x74, 11])
            .port_write(RESET_PORT, Width::Byte, 1);
    }
    power_off(&mut guest);
    let mut machine = Setup::new(kvm, &guest).launch();
    machine.expect_running();
    machine.expect_end(Exit::PowerOff);
}
