//! What the controller thinks of a slot: whether it can be claimed, how it is shown, and when a claim
//! is over.
//!
//! The host alone moves a slot through its life; the controller adds an operator's admission and
//! quarantine, and keeps a claim until the host has proved the wipe that ends it. The store calls this
//! with what it has stored; placement chooses among slots without an [`Obstacle`].

use berth_api::slot::{
    Claim, ObservedSlot, Receipt, SlotDevice, SlotHolder, SlotProblemCode, SlotState, Statement,
};

/// Longest name of a slot or class, in bytes.
const MAX_NAME_BYTES: usize = 64;
/// Most devices of one slot.
const MAX_DEVICES: usize = 64;
/// Most serials of one device.
const MAX_SERIALS: usize = 8;
/// Longest text of a device's identity, in bytes.
const MAX_TEXT_BYTES: usize = 256;
/// Largest generation or fencing epoch that is believed. No honest host counts that far, and every
/// database stores it.
pub const MAX_COUNT: u64 = 1 << 53;

/// Words by which a part of a device would be asked for.
const SHARED_DEVICE_WORDS: &[&str] = &[
    "mig",
    "vgpu",
    "mdev",
    "shared",
    "share",
    "sharing",
    "fraction",
    "timeslice",
    "mig_profile",
    "vgpu_type",
    "gpu_fraction",
];

/// Whether a word asks for a part of a device, which no slot is.
#[must_use]
pub fn is_shared_device_word(word: &str) -> bool {
    SHARED_DEVICE_WORDS.contains(&word)
}

/// Whether a class asks for a part of a device: one of its words does.
#[must_use]
pub fn is_shared_device_class(class: &str) -> bool {
    class.split(['.', '-', '_']).any(is_shared_device_word)
}

/// Whether a text can name a slot or a class: a lower-case letter or digit first, then those, `.`, `-`
/// and `_`. Hosts name their slots by the same rule.
#[must_use]
pub fn is_class_name(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=MAX_NAME_BYTES).contains(&text.len())
        && text
            .chars()
            .all(|c| inner(c) || matches!(c, '.' | '-' | '_'))
        && text.starts_with(inner)
}

/// Whether a report can be stored: its names are names, its counts are counts, and it is no longer than
/// an honest host's.
#[must_use]
pub fn is_believable(slot: &ObservedSlot) -> bool {
    let holder_fits = slot
        .holder
        .as_ref()
        .is_none_or(|holder| holder.claim.slot_id == slot.slot_id);
    is_class_name(&slot.class)
        && is_class_name(&slot.name)
        && slot.generation <= MAX_COUNT
        && slot.fencing_epoch <= MAX_COUNT
        && slot.progress_percent.is_none_or(|percent| percent <= 100)
        && slot.devices.len() <= MAX_DEVICES
        && slot.devices.iter().all(is_short)
        && holder_fits
}

fn is_short(device: &SlotDevice) -> bool {
    let identity = &device.identity;
    identity.path.len() <= MAX_TEXT_BYTES
        && identity.serials.len() <= MAX_SERIALS
        && identity
            .serials
            .iter()
            .all(|(kind, serial)| kind.len() <= MAX_TEXT_BYTES && serial.len() <= MAX_TEXT_BYTES)
}

/// An operator's admission of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// Nobody has admitted it.
    None,
    /// It is as it was admitted.
    Holds,
    /// Its class or its devices are others than those that were admitted.
    Void,
}

/// What is stored of a slot, as far as it counts here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, each a column"
)]
pub struct SlotFacts {
    /// Where it stands by its host's word.
    pub host_state: SlotState,
    /// What its host says is wrong.
    pub problem: Option<SlotProblemCode>,
    /// Whether its host's last report had it.
    pub is_reported: bool,
    /// The operator's admission.
    pub admission: Admission,
    /// Whether the controller has it in quarantine.
    pub is_quarantined: bool,
    /// Whether it has to be wiped before anybody gets it, or an order to its host is unanswered.
    pub awaits_wipe: bool,
    /// Whether a claim of it is not over.
    pub is_claimed: bool,
    /// Whether the VM of that claim is gone.
    pub is_vm_gone: bool,
}

