//! A real PostgreSQL server for the tests of one process, from the packages of this machine.
//!
//! It lives in a temporary folder, answers on a Unix socket in it and ends with the process that
//! started it, however that ends: a guard waits for the end of its standard input. PostgreSQL refuses
//! to run as root, so root's tests give it another user.

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail, ensure};

use crate::lab::ssh::free_port;

/// Makes a cluster, says so, and takes it away when its standard input ends. Texts are compared in
/// English order by default, so that nothing can depend on the order of bytes by accident.
const GUARD: &str = r#"
set -eu
trap '' INT HUP TERM
folder=$1
options=$2
initdb --pgdata "$folder/data" --username berth --auth trust --encoding UTF8 \
    --locale C.UTF-8 --locale-provider icu --icu-locale en-US >"$folder/initdb.log" 2>&1
pg_ctl --pgdata "$folder/data" --wait --log "$folder/server.log" \
    --options "-k $folder $options" start >"$folder/start.log" 2>&1
echo ready
cat >"$folder/unread"
pg_ctl --pgdata "$folder/data" --mode immediate --wait stop >"$folder/stop.log" 2>&1
rm -rf "$folder"
"#;

/// Of a server's socket, which nobody else has in its folder.
const PORT: u16 = 5432;

/// A server that runs.
#[derive(Debug)]
pub struct Postgres {
    folder: PathBuf,
    /// Of its socket, and of loopback where it answers there.
    port: u16,
    /// Its standard input is the server's life.
    guard: Child,
    databases: AtomicU32,
}

