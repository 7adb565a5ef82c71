//! Slots of a site as its host's owner, its operator and its tenants handle them, and what the host's
//! kernel may never see of them meanwhile.
//!
//! Owns the words to `berthctl slot` and to the REST API's slots. What has to come of them is a
//! scenario's.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::host::Host;
use super::site::{Site, text};
use super::ssh::wait_for;

/// How long an agent may take to see what changed on its host, and to tell its controller.
const SEEN: Duration = Duration::from_secs(120);

/// What a slot is offered as.
#[derive(Debug, Clone, Copy)]
pub struct SlotOffer<'a> {
    /// Its name.
    pub name: &'a str,
    /// What a tenant asks for.
    pub class: &'a str,
}

/// Where a device with these ids is, as `0000:01:00.0`; the one that has `serial`, if one is given.
///
/// # Errors
/// If there is none.
pub fn address_of(host: &impl Host, vendor: &str, device: &str) -> Result<String> {
    let found = host.check(&format!(
        r#"for device in /sys/bus/pci/devices/*; do
            [ "$(cat "$device/vendor" "$device/device" | tr '\n' ' ')" = "{vendor} {device} " ] &&
                basename "$device"
        done || true"#
    ))?;
    let first = found.lines().next();
    Ok(first
        .with_context(|| format!("no device {vendor}:{device}"))?
        .to_owned())
}

/// Where the NVMe drive with that serial number is, while the host's own driver has it.
///
/// # Errors
/// If there is none.
pub fn address_of_drive(host: &impl Host, serial: &str) -> Result<String> {
    let script = format!(
        r#"for drive in /sys/class/nvme/nvme*; do
            [ "$(tr -d ' ' <"$drive/serial")" = {serial} ] || continue
            basename "$(readlink -f "$drive/device")"
        done"#
    );
    let found = host.check(&script)?.trim().to_owned();
    ensure!(!found.is_empty(), "no drive {serial}");
    Ok(found)
}

/// Waits until the controller shows the slot of that name in a state, and returns it.
///
/// # Errors
/// If it does not in time; the message has the slot as it was last.
pub fn wait_slot(
    site: &Site<impl Host>,
    name: &str,
    state: &str,
    limit: Duration,
) -> Result<Value> {
    let mut last = Value::Null;
    let reached = wait_for(limit, || {
        last = slot(site, name)?;
        Ok(last["state"] == state)
    })?;
    ensure!(
        reached,
        "the slot {name} was not {state} within {} s: {last:#}",
        limit.as_secs()
    );
    Ok(last)
}

/// The slot of that name as the operator sees it; `Null` if there is none.
///
/// # Errors
/// If the controller does not answer.
pub fn slot(site: &Site<impl Host>, name: &str) -> Result<Value> {
    let all = site.expect(200, &site.admin_token, "GET", "/v1/slots", None)?;
    let items = all["items"].as_array().cloned().unwrap_or_default();
    let found = items.into_iter().find(|slot| slot["name"] == name);
    Ok(found.unwrap_or_default())
}

/// Lets tenants have a slot that its host offers.
///
/// # Errors
/// If the host does not offer it in time, or the controller refuses.
pub fn admit(site: &Site<impl Host>, name: &str) -> Result<String> {
    let mut last = Value::Null;
    let offered = wait_for(SEEN, || {
        last = slot(site, name)?;
        Ok(last["host_state"] == "free")
    })?;
    ensure!(offered, "the host does not offer {name}: {last:#}");
    let id = text(&last, "id")?;
    let path = format!("/v1/slots/{id}/approve");
    site.expect(200, &site.admin_token, "POST", &path, Some(&json!({})))?;
    Ok(id)
}
