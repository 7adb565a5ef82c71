//! The command line of berth: `berthctl`, and `service-fs`, which is its ledger reader alone.
//!
//! Owns arguments, tables, waiting and exit codes. It decides nothing about tenants, VMs or quota:
//! the controller does, and this shows what it says. Host checks are judged here, from a snapshot.
#![forbid(unsafe_code)]

mod client;
mod command;
mod connection;
mod console;
mod duration;
mod failure;
mod host;
mod ledger;
mod proof;
mod screen;
mod session;
mod table;
mod wait;

#[cfg(test)]
mod golden;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::client::Client;
use crate::command::{
    api, catalogue, explain, host as host_command, isolation, ledger as ledger_command, node,
    person, project, receipt, service_account, shell, slot, tenant, token, vm,
};
use crate::connection::ConnectionArguments;
use crate::failure::Failure;
use crate::screen::Screen;
use crate::session::Session;

const AFTER_HELP: &str = "\
Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 denied, 5 quota, 6 capacity, 7 timeout, 8 conflict.";

/// Rent out bare-metal hosts by the slot: tenants, tokens, VMs, nodes and the ledger
#[derive(Parser, Debug)]
#[command(name = "berthctl", version, after_help = AFTER_HELP)]
pub(crate) struct Berthctl {
    #[command(flatten)]
    global: GlobalArguments,
    #[command(subcommand)]
    command: Command,
}

/// Read a controller's ledger: who did what, when, and under which token
#[derive(Parser, Debug)]
#[command(name = "service-fs", version, after_help = AFTER_HELP)]
pub(crate) struct ServiceFs {
    #[command(flatten)]
    global: GlobalArguments,
    #[command(subcommand)]
    command: ledger_command::LedgerCommand,
}

/// What every command takes.
#[derive(Args, Debug)]
#[command(next_help_heading = "Global options")]
struct GlobalArguments {
    #[command(flatten)]
    connection: ConnectionArguments,
    /// Print JSON as the controller sends it, and nothing but an error's JSON on standard error
    #[arg(long, global = true)]
    json: bool,
    /// Leave the header line out of tables
    #[arg(long, global = true)]
    no_headers: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    #[command(flatten)]
    Remote(RemoteCommand),
    #[command(flatten)]
    Local(LocalCommand),
}

/// What asks a controller.
#[derive(Subcommand, Debug)]
enum RemoteCommand {
    /// Tenants and their ceilings (operators)
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// The parts of a tenant, with ceilings inside its own
    #[command(subcommand)]
    Project(project::ProjectCommand),
    /// Holders of tokens that are no persons, and their roles in projects
    #[command(subcommand)]
    ServiceAccount(service_account::ServiceAccountCommand),
    /// People of the identity provider who may sign in for a tenant
    #[command(subcommand)]
    Person(person::PersonCommand),
    /// Capability tokens and the keys of their holders
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// VMs
    #[command(subcommand)]
    Vm(vm::VmCommand),
    /// Hosts that run VMs (operators)
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Slots: bundles of one host's devices that are rented as a whole
    #[command(subcommand)]
    Slot(slot::SlotCommand),
    /// What VMs are made from
    #[command(subcommand)]
    Image(catalogue::ImageCommand),
    /// Named sizes of VMs
    #[command(subcommand)]
    Size(catalogue::SizeCommand),
    /// A tenant's ceilings and what is charged
    Usage {
        /// Which tenant (operators)
        #[arg(long)]
        tenant: Option<String>,
    },
    /// The audit ledger
    #[command(subcommand)]
    Ledger(ledger_command::LedgerCommand),
    /// Long actions
    #[command(subcommand)]
    Operation(catalogue::OperationCommand),
    /// Show whose token this is and what it may do
    Me,
    /// Look whether a controller that runs keeps its promises
    #[command(subcommand)]
    Verify(isolation::VerifyCommand),
    /// Make one raw call
    Api(api::ApiCommand),
}

/// What this machine can tell alone.
#[derive(Subcommand, Debug)]
enum LocalCommand {
    /// Look at this host
    #[command(subcommand)]
    Host(host_command::HostCommand),
    /// What hosts stated about their slots, to be checked without a controller
    #[command(subcommand)]
    Receipt(receipt::ReceiptCommand),
    /// Say what an error code means and what to do about it
    Explain {
        /// The code [default: list all]
        #[arg(value_parser = explain::parse_code)]
        code: Option<berth_api::rest::ErrorCode>,
    },
    /// Print a completion script for a shell
    Completion {
        /// Which shell
        shell: shell::CompletionShell,
    },
    /// Write the manual pages into a folder
    Man {
        /// The folder; made if absent
        folder: std::path::PathBuf,
    },
}

