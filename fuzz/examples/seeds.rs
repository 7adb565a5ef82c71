//! Writes the committed seeds, `fuzz/corpus/<target>/seed-*`: small inputs that reach deep.
//!
//! `cargo run --manifest-path fuzz/Cargo.toml --example seeds`. The same seeds come out each time.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use berth_api::agent::{JOIN_TOKEN_PREFIX, TASK_PAYLOAD_TYPE};
use berth_fuzz::disk::DECISIONS;
use berth_fuzz::ledger_seeds;
use berth_fuzz::seed_values::{
    HOLDER_SEEDS, NODE_EPOCH, NOW, ROOT_KEY_SEED, TASK_KEY_SEED, controller_id, holder, node_id,
    root_token,
};
use berth_ledger::envelope::seal;
use berth_ledger::keys::SigningKey;
use berth_token::{NewLink, RootKey, Scope, ScopeSet, SubjectKey};
use serde_json::{Value, json};

const ID: &str = "01h455vb4pex5vsknk084sn02q";

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (target, seeds) in [
        ("virtio_pci", virtio_pci()),
        ("vsock_queue", vsock_queue()),
        ("balloon_queue", balloon_queue()),
        ("block_queue", block_queue()),
        ("console_queue", console_queue()),
        ("entropy_queue", entropy_queue()),
        ("net_queue", net_queue()),
        ("nvme_drive", nvme_drive()),
        ("pci_msix", pci_msix()),
        ("vfio_model", vfio_model()),
        ("legacy_ports", legacy_ports()),
        ("kernel_image", kernel_image()),
        ("start_message", start_message()),
        ("agent_input", agent_input()),
        ("capability_token", capability_token()),
        ("token_chain", token_chain()),
        ("ledger_note", ledger_seeds::note()),
        ("ledger_bundle", ledger_seeds::bundle()),
        ("tlog_proof", ledger_seeds::proof()),
    ] {
        let folder = corpus.join(target);
        fs::create_dir_all(&folder)?;
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(folder.join(format!("seed-{number:02}")), seed)?;
        }
    }
    Ok(())
}

/// Moves of `virtio_pci`: bring a device up, submit chains, poke.
fn virtio_pci() -> Vec<Vec<u8>> {
    let up = |function: u8| [&[function << 7 | 6, 0, 0, 0, 0][..], &[4]].concat();
    // The header and two descriptors for it: data and status are the device's to write.
    let read = [
        &[8, 0, 2][..],
        &[0; 16],
        &[0x00, 0x80, 16, 0, 0],
        &[0x00, 0x90, 0, 2, 2],
        &[0x00, 0xa0, 1, 0, 2],
    ]
    .concat();
    let entropy = [&[0x88, 0, 0][..], &[0; 16], &[0x00, 0x80, 64, 0, 2]].concat();
    let window = [14, 2, 0, 0x14, 0, 0xf, 0, 0, 0];
    vec![
        [&[0][..], &up(0), &read, &[10, 0], &up(0), &read].concat(),
        [&[1][..], &up(0), &read, &[9, 0], &[11, 0], &[9, 0]].concat(),
        [&[0][..], &up(1), &entropy, &entropy].concat(),
        [
            &[0][..],
            &[12, 2],
            &window,
            &[4, 0x14, 0, 1, 0, 0, 0],
            &window,
        ]
        .concat(),
    ]
}

/// Guest memory of the queue targets: descriptors at 0x100, rings at 0x200 and 0x300.
fn queue_memory(descriptors: &[(u64, u32, u16, u16)], header: &[u8]) -> Vec<u8> {
    let mut memory = vec![0; 0x400];
    for (place, &(address, bytes, flags, next)) in (0x100..).step_by(16).zip(descriptors) {
        memory[place..place + 8].copy_from_slice(&address.to_le_bytes());
        memory[place + 8..place + 12].copy_from_slice(&bytes.to_le_bytes());
        memory[place + 12..place + 14].copy_from_slice(&flags.to_le_bytes());
        memory[place + 14..place + 16].copy_from_slice(&next.to_le_bytes());
    }
    memory[0x202] = 1;
    memory[..header.len()].copy_from_slice(header);
    memory
}

/// Features, a ring of 16, the places of [`queue_memory`], and another chain after the first call.
fn queue_header(features: u8) -> Vec<u8> {
    let mut bytes = vec![features, 4, 0x10, 0, 0, 1, 0xc0, 0];
    bytes.extend([0x02, 0x02, 2, 0]);
    bytes.extend([0; 12]);
    bytes
}

