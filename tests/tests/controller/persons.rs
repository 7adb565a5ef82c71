//! People sign in at an identity provider; what they may do is decided here.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use berth_ledger::keys::SigningKey;
use serde_json::{Value, json};

use crate::harness::{Client, Controller, Reply, audit_bodies, vm_body};
use crate::holders::{Signed, issued};

const SIGN_IN: &str = "/v1/identity/token";

/// An identity provider on this machine: publishes keys, while it has some, and signs tokens.
struct Provider {
    url: String,
    keys: Arc<Mutex<BTreeMap<String, SigningKey>>>,
    /// How often its keys were asked for.
    asked: Arc<AtomicUsize>,
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn published(keys: &BTreeMap<String, SigningKey>) -> String {
    let list: Vec<Value> = keys
        .iter()
        .map(|(id, key)| {
            json!({ "kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": id,
                "x": b64(key.public().as_bytes()) })
        })
        .collect();
    json!({ "keys": list }).to_string()
}

impl Provider {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let keys = Arc::new(Mutex::new(BTreeMap::new()));
        let shown: Arc<Mutex<BTreeMap<String, SigningKey>>> = Arc::clone(&keys);
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let head = BufReader::new(&stream).lines().map_while(Result::ok);
                head.take_while(|line| !line.is_empty()).for_each(drop);
                counted.fetch_add(1, Ordering::SeqCst);
                let body = published(&shown.lock().unwrap());
                let status = if body == r#"{"keys":[]}"# { 503 } else { 200 };
                // Who asked may be gone.
                drop(write!(
                    stream,
                    "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                ));
            }
        });
        Self { url, keys, asked }
    }

    /// A provider with one key.
    fn with_key(id: &str) -> Self {
        let provider = Self::start();
        provider.publish(id);
        provider
    }

    fn publish(&self, id: &str) {
        let key = SigningKey::generate().unwrap();
        self.keys.lock().unwrap().insert(id.to_owned(), key);
    }

    fn withdraw(&self, id: &str) -> SigningKey {
        self.keys.lock().unwrap().remove(id).unwrap()
    }

    fn settings(&self) -> String {
        let url = &self.url;
        format!(
            "[identity_provider]\nissuer = \"{url}\"\naudience = \"berth\"\njwks_url = \"{url}/keys\"\n"
        )
    }

    fn controller(&self) -> Controller {
        Controller::serve_configured(&self.settings(), "127.0.0.1:0")
    }

    fn claims(&self, subject: &str) -> Value {
        let now = jiff::Timestamp::now().as_second();
        json!({ "iss": self.url, "sub": subject, "aud": "berth", "iat": now, "exp": now + 300 })
    }

    fn token_of(&self, id: &str, claims: &Value) -> String {
        let keys = self.keys.lock().unwrap();
        signed(&keys[id], id, claims)
    }

    /// A good token of the key `one`.
    fn token(&self, subject: &str) -> String {
        self.token_of("one", &self.claims(subject))
    }
}

fn signed(key: &SigningKey, id: &str, claims: &Value) -> String {
    let header = json!({ "alg": "EdDSA", "kid": id, "typ": "JWT" });
    let message = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
    let signature = key.sign(message.as_bytes());
    format!("{message}.{}", b64(signature))
}

fn holder() -> String {
    SigningKey::generate().unwrap().public().to_base64()
}

fn sign_in(controller: &Controller, id_token: &str) -> Reply {
    let body = json!({ "id_token": id_token, "subject_pubkey": holder() });
    controller.stranger().post(SIGN_IN, &body)
}

fn signed_in(controller: &Controller, id_token: &str) -> Client {
    let issued = sign_in(controller, id_token).expect(201).json();
    controller.with_token(issued["token"].as_str().unwrap())
}

fn link(by: &Client, tenant: &str, subject: &str, scope: &Value) -> Reply {
    let body = json!({ "subject": subject, "scope": scope });
    by.post(&format!("/v1/tenants/{tenant}/persons"), &body)
}

