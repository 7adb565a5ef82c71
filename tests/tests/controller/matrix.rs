//! The negative matrix: every route that the controller says it has, against every kind of caller that
//! must not get through, with somebody else's id in every place where an id can stand.
//!
//! The routes, their access, their path segments, query fields and body fields are read from the
//! running controller's `/openapi.json`, which is made of the router's own table. A route with a
//! segment or a field that names something and that [`World`] does not know fails here.

mod document;
mod world;

use std::collections::BTreeMap;
use std::io::Write as _;

use document::{Kind, Place, Route, routes};
use serde_json::Value;
use world::{Caller, Pair, World};

use crate::harness::{Client, Controller, Reply};

/// What was tried, for the closing line.
#[derive(Default)]
struct Count {
    routes: usize,
    callers: BTreeMap<&'static str, usize>,
    positions: BTreeMap<&'static str, usize>,
    holes: Vec<String>,
}

impl Count {
    fn caller(&mut self, name: &'static str) {
        *self.callers.entry(name).or_default() += 1;
    }

    fn position(&mut self, place: Place) {
        *self.positions.entry(place.as_str()).or_default() += 1;
    }

    fn close(self) {
        let words = |counts: &BTreeMap<&'static str, usize>| {
            let texts: Vec<String> = counts
                .iter()
                .map(|(name, count)| format!("{name} {count}"))
                .collect();
            texts.join(", ")
        };
        let tried: usize = self.callers.values().chain(self.positions.values()).sum();
        // Past the capture of output: the size of the matrix is part of what a run shows.
        drop(writeln!(
            std::io::stderr(),
            "negative matrix: {} routes × {} kinds of caller ({}) × {} places of ids ({}): {tried} cells, {} holes",
            self.routes,
            self.callers.len(),
            words(&self.callers),
            self.positions.len(),
            words(&self.positions),
            self.holes.len(),
        ));
        assert!(
            self.holes.is_empty(),
            "nobody has said what these are; see `World`: {:#?}",
            self.holes
        );
    }
}

fn call(client: &Client, route: &Route, path: &str) -> Reply {
    let json = [("content-type", "application/json")];
    let method = route.method.to_ascii_uppercase();
    if route.body.is_some() {
        client.send(&method, path, &json, Some("{}"))
    } else if method == "GET" || method == "DELETE" {
        client.send(&method, path, &[], None)
    } else {
        client.send(&method, path, &[], Some(""))
    }
}

#[test]
fn nobody_gets_through_who_must_not() {
    let controller = Controller::serve_configured(world::SETTINGS, "127.0.0.1:0");
    let world = World::new(&controller);
    let document = controller
        .stranger()
        .get("/openapi.json")
        .expect(200)
        .json();
    let routes = routes(&document);
    let mut count = Count {
        routes: routes.len(),
        ..Count::default()
    };
    let before = world.picture();
    for route in &routes {
        check_strangers(&world, route, &mut count);
        check_wrong_kind(&world, route, &mut count);
        check_path_ids(&world, route, &mut count);
        check_fields(&world, route, &mut count);
        check_switched_off(&world, route, &mut count);
        check_insiders(&world, route, &mut count);
        check_suspended(&world, route, &mut count);
    }
    check_nodes(&world, &mut count);
    assert_eq!(world.picture(), before, "somebody's things were changed");
    count.close();
    controller.assert_sound();
}

/// Whoever has no good token is told so, whatever the path names.
fn check_strangers(world: &World, route: &Route, count: &mut Count) {
    if route.kind == Kind::Public {
        return;
    }
    let Some(path) = world.path(route, Caller::Victim) else {
        return;
    };
    for (name, client, code) in world.strangers() {
        let reply = call(client, route, &path);
        assert_eq!(reply.status, 401, "{name}: {route}: {}", reply.text);
        let body = reply.refused(401, code);
        assert!(
            reply
                .header("www-authenticate")
                .is_some_and(|text| text.starts_with("Bearer")),
            "{name}: {route}: {body}"
        );
        count.caller(name);
    }
}

