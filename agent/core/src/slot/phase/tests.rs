//! Every pair of phase and event, as a table, and what no sequence of events can bring.

use std::fmt::Write as _;

use berth_api::ids::{ClaimId, SlotId, VmId};
use berth_api::slot::{Claim, DeviceIdentity, ReadBack, WipeMethod};
use proptest::prelude::*;

use super::*;

const SAMPLES: [&str; 19] = [
    "discovered",
    "discovered wiped",
    "unapproved",
    "unapproved wiped",
    "free",
    "preparing",
    "preparing again",
    "undoing",
    "claimed",
    "claimed stale",
    "in_use",
    "releasing",
    "wiping",
    "verifying",
    "quarantined",
    "quarantined unsafe untouched",
    "quarantined unsafe clean",
    "quarantined unsafe held",
    "quarantined by operator clean",
];

fn id<T: std::str::FromStr>(prefix: &str, number: u8) -> T
where
    T::Err: std::fmt::Debug,
{
    format!("{prefix}_{number:026}").parse().unwrap()
}

fn holder(number: u8) -> SlotHolder {
    SlotHolder {
        claim: Claim {
            slot_id: id::<SlotId>("slot", 0),
            claim_id: id::<ClaimId>("claim", number),
            fencing_epoch: number.into(),
        },
        vm_id: id::<VmId>("vm", number),
        tenant_id: "acme".parse().unwrap(),
    }
}

fn problem(code: SlotProblemCode) -> SlotProblem {
    SlotProblem {
        code,
        message: "why".to_owned(),
    }
}

fn device(number: u8) -> PciAddress {
    format!("0000:0{number}:00.0").parse().unwrap()
}

fn wiped(number: u8) -> DeviceWipe {
    DeviceWipe {
        address: device(number),
        identity: DeviceIdentity {
            vendor: "1b36".parse().unwrap(),
            device: "0010".parse().unwrap(),
            subsystem_vendor: "1af4".parse().unwrap(),
            subsystem: "1100".parse().unwrap(),
            class: berth_api::pci::PciClass::NVME,
            path: format!("pci0000:00/0{number}.0/00.0"),
            serials: BTreeMap::new(),
        },
        method: WipeMethod::Reset,
        started_at_ms: 0,
        ended_at_ms: 1,
        completion: BTreeMap::new(),
        restored: Vec::new(),
        read_back: ReadBack {
            sample: "none".to_owned(),
            bytes_total: 0,
            bytes_read: 0,
            bytes_wrong: 0,
            expected: "nothing".to_owned(),
            sha256: String::new(),
        },
        not_proved: Vec::new(),
    }
}

fn run() -> WipeRun {
    WipeRun {
        method: WipeMethod::Reset,
        started_at_ms: 0,
        marks: BTreeMap::new(),
    }
}

fn proof(by: CleanBy) -> Clean {
    Clean { since: 3, by }
}

