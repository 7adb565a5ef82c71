//! Where the pages of guest memory come from, and that they are there before anybody needs them.
//!
//! Owns three calls to the kernel: binding to NUMA nodes, the list of nodes that may be bound to,
//! and the populating of pages. Which nodes and when is its callers' business.

use std::io;
use std::ptr;

use libc::{c_int, c_long, c_ulong};
use vm_memory::VolatileSlice;

/// Nodes that a mask has room for: the most that a kernel can be built for (`MAX_NUMNODES`).
const MAX_NODES: usize = 1024;
const WORD_BITS: usize = c_ulong::BITS as usize;
/// The nodes that this process may use.
const MPOL_F_MEMS_ALLOWED: c_int = 1 << 2;

type NodeMask = [c_ulong; MAX_NODES / WORD_BITS];

/// The nodes that this process may have memory from.
///
/// # Errors
/// What the kernel says; [`io::ErrorKind::Unsupported`] if it knows no nodes.
pub fn allowed_nodes() -> io::Result<Vec<u32>> {
    let mut mask: NodeMask = [0; MAX_NODES / WORD_BITS];
    // SAFETY: the kernel writes at most `MAX_NODES` bits to the mask, which has that many; a null
    // mode is allowed, and the address is not used with this flag.
    let result = unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            ptr::null_mut::<c_int>(),
            mask.as_mut_ptr(),
            MAX_NODES,
            ptr::null_mut::<u8>(),
            MPOL_F_MEMS_ALLOWED,
        )
    };
    done(result)?;
    let is_set = |node: usize| mask[node / WORD_BITS] >> (node % WORD_BITS) & 1 == 1;
    let nodes = (0..MAX_NODES).filter(|&node| is_set(node));
    Ok(nodes.filter_map(|node| u32::try_from(node).ok()).collect())
}

/// Makes the pages of `memory` that come from now on come from `nodes` only.
///
/// # Errors
/// What the kernel says, for instance that there is no such node.
pub fn bind_to_nodes(memory: &VolatileSlice<'_>, nodes: &[u32]) -> io::Result<()> {
    let mut mask: NodeMask = [0; MAX_NODES / WORD_BITS];
    for &node in nodes {
        let node = usize::try_from(node).unwrap_or(usize::MAX);
        let word = mask.get_mut(node / WORD_BITS);
        *word.ok_or(io::ErrorKind::InvalidInput)? |= 1 << (node % WORD_BITS);
    }
    let guard = memory.ptr_guard_mut();
    // SAFETY: the kernel reads one bit less than the count that it is given, so `MAX_NODES` bits of
    // the mask, which has that many. The range is memory that the volatile slice vouches for; where
    // its pages come from changes nothing of what is in them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            guard.as_ptr(),
            guard.len(),
            libc::MPOL_BIND,
            mask.as_ptr(),
            MAX_NODES + 1,
            0,
        )
    };
    done(result)
}

/// Makes all pages of `memory` present and writable. Their content stays.
///
/// # Errors
/// If the host has not enough memory; [`io::ErrorKind::Unsupported`] if the kernel is older than
/// Linux 5.14.
pub fn populate(memory: &VolatileSlice<'_>) -> io::Result<()> {
    let guard = memory.ptr_guard_mut();
    loop {
        // SAFETY: the range is memory that the volatile slice vouches for; the call changes nothing
        // of what is in it.
        let result = unsafe {
            libc::madvise(
                guard.as_ptr().cast(),
                guard.len(),
                libc::MADV_POPULATE_WRITE,
            )
        };
        match done(c_long::from(result)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                return Err(io::ErrorKind::Unsupported.into());
            }
            populated => return populated,
        }
    }
}

fn done(result: c_long) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

    use super::*;
    use crate::{AnonymousPages, map_guest_ram};

    const BYTES: usize = 16 << 20;

    fn memory() -> GuestMemoryMmap<()> {
        let region = map_guest_ram(BYTES, AnonymousPages::Small).unwrap();
        let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
        GuestMemoryMmap::from_regions(vec![region]).unwrap()
    }

    /// Pages of `memory` that are present.
    fn present(memory: &GuestMemoryMmap<()>) -> usize {
        let slice = memory.get_slice(GuestAddress(0), BYTES).unwrap();
        let start = slice.ptr_guard().as_ptr().addr();
        let mut found = vec![0_u8; BYTES / 4096];
        // SAFETY: one byte is written for each page of a range that is mapped.
        let result = unsafe {
            libc::mincore(
                ptr::without_provenance_mut(start),
                BYTES,
                found.as_mut_ptr(),
            )
        };
        assert_eq!(result, 0);
        found.iter().filter(|&&page| page & 1 == 1).count()
    }

    #[test]
    fn populating_makes_pages_present_and_keeps_what_is_in_them() {
        let memory = memory();
        memory.write_obj(7_u64, GuestAddress(0x5000)).unwrap();
        assert_eq!(present(&memory), 1);
        let half = memory.get_slice(GuestAddress(0), BYTES / 2).unwrap();
        match populate(&half) {
            Ok(()) => assert_eq!(present(&memory), BYTES / 4096 / 2),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported),
        }
        let kept: u64 = memory.read_obj(GuestAddress(0x5000)).unwrap();
        assert_eq!(kept, 7);
    }

    #[test]
    fn memory_is_bound_to_nodes_that_are_there_and_to_no_others() {
        let nodes = match allowed_nodes() {
            Ok(nodes) => nodes,
            Err(error) => {
                println!("SKIPPED: this kernel knows no NUMA nodes: {error}");
                return;
            }
        };
        assert!(!nodes.is_empty());
        let memory = memory();
        let all = memory.get_slice(GuestAddress(0), BYTES).unwrap();
        bind_to_nodes(&all, &nodes).unwrap();
        memory.write_obj(1_u8, GuestAddress(0)).unwrap();
        let absent = (0..1000).find(|node| !nodes.contains(node)).unwrap();
        for wrong in [absent, 1024, u32::MAX] {
            let error = bind_to_nodes(&all, &[wrong]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
