//! Receipts of slots: sign, open, and check what they say.
//!
//! A signature shows who says something; [`check`] shows whether what is said hangs together: that a
//! wipe names every device, read something of each drive and found nothing wrong. [`check_chain`]
//! looks at several receipts of one slot: nobody may have been given what was not wiped after the one
//! before. The agent asks the same questions before it believes its own wipes.

use std::collections::BTreeSet;

use berth_api::agent::SignedEnvelope;
use berth_api::ids::{NodeId, SlotId};
use berth_api::pci::PciAddress;
use berth_api::slot::{
    DeviceIdentity, DeviceKind, DeviceWipe, RECEIPT_PAYLOAD_TYPE, Receipt, SlotDevice, Statement,
    StepRecord, WipeMethod,
};

use crate::envelope::{OpenError, open, open_self_signed, seal};
use crate::keys::{PublicKey, SigningKey};

/// Steps without which no slot is handed to anybody.
const CLAIM_STEPS: [&str; 3] = ["look", "bind", "reset"];
/// Steps without which no slot is taken back.
const RELEASE_STEPS: [&str; 3] = ["locate", "vacate", "reset"];

/// Why a receipt shows nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    /// The envelope is not one, or not by the key.
    #[error("the receipt's envelope does not open")]
    Envelope(#[source] OpenError),
    /// What it says does not hang together.
    #[error("the receipt does not show what it states")]
    Statement(#[source] StatementFault),
}

/// What is wrong with a receipt's statement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementFault {
    /// The slot has no devices in it.
    #[error("it names no device")]
    NoDevices,
    /// It has to have a holder of this very slot.
    #[error("it names no holder of this slot")]
    NoHolder,
    /// A step is missing that has to be taken.
    #[error("it does not list the step `{step}`{}", of(*device))]
    MissingStep {
        /// Its name.
        step: &'static str,
        /// The device that it is missing for.
        device: Option<PciAddress>,
    },
    /// A digest that is none.
    #[error("{text:?} is not a SHA-256 in lower-case hex")]
    Digest {
        /// What is there.
        text: String,
    },
    /// A quarantine without a reason.
    #[error("it gives no reason")]
    NoReason,
    /// A wipe.
    #[error(transparent)]
    Wipe(#[from] WipeFault),
}

/// What is wrong with the wipe of a slot's devices.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WipeFault {
    /// A device of the slot was not wiped.
    #[error("the device at {path} was not wiped")]
    NotWiped {
        /// Its way from the root bus.
        path: String,
    },
    /// Something was wiped that is not the slot's, or twice.
    #[error("the wipe of {address} is of no device of the slot, or is there twice")]
    Stranger {
        /// Where.
        address: PciAddress,
    },
    /// What was wiped is not what was approved.
    #[error("the device that was wiped at {address} is not the slot's")]
    Identity {
        /// Where.
        address: PciAddress,
    },
    /// A method that does nothing for such a device.
    #[error("{method:?} does not wipe the device at {address}")]
    Method {
        /// Where.
        address: PciAddress,
        /// The method.
        method: WipeMethod,
    },
    /// Bytes were found that must not be there.
    #[error("{bytes} bytes at {address} are not as they should be after the wipe")]
    WrongBytes {
        /// Where.
        address: PciAddress,
        /// How many.
        bytes: u64,
    },
    /// Nothing was read from something that can be read, or more than there is.
    #[error("{read} of {total} bytes at {address} were read after the wipe, which shows nothing")]
    ReadBack {
        /// Where.
        address: PciAddress,
        /// Bytes that were read.
        read: u64,
        /// Bytes that there are.
        total: u64,
    },
    /// A drive did not say how it ended.
    #[error("the drive at {address} did not say how its wipe ended")]
    NoCompletion {
        /// Where.
        address: PciAddress,
    },
    /// It ended before it began.
    #[error("the wipe of {address} ended before it began")]
    Times {
        /// Where.
        address: PciAddress,
    },
}

fn of(device: Option<PciAddress>) -> String {
    device.map_or_else(String::new, |device| format!(" of {device}"))
}

/// Sign a receipt.
///
/// # Errors
/// If it does not become JSON.
pub fn seal_receipt(
    key: &SigningKey,
    receipt: &Receipt,
) -> Result<SignedEnvelope, serde_json::Error> {
    seal(key, RECEIPT_PAYLOAD_TYPE, receipt)
}

