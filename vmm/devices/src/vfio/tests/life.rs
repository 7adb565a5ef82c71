//! Memory decoding, bus mastering, power states, resets: a device's everyday life.

use super::super::ops::{Area, VectorKind};
use super::super::testing::{Call, FakeDevice, Guest, whole};
use super::{drive, gpu};

const GIB: u64 = 1 << 30;
const POWER: u16 = 0x44;
const DEVICE_CONTROL: u16 = 0xa8;
const MSIX_CONTROL: u16 = 0x82;
const BUS_MASTER: u16 = 4;

#[test]
fn a_drive_shows_itself_without_the_hosts_addresses_its_pin_or_its_other_functions() {
    let device = drive(true);
    device.set_config(0x0c, 0x0080_0000);
    device.set_config(0x3c, 0x0000_010b);
    let guest = Guest::new(device);
    assert_eq!(guest.config(0, 4), 0xa808_144d);
    assert_eq!(guest.config(0x0e, 1), 0);
    assert_eq!(guest.config(0x3c, 2), 0);
    let address = u64::from(guest.config(0x10, 4)) & !0xf | u64::from(guest.config(0x14, 4)) << 32;
    assert_eq!(address, guest.address(0));
    assert_eq!(guest.config(0x10, 4) & 0xf, 4);
    assert_eq!(guest.config(0x12, 2), guest.config(0x10, 4) >> 16);
}

#[test]
fn bars_are_mapped_while_memory_is_decoded_and_around_the_table() {
    let guest = Guest::new(drive(true));
    let base = guest.address(0);
    assert_eq!(guest.read(base, 4), 0xffff_ffff, "nothing is decoded yet");
    assert!(guest.device.mapped().is_empty());
    guest.set_config(4, 2, 2);
    let first = Area {
        offset: 0,
        bytes: 0x2000,
    };
    assert_eq!(
        guest.device.take_calls(),
        [Call::WriteConfig(4, vec![2, 4]), Call::Map(0, first, base)]
    );
    assert_eq!(guest.read(base + 8, 4), 0);
    guest.set_config(4, 2, 0);
    assert_eq!(
        guest.device.take_calls(),
        [
            Call::Unmap(0, first, base),
            Call::WriteConfig(4, vec![0, 4])
        ]
    );
    assert_eq!(guest.read(base, 4), 0xffff_ffff);
}

#[test]
fn a_gpu_gets_all_its_bars_aligned_in_39_bits() {
    let guest = Guest::new(gpu());
    assert_eq!(guest.address(0), 0xd000_0000);
    assert_eq!(guest.address(1), 64 * GIB);
    assert_eq!(guest.address(3), 8 * GIB);
    assert_eq!(
        guest.config(0x14, 4),
        0xc,
        "64-bit and prefetchable, as the driver expects"
    );
    guest.set_config(4, 2, 2);
    let expected = [
        (0, 0, 16 << 20, 0xd000_0000),
        (1, 0, 64 * GIB, 64 * GIB),
        (3, 0, 32 << 20, 8 * GIB),
    ];
    assert_eq!(guest.device.mapped(), expected);
    assert!(guest.function.hidden_port_bars().iter().eq(&[5]));
    assert_eq!(guest.config(0x24, 4), 0, "ports are not seen");
}

#[test]
fn a_moved_bar_is_mapped_where_it_went() {
    let guest = Guest::new(gpu());
    let (window, first) = (guest.plan.high.clone(), guest.address(3));
    let target = first + (64 << 20);
    assert!(window.contains(&target));
    guest.set_config(4, 2, 2);
    guest.set_config(0x1c, 4, u32::try_from(target & 0xffff_ffff).unwrap());
    assert_eq!(guest.counter("bar_moves_ignored"), 1, "decoding is on");
    guest.set_config(4, 2, 0);
    guest.set_config(0x1c, 4, u32::try_from(target & 0xffff_ffff).unwrap());
    guest.set_config(0x20, 4, u32::try_from(target >> 32).unwrap());
    guest.set_config(4, 2, 2);
    assert!(guest.device.mapped().contains(&(3, 0, 32 << 20, target)));
    assert_eq!(guest.read(first, 4), 0xffff_ffff);
}

#[test]
fn a_mapping_that_the_host_refuses_leaves_a_bar_that_traps() {
    let guest = Guest::new(drive(true));
    guest.device.fail(super::super::testing::Failing::Map);
    guest.set_config(4, 2, 2);
    assert_eq!(guest.counter("maps_failed"), 1);
    guest.write(guest.address(0) + 0x10, 4, 7);
    assert_eq!(guest.read(guest.address(0) + 0x10, 4), 7);
}

#[test]
fn bus_mastering_reaches_the_device_only_once_all_memory_is_mapped() {
    let guest = Guest::new(drive(true));
    guest.set_config(4, 2, 6);
    assert_eq!(guest.config(4, 2), 6, "the guest sees what it wrote");
    assert_eq!(guest.device.command() & BUS_MASTER, 0);
    guest.function.allow_dma();
    assert_eq!(guest.device.command(), 0x0406);
    guest.set_config(4, 2, 2);
    assert_eq!(guest.device.command() & BUS_MASTER, 0);
}

#[test]
fn a_device_is_quiet_before_its_guest_runs() {
    let device = drive(true);
    device.set_config(4, 0x0010_0007);
    let guest = Guest::new(device);
    assert_eq!(
        guest.device.command(),
        0x0400,
        "INTx off, no decoding, no bus mastering"
    );
}

