//! Starting and stopping controllers, and talking to them.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use berth_ledger::keys::SigningKey;
use berth_tests::simulated_agent::{Host, SimulatedAgent, http_client};
use berth_tests::workspace::program_beside_test;
use serde_json::{Value, json};

use crate::database::TestDatabase;

/// A controller that runs; killed when dropped.
pub(crate) struct Controller {
    folder: Arc<tempfile::TempDir>,
    database: TestDatabase,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    pub(crate) port: u16,
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) text: String,
}

/// Somebody with a token, or without one.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: ureq::Agent,
    url: String,
    pub(crate) authorization: Option<String>,
}

/// How long a controller may take to say what it did on a signal.
const HEARING_PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn binary() -> PathBuf {
    program_beside_test("berth-controller").unwrap()
}

pub(crate) fn offline(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(binary())
        .arg("--config")
        .arg(folder.join("controller.toml"))
        .arg("--state-dir")
        .arg(folder)
        .args(arguments)
        .output()
        .unwrap()
}

/// A controller that serves: its process, what it says, and its port.
type Serving = (Child, Arc<Mutex<Vec<String>>>, u16);

/// How a controller ended before it served, and what it said.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: Option<i32>,
    pub(crate) said: String,
}

fn spawn(folder: &Path, listen: &str) -> Serving {
    try_spawn(folder, listen).unwrap_or_else(|refusal| panic!("it did not serve: {refusal:?}"))
}

fn try_spawn(folder: &Path, listen: &str) -> Result<Serving, Refusal> {
    let port_file = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    let mut child = Command::new(binary())
        .arg("--config")
        .arg(folder.join("controller.toml"))
        .arg("--state-dir")
        .arg(folder)
        .args(["serve", "--listen", listen, "--port-file"])
        .arg(&port_file)
        .env_remove("JOURNAL_STREAM")
        .env("BERTH_LOG", "debug")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let log = Arc::new(Mutex::new(Vec::new()));
    loop {
        let Some(line) = lines.next() else {
            let said = log.lock().unwrap().join("\n");
            let code = child.wait().unwrap().code();
            return Err(Refusal { code, said });
        };
        let line = line.unwrap();
        let serves = line.contains("serving");
        log.lock().unwrap().push(line);
        if serves {
            break;
        }
    }
    let kept = Arc::clone(&log);
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            kept.lock().unwrap().push(line);
        }
    });
    let port = std::fs::read_to_string(port_file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    Ok((child, log, port))
}

impl Controller {
    pub(crate) fn start() -> Self {
        Self::start_on(TestDatabase::chosen)
    }