fn block_queue() -> Vec<Vec<u8>> {
    let request = |kind: u8, sector: u8| {
        let mut header = [0; 16];
        (header[0], header[8]) = (kind, sector);
        header
    };
    let data = |flags: u16| {
        [
            (0, 16, 1, 1),
            (0x1000, 1024, 1 | flags, 2),
            (0x3fff, 1, 2, 0),
        ]
    };
    let seed = |options: u8, features, descriptors: &[_], header: &[u8]| {
        let memory = queue_memory(descriptors, header);
        [&[options][..], &queue_header(features), &memory].concat()
    };
    // The first two times that somebody asks nothing is complete. Decisions are taken from the end.
    let late = |options: u8, descriptors: &[_], header: &[u8]| {
        let mut decisions = [0; DECISIONS];
        decisions[DECISIONS - 2..].fill(0x80);
        let memory = queue_memory(descriptors, header);
        [&[options][..], &decisions, &queue_header(1), &memory].concat()
    };
    let indirect = [
        (0x110, 48, 4, 0),
        (0, 16, 1, 1),
        (0x1000, 512, 3, 2),
        (0x3000, 1, 2, 0),
    ];
    vec![
        seed(0, 0, &data(2), &request(0, 1)),
        seed(0, 0, &data(0), &request(1, 14)),
        seed(1, 1, &data(0), &request(1, 0)),
        seed(0, 2, &[(0, 16, 1, 1), (0x3000, 1, 2, 0)], &request(4, 0)),
        seed(
            0,
            0,
            &[(0, 16, 1, 1), (0x1000, 20, 3, 2), (0x3000, 1, 2, 0)],
            &request(8, 0),
        ),
        seed(0, 1, &indirect, &request(0, 15)),
        seed(0, 0, &data(2), &request(0, 16)),
        // The medium goes before the second call.
        seed(1 | 2 << 2, 1, &data(2), &request(0, 1)),
        late(1 | 2 | 2 << 2, &data(2), &request(0, 1)),
    ]
}

/// A drive with one namespace of 16 blocks of 4 KiB, then where it lies.
fn nvme_drive() -> Vec<Vec<u8>> {
    let drive = |admin_commands: u8, sanitize: u8, lies: &[u8]| {
        let abilities = [1, 15, 1, admin_commands, 0x14, 0b100, sanitize, 0, 0, 0x80];
        let [transfer, locking, sanitizing, formatting] = [5, 1, 7, 3];
        let rest = [transfer, 60, 0, 0, 0, locking, sanitizing, formatting];
        [&abilities[..], &rest, lies].concat()
    };
    let honest = [0xff, 0xff];
    // One after some accesses: how many, how many after that, where, how long, what.
    let lie = [0, 2, 0xff, 0x07, 0, 0, 15, 0x82, 0, 0, 0, 0xff, 0xff];
    vec![
        drive(0b1010, 0b111, &honest),
        drive(0b1010, 0b010, &honest),
        drive(0b0010, 0, &honest),
        drive(0, 0, &honest),
        drive(0b1010, 0b111, &lie),
        drive(0b0010, 0, &lie),
    ]
}

/// The options say which queue it is.
fn balloon_queue() -> Vec<Vec<u8>> {
    let seed = |queue: u8, descriptors: &[_], numbers: &[u32]| {
        let bytes: Vec<u8> = numbers.iter().flat_map(|page| page.to_le_bytes()).collect();
        let memory = queue_memory(descriptors, &bytes);
        [&[queue << 1 | 1][..], &queue_header(0), &memory].concat()
    };
    let named = [(0, 24, 0, 0)];
    let numbers = [3, 2, 2, 16, 8, u32::MAX];
    vec![
        seed(0, &named, &numbers),
        seed(1, &named, &numbers),
        seed(0, &[(0, 7, 1, 1), (0x7fff, 64, 0, 0)], &numbers),
        seed(2, &[(0x2000, 0x2000, 3, 1), (0x1_0800, 0x2800, 2, 0)], &[]),
        seed(4, &[(0x7000, 0x2000, 2, 0)], &[]),
    ]
}

