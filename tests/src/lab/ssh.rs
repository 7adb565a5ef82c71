//! The channel into a node: one ssh connection that everything else shares.
//!
//! A key exchange costs a second on an emulated processor, so a master connection is opened once
//! and every command, copy and port forward goes through it.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::image::ChannelKeys;
use crate::command;

/// What happens to a child when the process that started it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// The kernel ends it with us, however we end.
    Ours,
    /// It outlives us, in a session of its own; somebody ends it later by its pid.
    Detached,
}

impl Lifetime {
    /// A command for `program` that has this lifetime.
    #[must_use]
    pub fn command(self, program: &str) -> Command {
        match self {
            Self::Ours => {
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "KILL", "--", program]);
                command
            }
            Self::Detached => {
                // Not `--fork`: the child's pid must stay the one that we know.
                let mut command = Command::new("setsid");
                command.arg(program);
                command
            }
        }
    }
}

/// A way into one node.
#[derive(Debug)]
pub struct Channel {
    port: u16,
    keys: ChannelKeys,
    folder: PathBuf,
    master: Child,
}

impl Channel {
    /// Opens the shared connection. The node's ssh server must answer already.
    ///
    /// # Errors
    /// If ssh does not come up within its own time limits.
    pub fn open(port: u16, keys: &ChannelKeys, folder: &Path, lifetime: Lifetime) -> Result<Self> {
        let log = std::fs::File::create(folder.join("ssh.log")).context("creating ssh.log")?;
        let mut ssh = lifetime.command("ssh");
        ssh.current_dir(folder).args(options(port, keys));
        ssh.args(["-M", "-N", "-o", "ControlPath=ctl", "root@berth-lab"]);
        ssh.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut master = ssh.spawn().context("starting ssh")?;
        let ready = wait_for(Duration::from_secs(60), || {
            if let Some(status) = master.try_wait().context("waiting for ssh")? {
                let why = command::tail(&folder.join("ssh.log"), 5);
                anyhow::bail!("ssh ended with {status}: {why}");
            }
            Ok(folder.join("ctl").exists())
        });
        if !ready? {
            end(&mut master);
            anyhow::bail!("ssh did not come up within a minute");
        }
        Ok(Self {
            port,
            keys: keys.clone(),
            folder: folder.to_path_buf(),
            master,
        })
    }

    /// The pid of the shared connection's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.master.id()
    }

    /// An ssh command line that runs `script` by the node's shell.
    #[must_use]
    pub fn command(&self, script: &str) -> Command {
        let mut ssh = self.bare();
        ssh.args(["root@berth-lab", "--", script]);
        ssh
    }

    /// An interactive shell on the node, with a terminal.
    #[must_use]
    pub fn shell(&self) -> Command {
        let mut ssh = self.bare();
        ssh.args(["-t", "root@berth-lab"]);
        ssh
    }

    /// Runs `script` and returns whatever came of it.
    ///
    /// # Errors
    /// If ssh itself fails.
    pub fn run(&self, script: &str) -> Result<Output> {
        let output = command::output(&mut self.command(script))?;
        ensure!(
            output.status.code() != Some(255),
            "the node does not answer: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(output)
    }

    /// Writes `bytes` to a file on the node, with the given mode.
    ///
    /// # Errors
    /// If the file cannot be written there.
    pub fn write(&self, bytes: &mut dyn Read, target: &str, mode: &str) -> Result<()> {
        let script = format!(
            "set -e; cat >'{target}.part'; chmod {mode} '{target}.part'; mv '{target}.part' '{target}'"
        );
        let mut child = self
            .command(&script)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting ssh")?;
        let mut stdin = child.stdin.take().context("ssh without a standard input")?;
        let copied = std::io::copy(bytes, &mut stdin);
        drop(stdin);
        let output = child.wait_with_output().context("waiting for ssh")?;
        ensure!(
            output.status.success(),
            "writing {target} on the node: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        copied.with_context(|| format!("sending {target}"))?;
        Ok(())
    }

    /// Makes a port of the node's loopback reachable on a loopback port here, and returns that.
    ///
    /// # Errors
    /// If ssh refuses.
    pub fn forward(&self, remote: u16) -> Result<u16> {
        // A listening port 0 is only defined for remote forwards, so a free port is chosen first.
        let local = free_port()?;
        let mut chosen = self.bare();
        chosen.args([
            "-O",
            "forward",
            "-L",
            &format!("127.0.0.1:{local}:127.0.0.1:{remote}"),
        ]);
        command::capture(chosen.arg("root@berth-lab"))?;
        Ok(local)
    }

    fn bare(&self) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.current_dir(&self.folder)
            .args(options(self.port, &self.keys));
        ssh.args(["-o", "ControlPath=ctl"]);
        ssh
    }
}

/// Closes the shared connection. A detached one is left alone by forgetting the channel instead.
impl Drop for Channel {
    fn drop(&mut self) {
        end(&mut self.master);
    }
}

/// Ends a child that we started and takes its exit status, so that nothing of it stays.
pub fn end(child: &mut Child) {
    // Both fail only for a child that is gone already, which is what is wanted.
    if child.kill().is_ok() && child.wait().is_err() {}
}

/// A loopback port that nothing listened on a moment ago.
///
/// # Errors
/// If none can be had.
pub fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("asking for a port")?;
    Ok(listener.local_addr().context("reading the port")?.port())
}

/// Whether an ssh server answers at a loopback port: it sends its banner first.
#[must_use]
pub fn answers(port: u16) -> bool {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else {
        return false;
    };
    let mut banner = [0; 4];
    stream
        .set_read_timeout(Some(Duration::from_secs(2)))
        .is_ok()
        && stream.read_exact(&mut banner).is_ok()
        && banner == *b"SSH-"
}

/// Asks again and again until the answer is yes or the time is over; says which.
///
/// # Errors
/// Those of `condition`.
pub fn wait_for(limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<bool> {
    /// Short against everything that is waited for here.
    const LEAST_PAUSE: Duration = Duration::from_millis(100);
    /// Asking a busy node takes its processors from what is waited for: a quarter of them at most.
    const PAUSES_PER_QUESTION: u32 = 3;
    let end = Instant::now() + limit;
    loop {
        let asked = Instant::now();
        if condition()? {
            return Ok(true);
        }
        let answered = Instant::now();
        if answered >= end {
            return Ok(false);
        }
        let pause = (answered - asked) * PAUSES_PER_QUESTION;
        std::thread::sleep(pause.max(LEAST_PAUSE));
    }
}

fn options(port: u16, keys: &ChannelKeys) -> Vec<String> {
    let mut words = vec![
        "-F".to_owned(),
        "none".to_owned(),
        "-p".to_owned(),
        port.to_string(),
    ];
    words.extend([
        "-i".to_owned(),
        keys.client().to_string_lossy().into_owned(),
    ]);
    let known_hosts = format!("UserKnownHostsFile={}", keys.known_hosts().display());
    for option in [
        "HostName=127.0.0.1",
        "HostKeyAlias=berth-lab",
        "StrictHostKeyChecking=yes",
        "IdentitiesOnly=yes",
        "BatchMode=yes",
        "LogLevel=ERROR",
        "ConnectTimeout=30",
        "ServerAliveInterval=15",
        "ServerAliveCountMax=8",
        &known_hosts,
    ] {
        words.extend(["-o".to_owned(), option.to_owned()]);
    }
    words
}
