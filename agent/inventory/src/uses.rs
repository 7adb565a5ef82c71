//! What the host itself does with its devices. One module for each way.

mod block;
mod console;
mod controller;
mod network;
mod vfio;

use std::collections::BTreeMap;
use std::path::Path;

use berth_agent_core::slot::snapshot::{Function, HostUse};
use berth_api::pci::PciAddress;

use crate::snapshot::ReadHostError;

/// A use and the function that it is of.
pub(crate) type Use = (PciAddress, HostUse);

/// All uses.
pub(crate) fn of_host(
    root: &Path,
    functions: &BTreeMap<PciAddress, Function>,
) -> Result<Vec<Use>, ReadHostError> {
    let mut uses = block::uses(root)?;
    uses.extend(network::uses(root, functions));
    uses.extend(console::uses(root, functions));
    uses.extend(controller::uses(functions));
    uses.extend(vfio::uses(root, functions));
    Ok(uses)
}
