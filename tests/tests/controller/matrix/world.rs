//! What stands around the matrix: two tenants with things of their own, and all who must not get
//! through.

use std::cell::RefCell;

use berth_api::ids::{ControllerId, NodeId, OperationId, PersonId, SlotId, TokenId, VmId};
use berth_ledger::keys::SigningKey;
use berth_tests::simulated_agent::SimulatedAgent;
use serde_json::{Value, json};

use super::document::Route;
use crate::harness::{Client, Controller, vm_body};
use crate::routes::minted;
use crate::slots::{node_with_slots, tenant};

/// People can be linked; nobody asks the provider for its keys.
pub(super) const SETTINGS: &str = r#"
[identity_provider]
issuer = "https://login.example"
audience = "berth"
jwks_url = "http://127.0.0.1:1/keys"
"#;

/// Whose ids fill a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// Whom the others must not reach.
    Victim,
    /// The other tenant.
    Other,
}

/// Somebody else's name of a thing, and one of nothing.
pub(super) struct Pair {
    pub(super) foreign: String,
    pub(super) absent: String,
    /// An id; else a name that means something inside a namespace alone.
    pub(super) is_id: bool,
}

/// One tenant's things.
struct Things {
    tenant: String,
    vm: String,
    vm_name: String,
    operation: String,
    token: String,
    project: String,
    account: String,
    person: String,
}

