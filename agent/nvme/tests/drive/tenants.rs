//! What a tenant may leave beside data, and what is made of it.

use berth_api::slot::WipeMethod;
use berth_nvme::model::media::Space;
use berth_nvme::model::script::Script;
use berth_nvme::suite::Notes;
use berth_nvme::wipe_error::WipeError;

use super::bench::{Call, METHODS, PATTERN, filled, policy, small, wipe_by};

fn add_space(model: &mut berth_nvme::model::Model, nsid: u32, blocks: u64, is_attached: bool) {
    let mut space: Space = model.media.spaces[&1].clone();
    space.blocks = blocks;
    space.is_attached = is_attached;
    space.written.retain(|lba, _| *lba < blocks);
    model.media.spaces.insert(nsid, space);
}

#[test]
fn namespaces_that_a_tenant_made_are_deleted_and_the_approved_one_is_there_again() {
    for method in METHODS {
        for is_attached in [false, true] {
            let mut model = filled(small(64));
            add_space(&mut model, 3, 16, is_attached);
            model.media.spaces.get_mut(&1).unwrap().blocks = 48;
            let done = Call::approving("1:64x4096+0/0")
                .make(&mut model, &policy(&[method]), &mut Notes::default())
                .unwrap();
            let ids: Vec<_> = model.media.spaces.keys().collect();
            assert_eq!(ids, [&1], "{method:?}");
            assert_eq!(model.media.spaces[&1].blocks, 64);
            assert!(!model.media.holds_anywhere(PATTERN), "{method:?}");
            assert!(
                done.restored
                    .iter()
                    .any(|text| text.contains("1:64x4096+0/0"))
            );
        }
    }
}

#[test]
fn without_an_approved_layout_one_namespace_gets_all_there_is() {
    let mut model = filled(small(64));
    add_space(&mut model, 2, 16, false);
    model.media.spaces.get_mut(&1).unwrap().blocks = 30;
    wipe_by(&mut model, WipeMethod::NvmeFormatUserData).unwrap();
    assert_eq!(model.media.spaces[&1].blocks, 64);
    assert_eq!(model.media.spaces.len(), 1);
    assert!(!model.media.holds_anywhere(PATTERN));
}

#[test]
fn blocks_of_namespaces_that_a_tenant_deleted_do_not_come_back() {
    for method in METHODS {
        let mut model = filled(small(64));
        let space = model.media.spaces.remove(&1).unwrap();
        model.media.leftovers.extend(space.written);
        let done = wipe_by(&mut model, method);
        assert!(done.is_ok(), "{method:?}: {done:?}");
        assert_eq!(model.media.spaces[&1].blocks, 64);
        assert!(!model.media.holds_anywhere(PATTERN), "{method:?}");
    }
}

#[test]
fn another_lba_format_is_put_back_without_namespace_management() {
    for method in METHODS {
        let script = Script {
            admin_commands: 0b10,
            ..small(64)
        };
        let mut model = filled(script);
        let space = model.media.spaces.get_mut(&1).unwrap();
        (space.format, space.blocks) = (0, 512);
        space.written.clear();
        model.media.fill(PATTERN);
        let done = Call::approving("1:64x4096+0/0")
            .make(&mut model, &policy(&[method]), &mut Notes::default())
            .unwrap();
        assert_eq!(model.media.spaces[&1].format, 1, "{method:?}");
        assert_eq!(done.read_back.bytes_total, 64 * 4096);
        assert!(!model.media.holds(PATTERN), "{method:?}");
        assert_eq!(
            done.restored
                .iter()
                .filter(|text| text.contains("made"))
                .count(),
            1
        );
    }
}

#[test]
fn a_layout_that_cannot_be_put_back_ends_the_wipe() {
    let script = Script {
        admin_commands: 0b10,
        ..small(64)
    };
    let found = Call::approving("1:128x4096+0/0").make(
        &mut filled(script),
        &policy(&METHODS),
        &mut Notes::default(),
    );
    let Err(error @ WipeError::LayoutNotRestored { .. }) = found else {
        panic!("{found:?}");
    };
    let text = error.to_string();
    assert!(text.contains("1:64x4096+0/0, not 1:128x4096+0/0"), "{text}");
}

#[test]
fn write_protection_is_taken_off() {
    for method in METHODS {
        let mut model = filled(small(64));
        model.media.spaces.get_mut(&1).unwrap().write_protection = 1;
        let done = wipe_by(&mut model, method).unwrap();
        assert_eq!(done.restored[0], "write protection of namespace 1");
        assert_eq!(model.media.spaces[&1].write_protection, 0);
        assert!(!model.media.holds(PATTERN));
    }
}

#[test]
fn write_protection_that_stays_ends_the_wipe_with_its_remedy() {
    for (protection, remedy) in [(2, "power-cycle the host"), (3, "retire the drive")] {
        for method in METHODS {
            let mut model = filled(small(64));
            model.media.spaces.get_mut(&1).unwrap().write_protection = protection;
            let error = wipe_by(&mut model, method).unwrap_err();
            assert!(error.to_string().ends_with(remedy), "{error}");
        }
    }
}

#[test]
fn a_locked_or_owned_drive_is_refused_and_the_psid_named() {
    for flags in [0b011, 0b111, 0b1_0001] {
        let mut model = filled(Script {
            locking: Some(flags),
            ..small(64)
        });
        let before = model.media.clone();
        let error = wipe_by(&mut model, WipeMethod::NvmeSanitizeCrypto).unwrap_err();
        assert!(matches!(error, WipeError::Locked { .. }), "{error}");
        assert!(error.to_string().contains("PSID"), "{error}");
        assert_eq!(model.media, before, "nothing was done to it");
    }
    let mut unlocked = filled(Script {
        locking: Some(0b1001),
        ..small(64)
    });
    wipe_by(&mut unlocked, WipeMethod::NvmeSanitizeCrypto).unwrap();
}

#[test]
fn features_that_a_tenant_saved_are_put_back() {
    let mut model = filled(small(64));
    model.saved_features.insert((0x06, 0), 0);
    model.saved_features.insert((0x05, 1), 0xffff);
    let done = wipe_by(&mut model, WipeMethod::NvmeSanitizeBlock).unwrap();
    assert_eq!(model.saved_features[&(0x06, 0)], 1);
    assert_eq!(model.saved_features[&(0x05, 1)], 0);
    let named = |part: &str| done.restored.iter().any(|text| text.contains(part));
    assert!(
        named("volatile write cache") && named("error recovery"),
        "{:?}",
        done.restored
    );
    assert!(!named("thermal"));
}

#[test]
fn a_sanitize_that_a_tenant_began_is_not_taken_for_ours() {
    let mut model = filled(small(64));
    // Crypto erase in unrestricted mode.
    model.begin_foreign_sanitize(0x0c);
    let done = wipe_by(&mut model, WipeMethod::NvmeSanitizeCrypto).unwrap();
    assert_eq!(model.sanitizes(), 2);
    assert_eq!(done.completion["scdw10"], "0x00000204");
}

#[test]
fn a_drive_that_other_controllers_reach_is_refused() {
    let mut model = filled(Script {
        sharing: 0b10,
        ..small(64)
    });
    let error = wipe_by(&mut model, WipeMethod::NvmeOverwrite).unwrap_err();
    assert!(matches!(error, WipeError::Shared { cmic: 2 }), "{error}");
    assert!(model.media.holds(PATTERN));
}
