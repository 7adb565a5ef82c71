//! `berth-publish` before an S3-compatible store that is not ours, and a reader who has nothing but that
//! store and the log's key.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, Result};
use berth_ledger::checkpoint::Checkpoint;
use berth_ledger::keys::SigningKey;
use berth_ledger::note::Note;
use berth_ledger::tile::Resource;
use berth_tests::load::served::{Served, State, StoreKind};
use berth_tests::progress::say;
use berth_tests::simulated_agent::http_client;
use berth_tests::workspace::{self, program_beside_test};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::runtime::Runtime;

use crate::busy_controller::{change, enrolled, head, length};

/// The store does not check who asks, but wants to be told.
const READER: &str = "AWS4-HMAC-SHA256 Credential=reader/20260101/us-east-1/s3/aws4_request, \
    SignedHeaders=host, Signature=0";

/// The store's process, which ends with its standard input.
struct S3 {
    child: Child,
    /// Where readers come to.
    url: String,
    /// Where the publisher comes to.
    https: String,
    /// Its certificate, and that of the authority behind it.
    folder: tempfile::TempDir,
}

/// An authority's `ca.pem`, and `tls.pem` and `tls.key` for the loopback address.
fn identity() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .unwrap()
        .signed_by(&key, &authority)
        .unwrap();
    for (name, text) in [
        ("ca.pem", authority.pem()),
        ("tls.pem", certificate.pem()),
        ("tls.key", key.serialize_pem()),
    ] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

