//! Devices that lie about themselves, fail or go away.

use proptest::prelude::*;

use super::super::ops::{BarInfo, InterruptCounts, Mappable};
use super::super::testing::{Failing, FakeDevice, Guest, whole};
use super::{NO_INTERRUPTS, drive, gpu};

#[track_caller]
fn refused(device: &FakeDevice, problem: &str, cause: Option<&str>) {
    let error = device.probe().expect_err("the device is broken");
    assert_eq!(error.to_string(), problem);
    let source = std::error::Error::source(&error).map(ToString::to_string);
    if cause.is_some() {
        assert_eq!(source.as_deref(), cause);
    }
    assert!(!error.remedy().is_empty());
}

#[test]
fn a_device_with_intx_alone_is_refused_and_one_without_interrupts_is_not() {
    let intx = InterruptCounts {
        intx: 1,
        ..NO_INTERRUPTS
    };
    let device = FakeDevice::new(&[(0x3c, 0x100)], &[], intx);
    refused(&device, "the device offers only INTx interrupts", None);
    let device = FakeDevice::new(&[], &[], NO_INTERRUPTS);
    device.probe().unwrap();
    let device = FakeDevice::new(&[(0x3c, 0x100)], &[], NO_INTERRUPTS);
    refused(&device, "the device offers only INTx interrupts", None);
}

#[test]
fn a_device_that_does_not_answer_or_is_a_bridge_is_refused() {
    let device = drive(true);
    device.set_config(0, u32::MAX);
    refused(
        &device,
        "the device does not answer: its vendor id reads 0xffff",
        None,
    );
    let device = drive(true);
    device.set_config(0x0c, 0x0081_0000);
    refused(
        &device,
        "the device has a header of type 1, so it is a bridge and no endpoint",
        None,
    );
    let device = drive(true);
    device.fail(Failing::Describe);
    refused(&device, "the kernel does not describe the device", None);
    let device = drive(true);
    device.fail(Failing::Write);
    refused(
        &device,
        "configuration space cannot be accessed at 0x4",
        None,
    );
    let device = drive(true);
    device.state.lock().unwrap().description.config_bytes = 64;
    refused(
        &device,
        "configuration space has 64 bytes, fewer than the 256 that every function has",
        None,
    );
}

#[test]
fn a_capability_list_that_loops_is_refused_at_start() {
    let device = drive(true);
    device.set_config(0xe0, 0x0000_4003);
    let cause = Some("a capability list visits 0x40 twice");
    refused(&device, "the device's capabilities cannot be used", cause);
}

#[test]
fn a_vector_table_out_of_bounds_is_refused() {
    for (offset, register, cause) in [
        (
            0x84,
            0x3f08,
            "the table of MSI-X at 0x3f08 of BAR 0 passes the end of the BAR of 0x4000 bytes",
        ),
        (
            0x84,
            0xffff_fff8,
            "the table of MSI-X at 0xfffffff8 of BAR 0 passes the end of the BAR of 0x4000 bytes",
        ),
        (
            0x84,
            0x3002,
            "the table of MSI-X is in BAR 2, which is no memory BAR",
        ),
        (
            0x84,
            0x3007,
            "the table of MSI-X is in BAR 7, which is no memory BAR",
        ),
        (
            0x88,
            0x4000,
            "the pending bits of MSI-X at 0x4000 of BAR 0 passes the end of the BAR of 0x4000 bytes",
        ),
        (
            0x88,
            0x30f8,
            "the table and the pending bits of MSI-X overlap in BAR 0",
        ),
    ] {
        let device = drive(true);
        device.set_config(offset, register);
        refused(&device, "the device's MSI-X cannot be used", Some(cause));
    }
}

#[test]
fn a_device_that_went_away_reads_all_ones_and_its_guest_goes_on() {
    let guest = Guest::new(drive(true));
    guest.set_config(4, 2, 6);
    guest.device.state.lock().unwrap().is_gone = true;
    let base = guest.address(0);
    assert_eq!(guest.config(0, 4), u32::MAX);
    for width in [1, 2, 4, 8] {
        let ones = u64::MAX >> (64 - 8 * width);
        assert_eq!(guest.read(base + 0x2800, width), ones);
    }
    guest.write(base + 0x2800, 4, 1);
    guest.set_config(0x82, 2, 0x8000);
    guest.write(base + 0x3000, 8, 0xfee0_0000);
    guest.write(base + 0x3008, 8, 1);
    guest.set_config(0x44, 2, 3);
    guest.set_config(0x44, 2, 0);
    guest.set_config(0xa8, 2, 0x8000);
    guest.set_config(4, 2, 0);
    guest.set_config(4, 2, 6);
    assert!(guest.counter("reads_failed") >= 6);
    assert!(guest.counter("writes_failed") >= 1);
    assert!(guest.counter("vector_failures") >= 1);
    assert_eq!(guest.counter("resets_failed"), 1);
}

#[test]
fn a_device_that_comes_back_after_a_failed_reset_works() {
    let guest = Guest::new(drive(true));
    guest.set_config(4, 2, 2);
    guest.device.state.lock().unwrap().is_gone = true;
    guest.set_config(0xa8, 2, 0x8000);
    guest.device.state.lock().unwrap().is_gone = false;
    guest.set_config(4, 2, 2);
    guest.write(guest.address(0) + 0x2800, 4, 5);
    assert_eq!(guest.read(guest.address(0) + 0x2800, 4), 5);
}

