//! How a device is reset, and when that counts: a ladder of two rungs, each proved by the device's
//! answer.
//!
//! Pure. The agent asks the kernel what a device can do ([`ResetFacts`]), climbs what [`ladder`]
//! allows, and asks the device after each rung ([`Liveness`]); [`judge`] says whether that was all.
//! A rung that failed leads to the next one only while the device answers: one that does not is a
//! case for people.

use std::collections::BTreeSet;
use std::fmt;

use berth_api::pci::PciAddress;

/// One way to reset a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// `VFIO_DEVICE_RESET`: the function alone, by whatever method the kernel has for it.
    Function,
    /// `VFIO_DEVICE_PCI_HOT_RESET`: everything below the device's bridge.
    Hot,
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Function => "function reset",
            Self::Hot => "hot reset",
        })
    }
}

/// What the kernel says of a device's resets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResetFacts {
    /// Whether the function can be reset alone: VFIO's flag, which the kernel clears when its own
    /// attempt at opening failed.
    pub has_function_reset: bool,
    /// Whom a hot reset would hit; `Err` says in words why there is none.
    pub hot_reset_scope: Result<BTreeSet<PciAddress>, String>,
    /// Whether state in the device is known to outlive a function reset, as with GPUs.
    pub prefers_hot_reset: bool,
}

/// The rungs that may be climbed, first one first, and why others may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ladder {
    /// What to try, in this order.
    pub rungs: Vec<Rung>,
    /// Why a rung is missing, in words.
    pub missing: Vec<String>,
}

/// Which resets of `device` are allowed, if `owned` are the devices that may be hit. A hot reset must
/// hit the device itself and none but owned ones.
#[must_use]
pub fn ladder(device: PciAddress, owned: &BTreeSet<PciAddress>, facts: &ResetFacts) -> Ladder {
    let mut rungs = Vec::new();
    let mut missing = Vec::new();
    if facts.has_function_reset {
        rungs.push(Rung::Function);
    } else {
        missing.push("the function cannot be reset alone".to_owned());
    }
    match &facts.hot_reset_scope {
        Err(why) => missing.push(why.clone()),
        Ok(scope) => match scope.iter().find(|hit| !owned.contains(hit)) {
            Some(other) => missing.push(format!("a hot reset would hit {other}, too")),
            None if !scope.contains(&device) => {
                missing.push("a hot reset would not hit it".to_owned());
            }
            None if facts.prefers_hot_reset => rungs.insert(0, Rung::Hot),
            None => rungs.push(Rung::Hot),
        },
    }
    Ladder { rungs, missing }
}

/// How a device answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Liveness {
    /// Vendor and device id.
    pub ids: [u16; 2],
    /// Command register.
    pub command: u16,
    /// Base address registers, raw.
    pub bars: [u32; 6],
    /// Power state as PMCSR has it; `None` without that capability.
    pub power_state: Option<u8>,
    /// A register of the device that is never all ones, such as an NVMe drive's status; `None` where
    /// none is known.
    pub register: Option<u32>,
}

impl Liveness {
    /// What is wrong with a device that answers so and answered `before` like that; `None` if nothing.
    #[must_use]
    pub fn problem(&self, before: &Self) -> Option<String> {
        let [vendor, device] = self.ids;
        if vendor == 0xffff {
            return Some("its config space reads as all ones".to_owned());
        }
        if self.ids != before.ids {
            let [was_vendor, was_device] = before.ids;
            return Some(format!(
                "it says {vendor:04x}:{device:04x} and was {was_vendor:04x}:{was_device:04x}"
            ));
        }
        if self.command == 0xffff {
            return Some("its command register reads as all ones".to_owned());
        }
        if let Some(state @ 1..) = self.power_state {
            return Some(format!("it is in power state D{state}"));
        }
        for (number, (now, was)) in self.bars.iter().zip(&before.bars).enumerate() {
            if now != was {
                return Some(format!("BAR {number} reads {now:#x} and was {was:#x}"));
            }
        }
        (self.register == Some(u32::MAX)).then(|| "its registers read as all ones".to_owned())
    }
}

