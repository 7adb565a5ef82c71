//! How alive a node looks, from the age of its last word. A label only: silence proves nothing.

use berth_api::rest::VmState;

/// After this long without a word a node is `suspect`, in milliseconds.
pub const SUSPECT_AFTER_MS: i64 = 30_000;
/// After this long without a word a node is `unreachable`, in milliseconds.
pub const UNREACHABLE_AFTER_MS: i64 = 90_000;

/// How alive a node looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Liveness {
    /// It spoke just now.
    Online,
    /// It should have spoken.
    Suspect,
    /// It has been silent for long, or never spoke.
    Unreachable,
}

impl Liveness {
    /// Judge by the last sync, both in milliseconds since the epoch.
    #[must_use]
    pub fn judge(last_sync_ms: Option<i64>, now_ms: i64) -> Self {
        match last_sync_ms.map(|last| now_ms.saturating_sub(last)) {
            None => Self::Unreachable,
            Some(age) if age >= UNREACHABLE_AFTER_MS => Self::Unreachable,
            Some(age) if age >= SUSPECT_AFTER_MS => Self::Suspect,
            Some(_) => Self::Online,
        }
    }

    /// The label as clients see it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Suspect => "suspect",
            Self::Unreachable => "unreachable",
        }
    }
}

/// The state that a tenant is shown: what the VM does cannot be known while its node is silent.
#[must_use]
pub fn shown_state(stored: VmState, node: Option<Liveness>) -> VmState {
    let hidden = matches!(
        stored,
        VmState::Running | VmState::Starting | VmState::Stopping
    );
    if hidden && node == Some(Liveness::Unreachable) {
        VmState::Unreachable
    } else {
        stored
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_labelled_by_its_length() {
        for (age, expected) in [
            (0, Liveness::Online),
            (29_999, Liveness::Online),
            (30_000, Liveness::Suspect),
            (89_999, Liveness::Suspect),
            (90_000, Liveness::Unreachable),
        ] {
            assert_eq!(Liveness::judge(Some(1_000), 1_000 + age), expected, "{age}");
        }
        assert_eq!(Liveness::judge(None, 0), Liveness::Unreachable);
    }

    #[test]
    fn a_silent_node_hides_only_what_may_have_changed() {
        let silent = Some(Liveness::Unreachable);
        assert_eq!(shown_state(VmState::Running, silent), VmState::Unreachable);
        assert_eq!(shown_state(VmState::Stopped, silent), VmState::Stopped);
        assert_eq!(
            shown_state(VmState::Running, Some(Liveness::Suspect)),
            VmState::Running
        );
        assert_eq!(shown_state(VmState::Running, None), VmState::Running);
    }
}