/// Open a receipt and check what it states. With `key` it must be that key's; without one, the
/// returned key is whoever signed it, and nothing is known of them.
///
/// # Errors
/// If the signature or the statement does not hold.
pub fn verify(
    envelope: &SignedEnvelope,
    key: Option<&PublicKey>,
) -> Result<(PublicKey, Receipt), ReceiptError> {
    let opened = match key {
        Some(key) => open(&[*key], RECEIPT_PAYLOAD_TYPE, envelope).map(|receipt| (*key, receipt)),
        None => open_self_signed(RECEIPT_PAYLOAD_TYPE, envelope),
    };
    let (key, receipt) = opened.map_err(ReceiptError::Envelope)?;
    check(&receipt).map_err(ReceiptError::Statement)?;
    Ok((key, receipt))
}

/// Whether a receipt's statement hangs together.
///
/// # Errors
/// The first thing that does not.
pub fn check(receipt: &Receipt) -> Result<(), StatementFault> {
    match &receipt.statement {
        Statement::Approval { approval_sha256 } => {
            has_devices(receipt)?;
            is_digest(approval_sha256)
        }
        Statement::Claim { steps } => {
            has_devices(receipt)?;
            has_holder(receipt)?;
            has_steps(receipt, steps, &CLAIM_STEPS)
        }
        Statement::Release { steps } => {
            has_devices(receipt)?;
            has_holder(receipt)?;
            has_steps(receipt, steps, &RELEASE_STEPS)
        }
        Statement::Wipe { devices } => {
            has_devices(receipt)?;
            check_wipe(&receipt.devices, devices)?;
            Ok(())
        }
        Statement::Quarantine { problem } if problem.message.trim().is_empty() => {
            Err(StatementFault::NoReason)
        }
        Statement::Quarantine { .. } => Ok(()),
    }
}

fn has_devices(receipt: &Receipt) -> Result<(), StatementFault> {
    if receipt.devices.is_empty() {
        return Err(StatementFault::NoDevices);
    }
    Ok(())
}

fn has_holder(receipt: &Receipt) -> Result<(), StatementFault> {
    match &receipt.holder {
        Some(holder) if holder.claim.slot_id == receipt.slot_id => Ok(()),
        Some(_) | None => Err(StatementFault::NoHolder),
    }
}

fn is_digest(text: &str) -> Result<(), StatementFault> {
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() == 64 && text.bytes().all(is_hex) {
        return Ok(());
    }
    Err(StatementFault::Digest {
        text: text.to_owned(),
    })
}

