//! `berthctl ledger` and `service-fs`: the same reader of the ledger under two names.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::time::Duration;

use berth_api::rest::{AuditHead, Me};
use berth_ledger::keys::PublicKey;
use clap::{Args, Subcommand};

use crate::client::{PAGE, Path};
use crate::failure::Failure;
use crate::ledger::bundle;
use crate::ledger::filter::{Filter, Filters, Key, ReadEntry, Since};
use crate::ledger::pages::{Pages, head};
use crate::ledger::published;
use crate::ledger::verify::{Verification, choose_key, open_checkpoint, parse_key};
use crate::session::Session;
use crate::table::{Cell, Table, Tone, optional};

/// Pause between two looks for new entries.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// What can be done with the ledger.
#[derive(Subcommand, Debug)]
pub(crate) enum LedgerCommand {
    /// Print entries: when, what, for whom, under which token
    Read(ReadArguments),
    /// Check every entry, its place, and that all of them lead to the root that the ledger has signed
    ///
    /// With a file, the same for an export; with a folder, for a published log, whose key has to be given.
    /// Nothing is asked of a controller then.
    Verify {
        /// A file that `ledger export` wrote, or the folder of a published log
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        key: KeyArgument,
    },
    /// Write entries with the proofs that the log has them, to be checked anywhere and for ever
    ///
    /// A tenant gets all of its own; an operator chooses a tenant, or gets everything.
    Export(ExportArguments),
    /// Print entries as they come, until interrupted
    Watch(WatchArguments),
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
    /// From an index on, a time (2026-11-22T08:00:00Z), or so long ago (90s, 5m, 24h, 30d)
    #[arg(long, value_name = "WHEN", default_value = "0")]
    since: Since,
    /// Check the whole ledger first, and print only if it is right
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    key: KeyArgument,
}

/// Which entries to wait for.
#[derive(Args, Debug)]
pub(crate) struct WatchArguments {
    /// Only entries with this; may be repeated, all must hold
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// Only entries of this type, such as TENANT_CREATED
    #[arg(long, value_name = "TYPE")]
    event_type: Option<String>,
    /// End after this many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// From an index on, a time (2026-11-22T08:00:00Z), or so long ago (90s, 5m, 24h, 30d)
    #[arg(long, value_name = "WHEN", default_value = "0s")]
    since: Since,
}

