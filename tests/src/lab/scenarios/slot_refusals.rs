//! `slot-refusals`: all that must keep a device from a tenant, each shown by the code and the words
//! that the host's owner and the operator get.
//!
//! `looks` is what a look at the host finds, on one node with every kind of misplaced device;
//! `hosts` are whole hosts that isolate nothing; `acts` is what goes wrong while an agent works.

mod acts;
mod hosts;
mod looks;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::command;
use crate::lab::host::Host;
use crate::lab::scenario::Context;

/// Runs the scenario.
///
/// # Errors
/// The first case that is not refused as it should be.
pub(crate) fn run(context: &Context) -> Result<()> {
    looks::run(context).context("what a look at a host finds")?;
    hosts::run(context).context("hosts that isolate nothing")?;
    acts::run(context).context("what goes wrong at work")
}

/// Puts a filesystem on a drive's file; nodes have no program for that.
fn with_filesystem(image: PathBuf) -> Result<PathBuf> {
    let mut command = Command::new("mke2fs");
    command::capture(command.args(["-q", "-F", "-t", "ext4"]).arg(&image))?;
    Ok(image)
}

/// One reason, as `berthctl --json` prints it.
struct Reason {
    code: String,
    message: String,
}

/// Has `berthctl` judge something on the node and returns what it finds.
fn judge(host: &impl Host, what: &str) -> Result<Vec<Reason>> {
    let output = host.run(&format!("berthctl --json {what}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found: Value = serde_json::from_str(&text).with_context(|| {
        let error = String::from_utf8_lossy(&output.stderr);
        format!("`berthctl --json {what}` printed {text}{error}")
    })?;
    let reasons = reasons(&found);
    ensure!(
        output.status.success() == reasons.is_empty(),
        "`berthctl {what}` ended with {} and {} findings",
        output.status,
        reasons.len()
    );
    Ok(reasons)
}

/// All objects with a code and a message in a document, however deep.
fn reasons(document: &Value) -> Vec<Reason> {
    match document {
        Value::Array(items) => items.iter().flat_map(reasons).collect(),
        Value::Object(fields) => {
            let word = |name| fields.get(name).and_then(Value::as_str).map(str::to_owned);
            match (word("code"), word("message")) {
                (Some(code), Some(message)) => vec![Reason { code, message }],
                _ => fields.values().flat_map(reasons).collect(),
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

/// The message of the one reason with that code that has all these words.
fn reason<'a>(found: &'a [Reason], code: &str, words: &[&str]) -> Result<&'a str> {
    let fits = |reason: &&Reason| {
        reason.code == code && words.iter().all(|word| reason.message.contains(word))
    };
    let all = || {
        let lines = found
            .iter()
            .map(|reason| format!("\n  {}: {}", reason.code, reason.message));
        lines.collect::<String>()
    };
    let reason = found
        .iter()
        .find(fits)
        .with_context(|| format!("no {code} with {words:?} among what was found:{}", all()))?;
    Ok(&reason.message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_reason_is_found_by_its_code_and_by_all_its_words() {
        let document = json!([{"subject": "x", "findings": [
            {"code": "reset_failed", "message": "no way to reset 0000:00:1f.0"},
            {"code": "device_in_use", "message": "nvme0n1 is mounted on /"},
        ]}]);
        let found = reasons(&document);
        reason(&found, "device_in_use", &["nvme0n1", "mounted"]).unwrap();
        reason(&found, "reset_failed", &["mounted"]).unwrap_err();
        reason(&found, "bind_failed", &[]).unwrap_err();
    }
}
