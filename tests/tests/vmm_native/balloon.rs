//! The memory balloon: the host's memory really comes and goes.

use std::collections::BTreeMap;

use berth_api::vmm::{Balloon, Denial, Event, Exit, Request};
use berth_tests::tiny_guest::{Code, Width};
use berth_vmm_machine::layout::COM1_PORT;

use crate::machine::{Machine, Setup, require_kvm};
use crate::virtio::{Function, functions, notify, start_device};

const MEMORY_MIB: u64 = 64;
const TARGET_MIB: u64 = 32;
const PAGE_BYTES: u32 = 4096;
/// What the guest fills, and gives up.
const FIRST: u32 = 24 << 20;
const END: u32 = FIRST + 32 * (1 << 20);
const PAGES: u32 = (END - FIRST) / PAGE_BYTES;
/// The pages' numbers.
const NUMBERS: u32 = 16 << 20;
const RINGS: [u32; 3] = [0x0100_0000 + 0x10_0000, 0x0111_0000, 0x0112_0000];
/// Each names 1024 pages, as many as one chain may.
const CHAINS: u32 = 8;
const _: () = assert!(PAGES / CHAINS == 1024);

fn setup(guest: &Code) -> Option<Setup> {
    let mut setup = Setup::new(require_kvm()?, guest);
    setup.start.memory_mib = MEMORY_MIB;
    setup.start.balloon = Some(Balloon {
        deflate_on_oom: true,
        free_page_reporting: true,
    });
    Some(setup)
}

/// Writes to every page from [`FIRST`] to [`END`].
fn fill(guest: &mut Code) {
    guest.set_esi(FIRST);
    let again = guest.label();
    // mov byte [esi], 7
    guest.raw(&[0xc6, 0x06, 0x07]);
    guest.step_esi(again, PAGE_BYTES, END);
}

/// Puts the numbers of those pages into [`CHAINS`] chains and offers them.
fn inflate(guest: &mut Code, balloon: Function) {
    let [descriptors, available, used] = RINGS;
    guest.set_esi(NUMBERS).set_ebx(FIRST / PAGE_BYTES);
    let again = guest.label();
    // mov [esi], ebx; inc ebx
    guest.raw(&[0x89, 0x1e, 0x43]);
    guest.step_esi(again, 4, NUMBERS + 4 * PAGES);
    let bytes = 4 * PAGES / CHAINS;
    for chain in 0..CHAINS {
        guest.set_esi(descriptors + 16 * chain);
        let descriptor = [NUMBERS + bytes * chain, 0, bytes, 0];
        for (offset, word) in (0..).step_by(4).zip(descriptor) {
            guest.set_eax(word).store(Width::Double, offset);
        }
        guest
            .set_esi(available + 4 + 2 * chain)
            .set_eax(chain)
            .store(Width::Word, 0);
    }
    guest
        .set_esi(available + 2)
        .set_eax(CHAINS)
        .store(Width::Word, 0);
    notify(guest, balloon, 0);
    // again: pause; mov al, [esi]; cmp al, CHAINS; jb again
    let chains = u8::try_from(CHAINS).unwrap();
    guest
        .set_esi(used + 2)
        .raw(&[0xf3, 0x90, 0x8a, 0x06, 0x3c, chains, 0x72, 0xf8]);
}

fn guest(balloon: Function) -> Code {
    let mut guest = Code::new();
    start_device(&mut guest, balloon, RINGS.map(u64::from));
    fill(&mut guest);
    guest.print(COM1_PORT, b"1").set_esi(balloon.device);
    // again: mov eax, [esi]; test eax, eax; jz again
    guest.raw(&[0x8b, 0x06, 0x85, 0xc0, 0x74, 0xfa]);
    guest.print_eax(COM1_PORT);
    inflate(&mut guest, balloon);
    guest
        .set_esi(balloon.device)
        .set_eax(PAGES)
        .store(Width::Double, 4);
    guest.print(COM1_PORT, b"2").set_esi(balloon.device);
    // again: mov eax, [esi]; test eax, eax; jnz again
    guest.raw(&[0x8b, 0x06, 0x85, 0xc0, 0x75, 0xfa]);
    guest.set_esi(FIRST).set_eax(0xff).load(Width::Double, 0);
    guest.print_eax(COM1_PORT);
    fill(&mut guest);
    guest.print(COM1_PORT, b"3").halt();
    guest
}

/// MiB of the process that are in memory.
fn resident_mib(machine: &Machine) -> u64 {
    let path = format!("/proc/{}/statm", machine.vmm.pid());
    let text = std::fs::read_to_string(path).unwrap();
    let pages: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages / 256
}

#[track_caller]
fn counters(machine: &Machine) -> BTreeMap<String, u64> {
    machine.vmm.send(&Request::Statistics).unwrap();
    let event = machine.event();
    let Event::Statistics { devices, .. } = event else {
        panic!("{event:?} instead of statistics");
    };
    let balloon = devices
        .into_iter()
        .find(|device| device.device == "balloon");
    balloon.unwrap().counters
}

#[track_caller]
fn set_target(machine: &Machine, target_mib: u64) {
    machine.vmm.send(&Request::Balloon { target_mib }).unwrap();
}

#[test]
fn memory_in_the_balloon_is_the_hosts_and_comes_back_when_it_is_wanted() {
    let Some(balloons) = functions(setup, 1) else {
        return;
    };
    let setup = setup(&guest(balloons[0])).unwrap();
    let mut machine = setup.launch_with_console();
    machine.expect_running();
    assert_eq!(machine.read_output(1), b"1");
    let filled = resident_mib(&machine);
    assert!(filled >= TARGET_MIB, "{filled} MiB");
    set_target(&machine, TARGET_MIB);
    assert_eq!(machine.read_output(4), PAGES.to_le_bytes());
    assert_eq!(machine.read_output(1), b"2");
    let inflated = resident_mib(&machine);
    assert!(
        inflated + TARGET_MIB <= filled + 4,
        "{filled} to {inflated} MiB"
    );
    let counted = counters(&machine);
    for (name, value) in [
        ("inflated_pages", u64::from(PAGES)),
        ("outside_pages", 0),
        ("failed_discards", 0),
        ("target_mib", TARGET_MIB),
        ("actual_mib", TARGET_MIB),
    ] {
        assert_eq!(counted[name], value, "{name}");
    }
    set_target(&machine, 0);
    assert_eq!(
        machine.read_output(4),
        [0; 4],
        "a page from the host is empty"
    );
    assert_eq!(machine.read_output(1), b"3");
    let deflated = resident_mib(&machine);
    assert!(deflated + 4 >= filled, "{inflated} to {deflated} MiB");
    machine.vmm.send(&Request::Stop).unwrap();
    machine.expect_end(Exit::Stopped);
}

#[test]
fn a_target_that_leaves_the_guest_too_little_is_denied() {
    let Some(setup) = setup(Code::new().halt()) else {
        return;
    };
    let mut machine = setup.launch();
    machine.expect_running();
    for target_mib in [TARGET_MIB + 1, u64::MAX] {
        set_target(&machine, target_mib);
        let event = machine.event();
        let Event::Denied {
            request, reason, ..
        } = &event
        else {
            panic!("{event:?} instead of a denial");
        };
        assert_eq!((request.as_str(), *reason), ("balloon", Denial::OutOfRange));
    }
    set_target(&machine, TARGET_MIB);
    assert_eq!(counters(&machine)["target_mib"], TARGET_MIB);
    machine.vmm.send(&Request::Stop).unwrap();
    machine.expect_end(Exit::Stopped);
}
