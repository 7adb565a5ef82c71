//! A host with an agent on it: folders, a bus, and the program.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use berth_api::agent::{JOIN_TOKEN_PREFIX, JoinToken};
use berth_tests::workspace::program_beside_test;

use crate::bus;

pub(crate) struct Host {
    folder: tempfile::TempDir,
}

/// What a command came to.
pub(crate) struct Answer {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A running `berth-agent run`, ended with the value.
pub(crate) struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself, and then its status says so elsewhere.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Host {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("agent.toml"), "").unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(arguments)
            .arg("--state-dir")
            .arg(self.path("state"))
            .arg("--config")
            .arg(self.path("agent.toml"))
            .env_remove("NOTIFY_SOCKET")
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Answer {
        let output = self.command(arguments).output().unwrap();
        Answer {
            status: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Start the daemon, with a bus of its own that outlives it.
    pub(crate) fn daemon(&self) -> Daemon {
        let socket = self.path("bus");
        if !socket.exists() {
            bus::serve(&socket);
        }
        let log = std::fs::File::create(self.path("agent.log")).unwrap();
        let child = self
            .command(&["run"])
            .env(
                "DBUS_SYSTEM_BUS_ADDRESS",
                format!("unix:path={}", socket.display()),
            )
            .env("RUST_LOG", "debug")
            .stderr(log)
            .spawn()
            .unwrap();
        Daemon(child)
    }
}

/// A join token for a controller at `url`.
pub(crate) fn token(url: &str, expires_at: i64) -> String {
    let token = JoinToken {
        controller_url: url.to_owned(),
        secret: "c2VjcmV0".to_owned(),
        expires_at,
        node_name: None,
    };
    let json = serde_json::to_vec(&token).unwrap();
    format!("{JOIN_TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
}

/// Seconds since the epoch.
pub(crate) fn now() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
        .try_into()
        .unwrap()
}

fn program() -> PathBuf {
    program_beside_test("berth-agent").unwrap()
}
