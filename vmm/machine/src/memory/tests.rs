//! Guest memory of every kind of page, on this host's own kernel.

use vm_memory::Bytes;

use super::*;

const MIB: u64 = 1 << 20;

fn backing(pages: HostPages) -> MemoryBacking {
    MemoryBacking {
        pages,
        ..MemoryBacking::default()
    }
}

fn refusal(ram: RamLayout, backing: &MemoryBacking) -> Refusal {
    match map(ram, backing) {
        Err(BuildMachineError::Refused(refusal)) => refusal,
        other => panic!("{other:?} instead of a refusal"),
    }
}

/// The flags of the mapping that holds the guest's byte at `address`.
fn flags(memory: &Memory, address: u64) -> Vec<String> {
    let slice = memory.get_slice(GuestAddress(address), 1).unwrap();
    let place = slice.ptr_guard().as_ptr().addr();
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut is_ours = false;
    for line in maps.lines() {
        let range = line.split_whitespace().next().and_then(|word| {
            let (start, end) = word.split_once('-')?;
            let number = |text| usize::from_str_radix(text, 16).ok();
            Some(number(start)?..number(end)?)
        });
        if let Some(range) = range {
            is_ours = range.contains(&place);
        }
        if let Some(flags) = line.strip_prefix("VmFlags: ").filter(|_| is_ours) {
            return flags.split_whitespace().map(str::to_owned).collect();
        }
    }
    panic!("no mapping at {place:#x}");
}

#[test]
fn ordinary_memory_is_in_no_core_dump_and_no_child_and_of_the_pages_asked_for() {
    let ram = RamLayout::new(64 * MIB);
    for (pages, advice) in [(HostPages::Transparent, "hg"), (HostPages::Small, "nh")] {
        let memory = map(ram, &backing(pages)).unwrap();
        let flags = flags(&memory, 32 * MIB);
        for flag in ["dd", "dc", advice] {
            assert!(flags.iter().any(|have| have == flag), "{flag} of {flags:?}");
        }
    }
}

#[test]
fn nodes_that_are_not_there_are_refused_and_those_that_are_there_are_taken() {
    let Ok(nodes) = allowed_nodes() else {
        println!("SKIPPED: this kernel knows no NUMA nodes");
        return;
    };
    let ram = RamLayout::new(32 * MIB);
    let with = |nodes: &[u32]| MemoryBacking {
        numa_nodes: nodes.to_vec(),
        ..MemoryBacking::default()
    };
    let memory = map(ram, &with(&nodes)).unwrap();
    memory.write_obj(1_u8, GuestAddress(0)).unwrap();
    let absent = (0..1000).find(|node| !nodes.contains(node)).unwrap();
    for wrong in [absent, u32::MAX] {
        let refusal = refusal(ram, &with(&[nodes[0], wrong]));
        assert_eq!(refusal.field, "memory_backing.numa_nodes");
        assert!(refusal.problem.contains(&wrong.to_string()));
    }
}

/// More than any host has.
#[test]
fn huge_pages_that_the_host_does_not_have_are_counted_in_the_refusal() {
    // Counting takes pages for a moment, which another test may miss.
    let pool = std::fs::File::open(POOL);
    let _lock = pool.map(|pool| pool.lock().map(|()| pool));
    let ram = RamLayout::new(1 << 42);
    for (pages, name) in [
        (HostPages::Huge2M, "hugepages-2048kB"),
        (HostPages::Huge1G, "hugepages-1048576kB"),
    ] {
        let refusal = refusal(ram, &backing(pages));
        assert_eq!(refusal.field, "memory_backing.pages");
        let is_known = std::path::Path::new("/sys/kernel/mm/hugepages")
            .join(name)
            .exists();
        assert_eq!(refusal.remedy.contains(name), is_known, "{refusal}");
    }
}

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Pages added to the host's pool for one test.
struct Reserved {
    before: String,
    _lock: std::fs::File,
}

impl Reserved {
    fn new(pages: u64) -> Result<Self, String> {
        let told = |error: io::Error| format!("{POOL}: {error}");
        // One at a time, of all tests on this host.
        let lock = std::fs::File::open(POOL).map_err(told)?;
        lock.lock().map_err(told)?;
        let before = std::fs::read_to_string(POOL).map_err(told)?;
        let had: u64 = before.trim().parse().map_err(|_| "no number".to_owned())?;
        std::fs::write(POOL, (had + pages).to_string()).map_err(told)?;
        let reserved = Self {
            before,
            _lock: lock,
        };
        let now = std::fs::read_to_string(POOL).map_err(told)?;
        match now.trim().parse::<u64>() {
            Ok(has) if has == had + pages => Ok(reserved),
            Ok(_) | Err(_) => Err(format!("the host gives {} pages", now.trim())),
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        std::fs::write(POOL, self.before.trim()).unwrap();
    }
}

#[test]
fn huge_pages_are_reserved_when_they_are_mapped_and_the_missing_ones_are_named() {
    const PAGES: u64 = 20;
    let _reserved = match Reserved::new(PAGES) {
        Ok(reserved) => reserved,
        Err(why) => {
            println!("SKIPPED: no huge pages can be reserved: {why}");
            return;
        }
    };
    let ram = RamLayout::new(PAGES * 2 * MIB);
    let memory = map(ram, &backing(HostPages::Huge2M)).unwrap();
    let flags = flags(&memory, 0);
    for flag in ["ht", "dd", "dc", "sh"] {
        assert!(flags.iter().any(|have| have == flag), "{flag} of {flags:?}");
    }
    let mut last = None;
    prefault(&memory, &backing(HostPages::Huge2M), &mut |report| {
        last = Some(report);
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    let total = PAGES * 2 * MIB;
    assert_eq!(last, Some(Prefaulted { done: total, total }));
    memory.write_obj(7_u8, GuestAddress(total - 1)).unwrap();
    // The pool is empty: the mapping stays until this process ends.
    let refused = refusal(RamLayout::new(32 * MIB), &backing(HostPages::Huge2M));
    assert!(refused.problem.contains("needs 16 pages"), "{refused}");
    assert!(refused.problem.contains("has 0 left"), "{refused}");
    assert!(refused.remedy.contains("reserve 16 more"), "{refused}");
}
