//! `berthctl receipt`: what a host stated about its slots, and what a log shows of them, checked here and
//! without a controller.

use std::path::{Path, PathBuf};

use berth_api::agent::SignedEnvelope;
use berth_api::slot::{Receipt, Statement};
use berth_ledger::keys::PublicKey;
use berth_ledger::receipt::{check_chain, verify};
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::failure::Failure;
use crate::ledger::passport::{self, is_passport};
use crate::ledger::verify::parse_key;
use crate::screen::Screen;
use crate::table::{Cell, Table, Tone, optional};

/// Longest file that is read.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// What can be done with receipts.
#[derive(Subcommand, Debug)]
pub(crate) enum ReceiptCommand {
    /// Check that receipts are signed, and that they show what they state; or passports of slots
    ///
    /// A wipe has to name every device of its slot, to have read something of each drive, and to have
    /// found nothing that should not be there. Of several receipts of one slot each claim has to come
    /// after a wipe since the claim before it, or after the first approval. A passport, as `vm passport`
    /// writes it, has to show for each slot the wipe after its last tenant. Nothing is asked of a
    /// controller.
    Verify {
        /// Files with one receipt or passport each, all of the same kind
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        #[command(flatten)]
        key: NodeKey,
        /// The log's public key, for passports; else the file's own word is taken
        #[arg(long, value_name = "BASE64", conflicts_with_all = ["key", "node_key"])]
        log_key: Option<String>,
    },
    /// Show what a receipt says
    Show {
        /// A file with one receipt
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        key: NodeKey,
    },
}

/// The key of the host that is trusted.
#[derive(Args, Debug)]
pub(crate) struct NodeKey {
    /// The host's public key; else nothing is known of who signed
    #[arg(long, value_name = "BASE64")]
    key: Option<String>,
    /// A file with the host's public key
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    node_key: Option<PathBuf>,
}

/// A receipt that holds.
#[derive(Debug, Serialize)]
struct Verified {
    file: String,
    signed_by: String,
    /// Whether that is the key that the caller gave.
    key_is_known: bool,
    receipt: Receipt,
}

/// Run one of them.
pub(crate) fn run(screen: &mut Screen, command: &ReceiptCommand) -> Result<(), Failure> {
    match command {
        ReceiptCommand::Verify {
            files,
            key,
            log_key,
        } => {
            let contents = files
                .iter()
                .map(|file| Ok((file.as_path(), read(file)?)))
                .collect::<Result<Vec<_>, Failure>>()?;
            let passports = contents.iter().filter(|(_, content)| is_passport(content));
            match passports.count() {
                0 if log_key.is_none() => verify_receipts(screen, &contents, key),
                all if all == contents.len() => {
                    verify_passports(screen, &contents, key, log_key.as_deref())
                }
                _ => Err(Failure::Usage {
                    sentence: "receipts and passports are checked with different keys".to_owned(),
                    remedy:
                        "Give files of one kind: receipts with --key, passports with --log-key."
                            .to_owned(),
                }),
            }
        }
        ReceiptCommand::Show { file, key } => {
            let verified = open(file, &read(file)?, key.read()?.as_ref())?;
            screen.show(&verified, || details(&verified.receipt))
        }
    }
}

fn verify_receipts(
    screen: &mut Screen,
    contents: &[(&Path, Vec<u8>)],
    key: &NodeKey,
) -> Result<(), Failure> {
    let trusted = key.read()?;
    let verified = contents
        .iter()
        .map(|(file, content)| open(file, content, trusted.as_ref()))
        .collect::<Result<Vec<_>, _>>()?;
    let receipts: Vec<_> = verified.iter().map(|v| v.receipt.clone()).collect();
    if receipts.len() > 1 {
        check_chain(&receipts).map_err(Failure::ReceiptChain)?;
    }
    warn_of_unknown_key(screen, &verified);
    screen.show(&verified, || table(&verified))
}

fn verify_passports(
    screen: &mut Screen,
    contents: &[(&Path, Vec<u8>)],
    key: &NodeKey,
    log_key: Option<&str>,
) -> Result<(), Failure> {
    if key.read()?.is_some() {
        return Err(Failure::Usage {
            sentence: "a passport is signed by the log, not by a host".to_owned(),
            remedy: "Give the log's key with --log-key.".to_owned(),
        });
    }
    let pinned = log_key.map(parse_key).transpose()?;
    let verified = contents
        .iter()
        .map(|(file, content)| passport::verify(file, content, pinned.as_ref()))
        .collect::<Result<Vec<_>, _>>()?;
    for passport in &verified {
        screen.note(&passport.sentence());
    }
    screen.show(&verified, || passport::table(&verified))
}

