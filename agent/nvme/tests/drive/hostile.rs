//! A drive that answers as it likes: nothing panics, and every wait ends.

use berth_agent_core::slot::wipe::WipePolicy;
use berth_nvme::drive::Drive;
use berth_nvme::identify::identify;
use berth_nvme::model::Model;
use berth_nvme::model::hostile::Hostile;
use berth_nvme::suite::Notes;
use berth_nvme::wipe::{WipeOrder, wipe};
use proptest::collection::vec;
use proptest::prelude::*;

use super::bench::small;

/// More than a log that is polled every five seconds for the longest time that a wipe may take.
const MOST_ACCESSES: u64 = 10_000_000;

/// Mostly few honest accesses between the lies, so that there are many.
fn lies() -> impl Strategy<Value = Vec<u8>> {
    let lie = (0..400_u16, vec(any::<u8>(), 4..40));
    vec(lie, 1..20).prop_map(|lies| {
        let bytes = lies.into_iter().map(|(honest, lie)| {
            let mut bytes = honest.to_le_bytes().to_vec();
            bytes.extend(lie);
            bytes
        });
        bytes.flatten().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_drive_that_answers_as_it_likes_ends_in_an_error_or_a_result(
        lies in lies(),
        sanitize in 0..8_u32,
        admin_commands in 0..16_u16,
    ) {
        let mut script = small(16);
        script.sanitize = sanitize | 2 << 30;
        script.admin_commands = admin_commands;
        let mut drive = Hostile::new(Model::new(script), &lies);
        let policy = WipePolicy { sample_blocks: 16, deadline_s: 60, ..WipePolicy::default() };
        let mut notes = Notes::default();
        for _ in 0..2 {
            if let Ok(mut opened) = Drive::open(&mut drive) {
                let approved = identify(&mut opened).unwrap_or_default();
                let earlier = notes.runs.last().cloned();
                let order = WipeOrder {
                    policy: &policy,
                    approved: &approved,
                    earlier: earlier.as_ref(),
                    seed: 1,
                    started_at_ms: 0,
                };
                if let Ok(done) = wipe(&mut opened, &order, &mut notes) {
                    prop_assert_eq!(done.read_back.bytes_wrong, 0);
                }
            }
            drive.model.revive();
        }
        prop_assert!(drive.accesses() < MOST_ACCESSES, "{}", drive.accesses());
    }
}
