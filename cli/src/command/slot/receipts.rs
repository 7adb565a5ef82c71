//! Receipts of hosts: listed, or written to files that can be checked without a controller.

use std::path::{Path, PathBuf};

use berth_api::rest::StoredReceipt;
use clap::Args;
use serde_json::Value;

use crate::failure::Failure;
use crate::session::Session;
use crate::table::{Table, optional};

/// Where receipts go.
#[derive(Args, Debug)]
pub(crate) struct ReceiptArguments {
    /// Write each receipt, as its host signed it, to RECEIPT_ID.json in this folder
    #[arg(long, value_name = "FOLDER")]
    output_dir: Option<PathBuf>,
}

/// List receipts, and write them down if that is wished for.
pub(crate) fn show(
    session: &mut Session,
    items: &[Value],
    output: &ReceiptArguments,
) -> Result<(), Failure> {
    if let Some(folder) = &output.output_dir {
        save(items, folder)?;
    }
    session.show_list(items, table)
}

fn save(items: &[Value], folder: &Path) -> Result<(), Failure> {
    let failed = |path: &Path, cause| Failure::File {
        doing: "writing",
        path: path.to_owned(),
        cause,
    };
    std::fs::create_dir_all(folder).map_err(|cause| failed(folder, cause))?;
    for item in items {
        let receipt: StoredReceipt =
            serde_json::from_value(item.clone()).map_err(|cause| Failure::Reply {
                request: "a receipt".to_owned(),
                cause,
            })?;
        // An id is letters and digits, so it cannot leave the folder.
        let path = folder.join(format!("{}.json", receipt.receipt_id));
        let text = serde_json::to_string_pretty(&receipt.envelope)
            .map_err(|cause| failed(&path, cause.into()))?;
        std::fs::write(&path, text + "\n").map_err(|cause| failed(&path, cause))?;
    }
    Ok(())
}

/// Receipts.
#[must_use]
pub(crate) fn table(receipts: &[StoredReceipt]) -> Table {
    let mut table = Table::new(&["RECEIPT", "KIND", "SLOT", "VM", "AT", "LEDGER", "HOST KEY"]);
    for receipt in receipts {
        table.row([
            receipt.receipt_id.into(),
            (&receipt.kind).into(),
            receipt.slot_id.into(),
            optional(receipt.vm_id),
            (&receipt.at).into(),
            receipt.audit_index.into(),
            (&receipt.node_public_key).into(),
        ]);
    }
    table
}
