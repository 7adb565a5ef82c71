//! What guest memory is made of, and that it is there before the guest runs.

use std::fs::File;
use std::io;

use berth_api::vmm::{Denial, Event, Exit, HostPages, Request};
use berth_tests::tiny_guest::{Code, Width};
use berth_vmm_machine::layout::{COM1_PORT, SLEEP_CONTROL_PORT};

use crate::ending::POWER_OFF;
use crate::machine::{Machine, Setup, require_kvm};

/// A guest that prints what it wrote to the last of its memory.
fn guest(memory_mib: u32) -> Code {
    let mut guest = Code::new();
    guest.set_esi((memory_mib << 20) - 4);
    guest
        .set_eax(0x1234_5678)
        .store(Width::Double, 0)
        .set_eax(0);
    guest.load(Width::Double, 0).print_eax(COM1_PORT);
    guest
        .port_write(SLEEP_CONTROL_PORT, Width::Byte, POWER_OFF)
        .halt();
    guest
}

fn setup(memory_mib: u32) -> Option<Setup> {
    let mut setup = Setup::new(require_kvm()?, &guest(memory_mib));
    setup.start.memory_mib = memory_mib.into();
    Some(setup)
}

#[track_caller]
fn expect_prepared(machine: &Machine, memory_mib: u64) {
    let mut least = 0;
    loop {
        let event = machine.event();
        let Event::Preparing {
            done_mib,
            total_mib,
        } = event
        else {
            panic!("{event:?} instead of all memory");
        };
        assert_eq!(total_mib, memory_mib);
        assert!((least..=total_mib).contains(&done_mib));
        least = done_mib;
        if done_mib == total_mib {
            return;
        }
    }
}

#[track_caller]
fn expect_whole_run(mut machine: Machine) {
    machine.expect_running();
    machine.expect_end(Exit::PowerOff);
    assert_eq!(machine.output_to_end(), 0x1234_5678_u32.to_le_bytes());
}

#[test]
fn memory_of_small_pages_serves_a_guest() {
    let Some(mut setup) = setup(64) else { return };
    setup.start.memory_backing.pages = HostPages::Small;
    expect_whole_run(setup.launch_with_console());
}

#[test]
fn memory_that_is_made_present_is_reported_before_the_guest_runs() {
    for numa_nodes in [vec![], vec![0]] {
        let Some(mut setup) = setup(200) else { return };
        setup.start.memory_backing.prefault = true;
        setup.start.memory_backing.numa_nodes = numa_nodes;
        let machine = setup.launch_with_console();
        expect_prepared(&machine, 200);
        expect_whole_run(machine);
    }
}

#[test]
fn a_machine_can_be_stopped_and_nothing_else_while_its_memory_is_prepared() {
    let Some(mut setup) = setup(512) else { return };
    setup.start.memory_backing.prefault = true;
    let mut machine = setup.launch_with_console();
    machine.vmm.send(&Request::Pause).unwrap();
    machine.vmm.send(&Request::Stop).unwrap();
    let mut event = machine.event();
    assert!(matches!(event, Event::Preparing { .. }), "{event:?}");
    while matches!(event, Event::Preparing { .. }) {
        event = machine.event();
    }
    let Event::Denied {
        request, reason, ..
    } = &event
    else {
        panic!("{event:?} instead of a denial");
    };
    assert_eq!((request.as_str(), *reason), ("pause", Denial::Preparing));
    machine.expect_end(Exit::Stopped);
    assert_eq!(machine.output_to_end(), b"");
}

#[test]
fn nodes_and_pages_that_cannot_be_had_are_refused_by_their_field() {
    for (field, nodes, pages, memory_mib) in [
        (
            "memory_backing.numa_nodes",
            vec![0, 999],
            HostPages::Small,
            32,
        ),
        ("memory_backing.pages", vec![], HostPages::Huge2M, 33),
        ("memory_backing.pages", vec![], HostPages::Huge1G, 1025),
    ] {
        let Some(mut setup) = setup(memory_mib) else {
            return;
        };
        setup.start.memory_backing.pages = pages;
        setup.start.memory_backing.numa_nodes = nodes;
        let event = setup.launch().event();
        let Event::Refused { field: at, .. } = &event else {
            panic!("{event:?} instead of a refusal");
        };
        assert_eq!(at, field);
    }
}

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Pages added to the host's pool for one test; one test of this host at a time.
struct Reserved {
    before: u64,
    _lock: File,
}

impl Reserved {
    fn new(pages: u64) -> io::Result<Self> {
        let lock = File::open(POOL)?;
        lock.lock()?;
        let count = || {
            let text = std::fs::read_to_string(POOL)?;
            text.trim().parse::<u64>().map_err(io::Error::other)
        };
        let before = count()?;
        std::fs::write(POOL, (before + pages).to_string())?;
        let reserved = Self {
            before,
            _lock: lock,
        };
        if count()? < before + pages {
            return Err(io::Error::other("the host has no memory for them"));
        }
        Ok(reserved)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        std::fs::write(POOL, self.before.to_string()).unwrap();
    }
}

#[test]
fn memory_of_huge_pages_serves_a_guest_and_goes_back_with_it() {
    let _reserved = match Reserved::new(20) {
        Ok(reserved) => reserved,
        Err(error) => {
            println!("SKIPPED: no huge pages can be reserved: {error}");
            return;
        }
    };
    for (prefault, numa_nodes) in [(false, vec![]), (true, vec![]), (false, vec![0])] {
        let Some(mut setup) = setup(40) else { return };
        let is_prepared = prefault || !numa_nodes.is_empty();
        setup.start.memory_backing.pages = HostPages::Huge2M;
        setup.start.memory_backing.prefault = prefault;
        setup.start.memory_backing.numa_nodes = numa_nodes;
        let machine = setup.launch_with_console();
        if is_prepared {
            expect_prepared(&machine, 40);
        }
        expect_whole_run(machine);
    }
    let Some(mut setup) = setup(64) else { return };
    setup.start.memory_backing.pages = HostPages::Huge2M;
    let event = setup.launch().event();
    let Event::Refused {
        field,
        problem,
        remedy,
    } = &event
    else {
        panic!("{event:?} instead of a refusal");
    };
    assert_eq!(field, "memory_backing.pages");
    assert!(problem.contains("needs 32 pages of 2 MiB"), "{problem}");
    assert!(remedy.contains("more: add"), "{remedy}");
}
