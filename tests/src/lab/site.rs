//! A whole installation on one host: controller, agent, a Debian image, and REST calls by curl.
//!
//! Everything is done as an operator or a tenant would do it, with the packaged programs.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::devices::Device;
use super::host::{Here, Host};
use super::node::{Node, NodeSpec};
use super::scenario::Context;
use super::ssh::Lifetime;

/// Where the controller keeps the operator's token.
pub const ADMIN_TOKEN: &str = "/var/lib/berth/controller/admin.token";
/// The name under which a site offers the Debian guest.
pub const IMAGE: &str = "debian-12";
/// Where the controller answers, on the node.
pub const URL: &str = "http://127.0.0.1:9221";
/// How long a daemon may take to be ready on an emulated host.
const READY: Duration = Duration::from_secs(60);
/// Marks the line in which curl tells the status.
const STATUS_MARK: &str = "berth-http-status=";

/// A host with everything installed.
#[derive(Debug)]
pub struct Site<H: Host = Node> {
    /// The host.
    pub node: H,
    /// The operator's token.
    pub admin_token: String,
    say: fn(&str),
}

/// What a REST call came back with.
#[derive(Debug, Clone)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// The body, `Null` if there is none; text that is not JSON is a string.
    pub body: Value,
}

impl Site<Node> {
    /// Boots the node alone, without enrolling it. `name` is the folder of its logs.
    ///
    /// # Errors
    /// If the node does not boot, or the packaged controller does not become ready.
    pub fn boot(name: &str, context: &Context, lifetime: Lifetime) -> Result<Self> {
        let spec = NodeSpec {
            memory_mib: 4096,
            lifetime,
            ..NodeSpec::default()
        };
        Self::boot_with(name, context, spec)
    }

    /// Boots such a node alone; the guest's image is plugged in before the devices.
    ///
    /// # Errors
    /// If the node does not boot, or the packaged controller does not become ready.
    pub fn boot_with(name: &str, context: &Context, mut spec: NodeSpec) -> Result<Self> {
        let guest = Device::SharedDisk {
            image: context.guest.artefacts.clone(),
        };
        spec.devices.insert(0, guest);
        let node = Node::boot(name, &context.node, &spec)?;
        let mut site = Self {
            node,
            admin_token: String::new(),
            say: context.say,
        };
        // What a node says about a start that failed is the only evidence of it.
        site.node
            .mount_guest_image()
            .and_then(|()| site.prepare())
            .inspect_err(|_| site.node.collect())?;
        Ok(site)
    }
}

impl Site<Here> {
    /// The packages that were just installed on this machine.
    ///
    /// # Errors
    /// If the packaged controller does not become ready.
    pub fn here(say: fn(&str)) -> Result<Self> {
        let mut site = Self {
            node: Here,
            admin_token: String::new(),
            say,
        };
        site.prepare()?;
        Ok(site)
    }
}

impl<H: Host> Site<H> {
    fn prepare(&mut self) -> Result<()> {
        self.wait_ready()?;
        self.admin_token = self
            .node
            .check(&format!("cat {ADMIN_TOKEN}"))?
            .trim()
            .to_owned();
        Ok(())
    }

    /// Waits until the controller says that it is ready.
    ///
    /// # Errors
    /// If it is not within a minute.
    pub fn wait_ready(&self) -> Result<()> {
        let script = format!("curl -fsS {URL}/readyz");
        self.node
            .wait_until("the controller becomes ready", READY, &script)?;
        Ok(())
    }

    /// Imports the Debian guest, and enrols this host with a join token.
    ///
    /// # Errors
    /// If one of the steps fails, or the node does not come online with its image.
    pub fn enrol(&self) -> Result<()> {
        self.show(&format!(
            "berth-agent image import --name {IMAGE} --kernel /srv/guest/vmlinuz \
             --initrd /srv/guest/initrd --disk /srv/guest/disk.raw"
        ))?;
        let issued = self.node.check("berthctl --json node join-token")?;
        let issued: Value = serde_json::from_str(&issued).context("reading the join token")?;
        let token = text(&issued, "token")?;
        (self.say)("  # berth-agent join <token>; systemctl start berth-agent");
        self.node.check(&format!(
            "berth-agent join '{token}' && systemctl start berth-agent"
        ))?;
        let online = "berthctl --json node list | grep -q '\"liveness\": *\"online\"' && \
                      berthctl --json image list | grep -q debian-12";
        self.node
            .wait_until("the node comes online with its image", READY, online)?;
        Ok(())
    }