/// `berthctl` with this process's arguments.
#[must_use]
pub fn berthctl() -> ExitCode {
    let Berthctl { global, command } = Berthctl::parse();
    match command {
        Command::Local(command) => global.alone(|screen| local(screen, command)),
        Command::Remote(RemoteCommand::Token(token::TokenCommand::Local(command))) => {
            let connection = global.connection.clone();
            global.alone(|screen| token::local::run(screen, &connection, command))
        }
        Command::Remote(RemoteCommand::Slot(slot::SlotCommand::Local(command))) => {
            global.alone(|screen| slot::local::run(screen, &command))
        }
        Command::Remote(command) => global.connected(|session| remote(session, command)),
    }
}

/// `service-fs` with this process's arguments.
#[must_use]
pub fn service_fs() -> ExitCode {
    let ServiceFs { global, command } = ServiceFs::parse();
    global.connected(|session| ledger_command::run(session, command))
}

fn local(screen: &mut Screen, command: LocalCommand) -> Result<(), Failure> {
    match command {
        LocalCommand::Host(command) => host_command::run(screen, &command),
        LocalCommand::Receipt(command) => receipt::run(screen, &command),
        LocalCommand::Explain { code } => explain::run(screen, code),
        LocalCommand::Completion { shell } => shell::completion(screen, shell),
        LocalCommand::Man { folder } => shell::man(&folder),
    }
}

fn remote(session: &mut Session, command: RemoteCommand) -> Result<(), Failure> {
    match command {
        RemoteCommand::Tenant(command) => tenant::run(session, command),
        RemoteCommand::Project(command) => project::run(session, command),
        RemoteCommand::ServiceAccount(command) => service_account::run(session, command),
        RemoteCommand::Person(command) => person::run(session, command),
        RemoteCommand::Token(command) => token::run(session, command),
        RemoteCommand::Vm(command) => vm::run(session, command),
        RemoteCommand::Node(command) => node::run(session, command),
        RemoteCommand::Slot(slot::SlotCommand::Local(command)) => {
            slot::local::run(&mut session.screen, &command)
        }
        RemoteCommand::Slot(slot::SlotCommand::Remote(command)) => {
            slot::remote::run(session, command)
        }
        RemoteCommand::Image(command) => catalogue::image(session, &command),
        RemoteCommand::Size(command) => catalogue::size(session, &command),
        RemoteCommand::Usage { tenant } => catalogue::usage(session, tenant.as_deref()),
        RemoteCommand::Ledger(command) => ledger_command::run(session, command),
        RemoteCommand::Operation(command) => catalogue::operation(session, &command),
        RemoteCommand::Me => catalogue::me(session),
        RemoteCommand::Verify(command) => isolation::run(session, command),
        RemoteCommand::Api(command) => api::run(session, &command),
    }
}

impl GlobalArguments {
    fn screen(&self) -> Screen {
        Screen::new(self.json, self.no_headers)
    }

    /// Run what needs no controller.
    fn alone(&self, run: impl FnOnce(&mut Screen) -> Result<(), Failure>) -> ExitCode {
        let mut screen = self.screen();
        let done = run(&mut screen);
        finish(&mut screen, done)
    }

    /// Run what needs one.
    fn connected(&self, run: impl FnOnce(&mut Session) -> Result<(), Failure>) -> ExitCode {
        let mut screen = self.screen();
        let connection = match connection::resolve(&self.connection) {
            Ok(connection) => connection,
            Err(failure) => return finish(&mut screen, Err(failure)),
        };
        for warning in &connection.warnings {
            screen.note(warning);
        }
        let mut session = Session {
            client: Client::new(connection),
            screen,
        };
        let done = run(&mut session);
        finish(&mut session.screen, done)
    }
}

fn finish(screen: &mut Screen, done: Result<(), Failure>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output has seen enough.
        Err(failure) if failure.is_closed_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            screen.fail(&failure);
            ExitCode::from(failure.exit().code())
        }
    }
}
