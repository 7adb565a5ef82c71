//! `berthctl ledger` and `service-fs`: the same reader of the ledger under two names.

use berth_api::rest::{AuditHead, Me};
use berth_ledger::keys::PublicKey;
use clap::{Args, Subcommand};

use crate::client::{PAGE, Path};
use crate::failure::Failure;
use crate::ledger::filter::{Filter, Filters, Key, ReadEntry};
use crate::ledger::pages::{Pages, head};
use crate::ledger::verify::{Verification, choose_key, open_checkpoint, parse_key};
use crate::session::Session;
use crate::table::{Cell, Table, Tone, optional};

/// What can be done with the ledger.
#[derive(Subcommand, Debug)]
pub(crate) enum LedgerCommand {
    /// Print entries: when, what, for whom, under which token
    Read(ReadArguments),
    /// Check every entry, its place, and that all of them lead to the root that the ledger has signed
    Verify {
        #[command(flatten)]
        key: KeyArgument,
    },
    /// Print the log's name, size and root, and the key that it is signed with
    Head,
}

/// Which entries to print.
#[derive(Args, Debug)]
pub(crate) struct ReadArguments {
    /// Only entries with this; may be repeated, all must hold
    ///
    /// Keys: tenant-id, vm-id, node-id, slot-id, event-type, outcome, token-id.
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// Only entries of this type, such as TENANT_CREATED
    #[arg(long, value_name = "TYPE")]
    event_type: Option<String>,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// From this index on
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    since: u64,
    /// Check the whole ledger first, and print only if it is right
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    key: KeyArgument,
}

/// The key that the caller trusts.
#[derive(Args, Debug)]
pub(crate) struct KeyArgument {
    /// The ledger's public key that you know; else the one that the controller shows is taken
    #[arg(long, value_name = "BASE64")]
    public_key: Option<String>,
}

impl KeyArgument {
    fn parse(&self) -> Result<Option<PublicKey>, Failure> {
        self.public_key.as_deref().map(parse_key).transpose()
    }
}

/// Run one of them.
pub(crate) fn run(session: &mut Session, command: LedgerCommand) -> Result<(), Failure> {
    match command {
        LedgerCommand::Read(arguments) => read(session, arguments),
        LedgerCommand::Verify { key } => {
            let pinned = key.parse()?;
            let mut check = start(session, pinned.as_ref())?;
            walk_all(session, &mut check, |_| {})?;
            let verified = check.finish()?;
            session
                .screen
                .say(&verified, &verified.sentence(pinned.is_some()))
        }
        LedgerCommand::Head => {
            let reply = session.client.get(Path::of(&["v1", "audit", "head"]))?;
            session.show(&reply, head_table)
        }
    }
}

fn read(session: &mut Session, arguments: ReadArguments) -> Result<(), Failure> {
    let mut filters = arguments.filter;
    filters.extend(arguments.event_type.map(|value| Filter {
        key: Key::EventType,
        value,
    }));
    let filters = Filters(filters);
    let pinned = arguments.key.parse()?;
    // One more than is shown tells whether there are more.
    let enough = arguments.limit.saturating_add(1);
    let mut wanted = if arguments.verify {
        read_verified(session, &filters, arguments.since, enough, pinned.as_ref())?
    } else {
        read_as_served(session, &filters, arguments.since, enough)?
    };
    let more = wanted.get(arguments.limit).map(|entry| entry.entry.index);
    wanted.truncate(arguments.limit);
    let values: Vec<_> = wanted.iter().map(|entry| &entry.entry).collect();
    session.screen.show(&values, || entry_table(&wanted))?;
    if let Some(index) = more {
        session
            .screen
            .note(&format!("more entries follow: --since {index}"));
    }
    Ok(())
}

fn read_as_served(
    session: &Session,
    filters: &Filters,
    since: u64,
    enough: usize,
) -> Result<Vec<ReadEntry>, Failure> {
    let page_size = u32::try_from(enough).unwrap_or(PAGE);
    let mut pages = Pages::new(&session.client, filters, since, page_size);
    let mut wanted = Vec::new();
    while wanted.len() < enough {
        let page = pages.next_page()?;
        if page.is_empty() {
            break;
        }
        let read = page.into_iter().map(ReadEntry::from);
        wanted.extend(read.filter(|entry| filters.admit(entry)));
    }
    wanted.truncate(enough);
    Ok(wanted)
}

