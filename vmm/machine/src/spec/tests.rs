//! Refusals that need no KVM: everything that is checked before `/dev/kvm` is looked at, and the
//! checks of one descriptor. The rest is tested on the real device by the workspace's tests.

use std::fs::{File, OpenOptions};

use berth_api::vmm::{Disk, HostPages};

use super::disk::{check_blocks, check_queues};
use super::*;
use crate::disk_file::Alignment;

fn start() -> Start {
    Start::new("vm", FdIndex(0), FdIndex(1))
}

#[track_caller]
fn check(change: impl FnOnce(&mut Start), field: &str) {
    let mut start = start();
    change(&mut start);
    let refusal = MachineSpec::try_from((start, Vec::new())).unwrap_err();
    assert_eq!(refusal.field, field);
    assert!(!refusal.problem.is_empty() && !refusal.remedy.is_empty());
}

#[test]
fn values_are_checked_before_descriptors() {
    check(|start| start.version += 1, "version");
    check(|start| start.vm_id.clear(), "vm_id");
    check(|start| start.vcpus = 0, "vcpus");
    check(|start| start.vcpus = 255, "vcpus");
    check(|start| start.memory_mib = 31, "memory_mib");
    check(|start| start.memory_mib = u64::MAX, "memory_mib");
    check(|start| start.cmdline = "a\nb".to_owned(), "cmdline");
    check(|start| start.cmdline = "x".repeat(2048), "cmdline");
    check(|_| (), "kvm");
}

fn disk_file(bytes: u64, writable: bool) -> OwnedFd {
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(bytes).unwrap();
    OpenOptions::new()
        .read(true)
        .write(writable)
        .open(named.path())
        .unwrap()
        .into()
}

fn disk(read_only: bool, expected_bytes: u64) -> Disk {
    Disk {
        read_only,
        serial: "s".to_owned(),
        ..Disk::new(FdIndex(0), expected_bytes)
    }
}

fn checked(descriptor: OwnedFd, disk: Disk) -> Result<DiskSpec, String> {
    let mut intake = Intake::new(vec![descriptor]).unwrap();
    check_disk(&mut intake, 3, disk, 8).map_err(|refusal| refusal.field)
}

#[test]
fn a_disk_must_have_the_mode_and_the_length_that_are_claimed() {
    assert_eq!(
        checked(disk_file(4096, true), disk(false, 4096))
            .unwrap()
            .bytes,
        4096
    );
    assert_eq!(
        checked(disk_file(8192, false), disk(true, 4096))
            .unwrap()
            .bytes,
        4096
    );
    let refused = |result: Result<DiskSpec, String>| result.unwrap_err();
    assert_eq!(
        refused(checked(disk_file(4095, true), disk(false, 4096))),
        "disks[3].fd"
    );
    assert_eq!(
        refused(checked(disk_file(4096, true), disk(true, 4096))),
        "disks[3].fd"
    );
    assert_eq!(
        refused(checked(disk_file(4096, false), disk(false, 4096))),
        "disks[3].fd"
    );
    for bytes in [0, 511, 4097] {
        let field = refused(checked(disk_file(8192, true), disk(false, bytes)));
        assert_eq!(field, "disks[3].expected_bytes");
    }
    let null = File::open("/dev/null").unwrap();
    assert_eq!(
        refused(checked(null.into(), disk(true, 512))),
        "disks[3].fd"
    );
}

#[test]
fn a_disk_has_as_many_queues_as_asked_for_or_a_few() {
    for (asked, vcpus, expected) in [(0, 1, 1), (0, 3, 3), (0, 64, 4), (1, 64, 1), (16, 1, 16)] {
        assert_eq!(check_queues("queues", asked, vcpus).unwrap(), expected);
    }
    let refused = checked(
        disk_file(4096, true),
        Disk {
            queues: 17,
            ..disk(false, 4096)
        },
    );
    assert_eq!(refused.unwrap_err(), "disks[3].queues");
}

#[test]
fn a_direct_disk_ends_with_a_whole_block() {
    let alignment = Alignment::of(disk_file(4096, true).as_fd()).unwrap();
    check_blocks("bytes", 4096 + 512, alignment).unwrap();
    let refusal = check_blocks("bytes", 4096 + 511, alignment).unwrap_err();
    assert_eq!(
        refusal.remedy,
        "use a multiple of 512, or open the disk without O_DIRECT"
    );
}

#[test]
fn a_descriptor_is_used_once_and_none_is_left() {
    let descriptors = vec![disk_file(1, false), disk_file(1, false)];
    let mut intake = Intake::new(descriptors).unwrap();
    intake.take("a", FdIndex(1)).unwrap();
    assert!(
        intake
            .take("b", FdIndex(1))
            .unwrap_err()
            .problem
            .contains("another field")
    );
    assert!(
        intake
            .take("c", FdIndex(2))
            .unwrap_err()
            .problem
            .contains("does not exist")
    );
    assert!(
        intake
            .finish()
            .unwrap_err()
            .problem
            .contains("descriptor 0")
    );
}

