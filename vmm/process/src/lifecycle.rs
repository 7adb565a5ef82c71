//! What a guest can be asked, and when: pure, so that every case can be listed.
//!
//! ```text
//!                            pause
//! Preparing ──▶ Running ◀────────────▶ Paused
//!     │            │        resume        │
//!     └────────────┴───── stop, end ──────┴──▶ Ending
//! ```
//! Owns the states, the actions and the reasons of denials with their remedies. It carries nothing
//! out.

use berth_api::vmm::{Denial, Request};

/// Where the guest is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// The machine is being built.
    Preparing,
    /// vCPUs enter the guest.
    Running,
    /// No vCPU enters the guest.
    Paused,
    /// The machine has ended or was told to.
    Ending,
}

/// What a request comes to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// Press the ACPI power button. A paused guest sees it when it goes on.
    PressPowerButton,
    /// End the machine.
    End,
    /// Take the vCPUs out of the guest. If they do not come, the state stays.
    Pause,
    /// Let the vCPUs into the guest.
    Resume,
    /// Set the balloon's wanted size.
    SetBalloon {
        /// The size.
        target_mib: u64,
    },
    /// Take the medium out of a disk. A paused guest sees it when it goes on.
    EjectDisk {
        /// The disk's serial number.
        serial: String,
    },
    /// Tell the counters.
    TellStatistics,
}

/// Why a request is not done, and what helps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Denied {
    /// Why.
    pub(crate) reason: Denial,
    /// What helps.
    pub(crate) remedy: String,
}

impl Denied {
    /// A denial with its remedy.
    pub(crate) fn new(reason: Denial, remedy: impl Into<String>) -> Self {
        Self {
            reason,
            remedy: remedy.into(),
        }
    }
}

/// What `request` comes to and the state after it. `most_balloon_mib` is the balloon's largest size,
/// if there is a balloon.
///
/// # Errors
/// If it cannot be done in this state or by this machine; the state stays.
pub(crate) fn decide(
    state: State,
    request: &Request,
    most_balloon_mib: Option<u64>,
) -> Result<(State, Action), Denied> {
    match (state, request) {
        (
            State::Ending,
            Request::PowerButton
            | Request::Stop
            | Request::Pause
            | Request::Resume
            | Request::Balloon { .. }
            | Request::EjectDisk { .. }
            | Request::Statistics,
        ) => Err(Denied::new(
            Denial::Ending,
            "wait for the machine's end, and start it again if it is still wanted",
        )),
        (
            State::Preparing,
            Request::PowerButton
            | Request::Pause
            | Request::Resume
            | Request::Balloon { .. }
            | Request::EjectDisk { .. }
            | Request::Statistics,
        ) => Err(Denied::new(
            Denial::Preparing,
            "ask again when the guest runs, or stop the machine",
        )),
        (State::Preparing | State::Running | State::Paused, Request::Stop) => {
            Ok((State::Ending, Action::End))
        }
        (State::Running, Request::Pause) => Ok((State::Paused, Action::Pause)),
        (State::Paused, Request::Pause) => Err(Denied::new(
            Denial::AlreadyPaused,
            "nothing: no vCPU runs the guest",
        )),
        (State::Paused, Request::Resume) => Ok((State::Running, Action::Resume)),
        (State::Running, Request::Resume) => {
            Err(Denied::new(Denial::NotPaused, "nothing: the guest runs"))
        }
        (State::Running | State::Paused, Request::PowerButton) => {
            Ok((state, Action::PressPowerButton))
        }
        (State::Running | State::Paused, Request::Statistics) => {
            Ok((state, Action::TellStatistics))
        }
        (State::Running | State::Paused, &Request::Balloon { target_mib }) => {
            check_balloon(target_mib, most_balloon_mib)?;
            Ok((state, Action::SetBalloon { target_mib }))
        }
        (State::Running | State::Paused, Request::EjectDisk { serial }) => {
            let serial = serial.clone();
            Ok((state, Action::EjectDisk { serial }))
        }
    }
}

