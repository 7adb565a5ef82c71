//! Sizes: the operator's named shapes of VMs, from `[sizes.NAME]` in the configuration.
//!
//! A size is looked up once, when a VM is asked for; what it came to is the VM's own from then on.

use std::collections::BTreeMap;

use berth_api::rest::{CreateVm, Size};
use berth_controller_core::shape::{ShapeDenied, is_name, validate_amounts};
use serde::Deserialize;

use crate::prices::{PriceError, PriceSettings};

/// What there is where the configuration says nothing: name, vCPUs, MiB of memory, GiB of root disk.
const DEFAULTS: &[(&str, u32, u64, u32)] = &[
    ("small", 1, 2048, 20),
    ("medium", 2, 4096, 40),
    ("large", 4, 8192, 80),
];

/// One `[sizes.NAME]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SizeSettings {
    vcpus: u32,
    memory_mb: u64,
    disk_gb: u32,
    price: Option<PriceSettings>,
}

/// Why the configuration's sizes are none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SizesError {
    /// Not a name.
    #[error("[sizes.{size:?}]: use 1 to 63 lower-case letters, digits and inner hyphens")]
    Name {
        /// Which.
        size: String,
    },
    /// No VM could be of it.
    #[error("no VM can be of [sizes.{size}]")]
    Amounts {
        /// Which.
        size: String,
        #[source]
        source: ShapeDenied,
    },
    /// Its price.
    #[error("the price of [sizes.{size}]")]
    Price {
        /// Of which size.
        size: String,
        #[source]
        source: PriceError,
    },
}

/// Why a request's size is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SizeDenied {
    /// There is none of that name.
    #[error("there is no size of that name; there {}", listed(known))]
    Unknown {
        /// The names that there are.
        known: Vec<String>,
    },
    /// It says what the request says as well.
    #[error("the size says that already; give one of both")]
    Twice {
        /// The other field.
        field: &'static str,
    },
}

impl SizeDenied {
    /// The request's field that is to be corrected.
    pub(crate) fn field(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "size",
            Self::Twice { field } => field,
        }
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        "are none".to_owned()
    } else {
        format!("are {}", names.join(", "))
    }
}

/// All sizes.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    by_name: BTreeMap<String, Size>,
}

impl Sizes {
    /// The sizes of the configuration, or the defaults where it has none. An empty table is no size.
    pub(crate) fn new(
        settings: Option<BTreeMap<String, SizeSettings>>,
    ) -> Result<Self, SizesError> {
        let Some(settings) = settings else {
            return Ok(Self::defaults());
        };
        let mut by_name = BTreeMap::new();
        for (name, settings) in settings {
            let size = settings.into_size(&name)?;
            by_name.insert(name, size);
        }
        Ok(Self { by_name })
    }

    fn defaults() -> Self {
        let by_name = DEFAULTS
            .iter()
            .map(|&(name, vcpus, memory_mb, disk_gb)| {
                let size = Size {
                    name: name.to_owned(),
                    vcpus,
                    memory_mb,
                    disk_gb,
                    price: None,
                };
                (name.to_owned(), size)
            })
            .collect();
        Self { by_name }
    }

    /// Sizes after a name, in the order of their names.
    pub(crate) fn after(&self, name: &str, limit: u32) -> Vec<Size> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let follows = |size: &&Size| size.name.as_str() > name;
        self.by_name
            .values()
            .filter(follows)
            .take(limit)
            .cloned()
            .collect()
    }

    /// The request with what its size stands for. A root disk of its own goes before the size's.
    pub(crate) fn fill(&self, mut request: CreateVm) -> Result<CreateVm, SizeDenied> {
        let Some(name) = &request.size else {
            return Ok(request);
        };
        let Some(size) = self.by_name.get(name) else {
            let known = self.by_name.keys().cloned().collect();
            return Err(SizeDenied::Unknown { known });
        };
        if request.vcpus.is_some() {
            return Err(SizeDenied::Twice { field: "vcpus" });
        }
        if request.memory_mb.is_some() {
            return Err(SizeDenied::Twice { field: "memory_mb" });
        }
        request.vcpus = Some(size.vcpus);
        request.memory_mb = Some(size.memory_mb);
        request.disk_gb = request.disk_gb.or(Some(size.disk_gb));
        Ok(request)
    }
}

