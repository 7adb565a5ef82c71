//! virtio-pci with a disk and an entropy device, driven by a script of a driver's moves.
//!
//! Holds after every move: the status is one that a driver may have set, queue registers are in
//! range, vectors exist. Holds at the end: a reset heals, and a correct driver is served.
#![no_main]

use berth_fuzz::disk::{CheckedDisk, DECISIONS, completion_order};
use berth_fuzz::guest::{ECAM, Guest, RAM_BYTES};
use berth_fuzz::input::Input;
use berth_fuzz::layout::{
    BAR_BYTES, COMMON_BYTES, CONFIG_VECTOR, NEXT, NO_VECTOR, QUEUE_ENABLE, QUEUE_SIZE,
    QUEUE_VECTOR, STATUS, WRITE,
};
use berth_vmm_devices::virtio::block::{Block, BlockOptions};
use berth_vmm_devices::virtio::entropy::Entropy;
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

/// Moves of one input; more only repeat.
const MOVES: usize = 96;
const DISK: usize = 0;
const ENTROPY: usize = 1;
const RINGS: [u64; 3] = [0x1000, 0x2000, 0x3000];
const BUFFERS: u64 = 0x8000;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let options = input.byte();
    let read_only = options & 1 != 0;
    let order = completion_order(options, &mut input);
    let (disk, view) = CheckedDisk::new(read_only, order);
    let before = view.content();
    let options = BlockOptions {
        read_only,
        serial: "fuzz".to_owned(),
        queues: 1,
    };
    let guest = Guest::new(vec![
        Box::new(Block::new(Box::new(disk), options)),
        Box::new(Entropy::new()),
    ]);
    for _ in 0..MOVES {
        if input.is_empty() {
            break;
        }
        make_move(&guest, &mut input);
        for function in 0..guest.functions() {
            check_registers(&guest, function);
        }
    }
    assert!(!read_only || view.content() == before);
    for function in [DISK, ENTROPY] {
        check_that_a_reset_heals(&guest, function);
    }
});

fn make_move(guest: &Guest, input: &mut Input<'_>) {
    let action = input.byte();
    let function = usize::from(action >> 7);
    match action & 0x7f {
        0 => {
            let (offset, width) = (input.word() & 0xfff, input.width());
            guest.set_config(function, offset, width, input.quad());
        }
        1 => {
            guest.config(function, input.word() & 0xfff, input.width());
        }
        2 => {
            let (offset, width) = (u64::from(input.word()) % BAR_BYTES, input.width());
            guest.set_common(function, offset, width, input.quad());
        }
        3 => {
            guest.common(function, u64::from(input.word()) % BAR_BYTES, input.width());
        }
        4 => {
            let (offset, width) = (u64::from(input.byte()) % COMMON_BYTES, input.width());
            guest.set_common(function, offset, width, input.long().into());
        }
        5 => guest.put(u64::from(input.word()), &input.quad().to_le_bytes()),
        6 => {
            let (features, size) = (input.long().into(), 1 << (input.byte() % 10));
            guest.bring_up(function, features, size, RINGS);
        }
        7 => guest.bring_up(
            function,
            input.quad(),
            input.word(),
            [input.word(), input.word(), input.word()].map(u64::from),
        ),
        8 => submit(guest, function, input),
        9 => guest.notify(function, input.byte().into()),
        15 => guest.host_ready(function),
        10 => guest.set_common(function, STATUS, 1, input.byte().into()),
        11 => guest.set_config(function, 4, 2, input.byte().into()),
        12 => guest.enable_interrupts(function, u64::from(input.byte() % 4)),
        13 => {
            let address = ECAM
                .wrapping_add(u64::from(input.long()))
                .wrapping_sub(1 << 29);
            guest.write(address, input.width(), input.quad());
        }
        14 => use_the_window(guest, function, input),
        _ => {
            let table = u64::from(input.word());
            let buffer = (
                u64::from(input.long()) % (RAM_BYTES * 2),
                input.word().into(),
            );
            guest.describe(
                table,
                input.byte().into(),
                buffer,
                input.word(),
                input.word(),
            );
        }
    }
}