fn check_balloon(target_mib: u64, most_balloon_mib: Option<u64>) -> Result<(), Denied> {
    match most_balloon_mib {
        None => Err(Denied::new(
            Denial::NoDevice,
            "start the machine with a balloon",
        )),
        Some(most) if target_mib > most => Err(Denied::new(
            Denial::OutOfRange,
            format!("ask for 0 to {most} MiB: the rest stays with the guest"),
        )),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STATES: [State; 4] = [
        State::Running,
        State::Paused,
        State::Ending,
        State::Preparing,
    ];
    const MOST: u64 = 96;

    fn eject() -> Request {
        Request::EjectDisk {
            serial: "seed".to_owned(),
        }
    }

    fn requests() -> [Request; 8] {
        [
            Request::PowerButton,
            Request::Stop,
            Request::Pause,
            Request::Resume,
            Request::Balloon { target_mib: MOST },
            Request::Balloon {
                target_mib: MOST + 1,
            },
            eject(),
            Request::Statistics,
        ]
    }

    /// The whole table, one row for each state.
    #[test]
    fn every_state_answers_every_request() {
        let short = |state, request: &Request| match decide(state, request, Some(MOST)) {
            Ok((after, action)) => format!("{action:?} -> {after:?}"),
            Err(denied) => {
                assert!(!denied.remedy.is_empty());
                format!("{:?}", denied.reason)
            }
        };
        let table = STATES.map(|state| requests().map(|request| short(state, &request)));
        let inflate = "SetBalloon { target_mib: 96 }";
        assert_eq!(
            table[0],
            [
                "PressPowerButton -> Running",
                "End -> Ending",
                "Pause -> Paused",
                "NotPaused",
                &format!("{inflate} -> Running"),
                "OutOfRange",
                "EjectDisk { serial: \"seed\" } -> Running",
                "TellStatistics -> Running",
            ]
        );
        assert_eq!(
            table[1],
            [
                "PressPowerButton -> Paused",
                "End -> Ending",
                "AlreadyPaused",
                "Resume -> Running",
                &format!("{inflate} -> Paused"),
                "OutOfRange",
                "EjectDisk { serial: \"seed\" } -> Paused",
                "TellStatistics -> Paused",
            ]
        );
        assert_eq!(table[2], ["Ending"; 8]);
        let mut preparing = ["Preparing"; 8];
        preparing[1] = "End -> Ending";
        assert_eq!(table[3], preparing);
    }

    #[test]
    fn without_a_balloon_no_target_is_taken() {
        for state in [State::Running, State::Paused] {
            let denied = decide(state, &Request::Balloon { target_mib: 0 }, None).unwrap_err();
            assert_eq!(denied.reason, Denial::NoDevice);
        }
    }

    fn any_request() -> impl Strategy<Value = Request> {
        prop_oneof![
            Just(Request::PowerButton),
            Just(Request::Stop),
            Just(Request::Pause),
            Just(Request::Resume),
            any::<u64>().prop_map(|target_mib| Request::Balloon { target_mib }),
            (0..=MOST).prop_map(|target_mib| Request::Balloon { target_mib }),
            Just(eject()),
            Just(Request::Statistics),
        ]
    }

    proptest! {
        /// Against a gate and a balloon that only know what was done to them.
        #[test]
        fn any_sequence_of_requests_keeps_the_machine_in_order(
            requests in prop::collection::vec(any_request(), 0..64),
            has_balloon in any::<bool>(),
        ) {
            let (mut state, mut is_open, mut has_ended) = (State::Running, true, false);
            for request in requests {
                let before = state;
                match decide(state, &request, has_balloon.then_some(MOST)) {
                    Err(_) => prop_assert!(request != Request::Stop || has_ended),
                    Ok((after, action)) => {
                        prop_assert!(!has_ended, "{action:?} after the end");
                        state = after;
                        match action {
                            Action::Pause => prop_assert!(std::mem::replace(&mut is_open, false)),
                            Action::Resume => prop_assert!(!std::mem::replace(&mut is_open, true)),
                            Action::End => has_ended = true,
                            Action::SetBalloon { target_mib } => {
                                prop_assert!(has_balloon && target_mib <= MOST);
                            }
                            Action::PressPowerButton
                            | Action::EjectDisk { .. }
                            | Action::TellStatistics => {
                                prop_assert_eq!(before, after);
                            }
                        }
                    }
                }
                prop_assert_eq!(state == State::Ending, has_ended);
                prop_assert!(has_ended || (state == State::Running) == is_open);
            }
        }
    }
}