impl SizeSettings {
    fn into_size(self, name: &str) -> Result<Size, SizesError> {
        let of = || name.to_owned();
        if !is_name(name) {
            return Err(SizesError::Name { size: of() });
        }
        validate_amounts(self.vcpus, self.memory_mb, Some(self.disk_gb))
            .map_err(|source| SizesError::Amounts { size: of(), source })?;
        let price = self
            .price
            .map(TryInto::try_into)
            .transpose()
            .map_err(|source| SizesError::Price { size: of(), source })?;
        Ok(Size {
            name: of(),
            vcpus: self.vcpus,
            memory_mb: self.memory_mb,
            disk_gb: self.disk_gb,
            price,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(body: serde_json::Value) -> CreateVm {
        serde_json::from_value(body).unwrap()
    }

    fn read(text: &str) -> Result<Sizes, SizesError> {
        Sizes::new(Some(toml::from_str(text).unwrap()))
    }

    #[test]
    fn without_settings_there_are_three_sizes_that_a_host_can_run() {
        let sizes = Sizes::new(None).unwrap();
        let names: Vec<String> = sizes.after("", 9).into_iter().map(|s| s.name).collect();
        assert_eq!(names, ["large", "medium", "small"]);
        for size in sizes.after("", 9) {
            validate_amounts(size.vcpus, size.memory_mb, Some(size.disk_gb)).unwrap();
        }
        assert_eq!(sizes.after("medium", 9).len(), 1);
        assert_eq!(sizes.after("", 2).len(), 2);
        assert!(read("").unwrap().after("", 9).is_empty());
    }

    #[test]
    fn a_size_fills_in_what_the_request_leaves_out() {
        let sizes = read("[tiny]\nvcpus = 2\nmemory_mb = 256\ndisk_gb = 5\n").unwrap();
        let amounts = |body| {
            let filled = sizes.fill(request(body))?;
            Ok((filled.vcpus, filled.memory_mb, filled.disk_gb))
        };
        let image = "debian-12";
        assert_eq!(
            amounts(serde_json::json!({ "image": image, "size": "tiny" })),
            Ok((Some(2), Some(256), Some(5)))
        );
        assert_eq!(
            amounts(serde_json::json!({ "image": image, "size": "tiny", "disk_gb": 30 })),
            Ok((Some(2), Some(256), Some(30)))
        );
        assert_eq!(
            amounts(serde_json::json!({ "image": image, "vcpus": 3 })),
            Ok((Some(3), None, None))
        );
        for field in ["vcpus", "memory_mb"] {
            let twice = serde_json::json!({ "image": image, "size": "tiny", field: 512 });
            assert_eq!(amounts(twice), Err(SizeDenied::Twice { field }));
        }
        let unknown = amounts(serde_json::json!({ "image": image, "size": "Tiny" })).unwrap_err();
        assert_eq!(unknown.field(), "size");
        assert!(unknown.to_string().ends_with("are tiny"), "{unknown}");
    }

    #[test]
    fn sizes_that_cannot_be_are_refused_at_the_start() {
        let name = read("[XL]\nvcpus = 2\nmemory_mb = 256\ndisk_gb = 5\n").unwrap_err();
        assert!(matches!(name, SizesError::Name { .. }), "{name}");
        let none = read("[none]\nvcpus = 0\nmemory_mb = 256\ndisk_gb = 5\n").unwrap_err();
        assert!(matches!(none, SizesError::Amounts { .. }), "{none}");
        let price = "price = { amount = \"-1\", currency = \"EUR\", per = \"hour\" }";
        let paid = format!("[odd]\nvcpus = 1\nmemory_mb = 256\ndisk_gb = 5\n{price}\n");
        let odd = read(&paid).unwrap_err();
        assert!(matches!(odd, SizesError::Price { .. }), "{odd}");
        let typo = "[odd]\nvcpus = 1\nmemory = 256\ndisk_gb = 5\n";
        toml::from_str::<BTreeMap<String, SizeSettings>>(typo).unwrap_err();
    }
}