#[test]
fn what_a_device_says_later_changes_nothing() {
    let guest = Guest::new(drive(true));
    let before: Vec<_> = [0x34, 0x40, 0x80, 0x84, 0x88, 0xd0]
        .map(|at| guest.config(at, 2))
        .into();
    for offset in [0x34, 0x40, 0x80, 0x84, 0x88, 0xd0, 0x100, 0x10, 0x14] {
        guest.device.set_config(offset, 0xffff_4011);
    }
    let after: Vec<_> = [0x34, 0x40, 0x80, 0x84, 0x88, 0xd0]
        .map(|at| guest.config(at, 2))
        .into();
    assert_eq!(before[1..], after[1..]);
    guest.set_config(4, 2, 2);
    assert_eq!(guest.device.mapped().len(), 1);
}

#[test]
fn a_bar_that_the_kernel_does_not_let_map_around_the_table_traps_as_a_whole() {
    let device = drive(true);
    device.state.lock().unwrap().description.bars[0].is_msix_mappable = false;
    let guest = Guest::new(device);
    guest.set_config(4, 2, 2);
    assert!(guest.device.mapped().is_empty());
    let listed = drive(true);
    listed.state.lock().unwrap().description.bars[0] = BarInfo {
        mappable: Mappable::Areas(vec![super::super::ops::Area {
            offset: 0x1000,
            bytes: 0x3000,
        }]),
        is_msix_mappable: false,
        ..whole(0x4000)
    };
    let guest = Guest::new(listed);
    guest.set_config(4, 2, 2);
    assert_eq!(
        guest.device.mapped(),
        [(0, 0x1000, 0x1000, guest.address(0) + 0x1000)]
    );
}

/// A configuration space of noise, bent towards what passes the first checks.
fn noisy(config: &[u8], bars: &[(u64, u8)], counts: [u32; 3]) -> FakeDevice {
    let interrupts = InterruptCounts {
        intx: counts[0],
        msi: counts[1],
        msix: counts[2],
        can_add_msix: counts[0].is_multiple_of(2),
    };
    let device = FakeDevice::new(&[], &[], interrupts);
    {
        let mut state = device.state.lock().unwrap();
        state.config.copy_from_slice(config);
        state.config[0x0e] = 0;
        for (info, &(bytes, kind)) in state.description.bars.iter_mut().zip(bars) {
            *info = whole(1 << (bytes % 40));
            info.is_msix_mappable = kind.is_multiple_of(2);
            if kind.is_multiple_of(3) {
                *info = BarInfo::default();
            }
        }
    }
    device
}

fn accesses() -> impl Strategy<Value = Vec<(u8, u16, u8, u32)>> {
    prop::collection::vec((0_u8..4, any::<u16>(), 0_u8..3, any::<u32>()), 0..48)
}

fn run(guest: &Guest, accesses: &[(u8, u16, u8, u32)]) {
    for &(kind, place, width, value) in accesses {
        let width = 1_usize << width;
        let offset = (place % 4096) & !(u16::try_from(width).unwrap() - 1);
        match kind {
            0 => guest.set_config(offset, width, value),
            1 => drop(guest.config(offset, width)),
            2 => guest.set_config(4, 2, value),
            _ => {
                for placed in &guest.plan.bars {
                    let address = placed.address.saturating_add(u64::from(place) * 4);
                    guest.write(address, width, u64::from(value));
                    guest.read(address, width);
                }
            }
        }
        guest.device.fire(usize::from(place % 8));
    }
}

proptest! {
    #[test]
    fn noise_for_a_device_is_refused_or_driven_without_a_panic(
        config in prop::collection::vec(any::<u8>(), 4096),
        bars in prop::collection::vec((any::<u64>(), any::<u8>()), 6),
        counts in prop::array::uniform3(0_u32..40),
        accesses in accesses(),
    ) {
        let device = noisy(&config, &bars, counts);
        if device.probe().is_ok() {
            let wanted = device.probe().unwrap().wanted_bars(0);
            let bytes: u64 = wanted.iter().map(|bar| bar.bytes).fold(0, u64::saturating_add);
            if bytes < 1 << 27 {
                run(&Guest::new(device), &accesses);
            }
        }
    }

    #[test]
    fn a_sane_device_under_noise_from_its_guest_keeps_the_models_contract(
        accesses in accesses(),
        can_add in any::<bool>(),
    ) {
        let guest = Guest::new(drive(can_add));
        guest.function.allow_dma();
        run(&guest, &accesses);
        let guest = Guest::new(gpu());
        run(&guest, &accesses);
    }

    #[test]
    fn a_failing_device_under_noise_from_its_guest_is_survived(
        accesses in accesses(),
        failing in prop::sample::subsequence(
            vec![Failing::Read, Failing::Write, Failing::Reset, Failing::Enable, Failing::Route, Failing::Map],
            0..6,
        ),
    ) {
        let guest = Guest::new(drive(true));
        for failing in failing {
            guest.device.fail(failing);
        }
        run(&guest, &accesses);
    }
}
