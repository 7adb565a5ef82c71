//! Passports of slots: read from a file and checked without a controller.

use std::path::Path;

use berth_api::ids::VmId;
use berth_ledger::keys::PublicKey;
use berth_ledger::passport::{FORMAT, Passport, ShownPassage, VerifyPassportError};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::ledger::verify::log_keys;
use crate::table::{Cell, Table, Tone, optional};

/// A passport that holds.
#[derive(Debug, Serialize)]
pub(crate) struct VerifiedPassport {
    file: String,
    vm_id: VmId,
    /// The log that all of it is proved in.
    origin: String,
    size: u64,
    root: String,
    /// Whether that is by the key that the caller gave.
    pub(crate) key_is_known: bool,
    slots: Vec<ShownPassage>,
}

/// Whether a file calls itself a passport, of whatever version.
pub(crate) fn is_passport(content: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Named {
        format: String,
    }
    let kind = FORMAT.split_once('/').map_or(FORMAT, |(kind, _)| kind);
    serde_json::from_slice(content).is_ok_and(|named: Named| named.format.starts_with(kind))
}

/// Check a passport.
pub(crate) fn verify(
    file: &Path,
    content: &[u8],
    pinned: Option<&PublicKey>,
) -> Result<VerifiedPassport, Failure> {
    let wrong = |cause| Failure::Passport {
        path: file.to_owned(),
        cause,
    };
    let passport: Passport = serde_json::from_slice(content).map_err(|cause| Failure::File {
        doing: "reading",
        path: file.to_owned(),
        cause: cause.into(),
    })?;
    let keys = log_keys(&passport.checkpoint, &passport.log_keys, pinned);
    let keys = keys.map_err(|_| wrong(VerifyPassportError::Keys))?;
    let report = passport.verify(&keys).map_err(wrong)?;
    let tree = report.signed.checkpoint();
    Ok(VerifiedPassport {
        file: file.display().to_string(),
        vm_id: passport.vm_id,
        origin: tree.origin.to_string(),
        size: tree.size,
        root: tree.root.to_string(),
        key_is_known: pinned.is_some(),
        slots: report.slots,
    })
}

impl VerifiedPassport {
    /// For people.
    #[must_use]
    pub(crate) fn sentence(&self) -> String {
        let trust = if self.key_is_known {
            "the key that you gave"
        } else {
            "the file's own word; give the log's key with --log-key"
        };
        format!(
            "verified: the slots of {}\nlog: {}, size {}, root {}\nkey: {trust}",
            self.vm_id, self.origin, self.size, self.root
        )
    }
}

/// One line for each slot.
pub(crate) fn table(passports: &[VerifiedPassport]) -> Table {
    let mut table = Table::new(&[
        "VM",
        "SLOT",
        "BEFORE IT",
        "ENTRY",
        "HOST'S RECEIPT",
        "CLAIM",
        "LAUNCH",
        "HOST KEY",
    ]);
    for passport in passports {
        for slot in &passport.slots {
            let before = if slot.was_wiped {
                "wiped"
            } else {
                "never used"
            };
            let launch = slot.launch.as_ref();
            table.row([
                passport.vm_id.into(),
                slot.slot_id.into(),
                Cell::toned(before, Tone::Good),
                slot.before_index.into(),
                (&slot.receipt_sha256).into(),
                slot.claim_index.into(),
                optional(launch.map(|launch| launch.index)),
                optional(launch.map(|launch| &launch.host_key)),
            ]);
        }
    }
    table
}
