//! MSI and MSI-X: what reaches the guest, and in which order the host hears of it.

use super::super::ops::VectorKind;
use super::super::testing::{Call, Failing, FakeDevice, Guest};
use super::{MSI_DEVICE, drive, msi_device};
use crate::guest_error::GuestError;

const CONTROL: u16 = 0x82;
const ENABLE: u32 = 0x8000;
const FUNCTION_MASK: u32 = 0x4000;

/// A drive with memory decoding on.
fn guest(device: FakeDevice) -> Guest {
    let guest = Guest::new(device);
    guest.set_config(4, 2, 2);
    guest.device.take_calls();
    guest
}

fn entry(guest: &Guest, vector: u16) -> u64 {
    guest.address(0) + 0x3000 + u64::from(vector) * 16
}

/// Gives `vector` its own number plus 100 as data.
fn program(guest: &Guest, vector: u16) {
    guest.write(entry(guest, vector), 8, 0xfee0_0000);
    guest.write(entry(guest, vector) + 8, 4, u64::from(vector) + 100);
}

fn mask(guest: &Guest, vector: u16, is_masked: bool) {
    guest.write(entry(guest, vector) + 12, 4, u64::from(is_masked));
}

fn pending(guest: &Guest) -> u64 {
    guest.read(guest.address(0) + 0x2000, 8)
}

#[test]
fn vectors_exist_before_the_device_is_told_to_use_them_and_are_gone_before_it_is_told_not_to() {
    let guest = guest(drive(true));
    program(&guest, 0);
    program(&guest, 1);
    guest.set_config(CONTROL, 2, ENABLE | FUNCTION_MASK);
    let calls = guest.device.take_calls();
    assert_eq!(
        calls,
        [
            Call::Enable(VectorKind::MsiX, 0, 2),
            Call::WriteConfig(0x82, vec![0x00, 0x80]),
        ]
    );
    guest.set_config(CONTROL, 2, 0);
    let calls = guest.device.take_calls();
    assert_eq!(
        calls,
        [Call::Disable, Call::WriteConfig(0x82, vec![0x00, 0x00])]
    );
}

#[test]
fn the_control_register_works_as_the_upper_half_of_a_whole_register() {
    let guest = guest(drive(true));
    guest.set_config(0x80, 4, ENABLE << 16);
    assert_eq!(guest.device.enabled(), (Some(VectorKind::MsiX), 1));
    assert_eq!(guest.config(0x80, 4) >> 16, ENABLE | 15, "16 vectors, on");
    guest.set_config(CONTROL + 1, 1, 0);
    assert_eq!(guest.device.enabled(), (None, 0));
}

#[test]
fn a_vector_is_routed_on_its_first_unmask_and_not_before() {
    let guest = guest(drive(true));
    guest.set_config(CONTROL, 2, ENABLE);
    program(&guest, 0);
    assert_eq!(
        guest.device.take_calls().last(),
        Some(&Call::WriteConfig(0x82, vec![0, 0x80]))
    );
    mask(&guest, 0, false);
    assert_eq!(guest.device.take_calls(), [Call::Route(0, Some(100))]);
    guest.device.fire(0);
    assert_eq!(guest.device.delivered.take(), [100]);
}

#[test]
fn a_masked_vector_delivers_nothing_shows_as_pending_and_is_delivered_once_on_unmask() {
    let guest = guest(drive(true));
    guest.set_config(CONTROL, 2, ENABLE);
    program(&guest, 0);
    mask(&guest, 0, false);
    mask(&guest, 0, true);
    guest.device.fire(0);
    guest.device.fire(0);
    assert!(guest.device.delivered.take().is_empty());
    assert_eq!(pending(&guest), 1);
    assert_eq!(pending(&guest), 1, "reading does not clear it");
    mask(&guest, 0, false);
    assert_eq!(guest.device.delivered.take(), [100]);
    assert_eq!(pending(&guest), 0);
    mask(&guest, 0, true);
    mask(&guest, 0, false);
    assert!(guest.device.delivered.take().is_empty());
}

