//! The host's own policy file: what a VM may be here, whatever a controller says.
//!
//! Reads text and a file's owner and mode; opens no file. A policy that anybody but root can write
//! is no policy and is refused.

use std::collections::BTreeSet;

use berth_api::agent::VmSpec;
use berth_api::slot::Claim;
use berth_api::vmm::{MAX_MEMORY_MIB, MAX_PASSTHROUGH, MAX_VCPUS, MIN_MEMORY_MIB};
use serde::Deserialize;

use crate::image_name::ImageName;

/// Mode bits that let somebody else than the owner write.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// Largest root disk where the policy names none, in MiB: 16 TiB, the limit of ext4.
const DEFAULT_MAX_DISK_MIB: u64 = 16 * 1024 * 1024;
/// Longest VM name, in bytes.
const MAX_NAME_BYTES: usize = 63;

/// Limits of one host, per VM.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Most vCPUs.
    pub max_vcpus: u32,
    /// Most memory, in MiB.
    pub max_memory_mib: u64,
    /// Largest root disk, in MiB.
    pub max_disk_mib: u64,
    /// The images that may be started; all where absent.
    pub allowed_images: Option<BTreeSet<String>>,
    /// Most slots. Which slots there are is said by the approvals alone.
    pub max_slots: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            max_vcpus: MAX_VCPUS,
            max_memory_mib: MAX_MEMORY_MIB,
            max_disk_mib: DEFAULT_MAX_DISK_MIB,
            allowed_images: None,
            max_slots: u32::try_from(MAX_PASSTHROUGH).unwrap_or(u32::MAX),
        }
    }
}

/// Why a policy file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReadPolicyError {
    /// Another user could have written it.
    #[error(
        "the policy file belongs to user {uid} and has mode {mode:o}: only its owner, who must be root, may be able to write it"
    )]
    WritableByOthers {
        /// Its owner.
        uid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// It is not a policy.
    #[error("the policy file is not valid")]
    Invalid(#[source] toml::de::Error),
}

/// Why a specification is outside the policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyDenied {
    /// A size outside its limits.
    #[error("{field} is {value}, this host allows {least} to {most}")]
    Size {
        /// The specification's field.
        field: &'static str,
        /// What it says.
        value: u64,
        /// The least that is allowed.
        least: u64,
        /// The most that is allowed.
        most: u64,
    },
    /// The image's name is not one.
    #[error("image {image:?} is not a name that an image can have")]
    ImageName {
        /// What it says.
        image: String,
    },
    /// The image is not on the list.
    #[error("image {image} is not in this host's allowed_images")]
    Image {
        /// Its name.
        image: String,
    },
    /// One slot is claimed twice.
    #[error("claims names a slot twice")]
    SlotTwice,
    /// The VM's name is too long or not printable.
    #[error("name has 1 to 63 printable ASCII characters")]
    Name,
}

impl Policy {
    /// Read a policy from its file's text, owner and permission bits. `trusted_uid` is who may own
    /// it: root, or the user that a test runs as.
    pub fn read(
        text: &str,
        uid: u32,
        mode: u32,
        trusted_uid: u32,
    ) -> Result<Self, ReadPolicyError> {
        if uid != trusted_uid || mode & WRITABLE_BY_OTHERS != 0 {
            return Err(ReadPolicyError::WritableByOthers {
                uid,
                mode: mode & 0o7777,
            });
        }
        toml::from_str(text).map_err(ReadPolicyError::Invalid)
    }