    /// Waits until the host tells, of the boot that it is in, that it can run VMs.
    ///
    /// # Errors
    /// If it does not in time; the message has the host as it was last.
    pub fn wait_returned(&self) -> Result<()> {
        let boot_id = self.node.check("cat /proc/sys/kernel/random/boot_id")?;
        let mut last = Value::Null;
        let returned = super::ssh::wait_for(READY, || {
            let mut list = self.expect(200, &self.admin_token, "GET", "/v1/nodes", None)?;
            last = list["items"][0].take();
            Ok(last["boot_id"] == boot_id.trim() && last["kvm"] == true)
        })?;
        ensure!(returned, "the host did not tell of its KVM: {last:#}");
        Ok(())
    }

    /// Imports the Debian guest as an image whose VMs run a script, say on their console what it
    /// prints, and power off.
    ///
    /// # Errors
    /// If the image cannot be made or imported.
    pub fn import_script(&self, image: &str, script: &str) -> Result<()> {
        let script = format!("#!/bin/sh\nset -eu\n{script}").replace('\'', r"'\''");
        self.node.check(&format!(
            "set -e; cp --sparse=always /srv/guest/disk.raw /root/{image}.raw; \
             mkdir -p /root/{image}.d; mount -o loop /root/{image}.raw /root/{image}.d; \
             printf %s '{script}' >/root/{image}.d/etc/berth-script; umount /root/{image}.d; \
             berth-agent image import --name {image} --kernel /srv/guest/vmlinuz \
             --initrd /srv/guest/initrd --disk /root/{image}.raw \
             --cmdline 'console=ttyS0 root=/dev/vda rw quiet berth.script'; rm /root/{image}.raw"
        ))?;
        Ok(())
    }

    /// Runs a script on the node that has to succeed; says the script and its output.
    ///
    /// # Errors
    /// If it does not succeed.
    pub fn show(&self, script: &str) -> Result<String> {
        (self.say)(&format!("  # {script}"));
        let output = self.node.check(script)?;
        for line in output.lines() {
            (self.say)(&format!("    {line}"));
        }
        Ok(output)
    }