#[test]
fn a_balloon_is_refused_where_no_page_can_be_given_back() {
    let refused = |change: fn(&mut Start)| {
        let mut start = Start::new("a", FdIndex(0), FdIndex(1));
        start.balloon = Some(Balloon {
            deflate_on_oom: true,
            free_page_reporting: true,
        });
        change(&mut start);
        check_balloon(&start).err().map(|refusal| refusal.field)
    };
    let balloon = Some("balloon".to_owned());
    assert_eq!(refused(|_| {}), None);
    assert_eq!(
        refused(|start| start.memory_backing.pages = HostPages::Small),
        None
    );
    assert_eq!(
        refused(|start| start.memory_backing.pages = HostPages::Huge2M),
        balloon
    );
    assert_eq!(
        refused(|start| start.memory_backing.pages = HostPages::Huge1G),
        balloon
    );
    let with_devices: fn(&mut Start) = |start| {
        start.vfio = Some(vmm::Vfio {
            iommu: vmm::Iommu::Iommufd { iommu: FdIndex(2) },
            devices: Vec::new(),
            peer_to_peer: false,
        });
    };
    assert_eq!(refused(with_devices), balloon);
}

#[test]
fn sockets_of_a_vsock_must_be_what_the_contract_says() {
    use rustix::net::{SocketFlags, listen, socket_with, socketpair};

    let make = |kind| socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
    let pair = |kind| {
        socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
            .unwrap()
            .0
    };
    let listening = || {
        let socket = make(SocketType::STREAM);
        let unnamed = rustix::net::SocketAddrUnix::new_unnamed();
        rustix::net::bind(&socket, &unnamed).unwrap();
        listen(&socket, 1).unwrap();
        socket
    };
    let internet = || OwnedFd::from(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let check = |cid, listener: OwnedFd, connector: OwnedFd| {
        let mut intake = Intake::new(vec![listener, connector]).unwrap();
        let vsock = vmm::Vsock {
            cid,
            listener: Some(FdIndex(0)),
            connector: Some(FdIndex(1)),
        };
        check_vsock(&mut intake, &vsock).map_err(|refusal| refusal.field)
    };
    let seqpacket = || pair(SocketType::SEQPACKET);
    check(3, listening(), seqpacket()).unwrap();
    for cid in [0, 1, 2, u32::MAX] {
        let refused = check(cid, listening(), seqpacket()).unwrap_err();
        assert_eq!(refused, "vsock.cid");
    }
    for wrong in [
        make(SocketType::STREAM),
        pair(SocketType::STREAM),
        seqpacket(),
        internet(),
        disk_file(1, true),
    ] {
        let refused = check(3, wrong, seqpacket()).unwrap_err();
        assert_eq!(refused, "vsock.listener");
    }
    for wrong in [
        pair(SocketType::STREAM),
        listening(),
        internet(),
        disk_file(1, true),
    ] {
        let refused = check(3, listening(), wrong).unwrap_err();
        assert_eq!(refused, "vsock.connector");
    }
}

#[test]
fn memory_is_a_whole_number_of_its_pages() {
    let checked = |pages, memory_mib| {
        let mut start = start();
        start.memory_mib = memory_mib;
        start.memory_backing.pages = pages;
        check_backing(&start).map_err(|refusal| refusal.field)
    };
    for (pages, memory_mib) in [
        (HostPages::Small, 33),
        (HostPages::Transparent, 33),
        (HostPages::Huge2M, 34),
        (HostPages::Huge1G, 2048),
    ] {
        assert!(!checked(pages, memory_mib).unwrap().prefault);
    }
    for (pages, memory_mib) in [(HostPages::Huge2M, 33), (HostPages::Huge1G, 1536)] {
        let field = checked(pages, memory_mib).unwrap_err();
        assert_eq!(field, "memory_backing.pages");
    }
}

#[test]
fn huge_pages_of_chosen_nodes_are_made_present_first() {
    let mut start = start();
    start.memory_backing.numa_nodes = vec![0];
    assert!(!check_backing(&start).unwrap().prefault);
    start.memory_backing.pages = HostPages::Huge2M;
    assert!(check_backing(&start).unwrap().prefault);
}

#[test]
fn a_virtio_consoles_descriptors_must_fit_their_use() {
    let check = |output: OwnedFd, input: OwnedFd| {
        let mut intake = Intake::new(vec![output, input]).unwrap();
        let console = vmm::VirtioConsole {
            output: Console::Stream { fd: FdIndex(0) },
            input: Some(FdIndex(1)),
        };
        check_virtio_console(&mut intake, &console).map_err(|refusal| refusal.field)
    };
    let reader = || OwnedFd::from(std::io::pipe().unwrap().0);
    let writer = || OwnedFd::from(std::io::pipe().unwrap().1);
    let socket = || OwnedFd::from(std::os::unix::net::UnixStream::pair().unwrap().0);
    check(writer(), reader()).unwrap();
    check(socket(), socket()).unwrap();
    assert_eq!(
        check(reader(), reader()).unwrap_err(),
        "virtio_console.output.fd"
    );
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let datagrams = || OwnedFd::from(std::os::unix::net::UnixDatagram::pair().unwrap().0);
    for input in [writer(), null(), datagrams(), disk_file(1, false)] {
        assert_eq!(check(writer(), input).unwrap_err(), "virtio_console.input");
    }
}
