//! `berth-vmm` on the real `/dev/kvm`, met as its parent meets it: a socket, descriptors, events and
//! an exit status. Every guest is a few instructions long (`berth_tests::tiny_guest`), so that no
//! operating system is needed and a paravirtual `/dev/kvm` is enough.

#[cfg(test)]
mod balloon;
#[cfg(test)]
mod block_and_entropy;
#[cfg(test)]
mod console;
#[cfg(test)]
mod control;
#[cfg(test)]
mod ending;
#[cfg(test)]
mod host_facts;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod machine;
#[cfg(test)]
mod memory_and_vcpus;
#[cfg(test)]
mod memory_backing;
#[cfg(test)]
mod network;
#[cfg(test)]
mod panic_device;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod second_vcpu;
#[cfg(test)]
mod virtio;
