//! Holders of tokens, with the keys that they narrow and sign with.

use berth_api::ids::TokenId;
use berth_ledger::keys::SigningKey;
use berth_token::pop::{self, SignedRequest};
use berth_token::{Link, Resources, ScopeSet, SubjectKey, derive};
use serde_json::{Value, json};

use crate::harness::{Client, Controller, Reply};

/// A token and the key that it is made out to.
pub(crate) struct Holder {
    pub(crate) key: SigningKey,
    pub(crate) token: String,
    pub(crate) id: String,
}

/// What a holder wants of a narrower token; within its own in everything else.
pub(crate) struct Wanted<'a> {
    pub(crate) scope: &'a str,
    pub(crate) resources: Option<&'a [&'a str]>,
    pub(crate) delegations: u8,
    pub(crate) require_pop: bool,
}

impl Default for Wanted<'_> {
    fn default() -> Self {
        Self {
            scope: "vm.read",
            resources: None,
            delegations: 0,
            require_pop: false,
        }
    }
}

pub(crate) fn subject(key: &SigningKey) -> SubjectKey {
    SubjectKey::from_bytes(key.public().as_bytes()).unwrap()
}

/// A token issued by an operator, with more members than those that are always there.
pub(crate) fn issued(controller: &Controller, tenant: &str, scope: &str, more: &Value) -> Holder {
    let key = SigningKey::generate().unwrap();
    let mut body = json!({
        "subject_pubkey": key.public().to_base64(),
        "scope": scope,
        "expires_in_seconds": 3600,
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    let path = format!("/v1/tenants/{tenant}/tokens");
    let issued = controller.admin().post(&path, &body).expect(201).json();
    Holder {
        key,
        token: issued["token"].as_str().unwrap().to_owned(),
        id: issued["token_id"].as_str().unwrap().to_owned(),
    }
}

/// A tenant with room for some VMs, and its administrator.
pub(crate) fn tenant(controller: &Controller, id: &str) -> Holder {
    controller.tenant(id, 10);
    issued(controller, id, "service:tenant-admin", &json!({}))
}

impl Holder {
    pub(crate) fn client(&self, controller: &Controller) -> Client {
        controller.with_token(&self.token)
    }

    /// A narrower token for a new holder, made without asking anybody.
    pub(crate) fn narrowed(&self, wanted: &Wanted<'_>) -> Self {
        let key = SigningKey::generate().unwrap();
        let now = jiff::Timestamp::now().as_second();
        let link = Link {
            token_id: TokenId::generate(),
            holder: subject(&key),
            scopes: ScopeSet::parse(&[wanted.scope]).unwrap(),
            resources: wanted.resources.map(|ids| Resources::parse(ids).unwrap()),
            not_before: now,
            expires_at: now + 600,
            delegations: wanted.delegations,
            requires_pop: wanted.require_pop,
        };
        Self {
            token: derive(&self.token, &self.key, &link).unwrap(),
            id: link.token_id.to_string(),
            key,
        }
    }
}

/// A request that its holder signs.
pub(crate) struct Signed<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) body: &'a str,
    /// Seconds since the epoch.
    pub(crate) created: i64,
    pub(crate) nonce: String,
}

impl<'a> Signed<'a> {
    /// Of this moment, with a nonce never used before.
    pub(crate) fn new(method: &'a str, path: &'a str, body: &'a str) -> Self {
        Self {
            method,
            path,
            body,
            created: jiff::Timestamp::now().as_second(),
            nonce: TokenId::generate().bare(),
        }
    }

    /// The headers that prove it, by a key, for a token.
    pub(crate) fn headers(
        &self,
        controller: &Controller,
        key: &SigningKey,
        token: &str,
    ) -> Vec<(&'static str, String)> {
        let (path, query) = match self.path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (self.path, None),
        };
        let authority = format!("127.0.0.1:{}", controller.port);
        let request = SignedRequest {
            method: self.method,
            authority: &authority,
            path,
            query,
            authorization: &format!("Bearer {token}"),
            body: self.body.as_bytes(),
        };
        let proof = pop::sign(&request, key, &self.nonce, self.created);
        let mut headers = vec![
            ("signature-input", proof.signature_input),
            ("signature", proof.signature),
            ("content-type", "application/json".to_owned()),
        ];
        headers.extend(proof.content_digest.map(|text| ("content-digest", text)));
        headers
    }

    /// Send it with these headers.
    pub(crate) fn send(&self, client: &Client, headers: &[(&'static str, String)]) -> Reply {
        let headers: Vec<(&str, &str)> = headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let body = (!self.body.is_empty()).then_some(self.body);
        client.send(self.method, self.path, &headers, body)
    }

    /// Sign and send it as a holder.
    pub(crate) fn by(&self, controller: &Controller, holder: &Holder) -> Reply {
        let headers = self.headers(controller, &holder.key, &holder.token);
        self.send(&holder.client(controller), &headers)
    }
}