    /// A controller on a database of this kind.
    pub(crate) fn start_on(database: impl FnOnce(&Path) -> TestDatabase) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let database = database(folder.path());
        let settings = folder.path().join("controller.toml");
        std::fs::write(settings, database.settings()).unwrap();
        let made = offline(folder.path(), &["init"]);
        assert!(made.status.success(), "{made:?}");
        let (child, log, port) = spawn(folder.path(), "127.0.0.1:0");
        Self {
            folder,
            database,
            child,
            log,
            port,
        }
    }

    /// A controller with these settings, on this address.
    pub(crate) fn serve_configured(settings: &str, listen: &str) -> Self {
        Self::configured_on(TestDatabase::chosen, settings, listen)
    }

    /// The same on a database of this kind.
    pub(crate) fn configured_on(
        database: impl FnOnce(&Path) -> TestDatabase,
        settings: &str,
        listen: &str,
    ) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let database = database(folder.path());
        let settings = format!("{settings}{}", database.settings());
        std::fs::write(folder.path().join("controller.toml"), settings).unwrap();
        let made = offline(folder.path(), &["init"]);
        assert!(made.status.success(), "{made:?}");
        let (child, log, port) = spawn(folder.path(), listen);
        Self {
            folder,
            database,
            child,
            log,
            port,
        }
    }

    /// SIGHUP, and wait until it says these words once more.
    pub(crate) fn hang_up(&self, words: &str) {
        let said = || {
            let log = self.log();
            log.iter().filter(|line| line.contains(words)).count()
        };
        let before = said();
        let pid = self.child.id().to_string();
        let told = Command::new("kill").args(["-HUP", &pid]).status().unwrap();
        assert!(told.success());
        let begun = Instant::now();
        while said() == before {
            assert!(
                begun.elapsed() < HEARING_PATIENCE,
                "it never says {words:?}"
            );
            std::thread::yield_now();
        }
    }

    /// Wait until its operator reads these words.
    #[track_caller]
    pub(crate) fn await_log(&self, words: &str) {
        let begun = Instant::now();
        while !self.log().iter().any(|line| line.contains(words)) {
            assert!(
                begun.elapsed() < HEARING_PATIENCE,
                "it never says {words:?}"
            );
            std::thread::yield_now();
        }
    }

    /// One more controller process on the same database.
    pub(crate) fn beside(&self) -> Self {
        let folder = Arc::clone(&self.folder);
        let (child, log, port) = spawn(folder.path(), "127.0.0.1:0");
        Self {
            folder,
            database: self.database.clone(),
            child,
            log,
            port,
        }
    }

    /// SIGKILL, then start again on the same port.
    pub(crate) fn kill_and_restart(&mut self) {
        self.kill();
        self.restart();
    }

    /// Start again on the same port after a kill.
    pub(crate) fn restart(&mut self) {
        let listen = format!("127.0.0.1:{}", self.port);
        (self.child, self.log, self.port) = spawn(self.folder.path(), &listen);
    }

    /// Start again after a kill, unless it refuses.
    pub(crate) fn try_restart(&mut self) -> Result<(), Refusal> {
        let listen = format!("127.0.0.1:{}", self.port);
        (self.child, self.log, self.port) = try_spawn(self.folder.path(), &listen)?;
        Ok(())
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and wait for the end.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        let told = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        assert!(told.success());
        self.child.wait().unwrap()
    }

    /// Wait until it ends by itself.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn database(&self) -> &TestDatabase {
        &self.database
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Run a subcommand on this controller's state.
    pub(crate) fn offline(&self, arguments: &[&str]) -> Output {
        offline(self.folder.path(), arguments)
    }

    #[track_caller]
    pub(crate) fn assert_sound(&self) {
        for subcommand in ["check", "verify-ledger"] {
            let output = self.offline(&[subcommand]);
            assert!(output.status.success(), "{subcommand}: {output:?}");
        }
    }

    pub(crate) fn stranger(&self) -> Client {
        Client {
            http: http_client(),
            url: self.url(),
            authorization: None,
        }
    }

    pub(crate) fn with_token(&self, token: &str) -> Client {
        Client {
            authorization: Some(format!("Bearer {token}")),
            ..self.stranger()
        }
    }

    pub(crate) fn admin(&self) -> Client {
        let token = std::fs::read_to_string(self.folder.path().join("admin.token")).unwrap();
        self.with_token(token.trim())
    }

    /// A tenant with room for `max_vms`, and its administrator.
    pub(crate) fn tenant(&self, id: &str, max_vms: u32) -> Client {
        self.admin()
            .post("/v1/tenants", &tenant_body(id, max_vms))
            .expect(201);
        self.token(id, "service:tenant-admin")
    }

    pub(crate) fn token(&self, tenant: &str, scope: &str) -> Client {
        let path = format!("/v1/tenants/{tenant}/tokens");
        // Longer than `token_body` asks for, so that this one can issue such a token at any later moment.
        let mut body = token_body(scope);
        body["expires_in_seconds"] = json!(2 * 86_400);
        let issued = self.admin().post(&path, &body).expect(201);
        self.with_token(issued.json()["token"].as_str().unwrap())
    }

    pub(crate) fn join_token(&self) -> String {
        let issued = self
            .admin()
            .post("/v1/nodes/join-tokens", &json!({}))
            .expect(201);
        issued.json()["token"].as_str().unwrap().to_owned()
    }

    /// An enrolled agent that has synced once.
    pub(crate) fn agent(&self, name: &str, memory_mib: u64) -> SimulatedAgent {
        let host = Host::new(name, memory_mib);
        let mut agent = SimulatedAgent::enroll(&self.join_token(), host).unwrap();
        agent.sync(0).unwrap();
        agent
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            let log = self.log();
            for line in log.iter().skip(log.len().saturating_sub(30)) {
                eprintln!("{line}");
            }
        } else {
            // What is answered and not in the document is a fault of the table of routes.
            let untold: Vec<_> = self
                .log()
                .into_iter()
                .filter(|line| line.contains("undocumented answer"))
                .collect();
            assert!(untold.is_empty(), "{untold:#?}");
        }
    }
}

