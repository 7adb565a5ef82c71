//! Is a requested VM something that any host could run? Field by field, before anything is charged.

use std::collections::BTreeMap;

use berth_api::ids::ProjectId;
use berth_api::rest::{AntiAffinityMode, CreateVm, NumaWish, PlacementRequest, SlotRequest};
use berth_api::vmm::{MAX_MEMORY_MIB, MAX_VCPUS};

use crate::placement::{Apart, SlotWish, Wishes};
use crate::seed::{SSH_KEYS_RULE, USER_DATA_RULE, are_ssh_keys, is_user_data};
use crate::slot::{is_class_name, is_shared_device_class};

/// vCPUs unless the request says otherwise.
pub const DEFAULT_VCPUS: u32 = 1;
/// Memory unless the request says otherwise, in MiB.
pub const DEFAULT_MEMORY_MB: u64 = 512;
/// Least memory that a tenant may ask for, in MiB.
pub const MIN_MEMORY_MB: u64 = 128;
/// Largest root disk, in GiB.
pub const MAX_DISK_GB: u32 = 65_536;
/// Longest time until a VM is deleted by itself, in seconds: ten years.
pub const MAX_TTL_S: u64 = 315_360_000;
/// Most slots of one VM.
pub const MAX_SLOTS: u32 = 32;
const MAX_LABELS: usize = 64;
const MAX_LABEL_CHARS: usize = 128;
const NAME_RULE: &str = "use 1 to 63 lower-case letters, digits and inner hyphens";
const LABEL_RULE: &str =
    "at most 64 labels, keys and values of at most 128 characters, no empty key";

/// A request whose every field is within bounds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    /// The tenant's name for it, if one was given.
    pub name: Option<String>,
    /// The project that it will belong to.
    pub project: ProjectId,
    /// The size that was asked for by its name.
    pub size: Option<String>,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mb: u64,
    /// Root disk in GiB, if one was given.
    pub disk_gb: Option<u32>,
    /// Image name.
    pub image: String,
    /// Slots.
    pub slots: Vec<SlotWish>,
    /// Where it may and should go, within bounds.
    pub placement: Option<PlacementRequest>,
    /// SSH keys of its guest, if they are to be others than the tenant's own.
    pub ssh_keys: Option<Vec<String>>,
    /// User data of its guest.
    pub user_data: Option<String>,
    /// Whether each run's guest is given a token.
    pub guest_token: bool,
    /// Seconds until it is deleted, if it is to be.
    pub ttl_s: Option<u64>,
    /// Whether it is deleted once it has stopped.
    pub is_deleted_on_stop: bool,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
}

impl Shape {
    /// Where it may and should go.
    #[must_use]
    pub fn wishes(&self) -> Wishes {
        wishes_of(self.placement.as_ref())
    }
}

/// A request's words as placement takes them.
#[must_use]
pub fn wishes_of(request: Option<&PlacementRequest>) -> Wishes {
    let Some(request) = request else {
        return Wishes::default();
    };
    Wishes {
        node: request.node,
        zone: request.zone.clone(),
        labels: request.node_labels.clone(),
        apart: request.anti_affinity.as_ref().map(|asked| Apart {
            group: asked.group.clone(),
            is_required: match asked.mode {
                None | Some(AntiAffinityMode::Required) => true,
                Some(AntiAffinityMode::Preferred) => false,
            },
        }),
        is_numa_strict: match request.numa {
            Some(NumaWish::Strict) => true,
            None | Some(NumaWish::Prefer) => false,
        },
    }
}

/// Why a request is not a shape.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ShapeDenied {
    /// A field is not what it should be.
    #[error("field `{field}`: {problem}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it should be.
        problem: &'static str,
    },
    /// Well-formed, but larger than any host.
    #[error("field `{field}`: no host can run that; the most is {max}")]
    TooLarge {
        /// Which field.
        field: &'static str,
        /// The most that is possible.
        max: u64,
    },
    /// Well-formed, but nothing that berth gives.
    #[error("field `{field}`: {problem}")]
    Unsupported {
        /// Which field.
        field: &'static str,
        /// What is given instead.
        problem: &'static str,
    },
}