/// Why a slot cannot be claimed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Obstacle {
    /// Out of use for good.
    Retired,
    /// Somebody has it.
    Claimed,
    /// Being taken back and wiped.
    Wiping,
    /// Nobody gets it until an operator decides.
    Quarantined,
    /// Its host does not isolate it.
    IommuGroupUnsafe,
    /// Its devices are not those that were approved or admitted.
    DeviceIdentityChanged,
    /// Not approved on its host.
    Unapproved,
    /// Not admitted by an operator.
    NotAdmitted,
    /// Its host does not speak of it any more.
    Missing,
}

impl Obstacle {
    /// The word in reasons and in a slot's record.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Retired => "retired",
            Self::Claimed => "claimed",
            Self::Wiping => "wiping",
            Self::Quarantined => "quarantined",
            Self::IommuGroupUnsafe => "iommu_group_unsafe",
            Self::DeviceIdentityChanged => "device_identity_changed",
            Self::Unapproved => "unapproved",
            Self::NotAdmitted => "not_admitted",
            Self::Missing => "missing",
        }
    }
}

impl SlotFacts {
    /// Why it cannot be claimed; `None` if it can.
    #[must_use]
    pub fn obstacle(&self) -> Option<Obstacle> {
        let unless_named = |otherwise| Some(named(self.problem).unwrap_or(otherwise));
        match self.host_state {
            SlotState::Retired => return Some(Obstacle::Retired),
            SlotState::Quarantined => return unless_named(Obstacle::Quarantined),
            _ if self.is_quarantined => return Some(Obstacle::Quarantined),
            SlotState::Discovered | SlotState::Unapproved => {
                return unless_named(Obstacle::Unapproved);
            }
            SlotState::Releasing | SlotState::Wiping | SlotState::Verifying => {
                return Some(Obstacle::Wiping);
            }
            SlotState::Claimed | SlotState::InUse => return Some(Obstacle::Claimed),
            SlotState::Free => {}
        }
        if self.is_claimed {
            let obstacle = if self.is_vm_gone {
                Obstacle::Wiping
            } else {
                Obstacle::Claimed
            };
            return Some(obstacle);
        }
        if self.awaits_wipe {
            return Some(Obstacle::Wiping);
        }
        if !self.is_reported {
            return Some(Obstacle::Missing);
        }
        if self.problem.is_some() {
            return unless_named(Obstacle::Quarantined);
        }
        match self.admission {
            Admission::None => Some(Obstacle::NotAdmitted),
            Admission::Void => Some(Obstacle::DeviceIdentityChanged),
            Admission::Holds => None,
        }
    }

    /// Where it stands, all considered.
    #[must_use]
    pub fn shown_state(&self) -> SlotState {
        if self.is_quarantined && self.host_state != SlotState::Retired {
            return SlotState::Quarantined;
        }
        if self.host_state != SlotState::Free {
            return self.host_state;
        }
        match self.obstacle() {
            None | Some(Obstacle::Missing) => SlotState::Free,
            Some(Obstacle::Claimed) => SlotState::Claimed,
            Some(Obstacle::Wiping) if self.is_claimed => SlotState::Releasing,
            Some(Obstacle::Wiping) => SlotState::Wiping,
            Some(Obstacle::NotAdmitted | Obstacle::Unapproved) => SlotState::Unapproved,
            Some(
                Obstacle::Quarantined
                | Obstacle::IommuGroupUnsafe
                | Obstacle::DeviceIdentityChanged,
            ) => SlotState::Quarantined,
            Some(Obstacle::Retired) => SlotState::Retired,
        }
    }
}