pub(crate) fn tenant_body(id: &str, max_vms: u32) -> Value {
    json!({
        "tenant_id": id,
        "display_name": "Somebody",
        "max_vms": max_vms,
        "storage_quota_gb": 1000,
        "api_rate_limit_rpm": 60_000,
    })
}

pub(crate) fn token_body(scope: &str) -> Value {
    let holder = SigningKey::generate().unwrap().public().to_base64();
    json!({ "subject_pubkey": holder, "scope": scope, "expires_in_seconds": 86_400 })
}

pub(crate) fn vm_body(name: &str) -> Value {
    json!({ "name": name, "image": "debian-12", "memory_mb": 128 })
}

impl Client {
    /// `None` if the connection was refused or cut.
    pub(crate) fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> Option<Reply> {
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url));
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = match body {
            Some(body) => self.http.run(request.body(body.to_owned()).unwrap()),
            None => self.http.run(request.body(()).unwrap()),
        };
        let mut answer = answer.ok()?;
        Some(Reply {
            status: answer.status().as_u16(),
            headers: answer
                .headers()
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or("").to_owned()))
                .collect(),
            text: answer.body_mut().read_to_string().ok()?,
        })
    }

    /// The lines of an answer that does not end by itself; the connection ends with the reader.
    #[track_caller]
    pub(crate) fn follow(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> impl Iterator<Item = String> + use<> {
        let mut request = ureq::http::Request::builder().uri(format!("{}{path}", self.url));
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = self.http.run(request.body(()).unwrap()).unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        BufReader::new(answer.into_body().into_reader())
            .lines()
            .map_while(Result::ok)
    }

    #[track_caller]
    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> Reply {
        self.try_send(method, path, headers, body)
            .expect("the controller answers")
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], None)
    }

    pub(crate) fn delete(&self, path: &str) -> Reply {
        self.send("DELETE", path, &[], None)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        self.send_json("POST", path, body)
    }

    pub(crate) fn send_json(&self, method: &str, path: &str, body: &Value) -> Reply {
        let json = [("content-type", "application/json")];
        self.send(method, path, &json, Some(&body.to_string()))
    }
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    /// An error with this code, in the published shape.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json")
        );
        let body = self.json();
        assert_eq!(body["code"], code, "{body}");
        assert_eq!(body["status"], status);
        assert_eq!(body["request_id"].as_str(), self.header("x-request-id"));
        for member in ["type", "title", "error", "detail"] {
            assert!(
                body[member].as_str().is_some_and(|text| !text.is_empty()),
                "{member}"
            );
        }
        body
    }

    /// The body without what differs between any two requests.
    pub(crate) fn without_request_id(&self) -> String {
        let mut body = self.json();
        body["request_id"] = Value::Null;
        format!("{} {body}", self.status)
    }
}

/// What an entry of the ledger says.
pub(crate) fn audit_bodies(client: &Client, query: &str) -> Vec<Value> {
    let page = client
        .get(&format!("/v1/audit/entries?limit=1000&{query}"))
        .expect(200)
        .json();
    page["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| serde_json::from_str(entry["body"].as_str().unwrap()).unwrap())
        .collect()
}

impl Controller {
    /// Make every node look as if it had been silent for ten minutes.
    pub(crate) fn age_nodes(&self) {
        self.database
            .run("UPDATE node SET last_sync_at = last_sync_at - 600000")
            .unwrap();
    }
}

/// What a caller's tenant is charged for one resource.
#[track_caller]
pub(crate) fn usage_of(client: &Client, resource: &str) -> Value {
    let usage = client.get("/v1/usage").expect(200).json();
    let items = usage["items"].as_array().unwrap();
    let found = items.iter().find(|item| item["resource"] == resource);
    found
        .unwrap_or_else(|| panic!("{resource}: {usage}"))
        .clone()
}