/// Whether a text can name a VM or an image: a DNS label.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.chars().all(|c| inner(c) || c == '-')
        && text.starts_with(inner)
        && text.ends_with(inner)
}

/// Whether a text can name an image: like a file name, without path separators.
#[must_use]
pub fn is_image_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// Check every field and fill in what was left out.
pub fn validate(request: CreateVm) -> Result<Shape, ShapeDenied> {
    validate_names(request.name.as_deref(), Some(&request.labels))?;
    if !is_image_name(&request.image) {
        return Err(ShapeDenied::Field {
            field: "image",
            problem: "name an image as GET /v1/images lists it",
        });
    }
    let project = match &request.project_id {
        None => ProjectId::default(),
        Some(text) => text.parse().map_err(|_| ShapeDenied::Field {
            field: "project_id",
            problem: "name a project as GET /v1/projects lists it",
        })?,
    };
    let vcpus = request.vcpus.unwrap_or(DEFAULT_VCPUS);
    let memory_mb = request.memory_mb.unwrap_or(DEFAULT_MEMORY_MB);
    validate_amounts(vcpus, memory_mb, request.disk_gb)?;
    validate_ttl(request.ttl_seconds)?;
    validate_seed(request.ssh_keys.as_deref(), request.user_data.as_deref())?;
    Ok(Shape {
        name: request.name,
        project,
        size: request.size,
        vcpus,
        memory_mb,
        disk_gb: request.disk_gb,
        image: request.image,
        slots: slot_wishes(request.slots)?,
        placement: placement_of(request.placement)?,
        ttl_s: request.ttl_seconds,
        is_deleted_on_stop: request.auto_delete_on_stop.unwrap_or(false),
        ssh_keys: request.ssh_keys,
        user_data: request.user_data,
        guest_token: request.guest_token,
        labels: request.labels,
    })
}

/// Check what its guest is to be given.
fn validate_seed(keys: Option<&[String]>, user_data: Option<&str>) -> Result<(), ShapeDenied> {
    if keys.is_some_and(|keys| !are_ssh_keys(keys)) {
        return Err(ShapeDenied::Field {
            field: "ssh_keys",
            problem: SSH_KEYS_RULE,
        });
    }
    if user_data.is_some_and(|text| !is_user_data(text)) {
        return Err(ShapeDenied::Field {
            field: "user_data",
            problem: USER_DATA_RULE,
        });
    }
    Ok(())
}

/// Check in how many seconds a VM is to be deleted, if it is to be.
pub fn validate_ttl(ttl_s: Option<u64>) -> Result<(), ShapeDenied> {
    match ttl_s {
        None | Some(1..=MAX_TTL_S) => Ok(()),
        Some(_) => Err(ShapeDenied::Field {
            field: "ttl_seconds",
            problem: "use 1 to 315360000, or leave it out for a VM that stays",
        }),
    }
}

/// Check whether some host could give a VM as much: memory in MiB, root disk in GiB.
pub fn validate_amounts(
    vcpus: u32,
    memory_mb: u64,
    disk_gb: Option<u32>,
) -> Result<(), ShapeDenied> {
    in_range("vcpus", vcpus.into(), 1, MAX_VCPUS.into(), "at least 1")?;
    in_range(
        "memory_mb",
        memory_mb,
        MIN_MEMORY_MB,
        MAX_MEMORY_MIB,
        "at least 128",
    )?;
    disk_gb.map_or(Ok(()), |disk_gb| {
        in_range(
            "disk_gb",
            disk_gb.into(),
            1,
            MAX_DISK_GB.into(),
            "at least 1",
        )
    })
}