/// What comes after a rung.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AfterRung {
    /// The device is reset and answers.
    Done,
    /// This rung failed; the next one may be tried.
    Next(String),
    /// The device is in doubt.
    Lost(String),
}

/// Judge one rung: what the call returned, and what is wrong with the device since.
#[must_use]
pub fn judge(rung: Rung, returned: Result<(), String>, problem: Option<String>) -> AfterRung {
    match (returned, problem) {
        (Ok(()), None) => AfterRung::Done,
        (Err(error), None) => AfterRung::Next(format!("{rung}: {error}")),
        (Ok(()), Some(problem)) => AfterRung::Lost(format!("after a {rung} {problem}")),
        (Err(error), Some(problem)) => {
            AfterRung::Lost(format!("{rung}: {error}; since then {problem}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    fn facts(function: bool, scope: &[&str], prefers_hot: bool) -> ResetFacts {
        ResetFacts {
            has_function_reset: function,
            hot_reset_scope: Ok(scope.iter().map(|text| at(text)).collect()),
            prefers_hot_reset: prefers_hot,
        }
    }

    #[track_caller]
    fn check(facts: &ResetFacts, rungs: &[Rung], missing: usize) {
        let owned = BTreeSet::from([at("0000:01:00.0"), at("0000:01:00.1")]);
        let ladder = ladder(at("0000:01:00.0"), &owned, facts);
        assert_eq!(ladder.rungs, rungs);
        assert_eq!(ladder.missing.len(), missing, "{:?}", ladder.missing);
    }

    #[test]
    fn a_function_reset_comes_first_but_for_gpus() {
        let both = ["0000:01:00.0", "0000:01:00.1"];
        check(&facts(true, &both, false), &[Rung::Function, Rung::Hot], 0);
        check(&facts(true, &both, true), &[Rung::Hot, Rung::Function], 0);
    }

    #[test]
    fn a_hot_reset_that_hits_others_or_not_the_device_is_not_allowed() {
        let with_other = ["0000:01:00.0", "0000:02:00.0"];
        check(&facts(true, &with_other, true), &[Rung::Function], 1);
        check(&facts(false, &with_other, true), &[], 2);
        check(&facts(true, &["0000:01:00.1"], true), &[Rung::Function], 1);
        check(&facts(true, &[], false), &[Rung::Function], 1);
        let none = ResetFacts {
            hot_reset_scope: Err("it is on a root bus".to_owned()),
            ..facts(false, &[], false)
        };
        check(&none, &[], 2);
    }

    fn alive() -> Liveness {
        Liveness {
            ids: [0x1b36, 0x10],
            command: 0x400,
            bars: [0xfe00_0004, 0, 0, 0, 0, 0],
            power_state: Some(0),
            register: Some(0),
        }
    }

    #[test]
    fn a_device_answers_only_if_all_of_it_does() {
        let before = alive();
        assert_eq!(alive().problem(&before), None);
        let changes: [fn(&mut Liveness); 7] = [
            |now| now.ids = [0xffff, 0xffff],
            |now| now.ids = [0x1b36, 0x11],
            |now| now.command = 0xffff,
            |now| now.power_state = Some(3),
            |now| now.bars = [0; 6],
            |now| now.bars[5] = 1,
            |now| now.register = Some(u32::MAX),
        ];
        for change in changes {
            let mut now = alive();
            change(&mut now);
            assert!(now.problem(&before).is_some(), "{now:?}");
        }
    }

    #[test]
    fn a_rung_leads_on_only_while_the_device_answers() {
        let failed = || Err("ENOTTY".to_owned());
        let dead = || Some("it is gone".to_owned());
        assert_eq!(judge(Rung::Hot, Ok(()), None), AfterRung::Done);
        assert!(matches!(
            judge(Rung::Hot, failed(), None),
            AfterRung::Next(_)
        ));
        for returned in [Ok(()), failed()] {
            assert!(matches!(
                judge(Rung::Hot, returned, dead()),
                AfterRung::Lost(_)
            ));
        }
    }
}
