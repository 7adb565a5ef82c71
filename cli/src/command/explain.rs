//! `berthctl explain`: what each error code means and what to do about it.

use berth_api::rest::ErrorCode;
use serde::Serialize;

use crate::failure::Failure;
use crate::screen::Screen;
use crate::table::Table;

#[derive(Serialize)]
struct Explanation {
    code: ErrorCode,
    status: u16,
    title: &'static str,
    meaning: &'static str,
    remedy: &'static str,
}

/// Accepts a code as the API writes it.
pub(crate) fn parse_code(text: &str) -> Result<ErrorCode, String> {
    ErrorCode::ALL
        .iter()
        .copied()
        .find(|code| code.as_str() == text)
        .ok_or_else(|| "run `berthctl explain` for the list of codes".to_owned())
}

/// One code in full, or a list of all.
pub(crate) fn run(screen: &mut Screen, code: Option<ErrorCode>) -> Result<(), Failure> {
    match code {
        Some(code) => {
            let text = explain(code);
            screen.show(&text, || {
                Table::of_object([
                    ("code", code.as_str().into()),
                    ("status", format!("{} {}", text.status, text.title).into()),
                    ("meaning", text.meaning.into()),
                    ("remedy", text.remedy.into()),
                ])
            })
        }
        None => {
            let all: Vec<Explanation> = ErrorCode::ALL.iter().copied().map(explain).collect();
            screen.show(&all, list_table)
        }
    }
}

/// All codes, one line each.
#[must_use]
pub(crate) fn list_table() -> Table {
    let mut table = Table::new(&["CODE", "STATUS", "MEANING"]);
    for code in ErrorCode::ALL {
        let (meaning, _) = texts(*code);
        table.row([code.as_str().into(), code.status().into(), meaning.into()]);
    }
    table
}

fn explain(code: ErrorCode) -> Explanation {
    let (meaning, remedy) = texts(code);
    Explanation {
        code,
        status: code.status(),
        title: code.title(),
        meaning,
        remedy,
    }
}

