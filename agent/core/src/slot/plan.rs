//! What is to be done for a slot in its phase, in which order.
//!
//! Every step is an *ensure*: an agent that comes after a crash begins a phase's plan anew. Each step
//! is journaled by its name before it is taken.

use berth_api::pci::PciAddress;

use crate::slot::phase::Phase;

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Judge host and slot from a fresh snapshot.
    Look,
    /// Find the devices by what they were approved as.
    Locate,
    /// See that no process has them, and no unit of the holder's VM runs.
    Vacate,
    /// Bind one to `vfio-pci`.
    Bind(PciAddress),
    /// Give one back to the driver that it had.
    Unbind(PciAddress),
    /// Reset all of them.
    Reset,
    /// Let one say what it is.
    Identify(PciAddress),
    /// Wipe all of them side by side, and read them.
    Wipe,
    /// Judge the results.
    Verify,
}

impl Step {
    /// The name in the journal and in receipts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Look => "look",
            Self::Locate => "locate",
            Self::Vacate => "vacate",
            Self::Bind(_) => "bind",
            Self::Unbind(_) => "unbind",
            Self::Reset => "reset",
            Self::Identify(_) => "identify",
            Self::Wipe => "wipe",
            Self::Verify => "verify",
        }
    }

    /// The one device that it is about.
    #[must_use]
    pub fn device(self) -> Option<PciAddress> {
        match self {
            Self::Bind(device) | Self::Unbind(device) | Self::Identify(device) => Some(device),
            Self::Look | Self::Locate | Self::Vacate | Self::Reset | Self::Wipe | Self::Verify => {
                None
            }
        }
    }
}

/// The steps of a phase. `devices` is where the slot's devices are; a plan's first step may find them
/// elsewhere, which changes the steps behind it and not their number before them.
#[must_use]
pub fn plan(phase: &Phase, devices: &[PciAddress]) -> Vec<Step> {
    let each = |step: fn(PciAddress) -> Step| devices.iter().copied().map(step);
    let mut steps = Vec::new();
    match phase {
        Phase::Preparing { .. } => {
            steps.extend([Step::Look, Step::Vacate]);
            steps.extend(each(Step::Bind));
            steps.push(Step::Reset);
            steps.extend(each(Step::Identify));
            // Once more, with what the devices said of themselves.
            steps.push(Step::Look);
        }
        Phase::Undoing { .. } => steps.extend(each(Step::Unbind)),
        Phase::Releasing { .. } => {
            steps.extend([Step::Locate, Step::Vacate]);
            steps.extend(each(Step::Bind));
            steps.push(Step::Reset);
            steps.extend(each(Step::Identify));
            steps.push(Step::Locate);
        }
        Phase::Wiping { .. } => {
            steps.extend([Step::Locate, Step::Vacate]);
            steps.extend(each(Step::Bind));
            steps.push(Step::Wipe);
        }
        Phase::Verifying { .. } => steps.extend([Step::Locate, Step::Verify]),
        Phase::Discovered { .. }
        | Phase::Unapproved { .. }
        | Phase::Free { .. }
        | Phase::Claimed { .. }
        | Phase::InUse { .. }
        | Phase::Quarantined { .. } => {}
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::phase::sample;

    fn words(phase: &Phase) -> String {
        let devices = ["0000:01:00.0", "0000:02:00.0"].map(|text| text.parse().unwrap());
        let names = plan(phase, &devices).into_iter().map(Step::name);
        names.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn nothing_destructive_is_planned_before_the_devices_were_found_and_nobody_has_them() {
        let table = [
            ("discovered", ""),
            ("unapproved", ""),
            ("free", ""),
            (
                "preparing",
                "look vacate bind bind reset identify identify look",
            ),
            ("undoing", "unbind unbind"),
            ("claimed", ""),
            ("in_use", ""),
            (
                "releasing",
                "locate vacate bind bind reset identify identify locate",
            ),
            ("wiping", "locate vacate bind bind wipe"),
            ("verifying", "locate verify"),
            ("quarantined", ""),
        ];
        for (name, expected) in table {
            assert_eq!(words(&sample(name)), expected, "{name}");
        }
    }
}