impl Postgres {
    /// The server of this process; started by the first who asks.
    ///
    /// # Panics
    /// If it cannot be started: a test that needs it must not pass without it.
    #[must_use]
    pub fn of_this_process() -> &'static Self {
        static SERVER: OnceLock<Postgres> = OnceLock::new();
        SERVER.get_or_init(|| Self::start().expect("PostgreSQL starts"))
    }

    /// Start one more server.
    ///
    /// # Errors
    /// If PostgreSQL is not installed or does not start.
    pub fn start() -> Result<Self> {
        Self::start_in(new_folder()?, PORT, "-h ''")
    }

    /// Start one more server that also answers on a port of `127.0.0.1`, where it can be asked for TLS if it is
    /// given a certificate and its key, as PEM.
    ///
    /// # Errors
    /// If PostgreSQL is not installed or does not start.
    pub fn start_on_loopback(identity: Option<[&str; 2]>) -> Result<Self> {
        let folder = new_folder()?;
        let mut options = String::from("-h 127.0.0.1");
        let settings = [("ssl_cert_file", "tls.pem"), ("ssl_key_file", "tls.key")];
        for ((setting, name), content) in settings.into_iter().zip(identity.into_iter().flatten()) {
            let path = folder.join(name);
            std::fs::write(&path, content)?;
            std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            if is_root()? {
                let (user, group) = owner()?;
                chown(&path, Some(user), Some(group))?;
            }
            options.push_str(&format!(" -c ssl=on -c {setting}={}", path.display()));
        }
        Self::start_in(folder, free_port()?, &options)
    }

    fn start_in(folder: PathBuf, port: u16, options: &str) -> Result<Self> {
        let programs = programs()?;
        let mut guard = unprivileged(&folder)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut guard = guard
            .args(["sh", "-c", GUARD, "guard"])
            .arg(&folder)
            .arg(format!("-p {port} {options}"))
            .env("PATH", format!("{}:{path}", programs.display()))
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting PostgreSQL's guard")?;
        let mut said = String::new();
        let out = guard.stdout.take().context("the guard's output")?;
        BufReader::new(out).read_line(&mut said)?;
        let server = Self {
            folder,
            port,
            guard,
            databases: AtomicU32::new(0),
        };
        ensure!(
            said == "ready\n",
            "PostgreSQL did not start: {}",
            server.log()
        );
        Ok(server)
    }

    /// The URL of a new, empty database.
    ///
    /// # Panics
    /// If the server does not make it.
    #[must_use]
    pub fn new_database(&self) -> String {
        let name = format!("berth_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let made = run(&self.url("postgres"), &format!("CREATE DATABASE {name}"));
        made.unwrap_or_else(|error| panic!("{error:#}; {}", self.log()));
        self.url(&name)
    }

    fn url(&self, database: &str) -> String {
        let (folder, port) = (self.folder.display(), self.port);
        format!("postgres:///{database}?host={folder}&port={port}&user=berth")
    }

    /// What comes before a database's name in its URL, where the server answers on this host's port.
    #[must_use]
    pub fn loopback_url(&self, host: &str) -> String {
        format!("postgres://berth@{host}:{}", self.port)
    }

    /// Stop the server at once, as a crash would, and start it again: every connection is lost.
    ///
    /// # Errors
    /// If it does not come back.
    pub fn restart(&self) -> Result<()> {
        let mut restart = unprivileged(&self.folder)?;
        let done = restart
            .arg(programs()?.join("pg_ctl"))
            .arg("--pgdata")
            .arg(self.folder.join("data"))
            .args(["--mode", "immediate", "--wait", "--log"])
            .arg(self.folder.join("server.log"))
            .arg("restart")
            .stdout(Stdio::null())
            .status()?;
        ensure!(done.success(), "PostgreSQL did not restart: {}", self.log());
        Ok(())
    }

    fn log(&self) -> String {
        ["initdb.log", "start.log", "server.log"]
            .iter()
            .filter_map(|name| std::fs::read_to_string(self.folder.join(name)).ok())
            .collect()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        drop(self.guard.wait());
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

/// Run SQL with `psql`; the unaligned rows that it prints.
///
/// # Errors
/// If the server refuses, with its words.
pub fn run(url: &str, sql: &str) -> Result<String> {
    let output = Command::new(programs()?.join("psql"))
        .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
        .args([
            "--set",
            "ON_ERROR_STOP=1",
            "--dbname",
            url,
            "--command",
            sql,
        ])
        .output()
        .context("running psql")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

/// A transaction that stays open until this is dropped, and is then undone.
#[derive(Debug)]
pub struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}

/// Begin a transaction with this SQL, which takes locks, and keep it open.
///
/// # Errors
/// If the server refuses.
pub fn hold(url: &str, sql: &str) -> Result<Held> {
    let mut child = Command::new(programs()?.join("psql"))
        .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
        .args(["--set", "ON_ERROR_STOP=1", "--dbname", url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("running psql")?;
    let stdin = child.stdin.as_mut().context("psql's input")?;
    writeln!(stdin, "BEGIN; {sql}; SELECT 'held';")?;
    let stdout = child.stdout.take().context("psql's output")?;
    let held = Held(child);
    let is_held = BufReader::new(stdout)
        .lines()
        .map_while(Result::ok)
        .any(|line| line == "held");
    ensure!(is_held, "the locks were not given");
    Ok(held)
}

/// Everything in a database as text.
///
/// # Errors
/// If the server refuses, with its words.
pub fn dump(url: &str) -> Result<String> {
    let output = Command::new(programs()?.join("pg_dump"))
        .arg(url)
        .output()
        .context("running pg_dump")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Where Debian puts the server's programs: the newest version's folder.
fn programs() -> Result<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let version = path.file_name()?.to_str()?.parse().ok()?;
            Some((version, path.join("bin")))
        })
        .filter(|(_, path)| path.join("initdb").exists())
        .collect();
    versions.sort();
    let Some((_, path)) = versions.pop() else {
        bail!("PostgreSQL is missing: apt-get install postgresql");
    };
    Ok(path)
}

fn new_folder() -> Result<PathBuf> {
    let folder = tempfile::Builder::new().prefix("berth-pg-").tempdir()?;
    Ok(folder.keep())
}

fn is_root() -> Result<bool> {
    Ok(std::fs::metadata("/proc/self")?.uid() == 0)
}

/// A command that runs what follows as somebody other than root, to whom the folder belongs.
fn unprivileged(folder: &Path) -> Result<Command> {
    if !is_root()? {
        return Ok(Command::new("env"));
    }
    let (user, group) = owner()?;
    chown(folder, Some(user), Some(group))?;
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={user}"))
        .arg(format!("--regid={group}"))
        .args(["--clear-groups", "--"]);
    Ok(command)
}

/// The user that Debian's package made.
fn owner() -> Result<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd")?;
    let mut fields = users
        .lines()
        .find_map(|line| line.strip_prefix("postgres:"))
        .context("there is no user postgres: apt-get install postgresql")?
        .split(':')
        .skip(1);
    let mut next = || -> Result<u32> {
        let field = fields.next().context("a line of /etc/passwd is cut off")?;
        field.parse().context("a line of /etc/passwd")
    };
    Ok((next()?, next()?))
}