/// A request that wishes for nothing is none.
fn placement_of(
    request: Option<PlacementRequest>,
) -> Result<Option<PlacementRequest>, ShapeDenied> {
    let Some(request) = request else {
        return Ok(None);
    };
    let wrong = |field, problem| Err(ShapeDenied::Field { field, problem });
    if request.zone.as_deref().is_some_and(|zone| !is_name(zone)) {
        return wrong("placement.zone", NAME_RULE);
    }
    if check_labels(&request.node_labels).is_err() {
        return wrong("placement.node_labels", LABEL_RULE);
    }
    let group = request.anti_affinity.as_ref().map(|asked| &asked.group);
    if group.is_some_and(|group| !is_name(group)) {
        return wrong("placement.anti_affinity.group", NAME_RULE);
    }
    Ok((request != PlacementRequest::default()).then_some(request))
}

fn slot_wishes(requests: Vec<SlotRequest>) -> Result<Vec<SlotWish>, ShapeDenied> {
    let mut total = 0_u32;
    let mut wishes = Vec::new();
    for request in requests {
        let wish = slot_wish(request)?;
        total = total.saturating_add(match &wish {
            SlotWish::Class { count, .. } => *count,
            SlotWish::One(_) => 1,
        });
        if wishes.contains(&wish) && matches!(wish, SlotWish::One(_)) {
            return Err(ShapeDenied::Field {
                field: "slots",
                problem: "names one slot twice",
            });
        }
        wishes.push(wish);
    }
    in_range("slots", total.into(), 0, MAX_SLOTS.into(), "")?;
    Ok(wishes)
}

fn slot_wish(request: SlotRequest) -> Result<SlotWish, ShapeDenied> {
    let wrong = |field, problem| Err(ShapeDenied::Field { field, problem });
    if request.fabric.is_some_and(|fabric| fabric != "none") {
        return Err(ShapeDenied::Unsupported {
            field: "slots.fabric",
            problem: "no fabric's isolation is verified, so none is given; leave it out",
        });
    }
    match (request.class, request.slot_id) {
        (Some(class), None) if is_shared_device_class(&class) => Err(ShapeDenied::Unsupported {
            field: "slots.class",
            problem: "slots hold whole devices; shared GPUs, MIG and vGPU are not given",
        }),
        (Some(class), None) if !is_class_name(&class) => wrong(
            "slots.class",
            "name a class as GET /v1/slot-classes lists it",
        ),
        (Some(class), None) => {
            let count = request.count.unwrap_or(1);
            in_range(
                "slots.count",
                count.into(),
                1,
                MAX_SLOTS.into(),
                "at least 1",
            )?;
            Ok(SlotWish::Class { class, count })
        }
        (None, Some(_)) if request.count.is_some_and(|count| count != 1) => {
            wrong("slots.count", "a slot_id names one slot")
        }
        (None, Some(slot_id)) => Ok(SlotWish::One(slot_id)),
        (Some(_), Some(_)) | (None, None) => wrong("slots", "give each a class or a slot_id"),
    }
}

fn in_range(
    field: &'static str,
    value: u64,
    min: u64,
    max: u64,
    problem: &'static str,
) -> Result<(), ShapeDenied> {
    if value < min {
        Err(ShapeDenied::Field { field, problem })
    } else if value > max {
        Err(ShapeDenied::TooLarge { field, max })
    } else {
        Ok(())
    }
}

/// Check what a VM is to be called from here on.
pub fn validate_names(
    name: Option<&str>,
    labels: Option<&BTreeMap<String, String>>,
) -> Result<(), ShapeDenied> {
    if name.is_some_and(|name| !is_name(name)) {
        return Err(ShapeDenied::Field {
            field: "name",
            problem: NAME_RULE,
        });
    }
    labels.map_or(Ok(()), check_labels)
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), ShapeDenied> {
    let fits = |text: &String| text.chars().count() <= MAX_LABEL_CHARS;
    let whole = labels.len() <= MAX_LABELS
        && labels
            .iter()
            .all(|(key, value)| !key.is_empty() && fits(key) && fits(value));
    if whole {
        Ok(())
    } else {
        Err(ShapeDenied::Field {
            field: "labels",
            problem: LABEL_RULE,
        })
    }
}