/// A phase by its name in the table.
pub(crate) fn sample(name: &str) -> Phase {
    use SlotProblemCode::{IommuGroupUnsafe, OperatorRequest, SlotNotApproved, WipeFailed};
    let quarantined = |code, holder, past| Phase::Quarantined {
        problem: problem(code),
        holder,
        past,
    };
    let by_wipe = || proof(CleanBy::Wipe);
    match name {
        "discovered" => Phase::Discovered { clean: None },
        "discovered wiped" => Phase::Discovered {
            clean: Some(by_wipe()),
        },
        "unapproved" => Phase::Unapproved {
            problem: problem(SlotNotApproved),
            clean: None,
        },
        "unapproved wiped" => Phase::Unapproved {
            problem: problem(SlotNotApproved),
            clean: Some(by_wipe()),
        },
        "free" => Phase::Free { clean: by_wipe() },
        "preparing" => Phase::Preparing {
            holder: holder(1),
            clean: Some(by_wipe()),
        },
        "preparing again" => Phase::Preparing {
            holder: holder(1),
            clean: None,
        },
        "undoing" => Phase::Undoing { clean: by_wipe() },
        "claimed" => Phase::Claimed {
            holder: holder(1),
            is_ready: true,
        },
        "claimed stale" => Phase::Claimed {
            holder: holder(1),
            is_ready: false,
        },
        "in_use" => Phase::InUse { holder: holder(1) },
        "releasing" => Phase::Releasing {
            holder: Some(holder(1)),
        },
        "wiping" => Phase::Wiping {
            holder: Some(holder(1)),
            lanes: [(device(1), Lane::Waiting)].into(),
        },
        "verifying" => Phase::Verifying {
            holder: Some(holder(1)),
            devices: vec![wiped(1)],
        },
        "quarantined" => quarantined(WipeFailed, None, Past::Dirty),
        "quarantined unsafe untouched" => quarantined(IommuGroupUnsafe, None, Past::Untouched),
        "quarantined unsafe clean" => quarantined(IommuGroupUnsafe, None, Past::Clean(by_wipe())),
        "quarantined unsafe held" => quarantined(IommuGroupUnsafe, Some(holder(1)), Past::Dirty),
        "quarantined by operator clean" => {
            quarantined(OperatorRequest, None, Past::Clean(by_wipe()))
        }
        other => panic!("no phase {other}"),
    }
}

/// All events. A new one does not compile until it has a row.
fn events() -> Vec<(&'static str, Event)> {
    use SlotProblemCode::{
        DeviceInUse, DeviceMissing, IommuGroupUnsafe, OperatorRequest, ResetFailed,
        SlotNotApproved, WipeFailed,
    };
    let named = |event: Event| {
        let name = match &event {
            Event::Looked(Ok(())) => "looked: fine",
            Event::Looked(Err(problem)) if problem.code == DeviceMissing => "looked: missing",
            Event::Looked(Err(problem)) if problem.code == IommuGroupUnsafe => "looked: unsafe",
            Event::Looked(Err(problem)) if problem.code == SlotNotApproved => {
                "looked: not approved"
            }
            Event::Looked(Err(_)) => "looked: host uses it",
            Event::DevicesReplaced => "devices replaced",
            Event::Claim(claimant) if *claimant == holder(1) => "claim by its holder",
            Event::Claim(_) => "claim by another",
            Event::Prepared => "prepared",
            Event::PrepareFailed {
                is_device_suspect: true,
                ..
            } => "prepare failed, suspect",
            Event::PrepareFailed { .. } => "prepare failed",
            Event::Undone => "undone",
            Event::UndoFailed(_) => "undo failed",
            Event::Open => "open",
            Event::GuestGone => "guest gone",
            Event::Release => "release",
            Event::Wipe => "wipe",
            Event::Returned { devices } if devices.is_empty() => "returned without devices",
            Event::Returned { .. } => "returned",
            Event::ReturnFailed(_) => "return failed",
            Event::WipeNoted { .. } => "wipe noted",
            Event::WipeEnded { result: Ok(_), .. } => "wipe ended",
            Event::WipeEnded { .. } => "wipe failed",
            Event::Verified => "verified",
            Event::VerifyFailed(_) => "verify failed",
            Event::Quarantine(_) => "quarantine",
        };
        (name, event)
    };
    let failed = |is_device_suspect| Event::PrepareFailed {
        problem: problem(ResetFailed),
        is_device_suspect,
    };
    [
        Event::Looked(Ok(())),
        Event::Looked(Err(problem(DeviceMissing))),
        Event::Looked(Err(problem(IommuGroupUnsafe))),
        Event::Looked(Err(problem(SlotNotApproved))),
        Event::Looked(Err(problem(DeviceInUse))),
        Event::DevicesReplaced,
        Event::Claim(holder(1)),
        Event::Claim(holder(2)),
        Event::Prepared,
        failed(false),
        failed(true),
        Event::Undone,
        Event::UndoFailed(problem(SlotProblemCode::BindFailed)),
        Event::Open,
        Event::GuestGone,
        Event::Release,
        Event::Wipe,
        Event::Returned {
            devices: vec![device(1), device(2)],
        },
        Event::Returned {
            devices: Vec::new(),
        },
        Event::ReturnFailed(problem(ResetFailed)),
        Event::WipeNoted {
            device: device(1),
            run: run(),
        },
        Event::WipeEnded {
            device: device(1),
            result: Ok(Box::new(wiped(1))),
        },
        Event::WipeEnded {
            device: device(1),
            result: Err(problem(WipeFailed)),
        },
        Event::Verified,
        Event::VerifyFailed(problem(WipeFailed)),
        Event::Quarantine(problem(OperatorRequest)),
    ]
    .map(named)
    .into()
}