/// A good token of the wrong kind: too narrow, a tenant's where operators go, an operator's where a
/// tenant is needed, a suspended tenant's.
fn check_wrong_kind(world: &World, route: &Route, count: &mut Count) {
    let Some(path) = world.path(route, Caller::Victim) else {
        count.holes.push(route.to_string());
        return;
    };
    let Some(scope) = route.scope.as_deref() else {
        return;
    };
    let narrow = match route.kind {
        // The narrowest operators are those who may read the metrics.
        Kind::Operator if scope != "service:metrics" => world.narrow_operator(),
        Kind::Operator
        | Kind::Public
        | Kind::AnyToken
        | Kind::TenantPath
        | Kind::Namespace
        | Kind::Tenant => world.narrow(scope),
    };
    let reply = call(narrow, route, &path);
    assert_eq!(reply.status, 403, "narrow: {route}: {}", reply.text);
    let body = reply.refused(403, "permission_denied");
    assert!(body["required_scope"].is_string(), "narrow: {route}");
    count.caller("narrower scope");
    match route.kind {
        Kind::Operator => {
            let reply = call(&world.other, route, &path);
            assert_eq!(reply.status, 403, "tenant: {route}: {}", reply.text);
            count.caller("tenant for operator");
            for (name, client) in world.insiders() {
                let reply = call(client, route, &path);
                assert_eq!(reply.status, 403, "{name}: {route}: {}", reply.text);
                count.caller(name);
            }
        }
        Kind::Tenant => {
            let reply = call(&world.operator, route, &path);
            assert_eq!(reply.status, 403, "operator: {route}: {}", reply.text);
            count.caller("operator for tenant");
        }
        Kind::Public | Kind::AnyToken | Kind::TenantPath | Kind::Namespace => {}
    }
}

/// Somebody else's things in the path answer as things that are not there, byte for byte.
fn check_path_ids(world: &World, route: &Route, count: &mut Count) {
    if !route.is_for_tenants() {
        return;
    }
    for segment in &route.segments {
        let Some(pairs) = world.pairs(segment) else {
            count.holes.push(format!("{route}: segment {segment}"));
            continue;
        };
        for pair in pairs {
            let ask = |text: &str| {
                let path = world.path_with(route, Caller::Other, segment, text);
                call(&world.other, route, &path)
            };
            let (foreign, absent) = (ask(&pair.foreign), ask(&pair.absent));
            foreign.refused(404, "not_found");
            assert_eq!(
                foreign.without_request_id(),
                absent.without_request_id(),
                "{route}: {segment}"
            );
            count.position(Place::Path);
            count.caller("other tenant");
        }
    }
    if route.is_stream {
        for line in world.what_the_other_hears(route) {
            for secret in world.secrets() {
                assert!(!line.contains(secret), "{route} tells {secret}");
            }
        }
        count.position(Place::Stream);
        count.caller("other tenant");
    } else if route.method == "get" && route.segments.is_empty() {
        let reply = call(&world.other, route, &world.with_query(route, &[]));
        for secret in world.secrets() {
            assert!(!reply.text.contains(secret), "{route} tells {secret}");
        }
        count.position(Place::List);
        count.caller("other tenant");
    }
}

/// Somebody else's things in a query or a body likewise.
fn check_fields(world: &World, route: &Route, count: &mut Count) {
    if !route.is_for_tenants() {
        return;
    }
    for field in &route.query_ids {
        let Some(pairs) = world.pairs(field) else {
            count.holes.push(format!("{route}: query {field}"));
            continue;
        };
        if field == "node_id" {
            // A node is no tenant's: one's own VMs may have run on it, next to another's.
            let Some(Pair { foreign, .. }) = pairs.first() else {
                continue;
            };
            let reply = call(
                &world.other,
                route,
                &world.with_query(route, &[(field, foreign)]),
            );
            for secret in world.secrets() {
                assert!(!reply.text.contains(secret), "{route} tells {secret}");
            }
            count.position(Place::Query);
            continue;
        }
        for pair in pairs.iter().filter(|pair| pair.is_id) {
            let ask = |text: &str| {
                let path = world.with_query(route, &[(field, text)]);
                same_but_for_request(&call(&world.other, route, &path))
            };
            assert_eq!(ask(&pair.foreign), ask(&pair.absent), "{route}: {field}");
            count.position(Place::Query);
        }
    }
    for field in &route.body_ids {
        let name = field.rsplit(['.', ']']).next().unwrap_or(field);
        let Some(pairs) = world.pairs(name) else {
            count.holes.push(format!("{route}: body {field}"));
            continue;
        };
        for pair in pairs.iter().filter(|pair| pair.is_id) {
            let ask = |text: &str| {
                let body = world.body(route, field, text);
                let path = world.with_query(route, &[]);
                let method = route.method.to_ascii_uppercase();
                let reply = world.other.send_json(&method, &path, &body);
                // In its own namespace anybody may end whatever it names, there or not.
                let is_own = reply.status == 204 && route.path == "/v1/tokens/revoke";
                assert!(
                    is_own || reply.status >= 400,
                    "{route}: {field}: {}",
                    reply.text
                );
                same_but_for_request(&reply)
            };
            assert_eq!(ask(&pair.foreign), ask(&pair.absent), "{route}: {field}");
            count.position(Place::Body);
        }
    }
}