pub(super) struct World {
    pub(super) operator: Client,
    pub(super) other: Client,
    victim: Client,
    narrow: Client,
    narrower: Client,
    metrics: Client,
    strangers: Vec<(&'static str, Client, &'static str)>,
    /// Tokens of the victim's own tenant that are for something else.
    insiders: Vec<(&'static str, Client)>,
    /// Tokens of the victim's own tenant whose holders authorise nothing.
    switched_off: Vec<(&'static str, Client)>,
    pub(super) suspended: Client,
    victims: Things,
    others: Things,
    slot: String,
    node: String,
    agents: RefCell<[SimulatedAgent; 2]>,
}

fn things(
    controller: &Controller,
    agent: &mut SimulatedAgent,
    name: &str,
    slots: &Value,
) -> (Client, Things) {
    let client = tenant(controller, name, &json!({ "nvme": 1 }));
    let mut body = vm_body(&format!("secret-of-{name}"));
    body["slots"] = slots.clone();
    let vm = client.post("/v1/vms", &body).expect(201).json();
    agent.settle().unwrap();
    let tokens = client
        .get(&format!("/v1/tenants/{name}/tokens"))
        .expect(200)
        .json();
    let project = format!("project-of-{name}");
    client
        .post("/v1/projects", &json!({ "project_id": project }))
        .expect(201);
    let (account, _) = account_in(controller, &client, name, &project);
    let person = client
        .post(
            &format!("/v1/tenants/{name}/persons"),
            &json!({ "subject": format!("person-of-{name}"), "scope": "vm.read" }),
        )
        .expect(201)
        .json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let things = Things {
        tenant: name.to_owned(),
        vm: text(&vm["id"]),
        vm_name: text(&vm["name"]),
        operation: text(&vm["operation"]),
        token: text(&tokens["items"][0]["token_id"]),
        project,
        account,
        person: text(&person["id"]),
    };
    (client, things)
}

/// A service account of one project, and a token that would allow everything but for its role.
fn account_in(
    controller: &Controller,
    admin: &Client,
    tenant: &str,
    project: &str,
) -> (String, Client) {
    let account = format!("robot-of-{project}");
    let key = SigningKey::generate().unwrap().public().to_base64();
    admin
        .post(
            &format!("/v1/projects/{project}/service-accounts"),
            &json!({ "account_id": account, "subject_pubkey": key, "role": "editor" }),
        )
        .expect(201);
    let client = held_by(controller, admin, tenant, &key, &json!(null));
    (account, client)
}

fn held_by(
    controller: &Controller,
    admin: &Client,
    tenant: &str,
    key: &str,
    resources: &Value,
) -> Client {
    let issued = admin
        .post(
            &format!("/v1/tenants/{tenant}/tokens"),
            &json!({ "subject_pubkey": key, "scope": "service:tenant-admin",
                "expires_in_seconds": 86_400, "resources": resources }),
        )
        .expect(201);
    controller.with_token(issued.json()["token"].as_str().unwrap())
}

fn new_project(admin: &Client, project: &str) {
    admin
        .post("/v1/projects", &json!({ "project_id": project }))
        .expect(201);
}

/// A VM of the victim's tenant, and the token of its guest.
fn guest_of(
    controller: &Controller,
    agent: &mut SimulatedAgent,
    admin: &Client,
    name: &str,
) -> Client {
    admin.post("/v1/vms", &vm_body(name)).expect(201);
    agent.settle().unwrap();
    let issued = admin
        .post(&format!("/v1/vms/{name}/guest-tokens"), &json!({}))
        .expect(201);
    controller.with_token(issued.json()["token"].as_str().unwrap())
}

/// A service account of another project, and a token that is good for another VM.
fn insiders(controller: &Controller, admin: &Client, guest: Client) -> Vec<(&'static str, Client)> {
    new_project(admin, "elsewhere");
    let (_, of_project) = account_in(controller, admin, "acme", "elsewhere");
    let key = SigningKey::generate().unwrap().public().to_base64();
    let other_vm = json!([VmId::generate()]);
    vec![
        ("other project", of_project),
        (
            "other VM",
            held_by(controller, admin, "acme", &key, &other_vm),
        ),
        ("guest token", guest),
    ]
}

/// Accounts that were members of the victim's project until they, or their own project, were not.
fn switched_off(
    controller: &Controller,
    admin: &Client,
    project: &str,
) -> Vec<(&'static str, Client)> {
    let account = |name: &str| {
        new_project(admin, name);
        let (account, client) = account_in(controller, admin, "acme", name);
        let member = format!("/v1/projects/{project}/members/{account}");
        admin
            .send_json("PUT", &member, &json!({ "role": "editor" }))
            .expect(200);
        (format!("/v1/service-accounts/{account}"), client)
    };
    let (disabled, first) = account("first");
    admin
        .send_json("PATCH", &disabled, &json!({ "disabled": true }))
        .expect(200);
    let (deleted, second) = account("second");
    admin.delete(&deleted).expect(204);
    let (_, third) = account("third");
    admin.delete("/v1/projects/third").expect(204);
    vec![
        ("disabled account", first),
        ("deleted account", second),
        ("account of a deleted project", third),
    ]
}

impl World {
    pub(super) fn new(controller: &Controller) -> Self {
        let (mut agent, slots) = node_with_slots(controller, 1);
        let slot = slots.first().unwrap().to_string();
        let (victim, victims) = things(
            controller,
            &mut agent,
            "acme",
            &json!([{ "class": "nvme" }]),
        );
        let (_, others) = things(controller, &mut agent, "other", &json!([]));
        // Without the class, so that a slot's id tells it nothing.
        controller
            .admin()
            .send_json("PATCH", "/v1/tenants/other", &json!({ "slot_limits": {} }))
            .expect(200);
        let far = 4_000_000_000;
        controller.tenant("doomed", 1);
        let doomed = controller.token("doomed", "service:tenant-admin");
        controller.admin().delete("/v1/tenants/doomed").expect(204);
        let guest = guest_of(controller, &mut agent, &victim, "next-door");
        let gone = guest_of(controller, &mut agent, &victim, "gone");
        victim.delete("/v1/vms/gone").expect(202);
        agent.settle().unwrap();
        let authorized = |text: String| {
            let mut client = controller.stranger();
            client.authorization = Some(text);
            client
        };
        let expired = minted(controller, "acme", 1_000_000_100, None);
        let elsewhere = minted(controller, "acme", far, Some(ControllerId::generate()));
        let naked = victim.authorization.clone().unwrap();
        let naked = naked.trim_start_matches("Bearer ").to_owned();
        let strangers = vec![
            ("none", controller.stranger(), "unauthorized"),
            ("naked token", authorized(naked.clone()), "unauthorized"),
            (
                "other scheme",
                authorized(format!("Basic {naked}")),
                "unauthorized",
            ),
            (
                "malformed",
                controller.with_token("nonsense"),
                "invalid_token",
            ),
            (
                "too long",
                controller.with_token(&"a".repeat(7000)),
                "invalid_token",
            ),
            (
                "forged",
                controller.with_token(&bent(&naked)),
                "invalid_token",
            ),
            (
                "other controller",
                controller.with_token(&elsewhere),
                "invalid_token",
            ),
            ("expired", controller.with_token(&expired), "token_expired"),
            ("revoked", doomed, "token_revoked"),
            ("guest token of a VM that is gone", gone, "token_revoked"),
        ];
        let suspended = controller.tenant("paused", 1);
        controller
            .admin()
            .post("/v1/tenants/paused/suspend", &json!({}))
            .expect(200);
        let second = controller.agent("node-2", 4096);
        let node = agent.node_id.to_string();
        Self {
            operator: controller.admin(),
            other: controller.token("other", "service:tenant-admin"),
            narrow: controller.token("acme", "vm.console"),
            narrower: controller.token("acme", "token.revoke"),
            metrics: controller.with_token(&crate::routes::minted_operator(controller)),
            strangers,
            insiders: insiders(controller, &victim, guest),
            switched_off: switched_off(controller, &victim, &victims.project),
            suspended,
            victim,
            victims,
            others,
            slot,
            node,
            agents: RefCell::new([agent, second]),
        }
    }

    pub(super) fn strangers(&self) -> impl Iterator<Item = (&'static str, &Client, &'static str)> {
        self.strangers
            .iter()
            .map(|(name, client, code)| (*name, client, *code))
    }

    pub(super) fn insiders(&self) -> &[(&'static str, Client)] {
        &self.insiders
    }

    pub(super) fn switched_off(&self) -> &[(&'static str, Client)] {
        &self.switched_off
    }

    /// A tenant's token that does not cover this scope.
    pub(super) fn narrow(&self, scope: &str) -> &Client {
        if scope == "vm.console" {
            &self.narrower
        } else {
            &self.narrow
        }
    }

    /// An operator's token that covers nearly nothing.
    pub(super) fn narrow_operator(&self) -> &Client {
        &self.metrics
    }

    /// What every segment and field that names a thing can be filled with; `None` for one that nobody
    /// has thought of.
    pub(super) fn pairs(&self, name: &str) -> Option<Vec<Pair>> {
        let id = |foreign: &str, absent: String| Pair {
            foreign: foreign.to_owned(),
            absent,
            is_id: true,
        };
        let victims = &self.victims;
        Some(match name {
            "tenant" | "tenant_id" => vec![id(&victims.tenant, "nobody".to_owned())],
            "vm" | "vm_id" => vec![
                id(&victims.vm, VmId::generate().to_string()),
                Pair {
                    foreign: victims.vm_name.clone(),
                    absent: "nothing".to_owned(),
                    is_id: false,
                },
            ],
            "operation" => vec![id(&victims.operation, OperationId::generate().to_string())],
            "token" | "token_id" => vec![id(&victims.token, TokenId::generate().to_string())],
            "project" | "project_id" => vec![id(&victims.project, "nowhere".to_owned())],
            "account" | "account_id" => vec![id(&victims.account, "nothing".to_owned())],
            "person" => vec![id(&victims.person, PersonId::generate().to_string())],
            "slot_id" => vec![id(&self.slot, SlotId::generate().to_string())],
            "node" | "node_id" => vec![id(&self.node, NodeId::generate().to_string())],
            _ => return None,
        })
    }

    fn segment(&self, name: &str, caller: Caller) -> Option<String> {
        let things = match caller {
            Caller::Victim => &self.victims,
            Caller::Other => &self.others,
        };
        Some(match name {
            "tenant" => things.tenant.clone(),
            "vm" => things.vm.clone(),
            "operation" => things.operation.clone(),
            "token" => things.token.clone(),
            "project" => things.project.clone(),
            "account" => things.account.clone(),
            "person" => things.person.clone(),
            "slot" => self.slot.clone(),
            "node" => self.node.clone(),
            // A tile of the public log.
            "path" => "0/000.p/1".to_owned(),
            _ => return None,
        })
    }

    /// The route's path with one's own things, and with what the query has to have; `None` for a path
    /// with a segment that nobody has thought of.
    pub(super) fn path(&self, route: &Route, caller: Caller) -> Option<String> {
        let mut path = route.path.clone();
        for name in &route.segments {
            path = path.replace(&format!("{{{name}}}"), &self.segment(name, caller)?);
        }
        Some(path + &required_query(route, &[]))
    }

    /// As [`World::path`], with one segment of another's.
    pub(super) fn path_with(
        &self,
        route: &Route,
        caller: Caller,
        segment: &str,
        text: &str,
    ) -> String {
        let mut path = route.path.replace(&format!("{{{segment}}}"), text);
        for name in &route.segments {
            let own = self.segment(name, caller).unwrap_or_default();
            path = path.replace(&format!("{{{name}}}"), &own);
        }
        path + &required_query(route, &[])
    }

    /// The other tenant's own path, with these in the query.
    pub(super) fn with_query(&self, route: &Route, fields: &[(&str, &str)]) -> String {
        let mut path = route.path.clone();
        for name in &route.segments {
            let own = self.segment(name, Caller::Other).unwrap_or_default();
            path = path.replace(&format!("{{{name}}}"), &own);
        }
        path + &required_query(route, fields)
    }

    /// A body that is good but for one field.
    pub(super) fn body(&self, route: &Route, field: &str, text: &str) -> Value {
        let mut body = match route.path.as_str() {
            "/v1/vms" => vm_body("mine"),
            // Ids of projects mean nothing across tenants: what is refused is another field.
            "/v1/projects" => json!({ "quotas": { "nonsense": 1 } }),
            "/v1/projects/{project}/service-accounts" => json!({ "subject_pubkey": "nonsense" }),
            _ => json!({}),
        };
        let mut place = &mut body;
        for part in field.split('.') {
            place = match part.strip_suffix("[]") {
                Some(list) => {
                    place[list] = json!([{}]);
                    &mut place[list][0]
                }
                None => &mut place[part],
            };
        }
        *place = json!(text);
        body
    }

    /// Ids and names of the victim that nobody else may read.
    pub(super) fn secrets(&self) -> [&str; 6] {
        [
            &self.victims.vm,
            &self.victims.vm_name,
            &self.victims.operation,
            &self.victims.token,
            &self.victims.project,
            &self.victims.account,
        ]
    }

    /// The other tenant's stream from the ledger's beginning until its own VM runs, which was after all
    /// that the victim did.
    pub(super) fn what_the_other_hears(&self, route: &Route) -> Vec<String> {
        let path = self.with_query(route, &[("since", "0")]);
        let mut heard = Vec::new();
        for line in self.other.follow(&path, &[]) {
            let is_last = line.contains(&self.others.vm) && line.contains("VM_STARTED");
            heard.push(line);
            if is_last {
                return heard;
            }
        }
        panic!("the stream ended: {heard:?}");
    }

    /// How the victim's things stand.
    pub(super) fn picture(&self) -> Vec<Value> {
        let tenant = format!("/v1/tenants/{}", self.victims.tenant);
        [
            "/v1/vms",
            "/v1/usage",
            tenant.as_str(),
            &format!("{tenant}/tokens"),
        ]
        .iter()
        .map(|path| without_last_uses(self.victim.get(path).expect(200).json()))
        .collect()
    }

    /// Syncs that one node signs in the name of another.
    pub(super) fn sync_as_another_node(&self) -> Vec<(u16, String)> {
        let mut agents = self.agents.borrow_mut();
        let [first, second] = &mut *agents;
        let first_id = first.node_id;
        let mut answers = Vec::new();
        for (liar, named) in [(&mut *first, second.node_id), (&mut *second, first_id)] {
            let mut request = liar.next_sync(0);
            request.node_id = named;
            let sealed = liar.seal(&request).unwrap();
            answers.push(liar.send(&sealed).unwrap());
        }
        answers
    }
}

/// The victim's own narrow tokens are among the callers.
fn without_last_uses(mut page: Value) -> Value {
    for item in page["items"].as_array_mut().into_iter().flatten() {
        if let Some(item) = item.as_object_mut() {
            item.remove("last_used_at");
        }
    }
    page
}

fn required_query(route: &Route, fields: &[(&str, &str)]) -> String {
    let mut query: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    for name in &route.required_query {
        if fields.iter().all(|(given, _)| given != name) {
            let value = match name.as_str() {
                "state" => "running",
                "index" => "0",
                "from" | "size" => "1",
                "to" => "2",
                other => panic!("{route}: what is `{other}` to be?"),
            };
            query.push(format!("{name}={value}"));
        }
    }
    if query.is_empty() {
        String::new()
    } else {
        format!("?{}", query.join("&"))
    }
}

/// A token of which one bit is another.
fn bent(token: &str) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let mut bytes = URL_SAFE_NO_PAD
        .decode(token.trim_start_matches("v4.public."))
        .unwrap();
    bytes[20] ^= 1;
    format!("v4.public.{}", URL_SAFE_NO_PAD.encode(bytes))
}
