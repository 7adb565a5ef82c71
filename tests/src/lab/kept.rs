//! Nodes that outlive the command that booted them, and how they are ended.
//!
//! One record at a time, in `build/lab/kept.json`. A pid is only ended if the process is still the
//! one that was started: its command line names the run's folder or the lab's alias.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::image::lab_dir;
use super::ssh::wait_for;
use crate::command::capture;

/// A node that was left running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// QEMU's pid and the channel's.
    pub pids: Vec<u32>,
    /// Loopback port of its REST API on this machine.
    pub api_port: u16,
    /// Loopback port of its ssh server.
    pub ssh_port: u16,
    /// Where its logs are.
    pub folder: PathBuf,
}

impl Kept {
    /// Writes the record.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn record(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).context("writing down the kept node")?;
        std::fs::write(path(), text).with_context(|| format!("writing {}", path().display()))
    }

    /// The node that was kept, if there is one on record.
    #[must_use]
    pub fn read() -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path()).ok()?).ok()
    }

    /// Ends the kept node, if there is one; says whether there was.
    ///
    /// # Errors
    /// If a process does not end.
    pub fn end() -> Result<bool> {
        let Some(kept) = Self::read() else {
            return Ok(false);
        };
        let mut ended = false;
        for pid in kept.pids.iter().copied().filter(|pid| is_ours(*pid)) {
            capture(std::process::Command::new("kill").arg(pid.to_string()))?;
            let gone = wait_for(Duration::from_secs(10), || Ok(!is_ours(pid)))?;
            ensure!(gone, "process {pid} of the kept node does not end");
            ended = true;
        }
        std::fs::remove_file(path()).with_context(|| format!("removing {}", path().display()))?;
        Ok(ended)
    }
}

fn path() -> PathBuf {
    lab_dir().join("kept.json")
}

/// Whether a pid is a process of the lab's and not somebody else's that got the number later.
fn is_ours(pid: u32) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    line.windows(b"berth-lab".len())
        .any(|window| window == b"berth-lab")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_others_is_not_ours() {
        assert!(!is_ours(1));
        assert!(!is_ours(u32::MAX));
    }
}