#[test]
fn what_fired_before_and_after_a_look_at_the_pending_bits_is_one_interrupt() {
    let guest = guest(drive(true));
    guest.set_config(CONTROL, 2, ENABLE);
    program(&guest, 0);
    guest.device.fire(0);
    assert_eq!(pending(&guest), 1);
    guest.device.fire(0);
    mask(&guest, 0, false);
    assert_eq!(guest.device.delivered.take(), [100]);
    guest.set_config(CONTROL, 2, ENABLE | FUNCTION_MASK);
    guest.device.fire(0);
    assert_eq!(pending(&guest), 1);
    guest.device.fire(0);
    guest.set_config(CONTROL, 2, ENABLE);
    assert_eq!(guest.device.delivered.take(), [100]);
}

#[test]
fn what_fired_while_masked_and_unread_is_delivered_once_too() {
    let guest = guest(drive(true));
    guest.set_config(CONTROL, 2, ENABLE);
    program(&guest, 0);
    guest.device.fire(0);
    mask(&guest, 0, false);
    assert_eq!(guest.device.delivered.take(), [100]);
    guest.device.fire(0);
    assert_eq!(guest.device.delivered.take(), [100]);
}

#[test]
fn the_function_mask_holds_all_vectors_back() {
    let guest = guest(drive(true));
    for vector in 0..3 {
        program(&guest, vector);
        mask(&guest, vector, vector == 1);
    }
    guest.set_config(CONTROL, 2, ENABLE);
    guest.set_config(CONTROL, 2, ENABLE | FUNCTION_MASK);
    for vector in 0..3 {
        guest.device.fire(vector);
    }
    assert!(guest.device.delivered.take().is_empty());
    assert_eq!(pending(&guest), 0b111);
    guest.set_config(CONTROL, 2, ENABLE);
    assert_eq!(guest.device.delivered.take(), [100, 102]);
    assert_eq!(pending(&guest), 0b010);
}

#[test]
fn a_host_that_can_add_vectors_leaves_the_others_alone() {
    let guest = guest(drive(true));
    guest.set_config(CONTROL, 2, ENABLE);
    for vector in [0, 1, 5] {
        program(&guest, vector);
        mask(&guest, vector, false);
    }
    let calls = guest.device.take_calls();
    let changes: Vec<_> = calls
        .iter()
        .filter(|call| !matches!(call, Call::WriteConfig(..)))
        .collect();
    assert_eq!(
        changes,
        [
            &Call::Enable(VectorKind::MsiX, 0, 1),
            &Call::Route(0, Some(100)),
            &Call::Enable(VectorKind::MsiX, 1, 1),
            &Call::Route(1, Some(101)),
            &Call::Enable(VectorKind::MsiX, 2, 4),
            &Call::Route(5, Some(105)),
        ]
    );
}

#[test]
fn a_host_that_cannot_add_vectors_turns_them_all_off_and_on_and_loses_none() {
    let guest = guest(drive(false));
    guest.set_config(CONTROL, 2, ENABLE);
    program(&guest, 0);
    mask(&guest, 0, false);
    program(&guest, 1);
    guest.device.take_calls();
    mask(&guest, 1, false);
    assert_eq!(
        guest.device.take_calls(),
        [
            Call::Disable,
            Call::Enable(VectorKind::MsiX, 0, 2),
            Call::Route(0, Some(100)),
            Call::Route(1, Some(101)),
        ]
    );
    assert_eq!(
        guest.device.delivered.take(),
        [100],
        "it may have fired in between"
    );
}

#[test]
fn a_driver_that_programs_first_and_unmasks_the_function_last_causes_one_growth() {
    let guest = guest(drive(false));
    guest.set_config(CONTROL, 2, ENABLE | FUNCTION_MASK);
    for vector in 0..16 {
        program(&guest, vector);
    }
    guest.device.take_calls();
    guest.set_config(CONTROL, 2, ENABLE);
    for vector in 0..16 {
        mask(&guest, vector, false);
    }
    let calls = guest.device.take_calls();
    let growths = calls.iter().filter(|call| matches!(call, Call::Enable(..)));
    assert_eq!(growths.count(), 1);
}