/// Whose holder authorises nothing is refused everywhere, whatever the token says.
fn check_switched_off(world: &World, route: &Route, count: &mut Count) {
    if route.kind == Kind::Public {
        return;
    }
    let Some(path) = world.path(route, Caller::Victim) else {
        return;
    };
    for (name, client) in world.switched_off() {
        let reply = call(client, route, &path);
        assert_eq!(reply.status, 403, "{name}: {route}: {}", reply.text);
        reply.refused(403, "permission_denied");
        count.caller(name);
    }
}

/// Who is let into the tenant for something else finds its other things absent, or is refused.
fn check_insiders(world: &World, route: &Route, count: &mut Count) {
    let Some(path) = world
        .path(route, Caller::Victim)
        .filter(|_| route.is_for_tenants())
    else {
        return;
    };
    for (name, client) in world.insiders() {
        let reply = call(client, route, &path);
        let is_read = route.method == "get" && route.segments.is_empty();
        assert!(
            reply.status >= 400 || is_read,
            "{name}: {route}: {}",
            reply.text
        );
        for secret in world.secrets() {
            assert!(
                !reply.text.contains(secret),
                "{name}: {route} tells {secret}"
            );
        }
        count.caller(name);
        for segment in &route.segments {
            if !["vm", "operation", "project"].contains(&segment.as_str()) {
                continue;
            }
            for pair in world.pairs(segment).into_iter().flatten() {
                let ask = |text: &str| {
                    let path = world.path_with(route, Caller::Victim, segment, text);
                    call(client, route, &path)
                };
                let (foreign, absent) = (ask(&pair.foreign), ask(&pair.absent));
                assert!(
                    matches!(foreign.status, 403 | 404),
                    "{name}: {route}: {}",
                    foreign.text
                );
                assert_eq!(
                    foreign.without_request_id(),
                    absent.without_request_id(),
                    "{name}: {route}: {segment}"
                );
                count.position(Place::Path);
            }
        }
        check_named_projects(world, route, (name, client), count);
    }
}

/// A project that is another's, in a query or a body.
fn check_named_projects(
    world: &World,
    route: &Route,
    (name, client): (&'static str, &Client),
    count: &mut Count,
) {
    let pairs = || world.pairs("project_id").into_iter().flatten();
    if route.query_ids.iter().any(|field| field == "project_id") {
        for pair in pairs() {
            let ask = |text: &str| {
                let path = world.with_query(route, &[("project_id", text)]);
                same_but_for_request(&call(client, route, &path))
            };
            assert_eq!(ask(&pair.foreign), ask(&pair.absent), "{name}: {route}");
            count.position(Place::Query);
        }
    }
    if route.path == "/v1/vms" && route.body_ids.iter().any(|field| field == "project_id") {
        for pair in pairs() {
            let ask = |text: &str| {
                let body = world.body(route, "project_id", text);
                let reply = client.post(&route.path, &body);
                assert!(reply.status >= 400, "{name}: {route}: {}", reply.text);
                same_but_for_request(&reply)
            };
            assert_eq!(ask(&pair.foreign), ask(&pair.absent), "{name}: {route}");
            count.position(Place::Body);
        }
    }
}

/// A suspended tenant begins and changes nothing.
fn check_suspended(world: &World, route: &Route, count: &mut Count) {
    let Some(path) = world
        .path(route, Caller::Victim)
        .filter(|_| route.is_for_tenants())
    else {
        return;
    };
    if !route.begins() {
        return;
    }
    let own = path.replace("/v1/tenants/acme", "/v1/tenants/paused");
    let reply = call(&world.suspended, route, &own);
    assert_eq!(reply.status, 403, "suspended: {route}: {}", reply.text);
    reply.refused(403, "tenant_suspended");
    count.caller("suspended tenant");
}

fn same_but_for_request(reply: &Reply) -> String {
    let mut body: Value = serde_json::from_str(&reply.text).unwrap_or(Value::Null);
    if body.get("request_id").is_some() {
        body["request_id"] = Value::Null;
    }
    format!("{} {body}", reply.status)
}

/// A node speaks for itself alone.
fn check_nodes(world: &World, count: &mut Count) {
    for (status, body) in world.sync_as_another_node() {
        assert_eq!(status, 401, "{body}");
        assert!(body.contains("invalid_token"), "{body}");
        count.caller("other node");
        count.position(Place::Body);
    }
}