/// The queue, the agreed features, the lengths of four packets that come in, then the queue itself.
fn net_queue() -> Vec<Vec<u8>> {
    let seed = |queue: u8, features: u64, descriptors: &[_], content: &[u8]| {
        let mut bytes = vec![queue];
        bytes.extend(features.to_le_bytes());
        for length in [60u16, 3000, 0, 65_535] {
            bytes.extend(length.to_le_bytes());
        }
        let memory = queue_memory(descriptors, content);
        [&bytes[..], &queue_header(0), &memory].concat()
    };
    // Checksums and TCP segments both ways, mergeable buffers, the control queue, several pairs.
    let all = 1 | 2 | 4 | 1 << 7 | 1 << 11 | 1 << 15 | 1 << 17 | 1 << 22;
    let buffers = [(0x1000, 1536, 2, 0), (0x2000, 1536, 2, 0)];
    let segment = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
    let packet = [(0, 12, 1, 1), (0x1000, 1000, 0, 0)];
    let command = [(0, 2, 1, 1), (2, 2, 1, 2), (0x3000, 1, 2, 0)];
    vec![
        seed(0, all, &buffers, &[]),
        seed(0, 0, &[(0x1000, 0x3000, 2, 0)], &[]),
        seed(0, all, &[(0x1000, 11, 2, 0), (0x8000, 64, 2, 0)], &[]),
        seed(1, all, &packet, &segment),
        seed(1, 0, &packet, &segment),
        seed(1, all, &[(0, 12, 0, 0)], &segment),
        seed(4, all, &command, &[4, 0, 2, 0]),
        seed(
            2,
            all & !(1 << 22),
            &[(0, 10, 1, 1), (0x3000, 1, 2, 0)],
            &[5, 0, 2],
        ),
    ]
}

/// The queue, then how much is sent at once.
fn console_queue() -> Vec<Vec<u8>> {
    let seed = |queue: u8, sent: u8, descriptors: &[_]| {
        let memory = queue_memory(descriptors, b"text");
        [&[queue, sent][..], &queue_header(0), &memory].concat()
    };
    vec![
        seed(0, 9, &[(0x1000, 64, 2, 0)]),
        seed(0, 200, &[(0x1000, 4, 3, 1), (0x1_0000, 0x100, 2, 0)]),
        seed(1, 0, &[(0, 4, 1, 1), (0x7fff, 1, 0, 0)]),
        seed(
            1,
            0,
            &[(0, 0x8000, 1, 1), (0, 0x8000, 1, 2), (0, 0x8000, 0, 0)],
        ),
    ]
}

/// Packets in memory, and scripts of moves.
fn vsock_queue() -> Vec<Vec<u8>> {
    let mut request = vec![0; 44];
    for (place, value) in [(0, 3), (8, 2), (16, 1), (20, 1), (28, 1), (30, 1), (37, 16)] {
        request[place] = value;
    }
    let memory = |queue: u8, descriptors: &[_]| {
        let memory = queue_memory(descriptors, &request);
        [&[queue][..], &queue_header(0), &memory].concat()
    };
    // Choice, ports 1 and 1, bytes, operation, flags.
    let send = |operation: u8, flags: u8, bytes: u8| vec![0, 0, 5, bytes, 0, operation, flags];
    let offer = vec![2, 3, 0, 8, 0, 8, 0, 8, 0, 8];
    let peers = |reads: u8, writes: u8| vec![4, reads, writes];
    let script = |moves: &[Vec<u8>]| [&[3][..], &moves.concat()].concat();
    vec![
        memory(1, &[(0, 44, 0, 0)]),
        memory(0, &[(0x1000, 100, 2, 0)]),
        memory(2, &[(0x1000, 8, 2, 0)]),
        script(&[
            peers(9, 254),
            send(1, 0, 0),
            offer.clone(),
            send(5, 0, 200),
            vec![3, 5, 0x0f],
            offer.clone(),
            send(4, 3, 0),
            offer.clone(),
        ]),
        script(&[
            peers(0, 0),
            send(1, 0, 0),
            send(5, 0, 250),
            peers(1, 3),
            vec![3, 5, 7],
            send(4, 2, 0),
            send(6, 0, 0),
            offer.clone(),
        ]),
        script(&[
            peers(3, 3),
            vec![3, 5, 0],
            offer.clone(),
            vec![0, 0, 0x85, 0, 0, 2, 0],
            offer.clone(),
            vec![0, 0, 0x85, 9, 0, 5, 0],
            vec![3, 0x85, 9],
            offer,
        ]),
    ]
}

fn entropy_queue() -> Vec<Vec<u8>> {
    let seed = |features, descriptors: &[_]| {
        [queue_header(features), queue_memory(descriptors, &[])].concat()
    };
    vec![
        seed(0, &[(0x1000, 64, 2, 0)]),
        seed(1, &[(0x1000, 64, 3, 1), (0x1_0000, 0x100, 2, 0)]),
        seed(0, &[(0x7ff0, 64, 2, 0)]),
    ]
}