    /// Makes a REST call with curl on the node.
    ///
    /// # Errors
    /// If curl cannot reach the controller.
    pub fn call(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Reply> {
        let body = body.map_or_else(String::new, |body| {
            let quoted = body.to_string().replace('\'', r"'\''");
            format!("-H 'Content-Type: application/json' -d '{quoted}'")
        });
        let output = self.node.check(&format!(
            "curl -sS -X {method} -H 'Authorization: Bearer {token}' {body} \
             -w '\\n{STATUS_MARK}%{{http_code}}\\n' '{URL}{path}'"
        ))?;
        parse_reply(&output)
    }

    /// Makes a REST call that has to come back with `status`, and returns the body.
    ///
    /// # Errors
    /// If it comes back with another status; the message has the body.
    pub fn expect(
        &self,
        status: u16,
        token: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value> {
        let reply = self.call(token, method, path, body)?;
        ensure!(
            reply.status == status,
            "{method} {path} came back with {} instead of {status}: {:#}",
            reply.status,
            reply.body
        );
        Ok(reply.body)
    }

    /// Makes a tenant with room for `max_vms` and returns a token of its administrator.
    ///
    /// # Errors
    /// If the controller refuses.
    pub fn tenant(&self, name: &str, max_vms: u32) -> Result<String> {
        self.tenant_with_slots(name, max_vms, &[])
    }

    /// The same for a tenant that may have one slot of each of these classes at once.
    ///
    /// # Errors
    /// If the controller refuses.
    pub fn tenant_with_slots(&self, name: &str, max_vms: u32, classes: &[&str]) -> Result<String> {
        let mut tenant = serde_json::json!({
            "tenant_id": name, "display_name": name, "max_vms": max_vms,
            "storage_quota_gb": 100, "api_rate_limit_rpm": 6000,
        });
        if !classes.is_empty() {
            let limits = classes.iter().map(|class| ((*class).to_owned(), 1.into()));
            tenant["slot_limits"] = Value::Object(limits.collect());
        }
        self.expect(201, &self.admin_token, "POST", "/v1/tenants", Some(&tenant))?;
        let wish = serde_json::json!({
            "subject_pubkey": self.new_public_key(name)?,
            "scope": "service:tenant-admin", "expires_in_seconds": 86_400,
        });
        let path = format!("/v1/tenants/{name}/tokens");
        let issued = self.expect(201, &self.admin_token, "POST", &path, Some(&wish))?;
        text(&issued, "token")
    }

    /// Makes a key pair on the node and returns the public half as an OpenSSH line.
    ///
    /// # Errors
    /// If `ssh-keygen` fails.
    pub fn new_public_key(&self, name: &str) -> Result<String> {
        let script = format!(
            "[ -e /root/{name} ] || ssh-keygen -q -t ed25519 -N '' -C '' -f /root/{name}; \
             cut -d' ' -f1,2 /root/{name}.pub"
        );
        Ok(self.node.check(&script)?.trim().to_owned())
    }

    /// Waits until a VM is in a state, and returns it.
    ///
    /// # Errors
    /// If it is not in time; the message has the VM as it was last.
    pub fn wait_vm(&self, token: &str, vm: &str, state: &str, limit: Duration) -> Result<Value> {
        let mut last = Value::Null;
        let reached = super::ssh::wait_for(limit, || {
            let reply = self.call(token, "GET", &format!("/v1/vms/{vm}"), None)?;
            last = reply.body;
            let gone = state == "deleted" && reply.status == 404;
            Ok(gone || last["state"] == state)
        })?;
        ensure!(
            reached,
            "{vm} was not {state} within {} s: {last:#}",
            limit.as_secs()
        );
        Ok(last)
    }

    /// Waits until a VM's console has a line with `wanted`, and returns the whole log.
    ///
    /// # Errors
    /// If it has none in time; the message has the end of the log.
    pub fn wait_console(
        &self,
        token: &str,
        vm: &str,
        wanted: &str,
        limit: Duration,
    ) -> Result<String> {
        let mut last = String::new();
        let found = super::ssh::wait_for(limit, || {
            let reply = self.call(token, "GET", &format!("/v1/vms/{vm}/console/log"), None)?;
            last = reply
                .body
                .as_str()
                .map_or_else(|| reply.body.to_string(), ToOwned::to_owned);
            Ok(last.contains(wanted))
        })?;
        let tail: Vec<&str> = last.lines().rev().take(20).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        ensure!(
            found,
            "the console of {vm} did not show {wanted:?} within {} s; it ends with:\n{}",
            limit.as_secs(),
            tail.join("\n")
        );
        Ok(last)
    }
}

/// A text field of a JSON object.
///
/// # Errors
/// If there is none.
pub fn text(object: &Value, field: &str) -> Result<String> {
    let found = object.get(field).and_then(Value::as_str);
    Ok(found
        .with_context(|| format!("no text field {field} in {object:#}"))?
        .to_owned())
}

fn parse_reply(output: &str) -> Result<Reply> {
    let (body, status) = output
        .rsplit_once(STATUS_MARK)
        .context("curl did not tell the HTTP status")?;
    let body = body.strip_suffix('\n').unwrap_or(body);
    let body = match serde_json::from_str(body) {
        Ok(value) => value,
        Err(_) if body.is_empty() => Value::Null,
        Err(_) => Value::String(body.to_owned()),
    };
    Ok(Reply {
        status: status.trim().parse().context("reading the HTTP status")?,
        body,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_json_text_or_nothing() {
        let reply = parse_reply("{\"a\": 1}\nberth-http-status=201\n").unwrap();
        assert_eq!((reply.status, reply.body["a"].as_u64()), (201, Some(1)));
        let reply = parse_reply("\nberth-http-status=204\n").unwrap();
        assert_eq!((reply.status, reply.body), (204, Value::Null));
        let reply = parse_reply("login: \nberth-http-status=200\n").unwrap();
        assert_eq!(reply.body, Value::String("login: ".to_owned()));
        parse_reply("nothing").unwrap_err();
    }
}