#[test]
fn growing_one_by_one_takes_few_turns() {
    let guest = guest(drive(false));
    guest.set_config(CONTROL, 2, ENABLE);
    for vector in 0..16 {
        program(&guest, vector);
        mask(&guest, vector, false);
    }
    let calls = guest.device.take_calls();
    let growths = calls.iter().filter(|call| matches!(call, Call::Enable(..)));
    assert_eq!(growths.count(), 5, "1, 2, 4, 8 and 16 vectors");
    assert_eq!(guest.device.enabled(), (Some(VectorKind::MsiX), 16));
}

#[test]
fn an_address_that_is_no_interrupt_is_not_routed() {
    let guest = guest(drive(true));
    guest.set_config(CONTROL, 2, ENABLE);
    for address in [0, 0x1000, 0xfed0_0000, 0xff00_0000, 1 << 32 | 0xfee0_0000] {
        guest.write(entry(&guest, 0), 8, address);
        mask(&guest, 0, false);
        guest.device.fire(0);
        mask(&guest, 0, true);
    }
    let calls = guest.device.take_calls();
    assert!(
        !calls
            .iter()
            .any(|call| matches!(call, Call::Route(_, Some(_))))
    );
    assert!(guest.device.delivered.take().is_empty());
}

#[test]
fn the_table_takes_4_and_8_bytes_inside_and_nothing_else() {
    let guest = guest(drive(true));
    let table = guest.address(0) + 0x3000;
    for (address, width) in [
        (table, 1),
        (table + 2, 2),
        (table + 4, 8),
        (table - 4, 8),
        (table + 0xfc, 8),
    ] {
        guest.write(address, width, u64::MAX);
        let ones = u64::MAX >> (64 - 8 * width);
        assert_eq!(guest.read(address, width), ones, "{address:#x} {width}");
    }
    assert_eq!(guest.errors.count(GuestError::MsixAccess), 10);
    assert!(
        guest.device.take_calls().is_empty(),
        "none of it reaches the device"
    );
    assert_eq!(guest.read(table, 8), 0);
}

#[test]
fn the_pending_bits_cannot_be_written() {
    let guest = guest(drive(true));
    guest.write(guest.address(0) + 0x2000, 8, u64::MAX);
    assert_eq!(pending(&guest), 0);
    assert_eq!(guest.errors.count(GuestError::MsixAccess), 1);
    assert!(guest.device.take_calls().is_empty());
}

#[test]
fn other_bytes_of_the_table_page_are_the_devices() {
    let guest = guest(drive(true));
    let beyond = guest.address(0) + 0x3100;
    guest.write(beyond, 4, 0x1234_5678);
    assert_eq!(
        guest.device.take_calls(),
        [Call::WriteBar(0, 0x3100, vec![0x78, 0x56, 0x34, 0x12])]
    );
    assert_eq!(guest.read(beyond, 4), 0x1234_5678);
    assert_eq!(guest.counter("bar_accesses_forwarded"), 2);
}

#[test]
fn vectors_that_the_host_refuses_are_counted_and_tried_again() {
    let guest = guest(drive(true));
    guest.device.fail(Failing::Enable);
    guest.set_config(CONTROL, 2, ENABLE);
    program(&guest, 0);
    mask(&guest, 0, false);
    assert!(guest.counter("vector_failures") >= 2);
    guest.device.heal();
    mask(&guest, 0, false);
    guest.device.fire(0);
    assert_eq!(guest.device.delivered.take(), [100]);
    guest.device.fail(Failing::Route);
    mask(&guest, 0, true);
    mask(&guest, 0, false);
    guest.device.fire(0);
    assert!(guest.device.delivered.take().is_empty());
    guest.device.heal();
    mask(&guest, 0, false);
    assert_eq!(
        guest.device.delivered.take(),
        [100],
        "kept until there was a route"
    );
}

