//! A guest that runs a script: started on a bare node beside others, talked with over its control
//! socket, judged by what it printed.
//!
//! Owns the guest's files on the node (`/root/<name>/`) and the words between the guest's
//! `berth-script` service and a scenario. What the script tests is the scenario's.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::host::Host as _;
use super::node::Node;

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct GuestSpec<'a> {
    /// Folder below `/root` on the node, and name of its logs.
    pub name: &'a str,
    /// Processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// More options for `vmm-run`.
    pub options: &'a str,
    /// What runs in the guest, as root, with `/dev/vda` as its root and this script on another
    /// disk. The guest powers off when it is done, unless it printed a line `stay`.
    pub script: &'a str,
}

/// A guest that was started.
#[derive(Debug)]
pub struct ScriptedGuest<'a> {
    node: &'a Node,
    name: String,
}

/// How a guest ended.
#[derive(Debug)]
pub struct GuestEnd {
    /// What the script printed, line by line.
    pub lines: Vec<String>,
    /// What the VMM said, one JSON document each.
    pub events: Vec<Value>,
    /// The whole console.
    pub console: String,
}

impl<'a> ScriptedGuest<'a> {
    /// Starts a guest from the node's guest image, under a unit as the agent makes them.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(node: &'a Node, spec: &GuestSpec<'_>) -> Result<Self> {
        let name = spec.name.to_owned();
        let folder = format!("/root/{name}");
        let mut script = String::from("#!/bin/sh\nset -eu\n");
        script.push_str(spec.script);
        node.check(&format!("rm -rf {folder} && mkdir {folder}"))?;
        node.channel()?
            .write(&mut script.as_bytes(), &format!("{folder}/script"), "0644")?;
        node.check(&format!(
            "cd {folder} && cp --sparse=always /srv/guest/disk.raw root.raw && \
             truncate -s %512 script && \
             systemd-run --quiet --collect --unit=run-{name} --working-directory={folder} \
             --property=StandardOutput=null --property=StandardError=file:{folder}/events \
             vmm-run --unit --vmm /usr/libexec/berth/berth-vmm --kernel /srv/guest/vmlinux \
             --initrd /srv/guest/initrd --disk root.raw --disk script:ro --entropy \
             --vcpus {} --memory-mib {} --console {folder}/console --control {folder}/control \
             --timeout 900 --cmdline 'console=ttyS0 root=/dev/vda rw quiet berth.script' {}",
            spec.vcpus, spec.memory_mib, spec.options
        ))?;
        Ok(Self { node, name })
    }

    /// Runs a guest to its end, which must be a power-off after a script without an error.
    ///
    /// # Errors
    /// If it ended in another way, or not within `limit`.
    pub fn run(node: &'a Node, spec: &GuestSpec<'_>, limit: Duration) -> Result<GuestEnd> {
        let end = Self::start(node, spec)?.wait(limit)?;
        end.must_be_good().with_context(|| spec.name.to_owned())?;
        Ok(end)
    }

    /// Waits until the guest's script has printed a line that begins with `words`; returns the line.
    ///
    /// # Errors
    /// If it does not within `limit`; the message has the end of the console.
    pub fn wait_for_line(&self, words: &str, limit: Duration) -> Result<String> {
        let folder = self.folder();
        let what = format!("the guest {} says `{words}`", self.name);
        let found = self.node.wait_until(
            &what,
            limit,
            &format!(
                "grep -a -m1 'BERTH-OUT {words}' {folder}/console || {{ tail -n 25 {folder}/console; \
                 tail -n 5 {folder}/events; exit 1; }}"
            ),
        )?;
        Ok(found.trim_end().to_owned())
    }

    /// Sends the VMM one request of the contract, as JSON.
    ///
    /// # Errors
    /// If nobody takes it.
    pub fn request(&self, request: &str) -> Result<()> {
        let folder = self.folder();
        self.node.check(&format!(
            "printf '%s\\n' '{request}' | socat -t 2 - UNIX-CONNECT:{folder}/control"
        ))?;
        Ok(())
    }

    /// Waits until the VMM has said an event that contains `words`.
    ///
    /// # Errors
    /// If it does not within `limit`.
    pub fn wait_for_event(&self, words: &str, limit: Duration) -> Result<String> {
        let folder = self.folder();
        let what = format!("the VMM of {} says `{words}`", self.name);
        let script = format!("grep -a -e '{words}' {folder}/events | tail -n 1 | grep .");
        self.node.wait_until(&what, limit, &script)
    }

    /// The guest's folder on the node.
    #[must_use]
    pub fn folder(&self) -> String {
        format!("/root/{}", self.name)
    }

    /// Waits for the guest's end and brings its logs home.
    ///
    /// # Errors
    /// If it does not end within `limit`.
    pub fn wait(self, limit: Duration) -> Result<GuestEnd> {
        let folder = self.folder();
        let name = &self.name;
        let ended = self.node.wait_until(
            &format!("the guest {name} ends"),
            limit,
            &format!(
                "! systemctl is-active --quiet run-{name} || {{ tail -n 25 {folder}/console; \
                 tail -n 5 {folder}/events; exit 1; }}"
            ),
        );
        let mut texts = Vec::new();
        for what in ["console", "events"] {
            let log = self.node.folder().join(format!("{name}-{what}.log"));
            self.node.copy_out(&format!("{folder}/{what}"), &log)?;
            texts.push(read(&log)?);
        }
        ended?;
        let [console, events] = texts.try_into().ok().context("two logs")?;
        Ok(GuestEnd::from_logs(console, &events))
    }
}

