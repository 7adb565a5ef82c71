//! Is a requested VM something that any host could run? Field by field, before anything is charged.

use std::collections::BTreeMap;

use berth_api::rest::CreateVm;
use berth_api::vmm::{MAX_MEMORY_MIB, MAX_VCPUS};

/// vCPUs unless the request says otherwise.
pub const DEFAULT_VCPUS: u32 = 1;
/// Memory unless the request says otherwise, in MiB.
pub const DEFAULT_MEMORY_MB: u64 = 512;
/// Least memory that a tenant may ask for, in MiB.
pub const MIN_MEMORY_MB: u64 = 128;
/// Largest root disk, in GiB.
pub const MAX_DISK_GB: u32 = 65_536;
const MAX_LABELS: usize = 64;
const MAX_LABEL_CHARS: usize = 128;

/// A request whose every field is within bounds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    /// The tenant's name for it, if one was given.
    pub name: Option<String>,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mb: u64,
    /// Root disk in GiB, if one was given.
    pub disk_gb: Option<u32>,
    /// Image name.
    pub image: String,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
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
    if request.name.as_deref().is_some_and(|name| !is_name(name)) {
        return Err(ShapeDenied::Field {
            field: "name",
            problem: "use 1 to 63 lower-case letters, digits and inner hyphens",
        });
    }
    if !is_image_name(&request.image) {
        return Err(ShapeDenied::Field {
            field: "image",
            problem: "name an image as GET /v1/images lists it",
        });
    }
    check_labels(&request.labels)?;
    let vcpus = request.vcpus.unwrap_or(DEFAULT_VCPUS);
    let memory_mb = request.memory_mb.unwrap_or(DEFAULT_MEMORY_MB);
    in_range("vcpus", vcpus.into(), 1, MAX_VCPUS.into(), "at least 1")?;
    in_range(
        "memory_mb",
        memory_mb,
        MIN_MEMORY_MB,
        MAX_MEMORY_MIB,
        "at least 128",
    )?;
    if let Some(disk_gb) = request.disk_gb {
        in_range(
            "disk_gb",
            disk_gb.into(),
            1,
            MAX_DISK_GB.into(),
            "at least 1",
        )?;
    }
    Ok(Shape {
        name: request.name,
        vcpus,
        memory_mb,
        disk_gb: request.disk_gb,
        image: request.image,
        labels: request.labels,
    })
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
            problem: "at most 64 labels, keys and values of at most 128 characters, no empty key",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> CreateVm {
        CreateVm {
            name: Some("web-1".to_owned()),
            vcpus: None,
            memory_mb: None,
            disk_gb: None,
            image: "debian-12".to_owned(),
            tenant_id: None,
            labels: BTreeMap::new(),
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
            ShapeDenied::TooLarge { field: found, .. } => {
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
        check(|r| r.disk_gb = Some(0), "disk_gb", false);
        check(|r| r.disk_gb = Some(u32::MAX), "disk_gb", true);
        check(|r| r.name = Some("Web".to_owned()), "name", false);
        check(|r| r.name = Some("vm_x".to_owned()), "name", false);
        check(|r| r.image = "../etc/passwd".to_owned(), "image", false);
        check(|r| r.image = String::new(), "image", false);
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