fn warn_of_unknown_key(screen: &mut Screen, verified: &[Verified]) {
    if let Some(unknown) = verified.iter().find(|verified| !verified.key_is_known) {
        screen.note(&format!(
            "signed by {}; nothing here tells whose key that is: give the host's with --key",
            unknown.signed_by
        ));
    }
}

impl NodeKey {
    fn read(&self) -> Result<Option<PublicKey>, Failure> {
        let text = match (&self.key, &self.node_key) {
            (Some(text), _) => text.clone(),
            (None, Some(file)) => String::from_utf8_lossy(&read(file)?).into_owned(),
            (None, None) => return Ok(None),
        };
        parse_key(&text).map(Some)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    use std::io::Read as _;
    let read = || {
        let mut content = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(MAX_BYTES).read_to_end(&mut content)?;
        Ok(content)
    };
    read().map_err(|cause| Failure::File {
        doing: "reading",
        path: path.to_owned(),
        cause,
    })
}

fn open(file: &Path, content: &[u8], trusted: Option<&PublicKey>) -> Result<Verified, Failure> {
    let envelope: SignedEnvelope =
        serde_json::from_slice(content).map_err(|cause| Failure::File {
            doing: "reading",
            path: file.to_owned(),
            cause: cause.into(),
        })?;
    let (key, receipt) = verify(&envelope, trusted).map_err(|cause| Failure::Receipt {
        path: file.to_owned(),
        cause,
    })?;
    Ok(Verified {
        file: file.display().to_string(),
        signed_by: key.to_base64(),
        key_is_known: trusted.is_some(),
        receipt,
    })
}

fn statement(receipt: &Receipt) -> &'static str {
    match receipt.statement {
        Statement::Approval { .. } => "approval",
        Statement::Claim { .. } => "claim",
        Statement::Release { .. } => "release",
        Statement::Wipe { .. } => "wipe",
        Statement::Quarantine { .. } => "quarantine",
    }
}

fn time(at: i64) -> String {
    jiff::Timestamp::from_second(at).map_or_else(
        |_| at.to_string(),
        |time| time.strftime("%FT%TZ").to_string(),
    )
}

fn table(verified: &[Verified]) -> Table {
    let mut table = Table::new(&["SLOT", "GENERATION", "STATEMENT", "AT", "VM", "RECEIPT"]);
    for Verified { receipt, .. } in verified {
        table.row([
            (&receipt.slot_name).into(),
            receipt.generation.into(),
            Cell::toned(statement(receipt), Tone::Good),
            time(receipt.at).into(),
            optional(receipt.holder.as_ref().map(|holder| holder.vm_id)),
            receipt.receipt_id.into(),
        ]);
    }
    table
}

/// Everything that a person asks of a receipt.
fn details(receipt: &Receipt) -> Table {
    let mut table = Table::new(&["WHAT", "IS"]);
    let mut line = |what: &str, is: String| table.row([what.into(), is.into()]);
    line("receipt", receipt.receipt_id.to_string());
    line("statement", statement(receipt).to_owned());
    line(
        "slot",
        format!("{} ({})", receipt.slot_name, receipt.slot_id),
    );
    line("generation", receipt.generation.to_string());
    line("at", time(receipt.at));
    line("host", receipt.node_id.to_string());
    if let Some(holder) = &receipt.holder {
        line(
            "holder",
            format!("{} of {}", holder.vm_id, holder.tenant_id),
        );
    }
    for device in &receipt.devices {
        let address = device.address.map_or("gone".to_owned(), |a| a.to_string());
        line("device", format!("{address} at {}", device.identity.path));
    }
    match &receipt.statement {
        Statement::Approval { approval_sha256 } => line("approval", approval_sha256.clone()),
        Statement::Quarantine { problem } => line("problem", problem.message.clone()),
        Statement::Claim { steps } | Statement::Release { steps } => {
            for step in steps {
                let of = step.address.map_or(String::new(), |a| format!(" {a}"));
                let took = format!("{} ms, {}", step.took_ms, step.found);
                line(&format!("step {}{of}", step.step), took);
            }
        }
        Statement::Wipe { devices } => {
            for wipe in devices {
                let read = &wipe.read_back;
                line(
                    &format!("wipe of {}", wipe.address),
                    format!("{:?}", wipe.method),
                );
                line(
                    "read back",
                    format!(
                        "{} of {} bytes ({}), {} wrong; expected {}",
                        read.bytes_read,
                        read.bytes_total,
                        read.sample,
                        read.bytes_wrong,
                        read.expected
                    ),
                );
                for (name, value) in &wipe.completion {
                    line("completion", format!("{name}={value}"));
                }
                for restored in &wipe.restored {
                    line("restored", restored.clone());
                }
                for not_proved in &wipe.not_proved {
                    line("not proved", not_proved.clone());
                }
            }
        }
    }
    table
}