#[cfg(test)]
mod tests {
    use berth_api::rest::AntiAffinity;

    use super::*;

    fn request() -> CreateVm {
        CreateVm {
            name: Some("web-1".to_owned()),
            size: None,
            vcpus: None,
            memory_mb: None,
            disk_gb: None,
            image: "debian-12".to_owned(),
            tenant_id: None,
            project_id: None,
            slots: Vec::new(),
            placement: None,
            ssh_keys: None,
            user_data: None,
            guest_token: false,
            ttl_seconds: None,
            auto_delete_on_stop: None,
            labels: BTreeMap::new(),
        }
    }

    fn of_class(class: &str, count: Option<u32>) -> SlotRequest {
        SlotRequest {
            class: Some(class.to_owned()),
            count,
            ..SlotRequest::default()
        }
    }

    #[track_caller]
    fn slots(requests: &[SlotRequest], expected: &str) {
        let mut asked = request();
        asked.slots = requests.to_vec();
        let said = match validate(asked) {
            Ok(shape) => format!("{} slots", shape.slots.len()),
            Err(ShapeDenied::Field { field, .. }) => format!("bad {field}"),
            Err(ShapeDenied::TooLarge { field, .. }) => format!("large {field}"),
            Err(ShapeDenied::Unsupported { field, .. }) => format!("unsupported {field}"),
        };
        assert_eq!(said, expected);
    }

    #[test]
    fn slots_are_whole_devices_by_class_or_by_id() {
        let one = SlotRequest {
            slot_id: Some(berth_api::ids::SlotId::generate()),
            ..SlotRequest::default()
        };
        slots(&[of_class("nvme", None), one.clone()], "2 slots");
        slots(&[of_class("gpu.h100", Some(32))], "1 slots");
        slots(
            &[of_class("gpu.h100", Some(32)), one.clone()],
            "large slots",
        );
        slots(&[of_class("nvme", Some(0))], "bad slots.count");
        slots(&[of_class("nvme", Some(33))], "large slots.count");
        slots(&[of_class("NVMe", None)], "bad slots.class");
        slots(&[of_class("", None)], "bad slots.class");
        slots(&[one.clone(), one.clone()], "bad slots");
        slots(&[SlotRequest::default()], "bad slots");
        let both = SlotRequest {
            class: Some("nvme".to_owned()),
            ..one.clone()
        };
        slots(&[both], "bad slots");
        let two = SlotRequest {
            count: Some(2),
            ..one
        };
        slots(&[two], "bad slots.count");
    }

    #[test]
    fn parts_of_devices_and_fabrics_are_not_given() {
        for class in [
            "mig",
            "gpu.h100.mig-1g",
            "gpu.vgpu",
            "shared-gpu",
            "gpu_mdev",
        ] {
            slots(&[of_class(class, None)], "unsupported slots.class");
        }
        slots(&[of_class("gpu.migration", None)], "1 slots");
        for (fabric, expected) in [
            ("none", "1 slots"),
            ("required", "unsupported slots.fabric"),
            ("preferred", "unsupported slots.fabric"),
        ] {
            let asked = SlotRequest {
                fabric: Some(fabric.to_owned()),
                ..of_class("gpu.h100", None)
            };
            slots(&[asked], expected);
        }
    }

