//! Whatever the script: a wipe that is `Ok` leaves none of the tenant's pattern in any namespace, and a
//! sanitize leaves none anywhere.

use std::time::Duration;

use berth_api::slot::WipeMethod;
use berth_nvme::model::Kill;
use berth_nvme::model::script::{Break, Formatting, NewNamespace, Patch, Sanitizing, Script};
use berth_nvme::status::Status;
use berth_nvme::suite::Notes;
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;

use super::bench::{Call, METHODS, PATTERN, filled, policy};

fn sanitizing() -> impl Strategy<Value = Sanitizing> {
    prop_oneof![
        4 => Just(Sanitizing::Honest),
        1 => Just(Sanitizing::ErasesNothing),
        1 => Just(Sanitizing::KeepsItsLog),
        1 => Just(Sanitizing::LogsAnother),
        1 => (0..100_u8).prop_map(Sanitizing::FailsAt),
        1 => (0..100_u8).prop_map(Sanitizing::StallsAt),
        1 => Just(Sanitizing::NeverEnds),
    ]
}

fn formatting() -> impl Strategy<Value = Formatting> {
    prop_oneof![
        4 => Just(Formatting::Honest),
        1 => Just(Formatting::ErasesNothing),
        1 => Just(Formatting::ErasesHalf),
        1 => Just(Formatting::ErasesRecent),
        1 => Just(Formatting::NeverEnds),
        1 => (1..100_u8).prop_map(Formatting::LeavesPercent),
        1 => Just(Formatting::TakesAnotherFormat),
    ]
}

fn broken() -> impl Strategy<Value = Break> {
    prop::sample::select(vec![
        Break::Gone,
        Break::Unreachable,
        Break::Fatal,
        Break::Silent,
        Break::UnknownId,
        Break::WrongHead,
        Break::WrongQueue,
        Break::PhaseGarbage,
    ])
}

fn namespaces() -> impl Strategy<Value = Vec<NewNamespace>> {
    let one = (1..24_u64, 0..3_u8, any::<bool>()).prop_map(|(blocks, format, is_extended)| {
        NewNamespace {
            blocks,
            format,
            is_extended: is_extended && format == 2,
        }
    });
    vec(one, 0..4)
}

fn patch() -> impl Strategy<Value = Patch> {
    let structure = prop::sample::select(vec![0_u8, 1, 2, 0x10, 0x11]);
    (structure, 0..600_usize, vec(any::<u8>(), 1..8)).prop_map(|(structure, offset, bytes)| Patch {
        structure,
        offset,
        bytes,
    })
}

fn script() -> impl Strategy<Value = Script> {
    let abilities = (
        0..8_u32,
        0..4_u32,
        prop::sample::select(vec![0_u16, 0b10, 0b1000, 0b1010]),
        0..16_u8,
        0..8_u8,
        any::<bool>(),
    );
    let misdeeds = (
        sanitizing(),
        formatting(),
        weighted(0.1, Just(())),
        weighted(0.3, (0..400_u64, broken())),
        vec((any::<u8>(), 0..2_u8, any::<u8>()), 0..2),
        weighted(0.2, patch()),
    );
    (namespaces(), abilities, misdeeds).prop_map(|(namespaces, abilities, misdeeds)| {
        let (sanitize, modifies, admin_commands, format_attributes, transfer_shift, tells) =
            abilities;
        let (sanitizing, formatting, drops, breaks, refuses, patch) = misdeeds;
        Script {
            namespaces,
            capacity_bytes: 100 * 4104,
            sanitize: sanitize | modifies << 30,
            admin_commands,
            format_attributes,
            transfer_shift,
            tells_erased_data: tells,
            sanitizing,
            formatting,
            drops_writes: drops.is_some(),
            breaks,
            refuses: refuses
                .into_iter()
                .map(|(opcode, kind, code)| (opcode, Status::new(kind, code | 1)))
                .collect(),
            patches: patch.into_iter().collect(),
            ..Script::default()
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_wipe_that_is_ok_leaves_nothing_whatever_the_drive_does(
        script in script(),
        protection in 0..4_u8,
        kill in weighted(0.3, 0..300_u64),
        waits_s in 0..100_u64,
        is_power_cut in any::<bool>(),
    ) {
        let mut model = filled(Script { namespaces: script.namespaces.clone(), ..script });
        if let Some(space) = model.media.spaces.values_mut().next() {
            space.write_protection = protection.saturating_sub(1);
        }
        if let Some(at) = kill {
            model.kill_at(Kill::After(at));
        }
        let mut policy = policy(&METHODS);
        policy.sample_blocks = 100_000;
        let mut notes = Notes::default();
        let mut found = Call::default().make(&mut model, &policy, &mut notes);
        if kill.is_some() && found.is_err() {
            model.advance(Duration::from_secs(waits_s));
            if is_power_cut {
                model.power_cycle();
            } else {
                model.revive();
            }
            let call = Call::after(notes.runs.last().cloned());
            found = call.make(&mut model, &policy, &mut notes);
        }
        if let Ok(done) = found {
            prop_assert!(!model.media.holds(PATTERN), "{done:?}");
            if matches!(
                done.method,
                WipeMethod::NvmeSanitizeCrypto
                    | WipeMethod::NvmeSanitizeBlock
                    | WipeMethod::NvmeSanitizeOverwrite
            ) {
                prop_assert!(!model.media.holds_anywhere(PATTERN), "{done:?}");
            }
            prop_assert_eq!(done.read_back.bytes_wrong, 0);
        }
    }
}