fn show_phase(phase: &Phase) -> String {
    let with = |clean: &Option<Clean>| match clean {
        Some(clean) => format!("clean since {}", clean.since()),
        None => "never had".to_owned(),
    };
    let facts = match phase {
        Phase::Discovered { clean } => with(clean),
        Phase::Unapproved { problem, clean } => format!("{:?}, {}", problem.code, with(clean)),
        Phase::Free { clean } => format!("clean since {} by {:?}", clean.since(), clean.by),
        Phase::Undoing { clean } => format!("clean since {}", clean.since()),
        Phase::Preparing { holder, clean } => match clean {
            Some(clean) => format!(
                "for {}, clean since {}",
                holder.claim.fencing_epoch,
                clean.since()
            ),
            None => format!("for {} again", holder.claim.fencing_epoch),
        },
        Phase::Claimed { is_ready: true, .. } => "ready".to_owned(),
        Phase::Claimed { .. } => "not ready".to_owned(),
        Phase::InUse { .. } => String::new(),
        Phase::Releasing { holder } | Phase::Verifying { holder, .. } => match holder {
            Some(_) => "of a tenant".to_owned(),
            None => "of nobody".to_owned(),
        },
        Phase::Wiping { lanes, .. } => lanes
            .values()
            .map(|lane| match lane {
                Lane::Waiting => "waiting",
                Lane::Begun(_) => "begun",
                Lane::Done(_) => "done",
                Lane::Failed(_) => "failed",
            })
            .collect::<Vec<_>>()
            .join(" "),
        Phase::Quarantined {
            problem,
            holder,
            past,
        } => {
            let past = match past {
                Past::Untouched => "untouched".to_owned(),
                Past::Clean(clean) => format!("clean since {}", clean.since()),
                Past::Dirty => "dirty".to_owned(),
            };
            let held = if holder.is_some() { ", held" } else { "" };
            format!("{:?}, {past}{held}", problem.code)
        }
    };
    format!("{} ({facts})", phase.name())
}

fn show(before: &Phase, event: Event) -> String {
    match transition(before.clone(), event, 9) {
        Err(Denied(problem)) => format!("denied: {:?}, {}", problem.code, problem.message),
        Ok((phase, effects)) if phase == *before && effects.is_empty() => "-".to_owned(),
        Ok((phase, effects)) => {
            effects
                .iter()
                .fold(show_phase(&phase), |line, effect| match effect {
                    Effect::State(says) => format!("{line} + receipt {says:?}"),
                    Effect::TaskDone => format!("{line} + task done"),
                    Effect::TaskFailed => format!("{line} + task failed"),
                })
        }
    }
}