#[test]
fn a_person_may_do_what_the_link_says_whatever_the_identity_provider_says() {
    let provider = Provider::with_key("one");
    let controller = provider.controller();
    let _agent = controller.agent("node-1", 4096);
    let acme = controller.tenant("acme", 2);
    let mut claims = provider.claims("ada");
    for (name, value) in [
        ("scope", json!("service:platform-admin")),
        ("scp", json!(["service:tenant-admin", "vm.create"])),
        ("tenant_id", json!("acme")),
        ("roles", json!(["admin"])),
    ] {
        claims[name] = value;
    }
    let bold = provider.token_of("one", &claims);
    sign_in(&controller, &bold).refused(403, "permission_denied");
    let person = link(&acme, "acme", "ada", &json!("vm.read"))
        .expect(201)
        .json();
    sign_in(&controller, &provider.token("eve")).refused(403, "permission_denied");
    let ada = signed_in(&controller, &bold);
    let me = ada.get("/v1/me").expect(200).json();
    assert_eq!(
        (&me["tenant_id"], &me["scope"]),
        (&json!("acme"), &json!(["vm.read"]))
    );
    ada.get("/v1/vms").expect(200);
    ada.post("/v1/vms", &vm_body("web"))
        .refused(403, "permission_denied");
    ada.get("/v1/nodes").expect(200);
    // It says who signed in, and hands nothing on.
    let entered = audit_bodies(&acme, "event_type=PERSON_SIGNED_IN");
    assert_eq!(entered[0]["actor"]["kind"], "person");
    assert_eq!(entered[0]["object"]["id"], person["id"]);
    assert_eq!(entered[0]["detail"]["token_id"], me["token_id"]);
    assert_eq!(audit_bodies(&acme, "event_type=PERSON_LINKED").len(), 1);
    controller.database().assert_lacks(&bold);
    controller.assert_sound();
}

#[test]
fn unlinking_a_person_ends_its_tokens_everywhere_and_for_ever() {
    let provider = Provider::with_key("one");
    let controller = provider.controller();
    let acme = controller.tenant("acme", 2);
    let scope = json!(["vm.read", "ledger.read"]);
    let person = link(&acme, "acme", "ada", &scope).expect(201).json();
    link(&acme, "acme", "ada", &scope).refused(409, "already_exists");
    let other = link(&acme, "acme", "bob", &scope).expect(201).json();
    let tokens = [(); 2].map(|()| signed_in(&controller, &provider.token("ada")));
    let bob = signed_in(&controller, &provider.token("bob"));
    let second = controller.beside();
    let path = format!("/v1/persons/{}", person["id"].as_str().unwrap());
    let seen = acme.get(&path).expect(200);
    assert_eq!(seen.json()["scope"], scope);
    let stale = [("if-match", "\"0\"")];
    acme.send("DELETE", &path, &stale, None)
        .refused(412, "precondition_failed");
    acme.delete(&path).expect(204);
    for token in &tokens {
        token.get("/v1/vms").refused(401, "token_revoked");
    }
    sign_in(&controller, &provider.token("ada")).refused(403, "permission_denied");
    sign_in(&second, &provider.token("ada")).refused(403, "permission_denied");
    acme.get(&path).refused(404, "not_found");
    acme.delete(&path).refused(404, "not_found");
    bob.get("/v1/vms").expect(200);
    let unlinked = audit_bodies(&acme, "event_type=PERSON_UNLINKED");
    assert_eq!(unlinked[0]["detail"]["tokens"], 2);
    // Linked anew it is another link, and what was ended stays ended.
    let again = link(&acme, "acme", "ada", &json!("vm.read")).expect(201);
    assert_ne!(again.json()["id"], person["id"]);
    tokens[0].get("/v1/vms").refused(401, "token_revoked");
    let listed = acme.get("/v1/tenants/acme/persons").expect(200).json();
    let ids: Vec<_> = listed["items"].as_array().unwrap().iter().collect();
    assert_eq!((ids.len(), &ids[0]["id"]), (2, &other["id"]));
    controller.assert_sound();
}

