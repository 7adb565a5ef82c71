//! What this host's KVM offers to guests, asked once and handed to every start.
//!
//! Owns the form of the facts as bytes: written by `berth-vmm host-facts`, kept by the agent in a
//! sealed memory file, read here. Asking KVM anew costs about as much as the rest of a start where
//! CPUID traps, which it does under another hypervisor. Facts of another kernel or of another form
//! are no facts: KVM is asked then.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

/// The first bytes; the last one is the form's version.
const MAGIC: [u8; 8] = *b"BERTHHF1";
/// Numbers of one CPUID entry.
const ENTRY_NUMBERS: usize = 7;
/// Longest facts.
pub const MAX_BYTES: usize = 64 * 1024;
/// Longest description of a kernel.
const MAX_KERNEL_BYTES: usize = 512;

/// The facts.
#[derive(Clone, PartialEq, Debug)]
pub struct HostFacts {
    /// What KVM can show to guests (`KVM_GET_SUPPORTED_CPUID`).
    pub cpuid: Vec<kvm_cpuid_entry2>,
}

impl HostFacts {
    /// Asks KVM.
    ///
    /// # Errors
    /// What KVM says.
    pub fn ask(kvm: &Kvm) -> io::Result<Self> {
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        Ok(Self {
            cpuid: cpuid.as_slice().to_vec(),
        })
    }

    /// The facts of `file`, if it has some of the kernel that runs now.
    #[must_use]
    pub fn from_file(file: &File) -> Option<Self> {
        let mut bytes = vec![0; MAX_BYTES];
        let length = file.read_at(&mut bytes, 0).ok()?;
        Self::decode(bytes.get(..length)?, &running_kernel())
    }

    /// The facts as bytes, for the kernel that runs now.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode(&running_kernel())
    }

    fn encode(&self, kernel: &str) -> Vec<u8> {
        let kernel = &kernel.as_bytes()[..kernel.len().min(MAX_KERNEL_BYTES)];
        let mut bytes = MAGIC.to_vec();
        let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
        bytes.extend(length(kernel.len()));
        bytes.extend(kernel);
        bytes.extend(length(self.cpuid.len()));
        for entry in &self.cpuid {
            let numbers: [u32; ENTRY_NUMBERS] = [
                entry.function,
                entry.index,
                entry.flags,
                entry.eax,
                entry.ebx,
                entry.ecx,
                entry.edx,
            ];
            bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        }
        bytes
    }

    fn decode(bytes: &[u8], running: &str) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC)?;
        let (length, rest) = take_length(rest, MAX_KERNEL_BYTES)?;
        let (kernel, rest) = rest.split_at_checked(length)?;
        if kernel != &running.as_bytes()[..running.len().min(MAX_KERNEL_BYTES)] {
            return None;
        }
        let (count, rest) = take_length(rest, KVM_MAX_CPUID_ENTRIES)?;
        let (entries, trailing) = rest.as_chunks::<{ ENTRY_NUMBERS * 4 }>();
        if entries.len() != count || count == 0 || !trailing.is_empty() {
            return None;
        }
        Some(Self {
            cpuid: entries.iter().map(entry).collect(),
        })
    }
}

fn take_length(bytes: &[u8], most: usize) -> Option<(usize, &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    (length <= most).then_some((length, rest))
}

fn entry(bytes: &[u8; ENTRY_NUMBERS * 4]) -> kvm_cpuid_entry2 {
    let (numbers, _) = bytes.as_chunks::<4>();
    let mut numbers = numbers.iter().map(|number| u32::from_le_bytes(*number));
    let mut next = || numbers.next().unwrap_or(0);
    kvm_cpuid_entry2 {
        function: next(),
        index: next(),
        flags: next(),
        eax: next(),
        ebx: next(),
        ecx: next(),
        edx: next(),
        ..Default::default()
    }
}

/// Release and build of the kernel: another one may offer other features.
fn running_kernel() -> String {
    let name = rustix::system::uname();
    format!(
        "{} {}",
        name.release().to_string_lossy(),
        name.version().to_string_lossy()
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn facts() -> HostFacts {
        let entry = |function| kvm_cpuid_entry2 {
            function,
            index: 2,
            flags: 1,
            eax: 4,
            ebx: 5,
            ecx: 6,
            edx: 7,
            ..Default::default()
        };
        HostFacts {
            cpuid: vec![entry(0), entry(0x8000_0000)],
        }
    }

    #[test]
    fn facts_come_back_as_they_went_for_the_same_kernel_only() {
        let bytes = facts().encode("6.1.0 #1");
        assert_eq!(HostFacts::decode(&bytes, "6.1.0 #1"), Some(facts()));
        assert_eq!(HostFacts::decode(&bytes, "6.1.0 #2"), None);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&facts().to_bytes()).unwrap();
        assert_eq!(HostFacts::from_file(&file), Some(facts()));
    }

    #[test]
    fn facts_that_are_cut_or_too_long_are_none() {
        let bytes = facts().encode("k");
        for length in 0..bytes.len() {
            assert_eq!(HostFacts::decode(&bytes[..length], "k"), None, "{length}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert_eq!(HostFacts::decode(&longer, "k"), None);
        let none = HostFacts { cpuid: Vec::new() };
        assert_eq!(HostFacts::decode(&none.encode("k"), "k"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_facts_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut with_magic = MAGIC.to_vec();
            with_magic.extend(&bytes);
            for bytes in [bytes, with_magic] {
                if let Some(facts) = HostFacts::decode(&bytes, "k") {
                    prop_assert_eq!(facts.encode("k"), bytes);
                }
            }
        }
    }
}