#[test]
fn a_host_with_fewer_vectors_than_the_table_shows_a_shorter_table() {
    let device = drive(true);
    device.state.lock().unwrap().description.interrupts.msix = 3;
    let guest = guest(device);
    assert_eq!(guest.config(CONTROL, 2), 2);
    guest.set_config(CONTROL, 2, ENABLE);
    program(&guest, 3);
    mask(&guest, 3, false);
    assert_eq!(guest.read(entry(&guest, 3), 4), 0xffff_ffff);
    assert_eq!(guest.device.enabled(), (Some(VectorKind::MsiX), 1));
}

/// Programs MSI with address 0xfee0_0000 and data 0x40.
fn program_msi(guest: &Guest) {
    guest.set_config(MSI_DEVICE + 4, 4, 0xfee0_0000);
    guest.set_config(MSI_DEVICE + 8, 4, 0);
    guest.set_config(MSI_DEVICE + 12, 2, 0x40);
}

#[test]
fn msi_vectors_exist_before_the_devices_bit_and_carry_their_number_in_the_data() {
    let guest = guest(msi_device());
    program_msi(&guest);
    assert!(
        guest.device.take_calls().is_empty(),
        "address and data are not the device's"
    );
    guest.set_config(MSI_DEVICE + 2, 2, 0x21);
    assert_eq!(
        guest.device.take_calls(),
        [
            Call::Enable(VectorKind::Msi, 0, 4),
            Call::Route(0, Some(0x40)),
            Call::Route(1, Some(0x41)),
            Call::Route(2, Some(0x42)),
            Call::Route(3, Some(0x43)),
            Call::WriteConfig(0x52, vec![0x21, 0]),
        ]
    );
    guest.device.fire(2);
    assert_eq!(guest.device.delivered.take(), [0x42]);
    guest.set_config(MSI_DEVICE + 2, 2, 0);
    let calls = guest.device.take_calls();
    assert_eq!(calls, [Call::Disable, Call::WriteConfig(0x52, vec![0, 0])]);
}

#[test]
fn msi_that_changes_its_message_while_on_is_routed_anew() {
    let guest = guest(msi_device());
    program_msi(&guest);
    guest.set_config(MSI_DEVICE + 2, 2, 1);
    guest.device.take_calls();
    guest.set_config(MSI_DEVICE + 12, 2, 0x80);
    assert_eq!(guest.device.take_calls(), [Call::Route(0, Some(0x80))]);
}

#[test]
fn a_masked_msi_vector_is_pending_and_delivered_once() {
    let guest = guest(msi_device());
    program_msi(&guest);
    guest.set_config(MSI_DEVICE + 16, 4, 0b01);
    guest.set_config(MSI_DEVICE + 2, 2, 0x11);
    guest.device.fire(0);
    guest.device.fire(1);
    assert_eq!(guest.device.delivered.take(), [0x41]);
    assert_eq!(guest.config(MSI_DEVICE + 20, 4), 1);
    guest.set_config(MSI_DEVICE + 20, 4, 0);
    assert_eq!(
        guest.config(MSI_DEVICE + 20, 4),
        1,
        "pending bits are read only"
    );
    guest.set_config(MSI_DEVICE + 16, 4, 0);
    assert_eq!(guest.device.delivered.take(), [0x40]);
    assert_eq!(guest.config(MSI_DEVICE + 20, 4), 0);
}

#[test]
fn a_guest_cannot_enable_more_msi_vectors_than_there_are() {
    let guest = guest(msi_device());
    program_msi(&guest);
    guest.set_config(MSI_DEVICE + 2, 2, 0x71);
    assert_eq!(guest.device.enabled(), (Some(VectorKind::Msi), 4));
    assert_eq!(
        guest.config(MSI_DEVICE + 2, 2) & 0xe,
        0x4,
        "four are offered"
    );
}

#[test]
fn interrupts_that_the_host_cannot_deliver_are_not_offered() {
    let device = msi_device();
    {
        let mut state = device.state.lock().unwrap();
        state.description.interrupts.msi = 0;
        state.description.interrupts.intx = 0;
    }
    let guest = guest(device);
    assert_eq!(guest.config(MSI_DEVICE, 4) & 0xff, 0, "a null capability");
    guest.set_config(MSI_DEVICE + 2, 2, 1);
    assert!(guest.device.take_calls().is_empty());
}
