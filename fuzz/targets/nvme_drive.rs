//! The NVMe driver against a drive that answers as the input likes.
//!
//! A scripted drive from the input answers by its script, and at places that the input chooses its
//! registers and what it put into shared memory are something else: completions, identities, logs, locks,
//! blocks. Holds: nothing panics, and every wait ends within a bounded number of accesses.
#![no_main]

use std::collections::BTreeMap;

use berth_agent_core::slot::wipe::WipePolicy;
use berth_fuzz::input::Input;
use berth_nvme::drive::Drive;
use berth_nvme::identify::identify;
use berth_nvme::model::Model;
use berth_nvme::model::hostile::Hostile;
use berth_nvme::model::script::{Formatting, NewNamespace, Sanitizing, Script};
use berth_nvme::suite::Notes;
use berth_nvme::wipe::{WipeOrder, wipe};
use libfuzzer_sys::fuzz_target;

/// More than three days of polling a log every five seconds take.
const MOST_ACCESSES: u64 = 50_000_000;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mut model = Model::new(script(&mut input));
    model.media.fill(b"a tenant's");
    let mut drive = Hostile::new(model, input.rest());
    let policy = WipePolicy {
        sample_blocks: 16,
        deadline_s: 60,
        ..WipePolicy::default()
    };
    let mut notes = Notes::default();
    let mut approved = BTreeMap::new();
    for _ in 0..2 {
        let Ok(mut opened) = Drive::open(&mut drive) else {
            break;
        };
        if let Ok(found) = identify(&mut opened) {
            approved = found;
        }
        let earlier = notes.runs.last().cloned();
        let order = WipeOrder {
            policy: &policy,
            approved: &approved,
            earlier: earlier.as_ref(),
            seed: 1,
            started_at_ms: 0,
        };
        if wipe(&mut opened, &order, &mut notes).is_ok() {
            break;
        }
        drive.model.revive();
    }
    assert!(drive.accesses() < MOST_ACCESSES, "the driver does not end");
});

fn script(input: &mut Input<'_>) -> Script {
    let namespaces = (0..input.byte() % 3)
        .map(|_| NewNamespace {
            blocks: u64::from(input.byte() % 24) + 1,
            format: input.byte() % 3,
            is_extended: false,
        })
        .collect();
    Script {
        namespaces,
        capacity_bytes: 100 * 4104,
        admin_commands: u16::from(input.byte()),
        nvm_commands: u16::from(input.byte()),
        format_attributes: input.byte(),
        sanitize: input.long(),
        transfer_shift: input.byte() % 8,
        estimate_s: input.long(),
        locking: (input.byte() % 4 == 0).then(|| input.byte()),
        sanitizing: match input.byte() % 8 {
            0 => Sanitizing::KeepsItsLog,
            1 => Sanitizing::LogsAnother,
            2 => Sanitizing::FailsAt(input.byte() % 100),
            3 => Sanitizing::StallsAt(input.byte() % 100),
            _ => Sanitizing::Honest,
        },
        formatting: match input.byte() % 4 {
            0 => Formatting::TakesAnotherFormat,
            1 => Formatting::LeavesPercent(input.byte()),
            _ => Formatting::Honest,
        },
        ..Script::default()
    }
}