/// The problems that a tenant is told by name.
fn named(problem: Option<SlotProblemCode>) -> Option<Obstacle> {
    let told = [
        (
            SlotProblemCode::IommuGroupUnsafe,
            Obstacle::IommuGroupUnsafe,
        ),
        (
            SlotProblemCode::DeviceIdentityChanged,
            Obstacle::DeviceIdentityChanged,
        ),
        (SlotProblemCode::SlotNotApproved, Obstacle::Unapproved),
    ];
    let problem = problem?;
    told.into_iter()
        .find_map(|(code, obstacle)| (code == problem).then_some(obstacle))
}

/// A claim that is not over, as far as it counts here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LiveClaim {
    /// Who has it, for which VM and tenant.
    pub holder: SlotHolder,
    /// The slot's generation when its host was first seen to know the claim.
    pub seen_generation: Option<u64>,
    /// Whether a receipt has proved a wipe after it.
    pub is_wipe_proved: bool,
    /// Whether its VM is gone.
    pub is_vm_gone: bool,
}

impl LiveClaim {
    fn claim(&self) -> &Claim {
        &self.holder.claim
    }

    /// Whether a receipt, whose statement was checked, is of a wipe after this claim: it names the
    /// claim, or was written after the host was seen to know it.
    #[must_use]
    pub fn is_wiped_by(&self, receipt: &Receipt) -> bool {
        let names_it = receipt
            .holder
            .as_ref()
            .is_some_and(|holder| *holder == self.holder);
        let is_later = self
            .seen_generation
            .is_some_and(|seen| receipt.generation > seen);
        let is_wipe = matches!(receipt.statement, Statement::Wipe { .. });
        receipt.slot_id == self.claim().slot_id && is_wipe && (names_it || is_later)
    }

    /// What a report of the slot means for the claim.
    #[must_use]
    pub fn judge(&self, host_state: SlotState, host_epoch: u64) -> ClaimStep {
        let has_reached_host =
            self.seen_generation.is_some() || host_epoch >= self.claim().fencing_epoch;
        match host_state {
            SlotState::Free if self.is_wipe_proved => ClaimStep::EndProved,
            SlotState::Free if !self.is_vm_gone => ClaimStep::Keep,
            // Its order was withdrawn before the host heard of it, so nobody ever had the devices.
            SlotState::Free if !has_reached_host => ClaimStep::EndUnheard,
            SlotState::Free => ClaimStep::OrderWipe,
            SlotState::Discovered
            | SlotState::Unapproved
            | SlotState::Claimed
            | SlotState::InUse
            | SlotState::Releasing
            | SlotState::Wiping
            | SlotState::Verifying
            | SlotState::Quarantined
            | SlotState::Retired => ClaimStep::Keep,
        }
    }
}

/// What becomes of a claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClaimStep {
    /// It stays.
    Keep,
    /// Over: the slot is free and its wipe is proved.
    EndProved,
    /// Over: its host never heard of it.
    EndUnheard,
    /// Its VM is gone and the slot is free without a proof: have it wiped.
    OrderWipe,
}

/// Whether a host says that somebody has the slot who should not: another than the claim's holder.
#[must_use]
pub fn is_held_by_stranger(
    host_state: SlotState,
    holder: Option<&SlotHolder>,
    claim: Option<&LiveClaim>,
) -> bool {
    match host_state {
        SlotState::Claimed | SlotState::InUse => {
            holder.is_none() || holder != claim.map(|claim| &claim.holder)
        }
        SlotState::Discovered
        | SlotState::Unapproved
        | SlotState::Free
        | SlotState::Releasing
        | SlotState::Wiping
        | SlotState::Verifying
        | SlotState::Quarantined
        | SlotState::Retired => false,
    }
}

/// Whether a report may take the place of what is stored. An older one may only close the slot, as a
/// host does that has lost its record.
#[must_use]
pub fn is_newer(stored_generation: u64, report: &ObservedSlot) -> bool {
    report.generation >= stored_generation || report.state == SlotState::Quarantined
}

#[cfg(test)]
mod tests;