/// A chain of up to four descriptors, made available and notified.
fn submit(guest: &Guest, function: usize, input: &mut Input<'_>) {
    let (head, parts) = (u16::from(input.byte() % 16), u16::from(input.byte() % 4));
    guest.put(BUFFERS, input.bytes(16));
    for part in 0..=parts {
        let (address, bytes) = (u64::from(input.word()), u32::from(input.word()));
        let more = if part < parts { NEXT } else { 0 };
        let flags = u16::from(input.byte()) & (WRITE | 4) | more;
        guest.describe(
            RINGS[0],
            head + part,
            (address, bytes),
            flags,
            head + part + 1,
        );
    }
    let index: u16 = guest
        .memory
        .read_obj(GuestAddress(RINGS[1] + 2))
        .unwrap_or(0);
    guest.put(
        RINGS[1] + 4 + 2 * u64::from(index % 16),
        &head.to_le_bytes(),
    );
    guest.put(RINGS[1] + 2, &index.wrapping_add(1).to_le_bytes());
    guest.notify(function, 0);
}

/// An access to the BAR by way of configuration space.
fn use_the_window(guest: &Guest, function: usize, input: &mut Input<'_>) {
    // It is the last of the vendor capabilities, and the only one of type 5.
    let window = (0x40..0xf0)
        .step_by(4)
        .find(|&at| guest.config(function, at, 1) == 9 && guest.config(function, at + 3, 1) == 5);
    let Some(window) = window else {
        panic!("the window is gone");
    };
    let width = input.width().min(4);
    guest.set_config(function, window + 4, 1, (input.byte() & 1).into());
    guest.set_config(function, window + 8, 4, input.word().into());
    guest.set_config(function, window + 12, 4, width as u64);
    guest.set_config(function, window + 16, width, input.long().into());
    guest.config(function, window + 16, width);
}

fn check_registers(guest: &Guest, function: usize) {
    if !guest.decodes(function) {
        return;
    }
    let status = guest.common(function, STATUS, 1);
    assert!(
        [0, 1, 3, 0xb, 0xf].contains(&(status & 0x3f)),
        "status {status:#x}"
    );
    assert!(guest.common(function, QUEUE_SIZE, 2) <= 256);
    assert!(guest.common(function, QUEUE_ENABLE, 2) <= 1);
    for register in [CONFIG_VECTOR, QUEUE_VECTOR] {
        let vector = guest.common(function, register, 2);
        assert!(
            vector < 2 || vector == u64::from(NO_VECTOR),
            "vector {vector:#x}"
        );
    }
}

fn check_that_a_reset_heals(guest: &Guest, function: usize) {
    guest.set_config(function, 4, 2, 0b110);
    guest.set_common(function, STATUS, 1, 0);
    assert_eq!(guest.common(function, STATUS, 1), 0);
    guest.put(0x1000, &[0; 0x4000]);
    guest.bring_up(function, 0, 16, RINGS);
    assert_eq!(guest.common(function, STATUS, 1), 0xf);
    guest.messages.take();
    let expected = if function == DISK {
        // A read of the first sector.
        guest.put(BUFFERS, &[0; 16]);
        guest.put(BUFFERS + 0x800, &[0xee]);
        guest.describe(RINGS[0], 0, (BUFFERS, 16), NEXT, 1);
        guest.describe(RINGS[0], 1, (BUFFERS + 0x200, 512), NEXT | WRITE, 2);
        guest.describe(RINGS[0], 2, (BUFFERS + 0x800, 1), WRITE, 0);
        513
    } else {
        guest.describe(RINGS[0], 0, (BUFFERS, 4), WRITE, 0);
        4
    };
    guest.put(RINGS[1] + 2, &1_u16.to_le_bytes());
    guest.notify(function, 0);
    // A disk may put its completions off for as long as the input decides.
    for _ in 0..=DECISIONS {
        guest.host_ready(function);
    }
    let used: [u32; 3] = guest
        .memory
        .read_obj(GuestAddress(RINGS[2]))
        .expect("rings are RAM");
    assert_eq!(used, [1 << 16, 0, expected]);
    if function == DISK {
        let status: u8 = guest
            .memory
            .read_obj(GuestAddress(BUFFERS + 0x800))
            .expect("RAM");
        assert_eq!(status, 0);
    }
    let data: Vec<_> = guest
        .messages
        .take()
        .iter()
        .map(|message| message.data)
        .collect();
    assert_eq!(data, [1]);
}