#[expect(
    clippy::too_many_lines,
    reason = "one entry for each code, nothing else"
)]
fn texts(code: ErrorCode) -> (&'static str, &'static str) {
    match code {
        ErrorCode::InvalidRequest => (
            "A value is out of bounds, or the body is not JSON.",
            "Correct what `fields` names; it says the bounds.",
        ),
        ErrorCode::UnknownField => (
            "The body or the query has a member that this API does not know.",
            "Correct its spelling; nothing was changed. `berthctl api GET /v1/version` tells what this controller can.",
        ),
        ErrorCode::InvalidTenantId => (
            "The text is not a tenant id.",
            "Use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end.",
        ),
        ErrorCode::TenantMismatch => (
            "The request names another tenant than the token speaks for.",
            "Leave `tenant_id` out or use that tenant's token; `berthctl me` shows whose yours is.",
        ),
        ErrorCode::FieldImmutable => (
            "The field is fixed once the object exists.",
            "Leave the field out; to have another value, make another object.",
        ),
        ErrorCode::ShapeNotSupported => (
            "No host could ever run a VM of this size and kind.",
            "Ask for fewer vCPUs, less memory or a smaller disk, and for whole devices without a fabric.",
        ),
        ErrorCode::Unauthorized => (
            "The request carries no token.",
            "Send `Authorization: Bearer TOKEN`; berthctl takes it from --token, BERTH_TOKEN or ~/.config/berth/token.",
        ),
        ErrorCode::InvalidToken => (
            "What was sent is not a token that this controller issued.",
            "Look for a copy that was cut or wrapped, and that the URL is the controller that issued it.",
        ),
        ErrorCode::TokenExpired => (
            "The token's time is over.",
            "Ask for a new one; an operator issues it with `berthctl token issue`.",
        ),
        ErrorCode::TokenRevoked => (
            "The token, or one that it was narrowed from, was revoked.",
            "Ask whoever issued it; `berthctl token list` shows when it happened.",
        ),
        ErrorCode::PermissionDenied => (
            "The token is good but its scope does not cover this.",
            "Use a token with the scope in `required_scope`; `berthctl me` shows what yours has.",
        ),
        ErrorCode::TenantSuspended => (
            "An operator suspended the tenant.",
            "Reading, stopping and deleting still work; ask your administrator about the rest.",
        ),
        ErrorCode::SlotClassNotAllowed => (
            "The tenant has no ceiling for slots of this class, so it may use none.",
            "Ask an operator (`berthctl tenant update --slot-limit CLASS=N`), or ask for a class that `berthctl slot classes` lists.",
        ),
        ErrorCode::SlotNotApproved => (
            "The owner of the slot's host has not approved it, or no operator has admitted it.",
            "On its host: `berthctl slot check` and `berthctl slot approve`; then an operator: `berthctl slot admit`.",
        ),
        ErrorCode::NotFound => (
            "There is no such object, or it is not yours to see.",
            "Look at the list of that kind (such as `berthctl vm list`); names of deleted objects no longer count.",
        ),
        ErrorCode::MethodNotAllowed => (
            "The path exists, but not with this HTTP method.",
            "See the `Allow` header of the reply.",
        ),
        ErrorCode::WaitTimeout => (
            "The wanted state did not come in time; the action goes on.",
            "Wait again, or see where it stands with `berthctl vm show` and `berthctl operation show`.",
        ),
        ErrorCode::AlreadyExists => (
            "A live object already has that name.",
            "Choose another name or delete that object first.",
        ),
        ErrorCode::TenantExists => (
            "A tenant with this id exists or once did; ids are never used again.",
            "Choose another id, or update the tenant if it is the one you mean.",
        ),
        ErrorCode::InvalidState => (
            "The object's present state does not allow this.",
            "The error names the state and those that allow it; `berthctl vm wait` waits for one.",
        ),
        ErrorCode::ClaimConflict => (
            "Another VM has the slot that was asked for by its id.",
            "Ask for the slot's class instead, or wait until that VM is gone and the slot is wiped.",
        ),
        ErrorCode::TenantNotEmpty => (
            "The tenant still owns something.",
            "Delete its VMs first: `berthctl vm list --tenant ID`.",
        ),
        ErrorCode::IdempotencyConflict => (
            "The same Idempotency-Key came with another body.",
            "Use a new key for a new request; repeat a request only word for word.",
        ),
        ErrorCode::IdempotencyInProgress => (
            "The first request under this Idempotency-Key is not answered yet.",
            "Wait as many seconds as `Retry-After` says and send the same request again, word for word; nothing happens twice.",
        ),
        ErrorCode::OperationInProgress => (
            "Another operation works on the object and has to end first.",
            "Wait for it: `operation_id` names it, and `berthctl operation show` tells where it stands; a deletion does not wait.",
        ),
        ErrorCode::Protected => (
            "The object is always there and cannot be deleted.",
            "Delete what is in it instead; every tenant keeps its project `default`.",
        ),
        ErrorCode::PreconditionFailed => (
            "The object has changed since the tag in If-Match was given.",
            "Read it again, decide again, and send its new ETag; or leave If-Match out.",
        ),
        ErrorCode::RevisionGone => (
            "The event stream has no such revision, so events between may be lost.",
            "Read the lists anew, then follow events without `since`.",
        ),
        ErrorCode::PayloadTooLarge => (
            "The body is longer than the API accepts.",
            "Send less; no request of this API needs that much.",
        ),
        ErrorCode::UnsupportedMediaType => (
            "The body is not declared as JSON.",
            "Send `Content-Type: application/json`.",
        ),
        ErrorCode::PlacementImpossible => (
            "As things are, no node can ever take this VM.",
            "`reasons` counts the nodes by what is wrong; ask for less or for another image, or add a node.",
        ),
        ErrorCode::IommuGroupUnsafe => (
            "The slot's host does not keep its devices apart from others, so nobody gets it.",
            "On its host: `berthctl slot check` names what shares the group and what to change in firmware or on the command line.",
        ),
        ErrorCode::DeviceIdentityChanged => (
            "The slot's devices are not those that were approved: something was swapped, moved or reprogrammed.",
            "Look at `berthctl slot show`; if the change was wanted, approve the slot on its host and admit it anew.",
        ),
        ErrorCode::QuotaExceeded => (
            "The tenant's ceiling is reached; `quota` has the numbers.",
            "Delete something, or ask an operator for more (`berthctl tenant update`).",
        ),
        ErrorCode::RateLimited => (
            "Too many requests in the last minute.",
            "Wait as many seconds as `Retry-After` says, then go on more slowly.",
        ),
        ErrorCode::Internal => (
            "A fault of the controller; nothing that you sent is to blame.",
            "Try again; if it stays, give the request id to an operator, who finds it in the journal.",
        ),
        ErrorCode::NodeError => (
            "The node tried and failed.",
            "See `berthctl operation show` for its reason, and the agent's journal on that node.",
        ),
        ErrorCode::NoCapacity => (
            "All nodes that could take this VM are full now.",
            "Try again later, ask for less, or add a node; `reasons` counts nodes and slots by what they lack.",
        ),
        ErrorCode::AuditUnavailable => (
            "The ledger cannot be written, so nothing is changed.",
            "An operator looks at the controller's disk space and journal; reading still works.",
        ),
        ErrorCode::IdentityUnavailable => (
            "The identity provider's keys cannot be read, so nobody signs in.",
            "Try again in a moment; tokens that were issued before go on. An operator finds the reason in the journal.",
        ),
        ErrorCode::NodeUnreachable => (
            "The node is silent; what runs there may still run.",
            "Wait for it to come back; an operator looks at `berthctl node list`.",
        ),
        ErrorCode::Starting => (
            "The controller is not ready yet.",
            "Try again in a moment; `/readyz` says what is missing.",
        ),
        ErrorCode::NodeTimeout => (
            "The node did not answer in time; it may still do what was asked.",
            "See `berthctl operation show` before trying again.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_code_has_a_meaning_and_a_remedy_of_its_own() {
        let texts: Vec<_> = ErrorCode::ALL.iter().map(|code| texts(*code)).collect();
        let meanings: BTreeSet<_> = texts.iter().map(|(meaning, _)| meaning).collect();
        let remedies: BTreeSet<_> = texts.iter().map(|(_, remedy)| remedy).collect();
        assert_eq!(meanings.len(), ErrorCode::ALL.len());
        assert_eq!(remedies.len(), ErrorCode::ALL.len());
        for (meaning, remedy) in texts {
            assert!(meaning.len() > 20 && meaning.ends_with('.'), "{meaning}");
            assert!(remedy.len() > 20 && remedy.ends_with('.'), "{remedy}");
        }
    }

    #[test]
    fn the_document_says_of_each_code_what_is_said_here() {
        let document = include_str!("../../../docs/errors.md");
        for code in ErrorCode::ALL {
            let (meaning, remedy) = texts(*code);
            let row = format!(
                "| `{}` | {} | {meaning} | {remedy} | ",
                code.as_str(),
                code.status()
            );
            assert!(document.contains(&row), "docs/errors.md lacks: {row}");
        }
    }

    #[test]
    fn codes_are_found_by_their_name_alone() {
        for code in ErrorCode::ALL {
            assert_eq!(parse_code(code.as_str()), Ok(*code));
        }
        parse_code("Quota_Exceeded").unwrap_err();
    }
}
