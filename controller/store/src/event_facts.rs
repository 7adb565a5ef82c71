//! What an entry says beyond its author's words: which object it is about, in which project, and with
//! which status a refusal was answered. Derived here in one place, so that no event can forget it.

use berth_api::rest::{AuditObject, ErrorCode};
use serde_json::Value;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::sql::OptionalExtension as _;
use crate::store::Db;

impl Db<'_> {
    /// Fill in what the event leaves open.
    pub(crate) fn with_facts(
        &self,
        mut event: NewEvent,
        cause: &Cause,
    ) -> Result<NewEvent, StoreError> {
        if event.object.is_none() {
            event.object = object_of(&event);
        }
        if event.project_id.is_none() {
            event.project_id = text(&event, "project_id");
        }
        if let (None, Some(vm_id)) = (&event.project_id, event.vm_id) {
            event.project_id = self
                .conn
                .prepare_cached("SELECT project_id FROM vm WHERE vm_id = ?1")?
                .query_row([vm_id.to_string()], |row| row.get(0))
                .optional()?;
        }
        // A change's answer is given after its entry is written; a refusal's is known before.
        if event.http_status.is_none() && event.outcome == "denied" && cause.request.is_some() {
            event.http_status = event.code.as_deref().and_then(status_of);
        }
        Ok(event)
    }
}

/// What an event of this type is about.
fn object_of(event: &NewEvent) -> Option<AuditObject> {
    let (kind, _) = event.event_type.split_once('_')?;
    let (kind, id) = match kind {
        "VM" => ("vm", event.vm_id?.to_string()),
        "SLOT" => ("slot", event.slot_ids.first()?.to_string()),
        "NODE" => ("node", event.node_id?.to_string()),
        "TENANT" | "QUOTA" => ("tenant", event.tenant_id.as_ref()?.to_string()),
        "PROJECT" => ("project", text(event, "project_id")?),
        "TASK" => ("task", text(event, "task_id")?),
        "TOKEN" => ("token", text(event, "token_id")?),
        "KEY" => ("key", text(event, "key")?),
        _ => return None,
    };
    let kind = kind.to_owned();
    Some(AuditObject { kind, id })
}

fn text(event: &NewEvent, name: &str) -> Option<String> {
    let value = event.detail.get(name).and_then(Value::as_str);
    value.map(ToOwned::to_owned)
}

fn status_of(code: &str) -> Option<u16> {
    let code: ErrorCode = serde_json::from_value(Value::from(code)).ok()?;
    Some(code.status())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(event_type: &'static str, detail: Value) -> NewEvent {
        NewEvent {
            event_type,
            tenant_id: "acme".parse().ok(),
            detail: crate::tenants::object(detail),
            ..NewEvent::default()
        }
    }

    #[test]
    fn an_entry_names_its_object_by_what_it_is_about() {
        for (event_type, detail, object) in [
            ("TENANT_CREATED", json!({}), Some(("tenant", "acme"))),
            (
                "TOKEN_ISSUED",
                json!({ "token_id": "tok_1" }),
                Some(("token", "tok_1")),
            ),
            (
                "PROJECT_CREATED",
                json!({ "project_id": "web" }),
                Some(("project", "web")),
            ),
            ("VM_CREATE_DENIED", json!({}), None),
            ("AUDIT_EXPORTED", json!({}), None),
        ] {
            let found = object_of(&event(event_type, detail));
            let wanted = object.map(|(kind, id)| AuditObject {
                kind: kind.to_owned(),
                id: id.to_owned(),
            });
            assert_eq!(found, wanted, "{event_type}");
        }
    }

    #[test]
    fn a_refusals_status_follows_from_its_code() {
        assert_eq!(status_of("quota_exceeded"), Some(429));
        assert_eq!(status_of("no_capacity"), Some(503));
        assert_eq!(status_of("no_code_of_ours"), None);
    }
}