#[test]
fn nobody_lets_in_whom_it_may_not_or_gives_what_it_has_not() {
    let provider = Provider::with_key("one");
    let controller = provider.controller();
    let acme = controller.tenant("acme", 2);
    let other = controller.tenant("other", 2);
    let operator = controller.admin();
    let read = json!("vm.read");
    link(&other, "acme", "eve", &read).refused(404, "not_found");
    link(&operator, "nobody", "eve", &read).refused(404, "not_found");
    let reader = controller.token("acme", "vm.read");
    link(&reader, "acme", "eve", &read).refused(403, "permission_denied");
    for scope in [
        "service:platform-admin",
        "service:metrics",
        "vm.guest",
        "all",
    ] {
        let refused = link(&acme, "acme", "eve", &json!(scope)).refused(400, "invalid_request");
        assert!(refused["fields"]["scope"].is_string(), "{refused}");
    }
    for subject in [String::new(), "x".repeat(256)] {
        let refused = link(&acme, "acme", &subject, &read).refused(400, "invalid_request");
        assert!(refused["fields"]["subject"].is_string(), "{refused}");
    }
    let person = link(&operator, "acme", "ada", &json!("service:tenant-admin"))
        .expect(201)
        .json();
    let path = format!("/v1/persons/{}", person["id"].as_str().unwrap());
    other.get(&path).refused(404, "not_found");
    other.delete(&path).refused(404, "not_found");
    // A person's token hands nothing on, so nothing of it is left when the link ends.
    let ada = signed_in(&controller, &provider.token("ada"));
    link(&ada, "acme", "eve", &read).refused(403, "permission_denied");
    let body = json!({ "subject_pubkey": holder(), "scope": "vm.read", "expires_in_seconds": 60 });
    ada.post("/v1/tenants/acme/tokens", &body)
        .refused(403, "permission_denied");
    ada.delete(&path).expect(204);
    ada.get("/v1/me").refused(401, "token_revoked");
}

#[test]
fn who_must_sign_its_requests_lets_nobody_in_who_need_not() {
    let provider = Provider::with_key("one");
    let controller = provider.controller();
    controller.tenant("acme", 1);
    let strict = json!({ "require_pop": true });
    let strict = issued(&controller, "acme", "service:tenant-admin", &strict);
    let body = json!({ "subject": "ada", "scope": "vm.read" }).to_string();
    let linked = Signed::new("POST", "/v1/tenants/acme/persons", &body).by(&controller, &strict);
    assert_eq!(linked.expect(201).json()["require_pop"], true);
    let entered = sign_in(&controller, &provider.token("ada")).expect(201);
    let entered = entered.json();
    assert_eq!(entered["require_pop"], true);
    let unsigned = controller.with_token(entered["token"].as_str().unwrap());
    unsigned.get("/v1/vms").refused(401, "invalid_token");
}

#[test]
fn a_person_of_several_tenants_says_for_which_one_it_comes() {
    let provider = Provider::with_key("one");
    let controller = provider.controller();
    let (acme, other) = (controller.tenant("acme", 2), controller.tenant("other", 2));
    controller.tenant("third", 2);
    let came = |tenant: Option<&str>| {
        let body = json!({ "id_token": provider.token("ada"), "subject_pubkey": holder(),
            "tenant_id": tenant });
        controller.stranger().post(SIGN_IN, &body)
    };
    link(&acme, "acme", "ada", &json!("vm.read")).expect(201);
    assert_eq!(came(None).expect(201).json()["tenant_id"], "acme");
    let elsewhere = came(Some("third")).refused(403, "permission_denied");
    let nowhere = came(Some("nothing")).refused(403, "permission_denied");
    assert_eq!(elsewhere["error"], nowhere["error"]);
    link(&other, "other", "ada", &json!("vm.console")).expect(201);
    let refused = came(None).refused(400, "invalid_request");
    assert!(refused["fields"]["tenant_id"].is_string(), "{refused}");
    let issued = came(Some("other")).expect(201).json();
    assert_eq!(issued["scope"], json!(["vm.console"]));
    // A tenant that is gone is none, and a suspended one lets nobody in.
    controller.admin().delete("/v1/tenants/other").expect(204);
    assert_eq!(came(None).expect(201).json()["tenant_id"], "acme");
    let suspend = "/v1/tenants/acme/suspend";
    controller.admin().post(suspend, &json!({})).expect(200);
    came(None).refused(403, "tenant_suspended");
}

