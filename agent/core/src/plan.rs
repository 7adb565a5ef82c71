//! What remains to be done for one VM, given what its record wants and what the host shows.
//!
//! Every step is an *ensure*: it names a state, and doing it twice is doing it once. A plan is made
//! anew after each interruption, so an agent that was killed anywhere continues from what it finds.

/// What a record wants of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// A process that can be talked to, on a disk that may have to be made.
    NewGuest,
    /// A process that can be talked to, on the disk that is there.
    Guest,
    /// No process; the disk stays.
    NoGuest,
    /// Neither process nor files.
    Nothing,
    /// Whatever is there: the guest decides, or a deadline does.
    AsItIs,
}

/// What the host shows of one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// Whether the finished root disk is there.
    pub disk: bool,
    /// Whether any file beside the record is there.
    pub files: bool,
    /// The unit.
    pub unit: UnitPresence,
    /// The slots.
    pub slots: SlotPresence,
}

/// What a VM has to do with slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotPresence {
    /// Whether its definition names claims.
    pub wanted: bool,
    /// What it holds.
    pub held: HeldSlots,
}

/// What slots a VM holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldSlots {
    /// None.
    None,
    /// Some, and no guest has their devices.
    Idle,
    /// Some whose devices a guest has, or was about to get.
    InUse,
}

/// What is left of a VM's unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitPresence {
    /// No unit.
    Absent,
    /// A process with whom we share a socket.
    Reachable,
    /// A process that nobody can talk to any more.
    Unreachable,
    /// A process on its way out, or a unit that remembers how one ended.
    Ending,
}

/// One change of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Neither process nor unit.
    EnsureUnitGone,
    /// A root disk made from the image.
    EnsureDisk,
    /// All claimed slots checked, bound and reset for the next guest.
    EnsureSlotsReady,
    /// A VMM process with its socket.
    EnsureUnit,
    /// No slot said to be in use by a guest.
    EnsureSlotsIdle,
    /// No slot held.
    EnsureSlotsReleased,
    /// No file beside the record.
    EnsureFilesGone,
}

/// A guest is wanted on a disk that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the VM's disk is missing")]
pub struct DiskMissing;

/// The steps that remain, in their order.
pub fn plan(want: Want, observed: Observed) -> Result<Vec<Step>, DiskMissing> {
    let mut steps = Vec::new();
    let launch =
        matches!(want, Want::NewGuest | Want::Guest) && observed.unit != UnitPresence::Reachable;
    let unit_goes = match want {
        Want::NewGuest | Want::Guest => launch,
        Want::NoGuest | Want::Nothing => true,
        Want::AsItIs => false,
    };
    if unit_goes && observed.unit != UnitPresence::Absent {
        steps.push(Step::EnsureUnitGone);
    }
    if launch && !observed.disk {
        if want == Want::Guest {
            return Err(DiskMissing);
        }
        steps.push(Step::EnsureDisk);
    }
    if launch && observed.slots.wanted {
        // Last before the process: a disk that cannot be made must not cost a wipe.
        steps.push(Step::EnsureSlotsReady);
    }
    if launch {
        steps.push(Step::EnsureUnit);
    }
    if want == Want::NoGuest && observed.slots.held == HeldSlots::InUse {
        steps.push(Step::EnsureSlotsIdle);
    }
    if want == Want::Nothing && observed.slots.held != HeldSlots::None {
        steps.push(Step::EnsureSlotsReleased);
    }
    if want == Want::Nothing && observed.files {
        steps.push(Step::EnsureFilesGone);
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WANTS: [Want; 5] = [
        Want::NewGuest,
        Want::Guest,
        Want::NoGuest,
        Want::Nothing,
        Want::AsItIs,
    ];
    const UNITS: [UnitPresence; 4] = [
        UnitPresence::Absent,
        UnitPresence::Reachable,
        UnitPresence::Unreachable,
        UnitPresence::Ending,
    ];

    const HELD: [HeldSlots; 3] = [HeldSlots::None, HeldSlots::Idle, HeldSlots::InUse];
    const NO_SLOTS: SlotPresence = SlotPresence {
        wanted: false,
        held: HeldSlots::None,
    };

    fn apply(mut observed: Observed, step: Step) -> Observed {
        match step {
            Step::EnsureUnitGone => observed.unit = UnitPresence::Absent,
            Step::EnsureDisk => {
                observed.disk = true;
                observed.files = true;
            }
            Step::EnsureSlotsReady => {
                assert_eq!(
                    observed.unit,
                    UnitPresence::Absent,
                    "a reset under a process"
                );
                observed.slots.held = HeldSlots::Idle;
            }
            Step::EnsureUnit => {
                assert_eq!(observed.unit, UnitPresence::Absent, "a second process");
                assert!(observed.disk, "a process without a disk");
                if observed.slots.wanted {
                    assert_eq!(observed.slots.held, HeldSlots::Idle, "devices not ready");
                    observed.slots.held = HeldSlots::InUse;
                }
                observed.unit = UnitPresence::Reachable;
            }
            Step::EnsureSlotsIdle => {
                assert_eq!(observed.unit, UnitPresence::Absent, "a guest has them");
                observed.slots.held = HeldSlots::Idle;
            }
            Step::EnsureSlotsReleased => {
                assert_eq!(observed.unit, UnitPresence::Absent, "a wipe under a guest");
                observed.slots.held = HeldSlots::None;
            }
            Step::EnsureFilesGone => {
                assert_eq!(observed.unit, UnitPresence::Absent, "files under a process");
                observed.disk = false;
                observed.files = false;
            }
        }
        observed
    }

    proptest! {
        #[test]
        fn nothing_remains_after_a_plan_even_when_it_was_cut_short(
            want in proptest::sample::select(&WANTS),
            unit in proptest::sample::select(&UNITS),
            disk in any::<bool>(),
            other_files in any::<bool>(),
            wanted in any::<bool>(),
            held in proptest::sample::select(&HELD),
            cut in 0_usize..6,
        ) {
            let slots = SlotPresence { wanted, held };
            let observed = Observed { disk, files: disk || other_files, unit, slots };
            let Ok(steps) = plan(want, observed) else {
                prop_assert!(want == Want::Guest && !disk);
                return Ok(());
            };
            let after_cut = steps.iter().take(cut).fold(observed, |o, s| apply(o, *s));
            let rest = plan(want, after_cut).unwrap();
            let after_all = rest.iter().fold(after_cut, |o, s| apply(o, *s));
            prop_assert_eq!(plan(want, after_all), Ok(Vec::new()));
        }
    }

    #[test]
    fn a_guest_that_can_be_talked_to_is_left_alone() {
        let observed = Observed {
            disk: true,
            files: true,
            unit: UnitPresence::Reachable,
            slots: NO_SLOTS,
        };
        for want in [Want::NewGuest, Want::Guest, Want::AsItIs] {
            assert_eq!(plan(want, observed), Ok(Vec::new()));
        }
    }

    #[test]
    fn a_lost_disk_is_never_replaced_by_a_fresh_one() {
        let observed = Observed {
            disk: false,
            files: true,
            unit: UnitPresence::Absent,
            slots: NO_SLOTS,
        };
        assert_eq!(plan(Want::Guest, observed), Err(DiskMissing));
        assert_eq!(
            plan(Want::NewGuest, observed),
            Ok(vec![Step::EnsureDisk, Step::EnsureUnit])
        );
    }
}
