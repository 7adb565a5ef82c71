//! A PostgreSQL that is reached over TLS, and those that are not talked to.

use berth_tests::postgres::Postgres;

use crate::database::TestDatabase;
use crate::harness::{Controller, offline, tenant_body};
use crate::tls::Authority;

/// A server whose certificate is for these names.
fn server(authority: &Authority, names: &[&str]) -> Postgres {
    let [certificate, key] = authority.issue(names);
    Postgres::start_on_loopback(Some([&certificate, &key])).unwrap()
}

/// The URL of a new database, by way of a host.
fn database_at(server: &Postgres, host: &str) -> String {
    let local = server.new_database();
    let path = local.strip_prefix("postgres:///").unwrap();
    let name = path.split('?').next().unwrap();
    format!("{}/{name}", server.loopback_url(host))
}

#[test]
fn a_database_that_shows_who_it_is_is_reached_over_tls_alone() {
    let authority = Authority::new();
    let server = server(&authority, &["127.0.0.1"]);
    let url = database_at(&server, "127.0.0.1");
    let database = TestDatabase::behind_tls(url, authority.certificate());
    let mut controller = Controller::start_on(|_| database);
    let admin = controller.admin();
    admin
        .post("/v1/tenants", &tenant_body("acme", 1))
        .expect(201);
    admin.get("/v1/tenants/acme").expect(200);
    let sessions = "SELECT string_agg(DISTINCT ssl::text, ' ') FROM pg_stat_ssl JOIN pg_stat_activity \
                    USING (pid) WHERE application_name = 'berth-controller'";
    assert_eq!(controller.database().value(sessions), "true");
    controller.kill_and_restart();
    controller.admin().get("/v1/tenants/acme").expect(200);
    controller.assert_sound();
}

#[test]
fn a_database_that_cannot_show_who_it_is_is_told_nothing() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let by_name = server(&authority, &["localhost"]);
    let in_clear = Postgres::start_on_loopback(None).unwrap();
    for (server, host, known, why) in [
        (&by_name, "localhost", &stranger, "invalid peer certificate"),
        (&by_name, "127.0.0.1", &authority, "not valid for name"),
        (&in_clear, "127.0.0.1", &authority, "does not support TLS"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let database = TestDatabase::behind_tls(database_at(server, host), known.certificate());
        std::fs::write(folder.path().join("controller.toml"), database.settings()).unwrap();
        let refused = offline(folder.path(), &["init"]);
        assert!(!refused.status.success(), "{why}");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains(why), "{why}: {said}");
        let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
        assert_eq!(database.value(tables), "0", "{why}");
    }
    let url = database_at(&by_name, "localhost");
    let database = TestDatabase::behind_tls(url, authority.certificate());
    Controller::start_on(|_| database).assert_sound();
}
