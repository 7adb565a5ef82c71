//! Entry bundles, tiles' paths, leaves, export bundles and passports. The first byte chooses.
//!
//! Holds: what is read comes back byte for byte, and an export shows only what the log has.
#![no_main]

use berth_fuzz::input::Input;
use berth_ledger::bundle::BundleVerifier;
use berth_ledger::leaf::Leaf;
use berth_ledger::model::ModelLog;
use berth_ledger::passport::Passport;
use berth_ledger::tile::{EntryBundle, Resource, encode_entry};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let choice = input.byte();
    let width = input.byte();
    let rest = input.rest();
    match choice % 4 {
        0 => entries(width, rest),
        1 => path_and_leaf(rest),
        2 => export(rest),
        _ => passport(rest),
    }
});

/// Two tenants' events, ten in all.
fn log() -> (ModelLog, Vec<String>) {
    let mut log = ModelLog::new("ledger.example/d/e1", 1);
    let mut bodies = Vec::new();
    for round in 0..5 {
        for tenant in ["acme", "other"] {
            let entry = log.append_event(Some(tenant), json!({ "round": round }));
            bodies.push(entry.body);
        }
    }
    (log, bodies)
}

fn entries(width: u8, bytes: &[u8]) {
    let bundle = EntryBundle::new(0, u16::from(width) + 1).expect("a bundle has 1 to 256 entries");
    if let Ok(entries) = bundle.decode(bytes) {
        assert_eq!(entries.len(), usize::from(bundle.width()));
        let mut again = Vec::new();
        for entry in entries {
            encode_entry(&mut again, entry).expect("it came out of a bundle");
        }
        assert_eq!(again, bytes);
    }
}

fn path_and_leaf(bytes: &[u8]) {
    if let Ok(leaf) = Leaf::parse(bytes) {
        assert_eq!(leaf.to_bytes(), bytes);
    }
    if let Ok(path) = std::str::from_utf8(bytes)
        && let Ok(resource) = Resource::parse(path)
    {
        assert_eq!(resource.to_string(), path);
    }
}

fn export(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let mut lines = text.lines();
    let (log, bodies) = log();
    let first = lines.next().unwrap_or_default();
    let Ok(mut verifier) = BundleVerifier::open(first, &[log.vkey()]) else {
        return;
    };
    for line in lines {
        match verifier.line(line) {
            Ok(Some(entry)) => assert!(bodies.contains(&entry.body), "a forged event"),
            Ok(None) => {}
            Err(_) => return,
        }
    }
    drop(verifier.finish());
}

fn passport(bytes: &[u8]) {
    if let Ok(passport) = serde_json::from_slice::<Passport>(bytes) {
        // The log has no event of a slot, so no passport is true.
        assert!(passport.verify(&[log().0.vkey()]).is_err());
    }
}