fn has_steps(
    receipt: &Receipt,
    steps: &[StepRecord],
    needed: &[&'static str],
) -> Result<(), StatementFault> {
    for &step in needed {
        let mut taken = steps.iter().filter(|taken| taken.step == step);
        if step != "bind" {
            if taken.next().is_none() {
                return Err(StatementFault::MissingStep { step, device: None });
            }
            continue;
        }
        let bound: BTreeSet<_> = taken.filter_map(|taken| taken.address).collect();
        for device in &receipt.devices {
            if device
                .address
                .is_none_or(|address| !bound.contains(&address))
            {
                let device = device.address;
                return Err(StatementFault::MissingStep { step, device });
            }
        }
    }
    Ok(())
}

/// Whether wipes show that nothing is left on a slot's devices.
///
/// # Errors
/// The first thing that does not hold.
pub fn check_wipe(devices: &[SlotDevice], wipes: &[DeviceWipe]) -> Result<(), WipeFault> {
    let mut left: Vec<&DeviceWipe> = wipes.iter().collect();
    for device in devices {
        let wiped = left
            .iter()
            .position(|wipe| Some(wipe.address) == device.address);
        let Some(position) = wiped else {
            let path = device.identity.path.clone();
            return Err(WipeFault::NotWiped { path });
        };
        check_device(device, left.swap_remove(position))?;
    }
    match left.first() {
        Some(stranger) => Err(WipeFault::Stranger {
            address: stranger.address,
        }),
        None => Ok(()),
    }
}

fn check_device(device: &SlotDevice, wipe: &DeviceWipe) -> Result<(), WipeFault> {
    let address = wipe.address;
    if !is_same(&device.identity, &wipe.identity) {
        return Err(WipeFault::Identity { address });
    }
    let method = wipe.method;
    if !fits(device.kind, method) {
        return Err(WipeFault::Method { address, method });
    }
    let read = &wipe.read_back;
    if read.bytes_wrong != 0 {
        let bytes = read.bytes_wrong;
        return Err(WipeFault::WrongBytes { address, bytes });
    }
    let shows_nothing = device.kind == DeviceKind::Nvme && read.bytes_read == 0;
    if shows_nothing || read.bytes_read > read.bytes_total {
        return Err(WipeFault::ReadBack {
            address,
            read: read.bytes_read,
            total: read.bytes_total,
        });
    }
    if device.kind == DeviceKind::Nvme && wipe.completion.is_empty() {
        return Err(WipeFault::NoCompletion { address });
    }
    if wipe.ended_at_ms < wipe.started_at_ms {
        return Err(WipeFault::Times { address });
    }
    Ok(())
}

/// Whether the second is the first, of which it may say more.
fn is_same(approved: &DeviceIdentity, wiped: &DeviceIdentity) -> bool {
    let without_serials = |identity: &DeviceIdentity| DeviceIdentity {
        serials: std::collections::BTreeMap::new(),
        ..identity.clone()
    };
    without_serials(approved) == without_serials(wiped)
        && approved
            .serials
            .iter()
            .all(|(kind, serial)| wiped.serials.get(kind) == Some(serial))
}

fn fits(kind: DeviceKind, method: WipeMethod) -> bool {
    match method {
        WipeMethod::NvmeSanitizeCrypto
        | WipeMethod::NvmeSanitizeBlock
        | WipeMethod::NvmeSanitizeOverwrite
        | WipeMethod::NvmeFormatCrypto
        | WipeMethod::NvmeFormatUserData
        | WipeMethod::NvmeOverwrite => kind == DeviceKind::Nvme,
        WipeMethod::MemoryOverwrite | WipeMethod::Reset => kind != DeviceKind::Nvme,
    }
}

/// What is wrong with several receipts of one slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// Two statements for one moment.
    #[error("{slot_id} has two different receipts of generation {generation}")]
    Forked {
        /// The slot.
        slot_id: SlotId,
        /// The generation.
        generation: u64,
    },
    /// It was handed on as it was.
    #[error(
        "{slot_id} was claimed in generation {generation} without a wipe after the claim before, or an approval before the first"
    )]
    NotWiped {
        /// The slot.
        slot_id: SlotId,
        /// The claim's generation.
        generation: u64,
    },
    /// A claim came after a later one.
    #[error(
        "{slot_id} was claimed in generation {generation} with epoch {epoch}, which is not above the one before"
    )]
    Stale {
        /// The slot.
        slot_id: SlotId,
        /// The claim's generation.
        generation: u64,
        /// Its epoch.
        epoch: u64,
    },
}

/// Whether each claim among these receipts, in any order and of any slots, came after a wipe since
/// the claim before, or after the first approval. Receipts that are not among them are not known of:
/// a chain that begins with a claim shows nothing for that one, and is a fault.
///
/// # Errors
/// The first claim that is not covered, or the first contradiction.
pub fn check_chain(receipts: &[Receipt]) -> Result<(), ChainFault> {
    let mut sorted: Vec<&Receipt> = receipts.iter().collect();
    sorted.sort_by_key(|receipt| (receipt.node_id, receipt.slot_id, receipt.generation));
    sorted.dedup();
    let same_slot = |a: &&Receipt, b: &&Receipt| slot_of(a) == slot_of(b);
    sorted.chunk_by(same_slot).try_for_each(check_slot)
}

fn slot_of(receipt: &Receipt) -> (NodeId, SlotId) {
    (receipt.node_id, receipt.slot_id)
}

fn check_slot(receipts: &[&Receipt]) -> Result<(), ChainFault> {
    let (mut is_clean, mut last_epoch) = (false, None);
    let mut last_generation = None;
    for receipt in receipts {
        let (slot_id, generation) = (receipt.slot_id, receipt.generation);
        // An approval that was edited is stated in the generation that stands.
        let may_repeat = matches!(receipt.statement, Statement::Approval { .. });
        if last_generation == Some(generation) && !may_repeat {
            return Err(ChainFault::Forked {
                slot_id,
                generation,
            });
        }
        last_generation = Some(generation);
        match &receipt.statement {
            Statement::Approval { .. } => is_clean |= last_epoch.is_none(),
            Statement::Wipe { .. } => is_clean = true,
            Statement::Claim { .. } => {
                if !is_clean {
                    return Err(ChainFault::NotWiped {
                        slot_id,
                        generation,
                    });
                }
                let epoch = receipt.holder.as_ref().map(|h| h.claim.fencing_epoch);
                if epoch <= last_epoch {
                    let epoch = epoch.unwrap_or(0);
                    return Err(ChainFault::Stale {
                        slot_id,
                        generation,
                        epoch,
                    });
                }
                (is_clean, last_epoch) = (false, epoch);
            }
            Statement::Release { .. } | Statement::Quarantine { .. } => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
