//! What an honest drive yields.

use berth_agent_core::slot::wipe::WipePolicy;
use berth_api::slot::{WipeMethod, serial_kind};
use berth_nvme::drive::Drive;
use berth_nvme::identify::{identify, setting};
use berth_nvme::model::Model;
use berth_nvme::model::script::{NewNamespace, Script};
use berth_nvme::suite::{self, Expectations, Notes};

use super::bench::{Call, METHODS, PATTERN, filled, policy, small, wipe_by};

#[test]
fn the_suite_passes_on_honest_drives_of_every_format() {
    for (format, is_extended) in [(0, false), (1, false), (2, false), (2, true)] {
        let script = Script {
            namespaces: vec![NewNamespace {
                blocks: 100,
                format,
                is_extended,
            }],
            capacity_bytes: 100 * 4104,
            admin_commands: 0b10,
            ..Script::default()
        };
        let expected = Expectations {
            has: METHODS.to_vec(),
            lacks: vec![WipeMethod::Reset],
            policy: policy(&[]),
        };
        let passed = suite::run(&mut Model::new(script), &expected).unwrap();
        assert_eq!(passed.len(), 6, "format {format}");
    }
}

#[test]
fn a_drive_without_sanitize_and_format_passes_the_suite_with_what_it_has() {
    let script = Script {
        sanitize: 0,
        admin_commands: 0,
        ..small(100)
    };
    let expected = Expectations {
        has: vec![WipeMethod::NvmeOverwrite],
        lacks: METHODS[..5].to_vec(),
        policy: policy(&[]),
    };
    suite::run(&mut Model::new(script), &expected).unwrap();
}

#[test]
fn every_method_leaves_nothing_and_says_how_it_is_known() {
    for method in METHODS {
        let mut model = filled(small(64));
        let done = wipe_by(&mut model, method).unwrap();
        assert!(!model.media.holds_anywhere(PATTERN), "{method:?}");
        assert_eq!(done.method, method);
        assert_eq!(done.read_back.bytes_total, 64 * 4096);
        assert_eq!(done.read_back.bytes_read, 64 * 4096, "every block");
        assert_eq!(done.read_back.sha256.len(), 64);
        assert!(done.not_proved.iter().any(|text| text.contains("firmware")));
    }
}

#[test]
fn a_sanitize_tells_the_drives_own_numbers_and_its_progress() {
    let mut model = filled(small(64));
    let mut notes = Notes::default();
    let policy = policy(&[WipeMethod::NvmeSanitizeCrypto]);
    let done = Call::default()
        .make(&mut model, &policy, &mut notes)
        .unwrap();
    assert_eq!(done.completion["scdw10"], "0x00000204");
    assert_eq!(done.completion["sprog"], "0xffff");
    assert_eq!(
        done.completion["shown to have run"],
        "it was seen running; 64 canaries are gone"
    );
    assert!(
        notes
            .progress
            .iter()
            .any(|(_, left)| left.is_some_and(|left| left > 30))
    );
    assert!(notes.progress.is_sorted_by_key(|(percent, _)| *percent));
    assert_eq!(notes.progress.last(), Some(&(100, Some(0))));
    let steps: Vec<_> = notes
        .runs
        .iter()
        .map(|run| run.marks["step"].as_str())
        .collect();
    assert_eq!(steps, ["prepared", "issued"]);
}

#[test]
fn a_second_wipe_of_the_same_drive_is_proved_as_the_first_was() {
    let mut model = filled(Script {
        tells_erased_data: false,
        sanitize_takes: std::time::Duration::ZERO,
        ..small(64)
    });
    for _ in 0..3 {
        let done = wipe_by(&mut model, WipeMethod::NvmeSanitizeBlock).unwrap();
        assert!(done.completion["shown to have run"].contains("64 canaries are gone"));
    }
    assert_eq!(model.sanitizes(), 3);
}

#[test]
fn the_first_method_that_the_drive_has_is_taken() {
    let mut model = filled(Script {
        sanitize: 0b010,
        ..small(64)
    });
    let done = Call::default()
        .make(&mut model, &WipePolicy::default(), &mut Notes::default())
        .unwrap();
    assert_eq!(done.method, WipeMethod::NvmeSanitizeBlock);
}

#[test]
fn a_large_namespace_is_read_at_its_edges_and_between() {
    let mut model = Model::new(small(1 << 30));
    let done = wipe_by(&mut model, WipeMethod::NvmeFormatUserData).unwrap();
    assert!(
        done.read_back
            .sample
            .starts_with("edges of each namespace and random blocks")
    );
    assert!(done.read_back.bytes_read < 200 * 4096);
    assert!(done.read_back.bytes_total == 4096 << 30);
    assert!(done.not_proved.iter().any(|text| text.contains("spare")));
}

#[test]
fn what_no_wipe_reaches_is_named() {
    let mut model = filled(Script {
        capabilities: Some(63 | 20 << 24 | 1 << 37 | 1 << 45),
        protected_blocks: 2,
        ..small(64)
    });
    let done = wipe_by(&mut model, WipeMethod::NvmeSanitizeCrypto).unwrap();
    for part in ["boot partitions", "replay-protected"] {
        assert!(
            done.not_proved.iter().any(|text| text.contains(part)),
            "{part}"
        );
    }
}

#[test]
fn a_drive_says_who_it_is_and_what_outlives_a_reset() {
    let mut model = Model::new(small(64));
    let mut drive = Drive::open(&mut model).unwrap();
    let found = identify(&mut drive).unwrap();
    for (name, value) in [
        (serial_kind::NVME_SERIAL, "MODEL0001"),
        (serial_kind::NVME_MODEL, "berth scripted drive"),
        (setting::FIRMWARE, "1.0"),
        (setting::FIRMWARE_SLOTS, "active 1, 1 1.0"),
        (setting::NAMESPACES, "1:64x4096+0/0"),
        (setting::BOOT_PARTITIONS, "none"),
        (setting::VERSION, "1.4.0"),
        (
            setting::CAPABILITIES,
            "oacs 000a, fna 04, sanicap 80000007, cmic 00",
        ),
    ] {
        assert_eq!(found[name], value, "{name}");
    }
}