impl GuestEnd {
    fn from_logs(console: String, events: &str) -> Self {
        let lines = console
            .lines()
            .filter_map(|line| Some(line.split_once("BERTH-OUT ")?.1.to_owned()))
            .collect();
        let events = events
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        Self {
            lines,
            events,
            console,
        }
    }

    /// The rest of the first line that begins with `name` and a space.
    ///
    /// # Errors
    /// If there is none.
    pub fn fact(&self, name: &str) -> Result<&str> {
        self.lines
            .iter()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .with_context(|| format!("the guest did not say `{name}`; {}", self.tail()))
    }

    /// Whether the script ended without an error and the guest by power-off.
    ///
    /// # Errors
    /// What was otherwise.
    pub fn must_be_good(&self) -> Result<()> {
        ensure!(
            self.console.contains("BERTH-END status=0"),
            "the guest's script failed; {}",
            self.tail()
        );
        let exits: Vec<_> = self
            .events
            .iter()
            .filter(|event| event["event"] == "exited")
            .map(|event| event["exit"].as_str().unwrap_or("?"))
            .collect();
        ensure!(
            exits == ["power_off"],
            "the VMM ended with {exits:?} instead of a power-off; {}",
            self.tail()
        );
        Ok(())
    }

    fn tail(&self) -> String {
        let lines: Vec<&str> = self.console.lines().collect();
        let mut text = String::from("its console ends:");
        for line in &lines[lines.len().saturating_sub(25)..] {
            // Writing to a String cannot fail.
            let _infallible = write!(text, "\n{line}");
        }
        for event in self.events.iter().rev().take(3) {
            let _infallible = write!(text, "\n{event}");
        }
        text
    }
}

fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: &str = "{\"event\":\"running\",\"pid\":7}\nnoise\n\
                          {\"event\":\"exited\",\"exit\":\"power_off\"}\n";

    #[test]
    fn a_guest_is_judged_by_its_script_and_by_its_end() {
        let console = "boot\n[ 1.0] BERTH-OUT disk ok 5\n[ 1.1] BERTH-END status=0\n";
        let good = GuestEnd::from_logs(console.to_owned(), EVENTS);
        good.must_be_good().unwrap();
        assert_eq!(good.fact("disk").unwrap(), "ok 5");
        good.fact("net").unwrap_err();
        let failed = console.replace("status=0", "status=3");
        GuestEnd::from_logs(failed, EVENTS)
            .must_be_good()
            .unwrap_err();
        let reset = EVENTS.replace("power_off", "reset");
        GuestEnd::from_logs(console.to_owned(), &reset)
            .must_be_good()
            .unwrap_err();
    }
}
