//! The small read-only commands: `image list`, `size list`, `usage`, `operation show`, `me`.

use berth_api::rest::{Image, Me, Operation, Price, Size, UsageReport};
use clap::Subcommand;

use crate::client::Path;
use crate::failure::Failure;
use crate::session::Session;
use crate::table::{Cell, Table, Tone, optional};

/// What can be done with images.
#[derive(Subcommand, Debug)]
pub(crate) enum ImageCommand {
    /// List what VMs can be made from
    List,
}

/// What can be done with sizes.
#[derive(Subcommand, Debug)]
pub(crate) enum SizeCommand {
    /// List the named sizes of VMs
    List,
}

/// What can be done with operations.
#[derive(Subcommand, Debug)]
pub(crate) enum OperationCommand {
    /// Show where a long action stands
    Show {
        /// Its id, `op_…`
        operation: String,
    },
}

/// `image …`
pub(crate) fn image(session: &mut Session, command: &ImageCommand) -> Result<(), Failure> {
    match command {
        ImageCommand::List => {
            let items = session.client.list(&Path::of(&["v1", "images"]), None)?;
            session.show_list(&items, image_table)
        }
    }
}

/// `size …`
pub(crate) fn size(session: &mut Session, command: &SizeCommand) -> Result<(), Failure> {
    match command {
        SizeCommand::List => {
            let items = session.client.list(&Path::of(&["v1", "sizes"]), None)?;
            session.show_list(&items, size_table)
        }
    }
}

/// `usage`, of the caller's tenant or of another one.
pub(crate) fn usage(session: &mut Session, tenant: Option<&str>) -> Result<(), Failure> {
    let path = Path::of(&["v1", "usage"]).with("tenant_id", tenant);
    let reply = session.client.get(path)?;
    session.show(&reply, usage_table)
}

/// `operation …`
pub(crate) fn operation(session: &mut Session, command: &OperationCommand) -> Result<(), Failure> {
    match command {
        OperationCommand::Show { operation } => {
            let reply = session
                .client
                .get(Path::of(&["v1", "operations", operation]))?;
            session.show(&reply, operation_table)
        }
    }
}

/// `me`
pub(crate) fn me(session: &mut Session) -> Result<(), Failure> {
    let reply = session.client.get(Path::of(&["v1", "me"]))?;
    session.show(&reply, me_table)
}

/// Images.
#[must_use]
pub(crate) fn image_table(images: &[Image]) -> Table {
    let mut table = Table::new(&["IMAGE", "MIN DISK GB"]);
    for image in images {
        table.row([(&image.name).into(), image.min_disk_gb.into()]);
    }
    table
}

/// Sizes.
#[must_use]
pub(crate) fn size_table(sizes: &[Size]) -> Table {
    let mut table = Table::new(&["SIZE", "VCPUS", "MEMORY MB", "DISK GB", "PRICE"]);
    for size in sizes {
        table.row([
            (&size.name).into(),
            size.vcpus.into(),
            size.memory_mb.into(),
            size.disk_gb.into(),
            price_cell(size.price.as_ref()),
        ]);
    }
    table
}

/// What a thing costs.
pub(super) fn price_cell(price: Option<&Price>) -> Cell {
    optional(price.map(|price| {
        let per = price.per.as_str();
        format!("{} {} per {per}", price.amount, price.currency)
    }))
}

/// A tenant's ceilings and what is charged.
#[must_use]
pub(crate) fn usage_table(report: &UsageReport) -> Table {
    let mut table = Table::new(&["RESOURCE", "LIMIT", "USED", "RESERVED", "REMAINING"]);
    for usage in &report.items {
        let used = usage.used.to_string();
        let used = if usage.over_limit {
            Cell::toned(&format!("{used} (over)"), Tone::Bad)
        } else {
            used.into()
        };
        let remaining = match usage.remaining {
            Some(0) => Cell::toned("0", Tone::Caution),
            some => optional(some),
        };
        table.row([
            (&usage.resource).into(),
            optional(usage.limit),
            used,
            usage.reserved.into(),
            remaining,
        ]);
    }
    table
}

/// One operation.
#[must_use]
pub(crate) fn operation_table(operation: &Operation) -> Table {
    let tone = match operation.state.as_str() {
        "done" => Tone::Good,
        "failed" => Tone::Bad,
        _ => Tone::Caution,
    };
    let error = operation
        .error
        .as_ref()
        .map(|error| format!("{} ({})", error.message, error.code));
    Table::of_object([
        ("operation", operation.id.into()),
        ("VM", operation.vm_id.into()),
        ("kind", (&operation.kind).into()),
        ("state", Cell::toned(&operation.state, tone)),
        ("phase", (&operation.phase).into()),
        ("error", optional(error)),
        ("created", (&operation.created_at).into()),
    ])
}

/// Who the caller is.
#[must_use]
pub(crate) fn me_table(me: &Me) -> Table {
    Table::of_object([
        (
            "tenant",
            me.tenant_id
                .as_ref()
                .map_or_else(|| "- (operator)".into(), Cell::from),
        ),
        ("token id", me.token_id.into()),
        ("scope", me.scope.join(" ").into()),
        ("expires", (&me.expires_at).into()),
    ])
}