impl S3 {
    /// Start it with an empty bucket `ledger`; says so if it cannot be, as PyPI was out of reach.
    fn start() -> Option<Self> {
        let python = workspace::build_dir().join("python/moto/bin/python");
        if !python.exists() {
            say("SKIPPED: no moto from PyPI; `cargo xtask test --tier ledger` fetches it");
            return None;
        }
        let folder = identity();
        let mut child = Command::new(python)
            .arg(workspace::root().join("tests/peers/s3_server.py"))
            .args(["tls.pem", "tls.key"].map(|name| folder.path().join(name)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        let ports: Vec<&str> = line.split_whitespace().collect();
        let [plain, tls] = ports.as_slice() else {
            panic!("it prints its ports, not {line:?}");
        };
        let url = format!("http://127.0.0.1:{plain}");
        let https = format!("https://127.0.0.1:{tls}");
        let made = http_client().put(format!("{url}/ledger")).send_empty();
        assert_eq!(made.unwrap().status(), 200);
        Some(Self {
            child,
            url,
            https,
            folder,
        })
    }

    fn get(&self, path: &str) -> Option<Vec<u8>> {
        let request = http_client().get(format!("{}/ledger/main/{path}", self.url));
        let mut answer = request.header("authorization", READER).call().unwrap();
        let status = answer.status().as_u16();
        assert!(status == 200 || status == 404, "GET {path}: {status}");
        (status == 200).then(|| answer.body_mut().read_to_vec().unwrap())
    }

    /// Fetch the log as a reader does, and have `berthctl` verify it; the number of its entries.
    #[track_caller]
    fn verified(&self, key: &str) -> u64 {
        let folder = tempfile::tempdir().unwrap();
        let note = self.get("e1/checkpoint").expect("a checkpoint");
        let text = Note::parse(&note).unwrap();
        let size = Checkpoint::parse(text.text()).unwrap().size;
        fs::write(folder.path().join("checkpoint"), note).unwrap();
        for resource in Resource::all(size) {
            let bytes = self.get(&format!("e1/{resource}"));
            let bytes = bytes.unwrap_or_else(|| panic!("{resource} is missing"));
            let place = folder.path().join(resource.to_string());
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::write(place, bytes).unwrap();
        }
        let mut verify = Command::new(program_beside_test("berthctl").unwrap());
        verify.args(["ledger", "verify"]).arg(folder.path());
        let answer = verify.args(["--public-key", key]).output().unwrap();
        let said = String::from_utf8_lossy(&answer.stdout);
        assert!(answer.status.success(), "{answer:?}");
        assert!(said.contains(&format!("{size} entries")), "{said}");
        size
    }

    fn publish(&self, folder: &Path, key: &str) -> Command {
        let mut command = Command::new(program_beside_test("berth-publish").unwrap());
        command
            .arg(folder)
            .args(["s3://ledger/main", "--once", "--json", "--public-key", key])
            .env("AWS_ENDPOINT", &self.https)
            .env("SSL_CERT_FILE", self.folder.path().join("ca.pem"))
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "publisher")
            .env("AWS_SECRET_ACCESS_KEY", "of the test")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Publish, and have it refused with what is said.
    #[track_caller]
    fn refused(&self, folder: &Path, key: &str, said: &str) {
        let before = self.get("e1/checkpoint");
        let answer = self.publish(folder, key).output().unwrap();
        let errors = String::from_utf8_lossy(&answer.stderr);
        assert_eq!(answer.status.code(), Some(65), "{errors}");
        assert!(errors.contains(said), "{errors}");
        assert_eq!(self.get("e1/checkpoint"), before);
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The one line of a publication that went well.
#[track_caller]
fn report(answer: &Output) -> serde_json::Value {
    let errors = String::from_utf8_lossy(&answer.stderr);
    assert!(answer.status.success(), "{errors}");
    serde_json::from_slice(&answer.stdout).unwrap()
}

/// Wait until the controller's own copy has all that there is; so many entries.
fn published(served: &Served<'_>, runtime: &Runtime) -> Result<u64> {
    // A connection that was idle for long is closed.
    let admin = served.admin()?;
    let size = runtime.block_on(length(&admin))?;
    loop {
        let now = runtime.block_on(head(&admin))?;
        let published = now["published_size"].as_u64().context("published_size")?;
        if published >= size {
            return Ok(published);
        }
        std::thread::yield_now();
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let place = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &place);
        } else {
            fs::copy(entry.path(), place).unwrap();
        }
    }
}

#[test]
fn a_log_in_an_s3_store_is_whole_for_its_readers_whatever_became_of_its_publisher() {
    let Some(s3) = S3::start() else { return };
    let work = tempfile::tempdir().unwrap();
    let public = work.path().join("public");
    fs::create_dir(&public).unwrap();
    let state = State::init(
        &program_beside_test("berth-controller").unwrap(),
        StoreKind::Sqlite,
        work.path(),
    )
    .unwrap();
    let settings = format!(
        "[publish]\nfolder = \"{}\"\nevery_seconds = 1\n",
        public.display()
    );
    fs::write(state.folder().join("controller.toml"), settings).unwrap();
    let key = state.key("ledger.key").unwrap().public().to_base64();
    let served = state.serve().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut host = runtime
        .block_on(enrolled(&served.admin().unwrap(), 0))
        .unwrap();

    let first = published(&served, &runtime).unwrap();
    let done = report(&s3.publish(&public, &key).output().unwrap());
    assert_eq!(
        (done["epoch"].as_str(), done["size"].as_u64()),
        (Some("e1"), Some(first))
    );
    assert_eq!(s3.verified(&key), first);
    let yesterday = work.path().join("yesterday");
    copy(&public, &yesterday);

    for _ in 0..5 {
        change(&mut host, 1000).unwrap();
    }
    let second = published(&served, &runtime).unwrap();
    // It dies when something new is there.
    let mut dying = s3.publish(&public, &key).spawn().unwrap();
    let new = format!("e1/tile/0/{:03}", second / 256 / 2);
    while s3.get(&new).is_none() && dying.try_wait().unwrap().is_none() {}
    dying.kill().unwrap();
    dying.wait().unwrap();
    let found = s3.verified(&key);
    assert!(found == first || found == second, "{found}");
    let done = report(&s3.publish(&public, &key).output().unwrap());
    assert_eq!(done["published_before"], found);
    assert_eq!(s3.verified(&key), second);
    // Partial forms of what is full now are gone.
    let partial = format!("e1/tile/0/{:03}.p/{}", first / 256, first % 256);
    assert_eq!(s3.get(&partial), None);
    let again = report(&s3.publish(&public, &key).output().unwrap());
    assert_eq!(
        (&again["is_new"], &again["objects"]),
        (&false.into(), &0.into())
    );

    // A store that is not the one that its certificate should be of is told nothing.
    let mut unknown = s3.publish(&public, &key);
    let stranger = identity();
    unknown.env("SSL_CERT_FILE", stranger.path().join("ca.pem"));
    let answer = unknown.output().unwrap();
    assert_eq!(answer.status.code(), Some(1), "{answer:?}");
    assert!(String::from_utf8_lossy(&answer.stderr).contains("invalid peer certificate"));
    s3.refused(&yesterday, &key, "went back in time");
    let other = SigningKey::generate().unwrap().public().to_base64();
    s3.refused(&public, &other, "by a key that was given");
    assert_eq!(s3.verified(&key), second);
    served.stop().unwrap();
}
