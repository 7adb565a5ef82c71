//! The suite that every [`VmFiles`] passes, and what is particular to Linux's.

use super::*;
use crate::fakes::{FaultyVmFiles, Fuse};
use berth_agent_core::phase::Phase;
use berth_agent_core::vm_record::RECORD_FORMAT;
use std::os::unix::fs::FileExt as _;

fn record(vm_id: VmId) -> VmRecord {
    VmRecord {
        format: RECORD_FORMAT,
        vm_id,
        tenant_id: "acme".parse().unwrap(),
        generation: 1,
        boot_id: "boot".to_owned(),
        definition: None,
        phase: Phase::Creating,
        resets: 0,
        recent_resets: Vec::new(),
        task: None,
        results: Vec::new(),
    }
}

fn image(content: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(content, 0).unwrap();
    file
}

fn conforms(files: &impl VmFiles) {
    let vm_id = VmId::generate();
    let nothing = FilePresence {
        disk: false,
        any: false,
    };
    assert_eq!(files.presence(vm_id).unwrap(), nothing);
    assert!(files.read_record(vm_id).unwrap().is_none());
    files.ensure_gone(vm_id).unwrap();

    let mut written = record(vm_id);
    files.write_record(&written).unwrap();
    written.generation = 2;
    files.write_record(&written).unwrap();
    assert_eq!(files.read_record(vm_id).unwrap(), Some(written));
    assert_eq!(files.list().unwrap(), [vm_id]);
    assert_eq!(files.presence(vm_id).unwrap(), nothing);

    files.ensure_disk(vm_id, &image(b"root"), 2).unwrap();
    files.ensure_disk(vm_id, &image(b"other"), 2).unwrap();
    let guest = files.open_guest(vm_id).unwrap();
    let mut head = [0; 5];
    guest.disk.read_exact_at(&mut head, 0).unwrap();
    assert_eq!((&head, guest.disk_bytes), (b"root\0", 2 * MIB));
    guest.consoles[1].write_all_at(b"said", 0).unwrap();
    drop(guest);
    let kept = files.open_guest(vm_id).unwrap();
    assert_eq!(kept.consoles[1].metadata().unwrap().len(), 4);
    assert_eq!(
        files.read_consoles(vm_id).unwrap(),
        [Vec::new(), b"said".to_vec()]
    );

    files.ensure_gone(vm_id).unwrap();
    files.ensure_gone(vm_id).unwrap();
    assert_eq!(files.presence(vm_id).unwrap(), nothing);
    assert!(files.read_record(vm_id).unwrap().is_some());
}

#[test]
fn real_files_conform() {
    let folder = tempfile::tempdir().unwrap();
    conforms(&LinuxVmFiles::new(folder.path().join("vms")).unwrap());
}

#[test]
fn faulty_files_conform_while_their_fuse_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let inner = LinuxVmFiles::new(folder.path().join("vms")).unwrap();
    conforms(&FaultyVmFiles::new(inner, Fuse::whole()));
}

#[test]
fn a_disk_smaller_than_its_image_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let files = LinuxVmFiles::new(folder.path().join("vms")).unwrap();
    let vm_id = VmId::generate();
    let big = image(b"");
    big.set_len(3 * MIB + 1).unwrap();
    let refused = files.ensure_disk(vm_id, &big, 3).unwrap_err();
    assert_eq!(refused.to_string(), "disk_mib is 3, the image needs 4");
    assert!(!files.presence(vm_id).unwrap().any);
}

#[test]
fn a_link_in_the_place_of_a_disk_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let files = LinuxVmFiles::new(folder.path().join("vms")).unwrap();
    let vm_id = VmId::generate();
    files.write_record(&record(vm_id)).unwrap();
    let target = folder.path().join("target");
    std::fs::write(&target, b"precious").unwrap();
    let place = folder.path().join("vms").join(vm_id.bare()).join(DISK);
    std::os::unix::fs::symlink(&target, place).unwrap();
    assert!(matches!(
        files.open_guest(vm_id),
        Err(VmFilesError::Io { .. })
    ));
    files.ensure_gone(vm_id).unwrap();
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
}

#[test]
fn a_record_of_another_version_is_an_error_and_not_an_absence() {
    let folder = tempfile::tempdir().unwrap();
    let files = LinuxVmFiles::new(folder.path().join("vms")).unwrap();
    let vm_id = VmId::generate();
    files.write_record(&record(vm_id)).unwrap();
    let path = folder.path().join("vms").join(vm_id.bare()).join(RECORD);
    std::fs::write(path, b"{\"format\":2}").unwrap();
    assert!(matches!(
        files.read_record(vm_id),
        Err(VmFilesError::Record { .. })
    ));
}
