//! What comes over the VMM's control socket: the start message up to a machine's specification,
//! and requests.
//!
//! The descriptors beside the message are real ones, so that every check is reached; where this
//! machine has no /dev/kvm, the checks after that of `kvm` are not. Holds: a specification is within
//! the contract's limits, a refusal names field, problem and remedy, and what was read is written
//! as it was.
#![no_main]

use std::cell::OnceCell;
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;

use berth_api::vmm::{
    Console, Event, MAX_CMDLINE_BYTES, MAX_DISKS, MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB,
    Request, Start,
};
use berth_vmm_machine::MachineSpec;
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Length of the file behind every descriptor.
const FILE_BYTES: u64 = 1 << 20;

struct Files {
    kvm: File,
    read_only: File,
    read_write: File,
}

impl Files {
    fn open() -> Self {
        let both = || OpenOptions::new().read(true).write(true).clone();
        let file = tempfile::NamedTempFile::new().expect("there is room for a file");
        file.as_file()
            .set_len(FILE_BYTES)
            .expect("a file can have holes");
        let kvm = both()
            .open("/dev/kvm")
            .or_else(|_| both().open("/dev/null"));
        Self {
            kvm: kvm.expect("one of the devices can be opened"),
            read_only: File::open(file.path()).expect("the file is there"),
            read_write: both().open(file.path()).expect("the file is there"),
        }
    }

    /// One descriptor for each use in `start`, open as the fields that name it want it.
    fn descriptors(&self, start: &Start) -> Vec<OwnedFd> {
        let console = match &start.console {
            None => vec![],
            Some(Console::Stream { fd }) => vec![fd.0],
            Some(Console::Segments { fds, .. }) => fds.map(|fd| fd.0).to_vec(),
        };
        let count = 2 + usize::from(start.initrd.is_some()) + start.disks.len() + console.len();
        (0..)
            .take(count.min(80))
            .map(|index| {
                let is_written = console.contains(&index)
                    || start
                        .disks
                        .iter()
                        .any(|disk| disk.fd.0 == index && !disk.read_only);
                let file = match index {
                    _ if index == start.kvm.0 => &self.kvm,
                    _ if is_written => &self.read_write,
                    _ => &self.read_only,
                };
                file.try_clone().expect("there are descriptors left").into()
            })
            .collect()
    }
}

thread_local! {
    static FILES: OnceCell<Files> = const { OnceCell::new() };
}

fuzz_target!(|bytes: &[u8]| {
    read_and_write::<Request>(bytes);
    read_and_write::<Event>(bytes);
    let Some(start) = read_and_write::<Start>(bytes) else {
        return;
    };
    let descriptors = FILES.with(|files| files.get_or_init(Files::open).descriptors(&start));
    match MachineSpec::try_from((start.clone(), descriptors)) {
        Ok(spec) => check(&start, &spec),
        Err(refusal) => {
            let texts = [refusal.field, refusal.problem, refusal.remedy];
            assert!(texts.iter().all(|text| !text.is_empty()));
        }
    }
});

fn read_and_write<T: Serialize + DeserializeOwned + PartialEq>(bytes: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(bytes).ok()?;
    let text = serde_json::to_vec(&value).expect("what was read can be written");
    assert!(serde_json::from_slice::<T>(&text).is_ok_and(|again| again == value));
    Some(value)
}

fn check(start: &Start, spec: &MachineSpec) {
    assert!((1..=MAX_VCPUS).contains(&u32::from(spec.vcpus)));
    assert!((MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&start.memory_mib));
    assert_eq!(spec.memory_bytes, start.memory_mib << 20);
    assert!(spec.cmdline.len() <= MAX_CMDLINE_BYTES && !spec.cmdline.contains('\0'));
    assert!(spec.disks.len() <= MAX_DISKS);
    for disk in &spec.disks {
        assert!(disk.serial.len() <= 20);
        assert!(disk.bytes > 0 && disk.bytes % 512 == 0 && disk.bytes <= FILE_BYTES);
    }
}