/// Moves of `pci_msix`.
fn pci_msix() -> Vec<Vec<u8>> {
    let config = |offset: u8, width: u8, value: u64| {
        [&[0, offset, width][..], &value.to_le_bytes()].concat()
    };
    let all_ones = u64::from(u32::MAX);
    vec![
        [
            config(4, 1, 6),
            vec![6, 0x80, 7, 3, 0, 5, 3, 7, 3, 1, 5, 3, 7, 3, 0],
        ]
        .concat(),
        [config(4, 1, 6), vec![7, 69, 0, 6, 0xc0, 5, 69, 6, 0x80]].concat(),
        [
            config(0x10, 2, all_ones),
            config(0x18, 2, all_ones),
            config(0x1c, 2, all_ones),
        ]
        .concat(),
        [
            config(4, 1, 6),
            vec![
                3, 0, 0, 3, 0xef, 0xbe, 0xe0, 0xfe, 0, 0, 0, 0, 6, 0x80, 5, 0,
            ],
        ]
        .concat(),
        // Both BARs moved with decoding off and on, one half alone, and an interrupt after it.
        [
            vec![8, 0, 7, 0, 0, 0, 0xc1, 0x80, 1, 0, 0],
            vec![8, 2, 4, 0, 0, 0, 0, 0x80, 1, 0, 0],
            vec![7, 0, 0, 6, 0x80, 5, 0],
        ]
        .concat(),
    ]
}

