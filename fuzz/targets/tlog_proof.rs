//! Proof files, and proofs of made-up sizes and hashes. The first byte chooses.
//!
//! Holds: a file comes back byte for byte, and no proof shows a leaf where it is not.
#![no_main]

use berth_fuzz::input::Input;
use berth_ledger::merkle::{Hash, leaf_hash, verify_consistency, verify_inclusion};
use berth_ledger::model::ModelLog;
use berth_ledger::proof::TlogProof;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    if input.byte() % 2 == 0 {
        file(input.rest());
        return;
    }
    let sizes = [input.quad(), input.quad()];
    hashes(sizes, input.rest());
});

fn log() -> ModelLog {
    let mut log = ModelLog::new("ledger.example/d/e1", 1);
    for entry in 0..11u8 {
        log.append(&[entry]);
    }
    log
}

fn file(bytes: &[u8]) {
    let Ok(proof) = TlogProof::parse(bytes) else {
        return;
    };
    assert_eq!(proof.to_string().as_bytes(), bytes);
    let log = log();
    for entry in 0..11u8 {
        if proof.verify(&leaf_hash(&[entry]), &[log.vkey()]).is_ok() {
            assert_eq!(proof.index, u64::from(entry));
        }
    }
    assert!(proof.verify(&leaf_hash(b"absent"), &[log.vkey()]).is_err());
}

fn hashes([first, second]: [u64; 2], bytes: &[u8]) {
    let proof: Vec<Hash> = bytes.chunks(32).filter_map(Hash::from_bytes).collect();
    let (one, other) = (leaf_hash(b"one"), leaf_hash(b"other"));
    assert!(verify_inclusion(&one, first, second, &proof, &other).is_err());
    assert!(verify_consistency(first, second, &one, &other, &proof).is_err());
}