#[test]
fn every_pair_of_phase_and_event_is_as_the_table_says() {
    let mut table = String::new();
    for (name, event) in events() {
        writeln!(table, "{name}").unwrap();
        for before in SAMPLES {
            let after = show(&sample(before), event.clone());
            writeln!(table, "  {before}: {after}").unwrap();
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/slot/phase/table.txt");
    if std::env::var_os("BERTH_BLESS").is_some() {
        std::fs::write(path, &table).unwrap();
    }
    let expected = std::fs::read_to_string(path).unwrap();
    assert_eq!(table, expected, "BERTH_BLESS=1 writes it anew");
}

/// What a test knows of a slot's devices by itself: whether a tenant could have had them since all of
/// them were last wiped.
#[derive(Debug, Default)]
struct Devices {
    may_hold_data: bool,
}

fn any_event() -> impl Strategy<Value = Event> {
    use SlotProblemCode as Code;
    let codes = [
        Code::SlotNotApproved,
        Code::DeviceIdentityChanged,
        Code::DeviceMissing,
        Code::DeviceSettingsChanged,
        Code::IommuGroupUnsafe,
        Code::DeviceInUse,
        Code::ResetFailed,
        Code::BindFailed,
        Code::WipeFailed,
        Code::ForeignUser,
        Code::RecordLost,
    ];
    let other = (
        proptest::sample::select(codes.to_vec()),
        any::<bool>(),
        1_u8..3,
        0_u8..5,
    )
        .prop_map(|(code, is_device_suspect, number, kind)| {
            let problem = problem(code);
            match kind {
                0 => Event::PrepareFailed {
                    problem,
                    is_device_suspect,
                },
                1 => Event::WipeEnded {
                    device: device(number),
                    result: Err(problem),
                },
                2 => Event::Claim(holder(number)),
                3 => Event::WipeEnded {
                    device: device(number),
                    result: Ok(Box::new(wiped(number))),
                },
                _looks => Event::Looked(Err(problem)),
            }
        });
    let listed = events().into_iter().map(|(_, event)| event);
    prop_oneof![
        3 => proptest::sample::select(listed.collect::<Vec<_>>()),
        2 => other,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_sequence_of_events_frees_what_was_not_wiped_since_a_tenant_could_have_it(
        events in proptest::collection::vec(any_event(), 1..60),
    ) {
        let mut phase = Phase::Discovered { clean: None };
        let mut devices = Devices::default();
        let mut wiped = BTreeMap::new();
        let mut generation = 0;
        let mut claimed_at = 0;
        for event in events {
            generation += 1;
            let ended = if let Event::WipeEnded { device, result: Ok(_) } = &event {
                Some(*device)
            } else {
                None
            };
            let returned = matches!(event, Event::Returned { .. });
            let is_verdict = event == Event::Verified;
            let before = phase.clone();
            let Ok((next, effects)) = transition(before.clone(), event, generation) else {
                continue;
            };
            if let (Phase::Wiping { lanes, .. }, true) = (&next, returned)
                && !matches!(before, Phase::Wiping { .. })
            {
                wiped = lanes.keys().map(|device| (*device, false)).collect();
            }
            if let (Phase::Wiping { lanes, .. }, Some(device)) = (&before, ended)
                && matches!(lanes.get(&device), Some(Lane::Waiting | Lane::Begun(_)))
            {
                wiped.insert(device, true);
            }
            if is_verdict && matches!(before, Phase::Verifying { .. }) {
                prop_assert!(!wiped.is_empty() && wiped.values().all(|done| *done));
                prop_assert!(effects.contains(&Effect::State(Says::Wipe)));
                devices.may_hold_data = false;
            }
            if effects.contains(&Effect::State(Says::Claim)) {
                prop_assert!(!devices.may_hold_data, "handed on");
                devices.may_hold_data = true;
                claimed_at = generation;
            }
            if let Phase::Free { clean } | Phase::Undoing { clean } = &next {
                prop_assert!(!devices.may_hold_data, "{next:?}");
                prop_assert!(clean.since() > claimed_at || claimed_at == 0);
            }
            if devices.may_hold_data {
                prop_assert!(next.may_hold_data(), "{next:?}");
            }
            phase = next;
        }
    }
}