/// Devices of `vfio_model` with moves of their guests.
fn vfio_model() -> Vec<Vec<u8>> {
    // Capabilities: power management, MSI-X with 16 vectors at 0x3000 of BAR 0, PCI Express with
    // function-level reset. One 64-bit BAR of 16 KiB.
    let chain = [
        &[3, 0][..],
        &[3, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[4, 0x0f, 0, 0, 0x30, 0, 0, 0, 0x20, 0, 0],
        &[3, 2, 0, 0, 0, 0, 0x10, 0, 0, 0, 0],
    ]
    .concat();
    let drive = |flags: u8| {
        let bars = [&[0x14, 10][..], &[0; 10]].concat();
        [&chain[..], &[2, 0x01, 0x10, 1, flags, 0, 16], &bars, &[0]].concat()
    };
    // MSI with four maskable vectors; a prefetchable BAR of 32 GiB.
    let display = [
        &[1, 2, 0x84, 0x01][..],
        &[0; 8],
        &[0, 1, 1, 4, 0, 0, 0, 0x1c, 31],
        &[0; 8],
        &[0],
    ]
    .concat();
    let config = |offset: u16, width: u8, value: u32| {
        [
            &[0][..],
            &[width],
            &offset.to_le_bytes(),
            &value.to_le_bytes(),
        ]
        .concat()
    };
    let table = |offset: u16, width: u8, value: u64| {
        [
            &[4, 0][..],
            &(offset + 16).to_le_bytes(),
            &[width],
            &value.to_le_bytes(),
        ]
        .concat()
    };
    let vector = |index: u16| {
        let entry = index * 16;
        [table(entry, 3, 0xfee0_0000), table(entry + 8, 3, 0x21)].concat()
    };
    let (decode, fire, enable) = (vec![3, 2], vec![7, 0, 0], config(0x5a, 1, 0x8000));
    let sleep = [config(0x44, 1, 3), config(0x44, 1, 0)].concat();
    vec![
        [
            &drive(3)[..],
            &[9],
            &decode,
            &vector(0),
            &enable,
            &fire,
            &sleep,
            &fire,
        ]
        .concat(),
        [
            &drive(1)[..],
            &decode,
            &enable,
            &vector(0),
            &fire,
            &vector(2),
            &fire,
        ]
        .concat(),
        [
            &drive(3)[..],
            &decode,
            &enable,
            &config(0x78, 1, 0x8000),
            &decode,
            &[8, 2],
            &sleep,
        ]
        .concat(),
        [
            &display[..],
            &config(0x44, 2, 0xfee0_0000),
            &config(0x4c, 1, 0x40),
            &config(0x42, 1, 0x21),
            &config(0x50, 2, 1),
            &fire,
            &config(0x50, 2, 0),
            &[6, 0, 0, 0, 0x80, 0, 0, 3, 2],
        ]
        .concat(),
    ]
}

/// Moves of `legacy_ports`.
fn legacy_ports() -> Vec<Vec<u8>> {
    let write = |place: u8, offset: u8, value: u8| vec![0, place, offset, 0, value, 0, 0, 0];
    let select = |register: u8, value: u32| {
        let value = value.to_le_bytes();
        [&[0, 12, 0, 2, register, 0, 0, 0, 0, 19, 0, 2][..], &value].concat()
    };
    vec![
        [
            write(0, 1, 5),
            write(0, 0, b'x'),
            vec![5, 3, b'a', b'b', b'c', 3, 0, 0, 0],
        ]
        .concat(),
        [
            select(0x18, 0x24),
            select(0x22, 0x0130),
            vec![7, 4, 6, 3, 2, 0, 0],
        ]
        .concat(),
        [write(3, 0, 0x34), write(3, 2, 1), write(4, 0, 0xfe)].concat(),
        [write(0, 4, 0x10), write(0, 0, b'x'), vec![3, 0, 5, 0]].concat(),
    ]
}

fn put(bytes: &mut Vec<u8>, offset: usize, value: &[u8]) {
    if bytes.len() < offset + value.len() {
        bytes.resize(offset + value.len(), 0);
    }
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

fn elf() -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, 0, b"\x7fELF\x02\x01\x01");
    put(&mut bytes, 16, &[2, 0, 62, 0]);
    put(&mut bytes, 32, &64_u64.to_le_bytes());
    put(&mut bytes, 54, &[56, 0, 2, 0]);
    for (at, kind, fields) in [
        (64, 1_u32, [256_u64, 0x10_0000, 16, 0x2000]),
        (120, 4, [176, 0, 20, 20]),
    ] {
        put(&mut bytes, at, &kind.to_le_bytes());
        for (place, field) in [8, 24, 32, 40].into_iter().zip(fields) {
            put(&mut bytes, at + place, &field.to_le_bytes());
        }
    }
    put(&mut bytes, 176, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    put(&mut bytes, 188, b"Xen\0");
    put(&mut bytes, 192, &0x10_0000_u32.to_le_bytes());
    put(&mut bytes, 256, &[0xf4; 16]);
    bytes
}

fn bzimage() -> Vec<u8> {
    let mut bytes = vec![0; 512 * 2 + 1024];
    put(&mut bytes, 0x1f1, &[1]);
    put(&mut bytes, 0x1f4, &64_u32.to_le_bytes());
    put(&mut bytes, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut bytes, 0x202, b"HdrS\x0f\x02");
    put(&mut bytes, 0x211, &[1]);
    put(&mut bytes, 0x236, &[1]);
    put(&mut bytes, 0x248, &16_u32.to_le_bytes());
    put(&mut bytes, 0x24c, &64_u32.to_le_bytes());
    put(&mut bytes, 0x258, &0x100_0000_u64.to_le_bytes());
    put(&mut bytes, 0x260, &0x1_0000_u32.to_le_bytes());
    bytes
}

fn kernel_image() -> Vec<Vec<u8>> {
    let with_initrd = |mut image: Vec<u8>| {
        image.push(0);
        image
    };
    vec![elf(), with_initrd(elf()), bzimage(), with_initrd(bzimage())]
}

fn texts(values: &[Value]) -> Vec<Vec<u8>> {
    values
        .iter()
        .map(|value| value.to_string().into_bytes())
        .collect()
}

fn start_message() -> Vec<Vec<u8>> {
    let mut start = json!({
        "version": 1, "vm_id": "vm", "vcpus": 2, "memory_mib": 512, "kvm": 0, "kernel": 1,
        "initrd": 2, "cmdline": "console=ttyS0", "entropy": true,
        "disks": [{"fd": 3, "read_only": false, "serial": "root", "expected_bytes": 1 << 20}],
        "console": {"kind": "segments", "fds": [4, 5], "segment_bytes": 65536},
    });
    let full = start.clone();
    start["initrd"] = Value::Null;
    start["disks"] = json!([]);
    start["console"] = json!({"kind": "stream", "fd": 2});
    texts(&[
        full,
        start,
        json!({"request": "power_button"}),
        json!({"event": "running", "pid": 1}),
    ])
}

fn task(action: &Value) -> Value {
    json!({
        "task_id": format!("task_{ID}"), "node_id": node_id(), "node_epoch": NODE_EPOCH,
        "vm_id": format!("vm_{ID}"), "tenant_id": "acme", "generation": 5, "not_before": NOW,
        "expires_at": NOW + 300, "ledger_index": 0, "action": action,
    })
}

fn agent_input() -> Vec<Vec<u8>> {
    let key = SigningKey::from_seed(&TASK_KEY_SEED).expect("a seed is a key");
    let create = task(&json!({"type": "vm.create", "spec": {
        "name": "web", "vcpus": 1, "memory_mib": 512, "disk_mib": 1024, "image": "debian-13",
    }}));
    let read = task(&json!({"type": "vm.console_read", "tail_bytes": 100}));
    let envelope = seal(&key, TASK_PAYLOAD_TYPE, &create).expect("JSON can be written");
    let envelope = serde_json::to_vec(&envelope).expect("JSON can be written");
    let token = json!({
        "controller_url": "http://127.0.0.1:9221", "secret": "AAAAAAAAAAAAAAAAAAAAAA",
        "expires_at": NOW + 60, "node_name": null,
    });
    let token = URL_SAFE_NO_PAD.encode(token.to_string());
    let segment =
        |start: u64, output: &[u8]| [b"BERTHCN1", &start.to_le_bytes()[..], output].concat();
    vec![
        [
            &[0, 100, 21][..],
            &segment(0, b"hello"),
            &segment(5, b" world"),
        ]
        .concat(),
        [
            &[0, 4, 21][..],
            &segment(9, b"later"),
            &segment(0, b"earlier"),
        ]
        .concat(),
        [&[1][..], &envelope].concat(),
        [&[2, 0][..], create.to_string().as_bytes()].concat(),
        [&[2, 5][..], read.to_string().as_bytes()].concat(),
        [&[3][..], JOIN_TOKEN_PREFIX.as_bytes(), token.as_bytes()].concat(),
        [
            &[4][..],
            b"max_vcpus = 4\nallowed_images = [\"debian-13\"]\n",
        ]
        .concat(),
    ]
}

fn capability_token() -> Vec<Vec<u8>> {
    let key = SigningKey::from_seed(&ROOT_KEY_SEED).expect("a seed is a key");
    let own = SubjectKey::from_bytes(key.public().as_bytes()).expect("it is no small point");
    let root = RootKey::new(&key, controller_id()).expect("the key can mint");
    let token = root.mint(&NewLink {
        token_id: format!("tok_{ID}").parse().expect("it is an id"),
        tenant: Some("acme".parse().expect("it is an id")),
        holder: own,
        scopes: ScopeSet::new([Scope::VmRead, Scope::VmCreate]).expect("two scopes are a set"),
        resources: None,
        not_before: NOW,
        expires_at: NOW + 60,
        delegations: 2,
        requires_pop: false,
    });
    let claims = json!({
        "v": 1, "jti": format!("tok_{ID}"), "aud": controller_id(), "ten": "_platform",
        "sub": own.to_base64url(), "scp": ["service:platform-admin"], "nbf": NOW,
        "exp": NOW + 60, "dlg": 2,
    });
    let with = |choice: u8, text: &str| [&[choice], text.as_bytes()].concat();
    vec![
        with(0, &token.expect("the link is in order")),
        with(1, &claims.to_string()),
        with(2, &own.to_base64url()),
        with(
            2,
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI a",
        ),
        with(3, "vm.read vm.create service:tenant-admin"),
    ]
}

/// A root link as a stranger shows it, and claims that its holders hang on it.
fn token_chain() -> Vec<Vec<u8>> {
    let claims = |position: usize, more: &str| {
        let sub = holder(&HOLDER_SEEDS[position]).to_base64url();
        let (exp, dlg) = (NOW + 50, 3 - position);
        format!(
            r#"{{"v":1,"jti":"tok_{ID}","sub":"{sub}","scp":["vm.read"],{more}"nbf":{NOW},"exp":{exp},"dlg":{dlg}}}"#
        )
    };
    let limit = format!(r#""res":["vm_{ID}"],"pop":true,"#);
    let with = |choice: u8, text: &str| [&[choice], text.as_bytes()].concat();
    let chain = [claims(1, ""), claims(2, ""), claims(3, "")].join("\n");
    let limited = [claims(1, &limit), claims(2, &limit)].join("\n");
    vec![
        with(0, &root_token()),
        with(0, &[root_token(), root_token()].join("~")),
        with(1, &chain),
        with(1, &limited),
        with(
            1,
            &[claims(1, ""), claims(2, r#""ten":"acme","#)].join("\n"),
        ),
    ]
}