/// What to export.
#[derive(Args, Debug)]
pub(crate) struct ExportArguments {
    /// Into this file instead of standard output
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Only this tenant's (operators)
    #[arg(long, value_name = "ID")]
    tenant: Option<String>,
    /// From this index on
    #[arg(long, value_name = "INDEX")]
    from: Option<u64>,
    /// Below this index
    #[arg(long, value_name = "INDEX")]
    to: Option<u64>,
    /// Put the tenant's view key in: it shows that nothing was left out, and to whom leaves belong
    #[arg(long)]
    with_view_key: bool,
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
        LedgerCommand::Export(arguments) => export(session, &arguments),
        LedgerCommand::Watch(arguments) => watch(session, arguments),
        LedgerCommand::Verify {
            file: Some(file),
            key,
        } => verify_file(session, &file, &key),
        LedgerCommand::Verify { file: None, key } => {
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

fn verify_file(
    session: &mut Session,
    path: &std::path::Path,
    key: &KeyArgument,
) -> Result<(), Failure> {
    let pinned = key.parse()?;
    if path.is_dir() {
        return verify_folder(session, path, pinned.as_ref());
    }
    let file = File::open(path).map_err(|cause| Failure::File {
        doing: "reading",
        path: path.to_owned(),
        cause,
    })?;
    let screen = &mut session.screen;
    let verified = bundle::verify(BufReader::new(file), pinned.as_ref(), |entries| {
        if screen.is_live() {
            screen.progress(&format!("verifying: {entries} entries"));
        }
    })?;
    screen.say(&verified, &verified.sentence(pinned.is_some()))
}

fn verify_folder(
    session: &mut Session,
    folder: &std::path::Path,
    pinned: Option<&PublicKey>,
) -> Result<(), Failure> {
    let Some(key) = pinned else {
        return Err(Failure::Usage {
            sentence: "a published log does not say which key to believe".to_owned(),
            remedy: "Give the key with --public-key; `berthctl ledger head` prints it.".to_owned(),
        });
    };
    let screen = &mut session.screen;
    let verified = published::verify(folder, key, |entries, size| {
        if screen.is_live() {
            screen.progress(&format!("verifying: {entries} of {size} entries"));
        }
    })?;
    screen.say(&verified, &verified.sentence())
}

fn export(session: &mut Session, arguments: &ExportArguments) -> Result<(), Failure> {
    let path = Path::of(&["v1", "audit", "export"])
        .with("tenant_id", arguments.tenant.as_deref())
        .with("from", arguments.from)
        .with("to", arguments.to)
        .with("view_key", arguments.with_view_key.then_some(true));
    let mut lines = session.client.open(&path)?;
    let Some(name) = &arguments.file else {
        let mut line = Vec::new();
        while lines
            .read_until(b'\n', &mut line)
            .map_err(Failure::ReadBundle)?
            > 0
        {
            session.screen.write(&line)?;
            line.clear();
        }
        return Ok(());
    };
    let failed = |cause| Failure::File {
        doing: "writing",
        path: name.clone(),
        cause,
    };
    let mut file = File::create(name).map_err(failed)?;
    std::io::copy(&mut lines, &mut file).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    session
        .screen
        .note("check it with `berthctl ledger verify FILE`");
    Ok(())
}

/// Print what comes until as many are there as are wanted.
fn watch(session: &mut Session, arguments: WatchArguments) -> Result<(), Failure> {
    let filters = filters_of(arguments.filter, arguments.event_type);
    let mut pages = Pages::new(&session.client, &filters, &arguments.since, PAGE);
    let mut left = arguments.limit;
    loop {
        let page = pages.next_page()?;
        let is_end = page.is_empty();
        let read = page.into_iter().map(ReadEntry::from);
        for entry in read.filter(|entry| filters.admit(entry)) {
            let one = [entry];
            let value = one.first().map(|entry| &entry.entry);
            session
                .screen
                .show(&value, || entry_table(&one).without_headers())?;
            left = left.map(|left| left.saturating_sub(1));
            if left == Some(0) {
                return Ok(());
            }
        }
        if is_end {
            std::thread::sleep(WATCH_PAUSE);
        }
    }
}

fn filters_of(mut filters: Vec<Filter>, event_type: Option<String>) -> Filters {
    filters.extend(event_type.map(|value| Filter {
        key: Key::EventType,
        value,
    }));
    Filters(filters)
}

fn read(session: &mut Session, arguments: ReadArguments) -> Result<(), Failure> {
    let filters = filters_of(arguments.filter, arguments.event_type);
    let pinned = arguments.key.parse()?;
    // One more than is shown tells whether there are more.
    let enough = arguments.limit.saturating_add(1);
    let mut wanted = if arguments.verify {
        read_verified(session, &filters, &arguments.since, enough, pinned.as_ref())?
    } else {
        read_as_served(session, &filters, &arguments.since, enough)?
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
    since: &Since,
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
    since: &Since,
    enough: usize,
    pinned: Option<&PublicKey>,
) -> Result<Vec<ReadEntry>, Failure> {
    let mut check = start(session, pinned)?;
    let mut wanted = Vec::new();
    walk_all(session, &mut check, |entry| {
        if since.admits(&entry) && wanted.len() < enough && filters.admit(&entry) {
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
    let mut pages = Pages::new(&session.client, &Filters::default(), &Since::Index(0), PAGE);
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
    let witnesses = head.witnesses.iter().map(|witness| {
        let size = witness
            .cosigned_size
            .map_or("nothing".to_owned(), |size| size.to_string());
        let problem = witness.problem.as_ref();
        let tone = if problem.is_some() {
            Tone::Bad
        } else {
            Tone::Good
        };
        let problem = problem.map_or(String::new(), |problem| format!(", {problem}"));
        let text = format!("{} has cosigned {size}{problem}", witness.name);
        ("witness", Cell::toned(&text, tone))
    });
    Table::of_object(
        [
            ("log", (&head.origin).into()),
            ("entries", head.size.into()),
            ("root", (&head.root).into()),
            ("public key", (&head.public_key).into()),
            ("verifier key", (&head.vkey).into()),
        ]
        .into_iter()
        .chain(witnesses),
    )
}