#[test]
fn a_sleeping_device_answers_all_ones_and_wakes_with_its_bars_and_vectors() {
    let guest = Guest::new(drive(true));
    guest.function.allow_dma();
    guest.set_config(4, 2, 6);
    guest.write(guest.address(0) + 0x3000, 8, 0xfee0_0000);
    guest.write(guest.address(0) + 0x3008, 8, 100);
    guest.set_config(MSIX_CONTROL, 2, 0x8000);
    guest.device.take_calls();
    guest.set_config(POWER, 2, 3);
    let base = guest.address(0);
    let area = Area {
        offset: 0,
        bytes: 0x2000,
    };
    assert_eq!(
        guest.device.take_calls(),
        [
            Call::Unmap(0, area, base),
            Call::WriteConfig(0x44, vec![3, 0])
        ]
    );
    assert_eq!(guest.read(base, 4), 0xffff_ffff);
    guest.write(base, 4, 1);
    guest.set_config(4, 2, 6);
    assert!(guest.device.mapped().is_empty(), "not while it sleeps");
    guest.device.take_calls();
    guest.set_config(POWER, 2, 0);
    assert_eq!(
        guest.device.take_calls(),
        [
            Call::WriteConfig(0x44, vec![0, 0]),
            Call::WriteConfig(4, vec![6, 4]),
            Call::Disable,
            Call::Enable(VectorKind::MsiX, 0, 1),
            Call::Route(0, Some(100)),
            Call::Map(0, area, base),
        ]
    );
    guest.device.fire(0);
    assert_eq!(guest.device.delivered.take(), [100]);
    assert_eq!(guest.counter("wake_ups"), 1);
}

/// What a guest's kernel does around a reset: it writes back what it had saved.
fn restore(guest: &Guest) {
    guest.set_config(4, 2, 6);
    guest.write(guest.address(0) + 0x3000, 8, 0xfee0_0000);
    guest.write(guest.address(0) + 0x3008, 8, 100);
    guest.set_config(MSIX_CONTROL, 2, 0x8000);
}

#[test]
fn a_reset_by_the_guest_is_done_by_the_host_and_everything_works_after_it() {
    for (register, width, value) in [(DEVICE_CONTROL, 2, 0x8010), (0xd4, 1, 1)] {
        let guest = Guest::new(drive(true));
        guest.function.allow_dma();
        restore(&guest);
        guest.device.take_calls();
        guest.set_config(register, width, value);
        let calls = guest.device.take_calls();
        let order = |wanted: &Call| calls.iter().position(|call| call == wanted).unwrap();
        let area = Area {
            offset: 0,
            bytes: 0x2000,
        };
        let [unmap, disable, reset] = [
            Call::Unmap(0, area, guest.address(0)),
            Call::Disable,
            Call::Reset,
        ];
        assert!(order(&unmap) < order(&reset) && order(&disable) < order(&reset));
        assert!(!calls.contains(&Call::WriteConfig(0xa8, vec![0x10, 0x80])));
        assert_eq!(guest.config(4, 2), 0, "as after power-on");
        assert_eq!(guest.config(MSIX_CONTROL, 2), 15);
        assert_eq!(guest.device.command(), 0x0400);
        restore(&guest);
        assert_eq!(guest.device.mapped().len(), 1);
        guest.device.fire(0);
        assert_eq!(guest.device.delivered.take(), [100]);
        assert_eq!(guest.counter("resets"), 1);
        assert_eq!(guest.counter("resets_failed"), 0);
    }
}

#[test]
fn a_device_without_function_level_reset_is_not_reset_by_the_bit() {
    let device = drive(true);
    device.set_config(0xa4, 0);
    device.set_config(0xd0, 0x0106_e013);
    let guest = Guest::new(device);
    guest.set_config(DEVICE_CONTROL, 2, 0x8010);
    guest.set_config(0xd4, 1, 1);
    assert_eq!(guest.counter("resets"), 0);
    assert!(!guest.device.take_calls().contains(&Call::Reset));
    assert_eq!(
        guest.config(DEVICE_CONTROL, 2),
        0x0010,
        "and the bit reads 0"
    );
}

#[test]
fn product_data_can_be_read_and_not_written() {
    let guest = Guest::new(drive(true));
    guest.set_config(0xe2, 2, 0x0010);
    assert_eq!(
        guest.device.take_calls(),
        [Call::WriteConfig(0xe2, vec![0x10, 0])]
    );
    guest.set_config(0xe2, 2, 0x8010);
    guest.set_config(0xe3, 1, 0x80);
    guest.set_config(0xe4, 4, 0xffff_ffff);
    assert!(guest.device.take_calls().is_empty());
    assert_eq!(guest.counter("config_writes_dropped"), 3);
}

#[test]
fn configuration_beyond_a_short_space_reads_all_ones() {
    let device = drive(true);
    device.state.lock().unwrap().description.config_bytes = 256;
    let guest = Guest::new(device);
    assert_eq!(guest.config(0x100, 4), u32::MAX);
    guest.set_config(0x100, 4, 1);
    assert!(guest.device.take_calls().is_empty());
}

#[test]
fn small_bars_trap_and_keep_their_size() {
    let device = FakeDevice::new(&[(0x10, 0)], &[(0, whole(256))], super::NO_INTERRUPTS);
    let guest = Guest::new(device);
    guest.set_config(0x10, 4, u32::MAX);
    assert_eq!(guest.config(0x10, 4), 0xffff_ff00);
    guest.set_config(0x10, 4, 0xd000_0000);
    guest.set_config(4, 2, 2);
    assert!(guest.device.mapped().is_empty());
    guest.write(0xd000_00fc, 4, 9);
    assert_eq!(guest.read(0xd000_00fc, 4), 9);
    assert_eq!(guest.read(0xd000_00fe, 4), 0xffff_ffff, "across its end");
    assert_eq!(guest.read(0xd000_0100, 4), 0xffff_ffff);
}
