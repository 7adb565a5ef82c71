//! A real controller process with a state folder and a database of its own, for as long as it is
//! measured.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use berth_api::ids::ControllerId;
use berth_controller_store::{Database, PostgresServer};
use berth_ledger::keys::SigningKey;
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::client::Caller;
use crate::command;
use crate::postgres::Postgres;

/// More than any measurement asks for.
const PLENTY: u32 = 1_000_000_000;

/// Which database is under a controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// SQLite's file.
    Sqlite,
    /// A PostgreSQL server on this machine, started for this.
    Postgres,
}

impl StoreKind {
    /// As command lines and tables name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

/// A controller's state folder that is made anew and taken away afterwards.
#[derive(Debug)]
pub struct State {
    program: PathBuf,
    folder: tempfile::TempDir,
    store: StoreKind,
    controller_id: ControllerId,
    url: Option<String>,
    /// Lives as long as what is in it is needed.
    _postgres: Option<Postgres>,
}

impl State {
    /// Make keys, database and the first token with `berth-controller init`, in `under`, which should be
    /// on the kind of disk that is to be measured.
    ///
    /// # Errors
    /// If the program or PostgreSQL fails.
    pub fn init(program: &Path, store: StoreKind, under: &Path) -> Result<Self> {
        std::fs::create_dir_all(under).with_context(|| format!("making {}", under.display()))?;
        let folder = tempfile::Builder::new().prefix("load-").tempdir_in(under)?;
        let postgres = match store {
            StoreKind::Sqlite => None,
            StoreKind::Postgres => Some(Postgres::start()?),
        };
        let url = postgres.as_ref().map(Postgres::new_database);
        let settings = url
            .as_ref()
            .map_or_else(String::new, |url| format!("[database]\nurl = \"{url}\"\n"));
        std::fs::write(folder.path().join("controller.toml"), settings)?;
        let mut state = Self {
            program: program.to_owned(),
            folder,
            store,
            controller_id: ControllerId::generate(),
            url,
            _postgres: postgres,
        };
        let said = command::capture(state.command().arg("init"))?;
        let id = said.split_whitespace().find_map(|word| word.parse().ok());
        state.controller_id = id.with_context(|| format!("no controller's id in: {said}"))?;
        Ok(state)
    }

    /// The controller's own id.
    #[must_use]
    pub fn controller_id(&self) -> ControllerId {
        self.controller_id
    }

    /// The database, for the store's own calls.
    ///
    /// # Errors
    /// If PostgreSQL's address is not understood.
    pub fn open_database(&self) -> Result<Database> {
        Ok(match &self.url {
            None => Database::File(self.folder.path().join("berth.db")),
            Some(url) => Database::Postgres(PostgresServer::parse(url, None)?),
        })
    }

    /// Which database it has.
    #[must_use]
    pub fn store(&self) -> StoreKind {
        self.store
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// One of the controller's keys.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn key(&self, name: &str) -> Result<SigningKey> {
        use base64::Engine as _;
        let path = self.folder.path().join("keys").join(name);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("reading {}", path.display()))?;
        let seed = base64::engine::general_purpose::STANDARD.decode(text.trim())?;
        let seed: [u8; 32] = seed.as_slice().try_into().context("a key has 32 bytes")?;
        Ok(SigningKey::from_seed(&seed)?)
    }

    /// The program with this state.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--config")
            .arg(self.folder.path().join("controller.toml"))
            .arg("--state-dir")
            .arg(self.folder.path())
            .env_remove("JOURNAL_STREAM");
        command
    }

    /// Start serving on a free port of the loopback interface.
    ///
    /// # Errors
    /// If it ends before it serves; the message quotes its log.
    pub fn serve(&self) -> Result<Served<'_>> {
        let port_file = self.folder.path().join("port");
        let mut child = self
            .command()
            .args(["serve", "--listen", "127.0.0.1:0", "--port-file"])
            .arg(&port_file)
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        let mut lines = BufReader::new(child.stderr.take().context("its log")?).lines();
        let log_path = self.folder.path().join("controller.log");
        let mut log = File::create(&log_path)?;
        loop {
            let Some(line) = lines.next() else {
                let said = std::fs::read_to_string(&log_path).unwrap_or_default();
                bail!("the controller ended before it served: {said}");
            };
            let line = line?;
            writeln!(log, "{line}")?;
            if line.contains("serving") {
                break;
            }
        }
        // The log is part of what a request costs: it is read and kept, as the journal would.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if writeln!(log, "{line}").is_err() {
                    break;
                }
            }
        });
        let port: u16 = std::fs::read_to_string(&port_file)?.trim().parse()?;
        Ok(Served {
            state: self,
            child,
            url: format!("http://127.0.0.1:{port}"),
        })
    }
}

/// A controller that serves; ended when dropped.
#[derive(Debug)]
pub struct Served<'s> {
    state: &'s State,
    child: Child,
    url: String,
}

impl Served<'_> {
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it answers.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The first administrator.
    ///
    /// # Errors
    /// If the token cannot be read.
    pub fn admin(&self) -> Result<Caller> {
        let token = std::fs::read_to_string(self.state.folder.path().join("admin.token"))?;
        Ok(Caller::stranger(&self.url).with_token(&token))
    }

    /// Stop it as systemd does, and wait for its end.
    ///
    /// # Errors
    /// If it does not end well.
    pub fn stop(mut self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the controller ended with {status}");
        Ok(())
    }
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        // It may have ended, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A tenant with room for everything, and its administrator.
///
/// # Errors
/// If the controller refuses.
pub async fn new_tenant(admin: &Caller, id: &str) -> Result<Caller> {
    let body = json!({
        "tenant_id": id,
        "display_name": "Load",
        "max_vms": PLENTY,
        "storage_quota_gb": PLENTY,
        "api_rate_limit_rpm": PLENTY,
    });
    admin
        .expect(201, Method::POST, "/v1/tenants", Some(&body))
        .await?;
    let (token, _) = new_token(admin, id, "service:tenant-admin").await?;
    Ok(admin.with_token(&token))
}

/// A token of a tenant, and its id.
///
/// # Errors
/// If the controller refuses.
pub async fn new_token(admin: &Caller, tenant: &str, scope: &str) -> Result<(String, String)> {
    let holder = SigningKey::generate()?.public().to_base64();
    let body = json!({ "subject_pubkey": holder, "scope": scope, "expires_in_seconds": 86_400 });
    let path = format!("/v1/tenants/{tenant}/tokens");
    let issued = admin.expect(201, Method::POST, &path, Some(&body)).await?;
    let text = |name: &str| {
        let text = issued[name].as_str();
        text.map(ToOwned::to_owned)
            .with_context(|| format!("an issued token has no {name}"))
    };
    Ok((text("token")?, text("token_id")?))
}

/// What one small write to the disk under `folder` takes until it is durable: the floor under every
/// commit there.
///
/// # Errors
/// If the file cannot be written.
pub fn disk_sync(folder: &Path) -> Result<super::latency::Percentiles> {
    let mut file = tempfile::tempfile_in(folder)?;
    let mut times = super::latency::Latencies::default();
    for _ in 0..200 {
        let begun = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        times.record(begun.elapsed().max(Duration::from_micros(1)));
    }
    Ok(times.percentiles())
}
