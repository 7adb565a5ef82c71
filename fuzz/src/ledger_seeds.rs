//! Seeds of the targets that read the ledger's formats: what a sound log makes of each.

use berth_ledger::bundle::{End, FORMAT, Header, Line, Scope};
use berth_ledger::cosignature::Cosigner;
use berth_ledger::keys::SigningKey;
use berth_ledger::model::ModelLog;
use berth_ledger::note::KeyName;
use berth_ledger::tile::Resource;
use berth_ledger::witness::AddCheckpoint;
use serde_json::json;

const ORIGIN: &str = "ledger.example/d/e1";

fn with(choice: u8, bytes: &[u8]) -> Vec<u8> {
    [&[choice], bytes].concat()
}

fn counted(entries: u8) -> ModelLog {
    let mut log = ModelLog::new(ORIGIN, 1);
    for entry in 0..entries {
        log.append(&[entry]);
    }
    log
}

/// Seeds of `ledger_note`.
///
/// # Panics
/// Never: its own names are names.
#[must_use]
pub fn note() -> Vec<Vec<u8>> {
    let log = counted(7);
    let name = KeyName::new("witness.example/w").expect("it is a name");
    let key = SigningKey::from_seed(&[9; 32]).expect("any 32 bytes are a seed");
    let witness = Cosigner::new(name, key);
    let mut cosigned = log.note(7);
    cosigned.add(witness.sign(cosigned.text(), 1_700_000_000));
    let policy = format!(
        "log {}\nwitness w {} https://w.example\ngroup g any w\nquorum g\n",
        log.vkey(),
        witness.vkey()
    );
    let request = AddCheckpoint {
        old_size: 3,
        proof: log.consistency(3, 7),
        checkpoint: log.note(7),
    };
    vec![
        with(0, cosigned.to_string().as_bytes()),
        with(1, log.checkpoint(5).to_string().as_bytes()),
        with(2, log.vkey().to_string().as_bytes()),
        with(2, log.signer().to_private_text().as_bytes()),
        with(3, policy.as_bytes()),
        with(4, request.to_string().as_bytes()),
        with(4, b"7\n"),
    ]
}

/// Seeds of `ledger_bundle`.
///
/// # Panics
/// Never: the log has what it is asked for.
#[must_use]
pub fn bundle() -> Vec<Vec<u8>> {
    let mut log = ModelLog::new(ORIGIN, 1);
    let mut events = Vec::new();
    for round in 0..5 {
        for tenant in ["acme", "other"] {
            events.push(log.append_event(Some(tenant), json!({ "round": round })));
        }
    }
    let header = Line::Header(Header {
        format: FORMAT.to_owned(),
        checkpoint: log.note(10).to_string(),
        log_keys: vec![log.vkey().to_string()],
        scope: Scope::Selection {},
    });
    let some = events.iter().take(2);
    let some = some.map(|event| Line::Event(log.prove(event, 10)));
    let end = Line::End(End { events: 2 });
    let lines: Vec<String> = std::iter::once(header)
        .chain(some)
        .chain([end])
        .map(|line| serde_json::to_string(&line).expect("a line is JSON"))
        .collect();
    let all = log.read(Resource::Entries(
        Resource::bundles(10).next().expect("there are entries"),
    ));
    let event = &events[0];
    let proved = serde_json::to_value(log.prove(event, 10)).expect("an entry is JSON");
    let passport = json!({
        "format": "berth-slot-passport/v1", "checkpoint": log.note(10).to_string(),
        "log_keys": [log.vkey().to_string()], "vm_id": "vm_01h455vb4pex5vsknk084sn02q",
        "slots": [{
            "slot_id": "slot_01h455vb4pex5vsknk084sn02q", "claim": proved,
            "before": { "kind": "wiped", "event": proved }, "unused": [],
        }],
    });
    let with = |choice: u8, width: u8, bytes: &[u8]| [&[choice, width], bytes].concat();
    vec![
        with(0, 9, &all.expect("the log has its entries")),
        with(1, 0, &event.leaf.to_bytes()),
        with(1, 0, b"tile/entries/x001/x234/067.p/9"),
        with(2, 0, lines.join("\n").as_bytes()),
        with(3, 0, passport.to_string().as_bytes()),
    ]
}

/// Seeds of `tlog_proof`.
#[must_use]
pub fn proof() -> Vec<Vec<u8>> {
    let log = counted(11);
    let mut extra = log.proof_file(10, 11);
    extra.extra = Some(b"beside".to_vec());
    let hashes: Vec<u8> = log
        .consistency(6, 11)
        .iter()
        .flat_map(|hash| hash.0)
        .collect();
    let sizes = [6u64.to_le_bytes(), 11u64.to_le_bytes()].concat();
    vec![
        with(0, log.proof_file(3, 11).to_string().as_bytes()),
        with(0, extra.to_string().as_bytes()),
        with(1, &[sizes, hashes].concat()),
    ]
}