/// What is printed are the very entries that were checked, not a second answer.
fn read_verified(
    session: &mut Session,
    filters: &Filters,
    since: u64,
    enough: usize,
    pinned: Option<&PublicKey>,
) -> Result<Vec<ReadEntry>, Failure> {
    let mut check = start(session, pinned)?;
    let mut wanted = Vec::new();
    walk_all(session, &mut check, |entry| {
        if entry.entry.index >= since && wanted.len() < enough && filters.admit(&entry) {
            wanted.push(entry);
        }
    })?;
    let verified = check.finish()?;
    session.screen.note(&verified.sentence(pinned.is_some()));
    Ok(wanted)
}

/// The check that the caller's token allows: the tree for an operator, else entry by entry.
fn start(session: &Session, pinned: Option<&PublicKey>) -> Result<Verification, Failure> {
    let me: Me = session.client.get(Path::of(&["v1", "me"]))?.read()?;
    let head = match head(&session.client) {
        // With a key of its own a tenant needs no head.
        Err(Failure::Refused(_)) if me.tenant_id.is_some() && pinned.is_some() => None,
        other => Some(other?),
    };
    match (choose_key(pinned, head.as_ref())?, head) {
        (Some(key), Some(head)) => {
            let checkpoint = open_checkpoint(&head, &key)?;
            Ok(match me.tenant_id {
                None => Verification::of_log(key, checkpoint),
                Some(_) => Verification::of_own_entries(key),
            })
        }
        (Some(key), None) => Ok(Verification::of_own_entries(key)),
        (None, _) => Err(Failure::Usage {
            sentence: "this token may not read the ledger's public key".to_owned(),
            remedy: "Give the key with --public-key.".to_owned(),
        }),
    }
}

/// Check all entries from the first on and hand each right one to `visit`.
fn walk_all(
    session: &mut Session,
    check: &mut Verification,
    mut visit: impl FnMut(ReadEntry),
) -> Result<(), Failure> {
    let mut pages = Pages::new(&session.client, &Filters::default(), 0, PAGE);
    session.screen.progress("verifying");
    while !check.is_complete() {
        let page = pages.next_page()?;
        if page.is_empty() {
            break;
        }
        for entry in page {
            if check.is_complete() {
                break;
            }
            check.step(&entry)?;
            visit(entry.into());
        }
        if session.screen.is_live() {
            session.screen.progress(&match check.progress() {
                (done, Some(all)) => format!("verifying: {done} of {all} entries"),
                (done, None) => format!("verifying: {done} entries"),
            });
        }
    }
    Ok(())
}

/// Entries, one line each.
#[must_use]
pub(crate) fn entry_table(entries: &[ReadEntry]) -> Table {
    let mut table = Table::new(&[
        "INDEX", "TIME", "EVENT", "TENANT", "ACTOR", "TOKEN ID", "VM", "OUTCOME",
    ]);
    for ReadEntry { entry, body } in entries {
        let Some(body) = body else {
            let unread = ["-"; 5].map(Cell::from);
            let [tenant, actor, token, vm, outcome] = unread;
            let event = Cell::toned("(unreadable)", Tone::Bad);
            table.row([
                entry.index.into(),
                "-".into(),
                event,
                tenant,
                actor,
                token,
                vm,
                outcome,
            ]);
            continue;
        };
        let outcome = match &body.code {
            Some(code) => format!("{} ({code})", body.outcome),
            None => body.outcome.clone(),
        };
        table.row([
            entry.index.into(),
            (&body.time).into(),
            (&body.event_type).into(),
            optional(body.tenant_id.as_ref()),
            (&body.actor.kind).into(),
            optional(body.actor.token_id),
            optional(body.vm_id),
            outcome.into(),
        ]);
    }
    table
}

fn head_table(head: &AuditHead) -> Table {
    Table::of_object([
        ("log", (&head.origin).into()),
        ("entries", head.size.into()),
        ("root", (&head.root).into()),
        ("public key", (&head.public_key).into()),
        ("verifier key", (&head.vkey).into()),
    ])
}
