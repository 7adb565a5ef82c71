//! What to do with a drive, from what it says it can: pure.

use std::time::Duration;

use berth_agent_core::slot::wipe::WipePolicy;
use berth_api::slot::WipeMethod;

use crate::command::ALL_NAMESPACES;
use crate::identify::controller::ControllerIdentity;
use crate::sanitize_log::Action;
use crate::wipe_error::WipeError;

/// No wipe is waited for longer than this, whatever a drive says it takes.
const LONGEST: Duration = Duration::from_hours(72);
/// A wipe that does not move for an eighth of its limit, and this at the least, stands still.
const STALL_AT_LEAST: Duration = Duration::from_mins(5);
/// What a drive has to write or read in a second when every block is written.
const SLOWEST_BYTES_PER_SECOND: u64 = 100 << 20;

/// How the data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Erase {
    Sanitize {
        action: Action,
        /// NDAS: read back what the media hold, not what deallocated blocks read as.
        without_deallocation: bool,
    },
    Format {
        /// SES.
        secure: u8,
        scope: FormatScope,
    },
    Overwrite,
}

/// What one Format reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FormatScope {
    /// One namespace at a time.
    Each,
    /// All, whichever is named.
    All {
        /// Whether the broadcast id may be named.
        broadcast: bool,
    },
}

impl FormatScope {
    /// The ids to name, out of those that there are.
    pub(crate) fn targets(self, ids: &[u32]) -> Vec<u32> {
        match self {
            Self::Each => ids.to_vec(),
            Self::All { broadcast: true } => vec![ALL_NAMESPACES],
            Self::All { broadcast: false } => ids.first().copied().into_iter().collect(),
        }
    }
}

/// The first of the policy's methods that the drive has.
pub(crate) fn choose(
    controller: &ControllerIdentity,
    policy: &WipePolicy,
) -> Result<(WipeMethod, Erase), WipeError> {
    if controller.is_shared() {
        return Err(WipeError::Shared {
            cmic: controller.sharing,
        });
    }
    let of_policy = policy.methods.iter().copied();
    of_policy
        .filter_map(|method| erase(controller, method).map(|erase| (method, erase)))
        .next()
        .ok_or_else(|| WipeError::NoMethod {
            has: methods(controller),
        })
}

/// How the drive does a method, if it has it.
pub(crate) fn erase(controller: &ControllerIdentity, method: WipeMethod) -> Option<Erase> {
    let capabilities = controller.sanitize;
    let bit = |bit: u32| capabilities & 1 << bit != 0;
    // NDAS is worth something only if it is not inhibited (NDI) and the drive makes the media readable
    // after it has erased them (NODMMAS 10b).
    let without_deallocation = !bit(29) && capabilities >> 30 == 2;
    let sanitize = |action| Erase::Sanitize {
        action,
        without_deallocation,
    };
    let attributes = controller.format_attributes;
    let scope = if attributes & 1 << 1 != 0 {
        FormatScope::All {
            broadcast: attributes & 1 << 3 == 0,
        }
    } else {
        FormatScope::Each
    };
    let format = |secure| Erase::Format { secure, scope };
    let has_format = controller.has_format();
    match method {
        WipeMethod::NvmeSanitizeCrypto => bit(0).then(|| sanitize(Action::Crypto)),
        WipeMethod::NvmeSanitizeBlock => bit(1).then(|| sanitize(Action::Block)),
        WipeMethod::NvmeSanitizeOverwrite => bit(2).then(|| sanitize(Action::Overwrite)),
        WipeMethod::NvmeFormatCrypto => (has_format && attributes & 1 << 2 != 0).then(|| format(2)),
        WipeMethod::NvmeFormatUserData => has_format.then(|| format(1)),
        WipeMethod::NvmeOverwrite => Some(Erase::Overwrite),
        WipeMethod::MemoryOverwrite | WipeMethod::Reset => None,
    }
}

fn methods(controller: &ControllerIdentity) -> String {
    let all = [
        (WipeMethod::NvmeSanitizeCrypto, "nvme_sanitize_crypto"),
        (WipeMethod::NvmeSanitizeBlock, "nvme_sanitize_block"),
        (WipeMethod::NvmeSanitizeOverwrite, "nvme_sanitize_overwrite"),
        (WipeMethod::NvmeFormatCrypto, "nvme_format_crypto"),
        (WipeMethod::NvmeFormatUserData, "nvme_format_user_data"),
        (WipeMethod::NvmeOverwrite, "nvme_overwrite"),
    ];
    let had: Vec<_> = all
        .iter()
        .filter(|(method, _)| erase(controller, *method).is_some())
        .map(|(_, name)| *name)
        .collect();
    had.join(", ")
}

/// How long a wipe may take, by policy and by the drive's own estimate.
pub(crate) fn limit(policy: &WipePolicy, estimate: Option<Duration>) -> Duration {
    let by_policy = Duration::from_secs(policy.deadline_s);
    let by_drive = estimate.unwrap_or_default().min(LONGEST) * 3;
    by_policy.max(by_drive).min(LONGEST)
}

