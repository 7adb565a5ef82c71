//! A controller of its own for each test, and the programs pointed at it.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use berth_tests::workspace::program_beside_test;
use serde_json::Value;
use tempfile::TempDir;

/// How long a controller may take to listen, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks for the port file.
const LOOK: Duration = Duration::from_millis(5);

/// A running controller and the home of an operator who holds its admin token.
pub(crate) struct Bench {
    folder: TempDir,
    url: String,
    controller: Mutex<Child>,
}

/// What a program answered.
pub(crate) struct Answer {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Bench {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let init = Command::new(program("berth-controller"))
            .args(["init", "--state-dir"])
            .arg(&state)
            .output()
            .unwrap();
        assert!(
            init.status.success(),
            "{}",
            String::from_utf8_lossy(&init.stderr)
        );
        let mut bench = Self {
            controller: Mutex::new(serve(folder.path(), "127.0.0.1:0")),
            folder,
            url: String::new(),
        };
        bench.url = format!("http://127.0.0.1:{}", bench.port());
        bench.settle_token(&state);
        bench
    }

    /// Kill the controller, do something, start it again at the same address.
    pub(crate) fn without_controller(&self, meanwhile: impl FnOnce()) {
        let mut controller = self.controller.lock().unwrap();
        controller.kill().unwrap();
        controller.wait().unwrap();
        meanwhile();
        std::fs::remove_file(self.folder.path().join("port")).unwrap();
        *controller = serve(self.folder.path(), self.address());
        drop(controller);
        self.port();
    }

    fn port(&self) -> u16 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = std::fs::read_to_string(self.folder.path().join("port"));
            if let Ok(port) = text.unwrap_or_default().trim_end().parse() {
                return port;
            }
            let ended = self.controller.lock().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "the controller does not listen ({ended:?}): {}",
                self.log()
            );
            std::thread::sleep(LOOK);
        }
    }

    /// Put the admin token where a person keeps it.
    fn settle_token(&self, state: &Path) {
        let config = self.home().join(".config/berth");
        std::fs::create_dir_all(&config).unwrap();
        // The copy keeps the mode 0600.
        std::fs::copy(state.join("admin.token"), config.join("token")).unwrap();
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("controller.log")).unwrap_or_default()
    }

    pub(crate) fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(program(name));
        command
            .env_clear()
            .env("HOME", self.home())
            .env("BERTH_URL", &self.url);
        command
    }

    /// Run a program as the operator.
    pub(crate) fn run(&self, name: &str, arguments: &[&str]) -> Answer {
        self.command(name).args(arguments).output().unwrap().into()
    }

    /// Run `berthctl` as the operator.
    pub(crate) fn berthctl(&self, arguments: &[&str]) -> Answer {
        self.run("berthctl", arguments)
    }

    /// Run `berthctl` with a token.
    pub(crate) fn berthctl_as(&self, token: &str, arguments: &[&str]) -> Answer {
        self.command("berthctl")
            .env("BERTH_TOKEN", token)
            .args(arguments)
            .output()
            .unwrap()
            .into()
    }

    /// Run a script as the operator types it, in this bench's folder.
    pub(crate) fn shell(&self, script: &str) -> Answer {
        let berthctl = program("berthctl");
        let programs = berthctl.parent().unwrap().display();
        Command::new("/bin/sh")
            .args(["-euc", script])
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", format!("{programs}:/usr/bin:/bin"))
            .env("HOME", self.home())
            .env("BERTH_URL", &self.url)
            .output()
            .unwrap()
            .into()
    }

    /// A raw call with a long body.
    pub(crate) fn post(&self, path: &str, body: &str) -> Answer {
        let mut child = self
            .command("berthctl")
            .args(["api", "POST", path, "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(body.as_bytes())
            .unwrap();
        child.wait_with_output().unwrap().into()
    }

    /// Start a `berthctl` whose output comes line by line; end it by dropping.
    pub(crate) fn follow(&self, token: &str, arguments: &[&str]) -> Following {
        let mut child = self
            .command("berthctl")
            .env("BERTH_TOKEN", token)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Following {
            stdout: BufReader::new(child.stdout.take().unwrap()).lines(),
            stderr: BufReader::new(child.stderr.take().unwrap()).lines(),
            child,
        }
    }

    /// A tenant with room for `max_vms`.
    pub(crate) fn tenant(&self, tenant: &str, max_vms: &str) {
        let made = self.berthctl(&[
            "tenant",
            "create",
            tenant,
            "--max-vms",
            max_vms,
            "--storage-quota-gb",
            "100",
            "--api-rate-limit-rpm",
            "6000",
        ]);
        made.expect(0);
    }

    /// A token for a tenant's administrator.
    pub(crate) fn tenant_token(&self, tenant: &str) -> String {
        let key = self.path(&format!("{tenant}.key"));
        let public = self
            .berthctl(&["token", "keygen", &key])
            .expect(0)
            .stdout
            .clone();
        let issued = self.berthctl(&[
            "token",
            "issue",
            tenant,
            "--subject-pubkey",
            public.trim(),
            "--scope",
            "service:tenant-admin",
            "--json",
        ]);
        issued.expect(0).json()["token"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let controller = self.controller.get_mut().unwrap();
        controller.kill().ok();
        controller.wait().ok();
        if std::thread::panicking() {
            // Captured by the test's runner and shown with the failure.
            println!("the controller's log:\n{}", self.log());
        }
    }
}

/// A program that goes on printing.
pub(crate) struct Following {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: Lines<BufReader<ChildStderr>>,
}

impl Following {
    pub(crate) fn line(&mut self) -> String {
        self.stdout.next().unwrap().unwrap()
    }

    /// Read standard error up to a line with this.
    pub(crate) fn until(&mut self, text: &str) {
        let found = self
            .stderr
            .by_ref()
            .any(|line| line.unwrap().contains(text));
        assert!(found, "it ended without saying {text}");
    }

    pub(crate) fn code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Answer {
    #[track_caller]
    pub(crate) fn expect(&self, code: i32) -> &Self {
        assert_eq!(
            self.code,
            Some(code),
            "\nstdout: {}\nstderr: {}",
            self.stdout,
            self.stderr
        );
        self
    }

    #[track_caller]
    pub(crate) fn shows(&self, text: &str) -> &Self {
        assert!(
            self.stdout.contains(text),
            "{text} is not in: {}",
            self.stdout
        );
        self
    }

    #[track_caller]
    pub(crate) fn complains(&self, text: &str) -> &Self {
        assert!(
            self.stderr.contains(text),
            "{text} is not in: {}",
            self.stderr
        );
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

/// A controller with its state, port file and log in `folder`.
fn serve(folder: &Path, address: &str) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(folder.join("controller.log"));
    Command::new(program("berth-controller"))
        .args(["serve", "--listen", address, "--state-dir"])
        .arg(folder.join("state"))
        .arg("--port-file")
        .arg(folder.join("port"))
        .stdout(Stdio::null())
        .stderr(log.unwrap())
        .spawn()
        .unwrap()
}

fn program(name: &str) -> PathBuf {
    program_beside_test(name).unwrap()
}