    /// Whether a VM may be made here.
    pub fn check(&self, spec: &VmSpec) -> Result<(), PolicyDenied> {
        let within = |field, value, least, most| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(PolicyDenied::Size {
                    field,
                    value,
                    least,
                    most,
                })
            }
        };
        let printable = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
        if !(1..=MAX_NAME_BYTES).contains(&spec.name.len()) || !printable(&spec.name) {
            return Err(PolicyDenied::Name);
        }
        within(
            "vcpus",
            spec.vcpus.into(),
            1,
            self.max_vcpus.min(MAX_VCPUS).into(),
        )?;
        within(
            "memory_mib",
            spec.memory_mib,
            MIN_MEMORY_MIB,
            self.max_memory_mib.min(MAX_MEMORY_MIB),
        )?;
        within("disk_mib", spec.disk_mib, 1, self.max_disk_mib)?;
        self.check_image(&spec.image)
    }

    /// Whether a VM may have so many slots, each of them once.
    pub fn check_claims(&self, claims: &[Claim]) -> Result<(), PolicyDenied> {
        let slots: BTreeSet<_> = claims.iter().map(|claim| claim.slot_id).collect();
        let count = u64::try_from(claims.len()).unwrap_or(u64::MAX);
        if slots.len() != claims.len() {
            return Err(PolicyDenied::SlotTwice);
        }
        if count > self.max_slots.into() {
            return Err(PolicyDenied::Size {
                field: "claims",
                value: count,
                least: 0,
                most: self.max_slots.into(),
            });
        }
        Ok(())
    }

    fn check_image(&self, image: &str) -> Result<(), PolicyDenied> {
        let image = image.to_owned();
        if image.parse::<ImageName>().is_err() {
            return Err(PolicyDenied::ImageName { image });
        }
        match &self.allowed_images {
            Some(allowed) if !allowed.contains(&image) => Err(PolicyDenied::Image { image }),
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_api::ids::{ClaimId, SlotId};

    fn spec() -> VmSpec {
        VmSpec {
            name: "web".to_owned(),
            vcpus: 2,
            memory_mib: 512,
            disk_mib: 4096,
            image: "debian-12".to_owned(),
        }
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(
            Policy::read("", 0, 0o100_644, 0).unwrap(),
            Policy::default()
        );
    }

    #[test]
    fn a_file_that_others_can_write_is_refused() {
        for (uid, mode) in [(0, 0o664), (0, 0o646), (1000, 0o644)] {
            assert!(
                matches!(
                    Policy::read("", uid, mode, 0),
                    Err(ReadPolicyError::WritableByOthers { .. })
                ),
                "{uid} {mode:o}"
            );
        }
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(matches!(
            Policy::read("max_cpus = 3", 0, 0o644, 0),
            Err(ReadPolicyError::Invalid(_))
        ));
    }

    #[track_caller]
    fn denied(policy: &str, change: impl FnOnce(&mut VmSpec), message: &str) {
        let policy = Policy::read(policy, 0, 0o600, 0).unwrap();
        let mut spec = spec();
        change(&mut spec);
        assert_eq!(policy.check(&spec).unwrap_err().to_string(), message);
    }

    #[test]
    fn each_limit_names_field_value_and_range() {
        denied(
            "max_vcpus = 1",
            |_| {},
            "vcpus is 2, this host allows 1 to 1",
        );
        denied(
            "",
            |spec| spec.vcpus = 0,
            "vcpus is 0, this host allows 1 to 254",
        );
        denied(
            "max_memory_mib = 256",
            |_| {},
            "memory_mib is 512, this host allows 32 to 256",
        );
        denied(
            "max_disk_mib = 1024",
            |_| {},
            "disk_mib is 4096, this host allows 1 to 1024",
        );
        denied(
            "allowed_images = [\"alpine\"]",
            |_| {},
            "image debian-12 is not in this host's allowed_images",
        );
        denied(
            "",
            |spec| spec.image = "../etc".to_owned(),
            "image \"../etc\" is not a name that an image can have",
        );
        denied(
            "",
            |spec| spec.name = "a\nb".to_owned(),
            "name has 1 to 63 printable ASCII characters",
        );
    }

    #[test]
    fn claims_are_counted_and_differ() {
        let claim = || Claim {
            slot_id: SlotId::generate(),
            claim_id: ClaimId::generate(),
            fencing_epoch: 1,
        };
        let policy = Policy::read("max_slots = 1", 0, 0o600, 0).unwrap();
        assert_eq!(policy.check_claims(&[]), Ok(()));
        assert_eq!(policy.check_claims(&[claim()]), Ok(()));
        let two = policy.check_claims(&[claim(), claim()]).unwrap_err();
        assert_eq!(two.to_string(), "claims is 2, this host allows 0 to 1");
        let one = claim();
        assert_eq!(
            Policy::default().check_claims(&[one.clone(), one]),
            Err(PolicyDenied::SlotTwice)
        );
    }

    #[test]
    fn what_fits_is_allowed() {
        let policy = Policy::read(
            "max_vcpus = 2\nmax_memory_mib = 512\nmax_disk_mib = 4096\nallowed_images = [\"debian-12\"]",
            0,
            0o600,
            0,
        );
        assert_eq!(policy.unwrap().check(&spec()), Ok(()));
    }
}