#[test]
fn an_id_token_that_is_not_for_here_and_now_opens_nothing() {
    let provider = Provider::with_key("one");
    let controller = provider.controller();
    let acme = controller.tenant("acme", 2);
    link(&acme, "acme", "ada", &json!("vm.read")).expect(201);
    let now = jiff::Timestamp::now().as_second();
    for (name, value, code) in [
        ("aud", json!("elsewhere"), "invalid_token"),
        ("iss", json!("http://127.0.0.1:1"), "invalid_token"),
        ("exp", json!(now - 100), "token_expired"),
        ("iat", json!(now - 10_000), "token_expired"),
        ("nbf", json!(now + 100), "invalid_token"),
    ] {
        let mut claims = provider.claims("ada");
        claims[name] = value;
        sign_in(&controller, &provider.token_of("one", &claims)).refused(401, code);
    }
    let thief = SigningKey::generate().unwrap();
    let forged = signed(&thief, "one", &provider.claims("ada"));
    sign_in(&controller, &forged).refused(401, "invalid_token");
    sign_in(&controller, "nonsense").refused(401, "invalid_token");
    for (field, value) in [
        ("subject_pubkey", json!("nonsense")),
        ("expires_in_seconds", json!(59)),
        ("expires_in_seconds", json!(3601)),
    ] {
        let mut body = json!({ "id_token": provider.token("ada"), "subject_pubkey": holder() });
        body[field] = value;
        let refused = controller.stranger().post(SIGN_IN, &body);
        let refused = refused.refused(400, "invalid_request");
        assert!(refused["fields"][field].is_string(), "{refused}");
    }
    // Its bearer is nobody here either.
    let bearer = controller.with_token(&provider.token("ada"));
    bearer.get("/v1/me").refused(401, "invalid_token");
    let denied = audit_bodies(&controller.admin(), "event_type=AUTH_DENIED");
    assert!(!denied.is_empty());
    for _ in 0..32 {
        sign_in(&controller, &provider.token("ada")).expect(201);
    }
    sign_in(&controller, &provider.token("ada")).refused(409, "invalid_state");
}

#[test]
fn the_providers_keys_are_asked_for_when_they_are_needed_and_change() {
    let provider = Provider::start();
    let controller = provider.controller();
    let acme = controller.tenant("acme", 2);
    link(&acme, "acme", "ada", &json!("vm.read")).expect(201);
    let early = signed(
        &SigningKey::generate().unwrap(),
        "one",
        &provider.claims("ada"),
    );
    let away = sign_in(&controller, &early).refused(503, "identity_unavailable");
    assert_eq!(away["retryable"], true);
    provider.publish("one");
    let until = |token: &dyn Fn() -> String, status: u16| {
        let begun = std::time::Instant::now();
        while sign_in(&controller, &token()).status != status {
            assert!(begun.elapsed().as_secs() < 60, "never {status}");
        }
    };
    until(&|| provider.token("ada"), 201);
    // A new key is learnt by the first token that names it, and the old one goes with it.
    provider.publish("two");
    let old = provider.withdraw("one");
    until(&|| provider.token_of("two", &provider.claims("ada")), 201);
    let late = signed(&old, "one", &provider.claims("ada"));
    sign_in(&controller, &late).refused(401, "invalid_token");
}

/// Anybody can make up the name of a key.
#[test]
fn who_names_an_unknown_key_makes_nobody_else_wait_for_the_provider() {
    let provider = Provider::with_key("one");
    let controller = provider.controller();
    let acme = controller.tenant("acme", 2);
    link(&acme, "acme", "ada", &json!("vm.read")).expect(201);
    let good = provider.token("ada");
    sign_in(&controller, &good).expect(201);
    let made_up = SigningKey::generate().unwrap();
    let made_up = signed(&made_up, "made-up", &provider.claims("eve"));
    let asked_before = provider.asked.load(Ordering::SeqCst);
    // As long as this is held, the provider answers nobody.
    let held = provider.keys.lock().unwrap();
    let is_answered = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The keys are not asked for each time.
            while provider.asked.load(Ordering::SeqCst) == asked_before {
                sign_in(&controller, &made_up).refused(401, "invalid_token");
            }
            is_answered.store(true, Ordering::SeqCst);
        });
        while provider.asked.load(Ordering::SeqCst) == asked_before {
            std::thread::yield_now();
        }
        let waited = is_answered.load(Ordering::SeqCst);
        sign_in(&controller, &good).expect(201);
        assert!(
            waited || !is_answered.load(Ordering::SeqCst),
            "it waited as well"
        );
        drop(held);
    });
}

#[test]
fn without_an_identity_provider_nobody_signs_in() {
    let controller = Controller::start();
    let acme = controller.tenant("acme", 2);
    link(&acme, "acme", "ada", &json!("vm.read")).refused(409, "invalid_state");
    let provider = Provider::with_key("one");
    sign_in(&controller, &provider.token("ada")).refused(404, "not_found");
}