    #[test]
    fn wishes_for_a_place_are_strict_only_where_that_is_said() {
        let wishes = |asked: PlacementRequest| {
            let mut changed = request();
            changed.placement = Some(asked);
            validate(changed).unwrap()
        };
        let nothing = wishes(PlacementRequest::default());
        assert_eq!(
            (nothing.placement.as_ref(), nothing.wishes()),
            (None, Wishes::default())
        );
        for (mode, is_required) in [
            (None, true),
            (Some(AntiAffinityMode::Required), true),
            (Some(AntiAffinityMode::Preferred), false),
        ] {
            let group = "web".to_owned();
            let asked = PlacementRequest {
                anti_affinity: Some(AntiAffinity {
                    group: group.clone(),
                    mode,
                }),
                ..PlacementRequest::default()
            };
            let apart = wishes(asked).wishes().apart;
            assert_eq!(apart, Some(Apart { group, is_required }));
        }
        for (numa, is_strict) in [
            (None, false),
            (Some(NumaWish::Prefer), false),
            (Some(NumaWish::Strict), true),
        ] {
            let asked = PlacementRequest {
                numa,
                ..PlacementRequest::default()
            };
            assert_eq!(wishes(asked).wishes().is_numa_strict, is_strict);
        }
    }

    #[test]
    fn what_is_left_out_gets_its_default() {
        let shape = validate(request()).unwrap();
        assert_eq!(
            (shape.vcpus, shape.memory_mb, shape.disk_gb),
            (1, 512, None)
        );
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut CreateVm), field: &str, too_large: bool) {
        let mut changed = request();
        change(&mut changed);
        match validate(changed).unwrap_err() {
            ShapeDenied::Field { field: found, .. } => {
                assert_eq!((found, false), (field, too_large))
            }
            ShapeDenied::TooLarge { field: found, .. }
            | ShapeDenied::Unsupported { field: found, .. } => {
                assert_eq!((found, true), (field, too_large));
            }
        }
    }

    #[test]
    fn every_field_out_of_bounds_is_named() {
        check(|r| r.vcpus = Some(0), "vcpus", false);
        check(|r| r.vcpus = Some(255), "vcpus", true);
        check(|r| r.memory_mb = Some(127), "memory_mb", false);
        check(
            |r| r.memory_mb = Some(MAX_MEMORY_MIB + 1),
            "memory_mb",
            true,
        );
        check(|r| r.memory_mb = Some(u64::MAX), "memory_mb", true);
        check(|r| r.ttl_seconds = Some(0), "ttl_seconds", false);
        check(
            |r| r.ttl_seconds = Some(MAX_TTL_S + 1),
            "ttl_seconds",
            false,
        );
        check(|r| r.disk_gb = Some(0), "disk_gb", false);
        check(|r| r.disk_gb = Some(u32::MAX), "disk_gb", true);
        check(|r| r.name = Some("Web".to_owned()), "name", false);
        check(|r| r.name = Some("vm_x".to_owned()), "name", false);
        check(|r| r.image = "../etc/passwd".to_owned(), "image", false);
        check(|r| r.image = String::new(), "image", false);
        check(
            |r| r.project_id = Some("Web".to_owned()),
            "project_id",
            false,
        );
        let placed = |change: &dyn Fn(&mut PlacementRequest)| {
            let mut placement = PlacementRequest::default();
            change(&mut placement);
            Some(placement)
        };
        check(
            |r| r.placement = placed(&|p| p.zone = Some("North".to_owned())),
            "placement.zone",
            false,
        );
        check(
            |r| {
                r.placement =
                    placed(&|p| drop(p.node_labels.insert("x".to_owned(), "y".repeat(129))))
            },
            "placement.node_labels",
            false,
        );
        check(
            |r| {
                r.placement = placed(&|p| {
                    p.anti_affinity = Some(AntiAffinity {
                        group: String::new(),
                        mode: None,
                    });
                });
            },
            "placement.anti_affinity.group",
            false,
        );
        check(
            |r| drop(r.labels.insert(String::new(), "x".to_owned())),
            "labels",
            false,
        );
        check(
            |r| drop(r.labels.insert("x".to_owned(), "y".repeat(129))),
            "labels",
            false,
        );
    }
}
