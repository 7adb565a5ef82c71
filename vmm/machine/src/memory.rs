//! Guest RAM: one mapping for each range of the layout, of the pages that the spec asks for.
//!
//! Owns the choice of pages and nodes, and what is refused when the host has not enough of them.
//! Everything is decided before a page is touched. What lies in memory is not known here.

mod prefault;

pub use prefault::{Prefaulted, prefault};

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use berth_api::vmm::{HostPages, MemoryBacking};
use berth_vmm_devices::memory::Memory;
use berth_vmm_sys::{
    AnonymousPages, allowed_nodes, bind_to_nodes, has_pages_for, map_guest_file, map_guest_ram,
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

use crate::layout::{KERNEL_START, RamLayout, Range};
use crate::refusal::{BuildMachineError, Refusal, host};

/// RAM below this holds boot structures and tables here and there: a large page would be mostly
/// empty.
const SMALL_PAGES_END: u64 = 2 << 20;
const _: () = assert!(SMALL_PAGES_END > KERNEL_START);

/// The pages of a size that the host reserves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HugePages {
    /// Length of one.
    pub(crate) bytes: u64,
    /// Its name for people.
    pub(crate) name: &'static str,
    flag: MemfdFlags,
}

impl HugePages {
    /// Those that `pages` asks for, if any.
    pub(crate) fn of(pages: HostPages) -> Option<Self> {
        match pages {
            HostPages::Transparent | HostPages::Small => None,
            HostPages::Huge2M => Some(Self {
                bytes: 2 << 20,
                name: "2 MiB",
                flag: MemfdFlags::HUGE_2MB,
            }),
            HostPages::Huge1G => Some(Self {
                bytes: 1 << 30,
                name: "1 GiB",
                flag: MemfdFlags::HUGE_1GB,
            }),
        }
    }

    /// A memory file of these pages whose length never changes.
    fn file(self, bytes: u64) -> io::Result<OwnedFd> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
        let file = memfd_create("guest-ram", flags | self.flag)?;
        ftruncate(&file, bytes)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(file)
    }

    /// Pages that the host has left, at most `wanted`.
    fn left(self, wanted: u64) -> u64 {
        let fits = |pages: u64| {
            let length = usize::try_from(pages * self.bytes).unwrap_or(usize::MAX);
            let file = self.file(pages * self.bytes);
            file.is_ok_and(|file| has_pages_for(file.as_fd(), length))
        };
        let (mut least, mut most) = (0, wanted);
        while least < most {
            let middle = most - (most - least) / 2;
            if fits(middle) {
                least = middle;
            } else {
                most = middle - 1;
            }
        }
        least
    }

    fn not_there(self) -> Refusal {
        Refusal::new(
            "memory_backing.pages",
            format!("this host's kernel has no pages of {}", self.name),
            "use transparent pages, or a host that has them",
        )
    }

    fn too_few(self, wanted: u64, left: u64) -> Refusal {
        let missing = wanted - left;
        Refusal::new(
            "memory_backing.pages",
            format!(
                "the guest needs {wanted} pages of {}, and this host has {left} left",
                self.name
            ),
            format!(
                "reserve {missing} more: add {missing} to the number in \
                 /sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages, or use transparent pages",
                self.bytes >> 10
            ),
        )
    }
}

/// Reserves address space for all RAM, and the pages if they are huge. Others come when somebody
/// touches them.
///
/// # Errors
/// [`BuildMachineError::Refused`] if the host does not have the pages or the nodes; otherwise if the
/// kernel refuses a mapping.
pub fn map(ram: RamLayout, backing: &MemoryBacking) -> Result<Memory, BuildMachineError> {
    check_nodes(&backing.numa_nodes)?;
    let regions = match HugePages::of(backing.pages) {
        Some(pages) => map_huge(ram, pages)?,
        None => {
            let map = |range| map_anonymous(range, backing.pages);
            ram.ranges()
                .into_iter()
                .map(map)
                .collect::<Result<_, _>>()?
        }
    };
    let memory = GuestMemoryMmap::from_regions(regions)?;
    if !backing.numa_nodes.is_empty() {
        bind(&memory, &backing.numa_nodes)?;
    }
    Ok(memory)
}

fn map_anonymous(range: Range, pages: HostPages) -> Result<GuestRegionMmap<()>, BuildMachineError> {
    let bytes = length(range)?;
    let pages = if pages == HostPages::Small {
        AnonymousPages::Small
    } else {
        let small = SMALL_PAGES_END.saturating_sub(range.start);
        AnonymousPages::LargeAfter(usize::try_from(small).unwrap_or(usize::MAX))
    };
    let region = map_guest_ram(bytes, pages).map_err(failed(range))?;
    GuestRegionMmap::new(region, GuestAddress(range.start))
        .ok_or_else(|| failed(range)(io::ErrorKind::InvalidInput.into()))
}

/// Huge pages are counted for a mapping when it is made, so that none is missing later.
fn map_huge(
    ram: RamLayout,
    pages: HugePages,
) -> Result<Vec<GuestRegionMmap<()>>, BuildMachineError> {
    let mut regions = Vec::new();
    let wanted = ram.ranges().iter().map(|range| range.bytes()).sum::<u64>() / pages.bytes;
    let mut mapped = 0;
    for range in ram.ranges() {
        let file = pages.file(range.bytes()).map_err(|_| pages.not_there())?;
        let region = match map_guest_file(file.as_fd(), length(range)?) {
            Ok(region) => region,
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
                let left = mapped + pages.left(range.bytes() / pages.bytes);
                return Err(pages.too_few(wanted, left.min(wanted)).into());
            }
            Err(error) => return Err(failed(range)(error)),
        };
        mapped += range.bytes() / pages.bytes;
        let region = GuestRegionMmap::new(region, GuestAddress(range.start));
        regions.push(region.ok_or_else(|| failed(range)(io::ErrorKind::InvalidInput.into()))?);
    }
    Ok(regions)
}

fn length(range: Range) -> Result<usize, BuildMachineError> {
    usize::try_from(range.bytes()).map_err(|_| failed(range)(io::ErrorKind::OutOfMemory.into()))
}

fn failed(range: Range) -> impl FnOnce(io::Error) -> BuildMachineError {
    move |cause| BuildMachineError::MapMemory {
        bytes: range.bytes(),
        cause,
    }
}

fn check_nodes(nodes: &[u32]) -> Result<(), BuildMachineError> {
    if nodes.is_empty() {
        return Ok(());
    }
    let allowed = allowed_nodes().map_err(|error| {
        let problem = format!("this host's kernel tells no NUMA nodes: {error}");
        let remedy = "leave the nodes out, or use a kernel with NUMA";
        Refusal::new("memory_backing.numa_nodes", problem, remedy)
    })?;
    match nodes.iter().find(|node| !allowed.contains(node)) {
        None => Ok(()),
        Some(node) => Err(Refusal::new(
            "memory_backing.numa_nodes",
            format!("the VMM cannot have memory of node {node}"),
            format!("name nodes that are there and allowed: {allowed:?}"),
        )
        .into()),
    }
}

fn bind(memory: &Memory, nodes: &[u32]) -> Result<(), BuildMachineError> {
    for region in memory.iter() {
        let all = vm_memory::GuestMemoryRegion::as_volatile_slice(region);
        let all = all.map_err(|error| host("reach guest memory")(io::Error::other(error)))?;
        bind_to_nodes(&all, nodes).map_err(host("bind guest memory to NUMA nodes"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
