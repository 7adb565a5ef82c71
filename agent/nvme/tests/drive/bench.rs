//! A modelled drive that a tenant has filled, and one call to wipe it.

use std::collections::BTreeMap;

use berth_agent_core::slot::wipe::{WipePolicy, WipeRun};
use berth_api::slot::WipeMethod;
use berth_nvme::drive::Drive;
use berth_nvme::model::Model;
use berth_nvme::model::script::{NewNamespace, Script};
use berth_nvme::suite::Notes;
use berth_nvme::wipe::{NvmeWipe, WipeOrder, wipe};
use berth_nvme::wipe_error::WipeError;

/// What the tenant wrote.
pub(crate) const PATTERN: &[u8] = b"a tenant's secret";

/// All methods of drives.
pub(crate) const METHODS: [WipeMethod; 6] = [
    WipeMethod::NvmeSanitizeCrypto,
    WipeMethod::NvmeSanitizeBlock,
    WipeMethod::NvmeSanitizeOverwrite,
    WipeMethod::NvmeFormatCrypto,
    WipeMethod::NvmeFormatUserData,
    WipeMethod::NvmeOverwrite,
];

/// A drive full of the tenant's pattern.
pub(crate) fn filled(script: Script) -> Model {
    let mut model = Model::new(script);
    model.media.fill(PATTERN);
    model
}

/// An honest drive with one namespace of so many blocks of 4 KiB.
pub(crate) fn small(blocks: u64) -> Script {
    Script {
        namespaces: vec![NewNamespace {
            blocks,
            format: 1,
            is_extended: false,
        }],
        capacity_bytes: blocks * 4096,
        ..Script::default()
    }
}

/// A policy of these methods.
pub(crate) fn policy(methods: &[WipeMethod]) -> WipePolicy {
    WipePolicy {
        methods: methods.to_vec(),
        sample_blocks: 64,
        deadline_s: 600,
    }
}

/// How a wipe is called.
#[derive(Debug, Default, Clone)]
pub(crate) struct Call {
    pub(crate) approved: BTreeMap<String, String>,
    pub(crate) earlier: Option<WipeRun>,
}

impl Call {
    pub(crate) fn approving(layout: &str) -> Self {
        Self {
            approved: [("nvme_namespaces".to_owned(), layout.to_owned())].into(),
            earlier: None,
        }
    }

    pub(crate) fn after(earlier: Option<WipeRun>) -> Self {
        Self {
            approved: BTreeMap::new(),
            earlier,
        }
    }

    pub(crate) fn make(
        &self,
        model: &mut Model,
        policy: &WipePolicy,
        notes: &mut Notes,
    ) -> Result<NvmeWipe, WipeError> {
        let mut drive = Drive::open(model)?;
        let order = WipeOrder {
            policy,
            approved: &self.approved,
            earlier: self.earlier.as_ref(),
            seed: 0x1234_5678,
            started_at_ms: 1_700_000_000_000,
        };
        wipe(&mut drive, &order, notes)
    }
}

/// Wipe by one method.
pub(crate) fn wipe_by(model: &mut Model, method: WipeMethod) -> Result<NvmeWipe, WipeError> {
    Call::default().make(model, &policy(&[method]), &mut Notes::default())
}