/// How long a wipe with this limit may stand still.
pub(crate) fn stall(limit: Duration) -> Duration {
    (limit / 8).max(STALL_AT_LEAST)
}

/// How long it should take to write and read this many bytes.
pub(crate) fn overwrite_estimate(bytes: u64) -> Duration {
    Duration::from_secs((bytes / SLOWEST_BYTES_PER_SECOND).saturating_mul(2))
}

/// `part` of `whole` in percent of the given span.
pub(crate) fn percent(part: u64, whole: u64, from: u8, to: u8) -> u8 {
    let span = u128::from(to.saturating_sub(from));
    let share = u128::from(part.min(whole)) * span / u128::from(whole.max(1));
    from.saturating_add(u8::try_from(share).unwrap_or(100))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::PAGE_BYTES;

    fn controller(set: impl FnOnce(&mut ControllerIdentity)) -> ControllerIdentity {
        let mut controller = ControllerIdentity::parse(&[0; PAGE_BYTES]);
        set(&mut controller);
        controller
    }

    #[track_caller]
    fn check(set: impl FnOnce(&mut ControllerIdentity), expected: (WipeMethod, Erase)) {
        let found = choose(&controller(set), &WipePolicy::default()).unwrap();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_first_method_of_the_policy_that_the_drive_has_is_taken() {
        let sanitize = |action, without_deallocation| Erase::Sanitize {
            action,
            without_deallocation,
        };
        check(
            |found| found.sanitize = 0b111,
            (
                WipeMethod::NvmeSanitizeCrypto,
                sanitize(Action::Crypto, false),
            ),
        );
        check(
            |found| found.sanitize = 0b10 | 2 << 30,
            (WipeMethod::NvmeSanitizeBlock, sanitize(Action::Block, true)),
        );
        check(
            |found| found.sanitize = 0b10 | 2 << 30 | 1 << 29,
            (
                WipeMethod::NvmeSanitizeBlock,
                sanitize(Action::Block, false),
            ),
        );
        let each = FormatScope::Each;
        check(
            |found| {
                found.admin_commands = 2;
                found.format_attributes = 0b100;
            },
            (
                WipeMethod::NvmeFormatCrypto,
                Erase::Format {
                    secure: 2,
                    scope: each,
                },
            ),
        );
        check(|_| {}, (WipeMethod::NvmeOverwrite, Erase::Overwrite));
    }

    #[test]
    fn a_shared_subsystem_is_refused_before_anything_else() {
        for cmic in [1, 2, 4] {
            let shared = controller(|found| found.sharing = cmic);
            let found = choose(&shared, &WipePolicy::default());
            assert!(matches!(found, Err(WipeError::Shared { .. })), "{cmic}");
        }
    }

    #[test]
    fn a_method_that_the_policy_does_not_name_is_not_taken() {
        let policy = WipePolicy {
            methods: vec![WipeMethod::NvmeSanitizeCrypto, WipeMethod::Reset],
            ..WipePolicy::default()
        };
        let found = choose(&controller(|found| found.admin_commands = 2), &policy);
        let Err(WipeError::NoMethod { has }) = found else {
            panic!("{found:?}");
        };
        assert_eq!(has, "nvme_format_user_data, nvme_overwrite");
    }

    #[test]
    fn the_scope_of_a_format_follows_fna() {
        for (fna, ids, expected) in [
            (0b0000, vec![1, 3], vec![1, 3]),
            (0b0010, vec![1, 3], vec![ALL_NAMESPACES]),
            (0b1010, vec![1, 3], vec![1]),
            (0b1010, vec![], vec![]),
        ] {
            let found = controller(|found| {
                found.admin_commands = 2;
                found.format_attributes = fna;
            });
            let Some(Erase::Format { scope, .. }) = erase(&found, WipeMethod::NvmeFormatUserData)
            else {
                panic!("no format");
            };
            assert_eq!(scope.targets(&ids), expected, "{fna:b}");
        }
    }

    #[test]
    fn an_absurd_estimate_does_not_make_a_wipe_endless() {
        let policy = WipePolicy::default();
        let seconds = |estimate| limit(&policy, estimate).as_secs();
        assert_eq!(seconds(None), 3600);
        assert_eq!(seconds(Some(Duration::from_secs(10))), 3600);
        assert_eq!(seconds(Some(Duration::from_secs(7200))), 21600);
        assert_eq!(
            seconds(Some(Duration::from_secs(u64::from(u32::MAX)))),
            72 * 3600
        );
    }

    #[test]
    fn percentages_stay_in_their_span() {
        assert_eq!(percent(0, 0, 5, 50), 5);
        assert_eq!(percent(u64::MAX, u64::MAX, 5, 50), 50);
        assert_eq!(percent(9, 4, 0, 100), 100);
    }
}
