//! The `berth-agent` program: arguments, wiring, exit status.
#![forbid(unsafe_code)]

mod ledger;
mod logging;
mod panics;
mod run;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use berth_agent::config::{Config, ReadConfigError};
use berth_agent::controller::ControllerUrlDenied;
use berth_agent::join;
use berth_agent::node::{NodeFileError, load_key};
use berth_agent_host::images::{DEFAULT_CMDLINE, ImageSource, Images};
use clap::{Args, Parser, Subcommand};

/// Runs VMs on this host for a berth controller.
#[derive(Debug, Parser)]
#[command(name = "berth-agent", version, subcommand_negates_reqs = true)]
struct Arguments {
    /// Configuration file; it must be there if it is named.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The agent's own folder.
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The VMM's executable.
    #[arg(long, global = true, value_name = "PATH")]
    vmm: Option<PathBuf>,
    #[command(flatten)]
    key: KeyArguments,
    #[command(subcommand)]
    command: Option<Command>,
}

/// This host's key, without a command.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct KeyArguments {
    /// Print the public half of this host's key, as the ledger names it; the host has one once it has
    /// joined or made one.
    #[arg(long)]
    print_pubkey: bool,
    /// Make this host's key before it joins, unless it has one, and print the public half.
    #[arg(long)]
    generate_keypair: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make this host a node of a controller.
    Join {
        /// The token from `berthctl node join-token`.
        token: String,
        /// The node's name; the host's name if left out.
        #[arg(long, value_name = "N")]
        node_name: Option<String>,
    },
    /// Be the daemon.
    Run,
    /// Show what this host has seen of its controller's ledger.
    Ledger,
    /// Follow a ledger that does not continue what this host has seen, after a controller has lost its
    /// newest entries for good.
    ///
    /// Names both trees, signs the decision with the node's key and leaves it for the running agent,
    /// which follows it with its next sync and sends it to the controller, where it becomes an entry.
    AcceptRollback {
        /// Why, for the record.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Guest images of this host.
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Make an image of a kernel and a raw disk.
    Import(ImportArguments),
    /// Show all images.
    List,
}

#[derive(Debug, Args)]
struct ImportArguments {
    /// The new image's name.
    #[arg(long)]
    name: String,
    /// An x86-64 Linux bzImage (vmlinuz) or PVH ELF image.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The kernel's initial RAM disk.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// A raw disk.
    #[arg(long, value_name = "FILE")]
    disk: PathBuf,
    /// The kernel's command line.
    #[arg(long, value_name = "S", default_value = DEFAULT_CMDLINE)]
    cmdline: String,
}

/// `EX_CONFIG` of sysexits(3): another start with the same configuration cannot end better, and the
/// unit does not try.
const EXIT_CONFIG: u8 = 78;

fn main() -> ExitCode {
    panics::install_hook();
    if let Some(written) = berth_manual::write_if_asked::<Arguments>() {
        return written;
    }
    let arguments = Arguments::parse();
    match execute(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to be done if even this cannot be written.
            drop(writeln!(std::io::stderr(), "berth-agent: {error:#}"));
            let misconfigured = error.is::<ReadConfigError>()
                || error.is::<ControllerUrlDenied>()
                || matches!(
                    error.downcast_ref(),
                    Some(NodeFileError::NotJoined | NodeFileError::Damaged { .. })
                );
            if misconfigured {
                ExitCode::from(EXIT_CONFIG)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn execute(arguments: Arguments) -> anyhow::Result<()> {
    let mut config = Config::read(arguments.config.as_deref())?;
    if let Some(state_dir) = arguments.state_dir {
        config.state_dir = state_dir;
    }
    if let Some(vmm) = arguments.vmm {
        config.vmm = vmm;
    }
    let Some(command) = arguments.command else {
        return print_public_key(&config, arguments.key.generate_keypair);
    };
    if arguments.key.print_pubkey || arguments.key.generate_keypair {
        anyhow::bail!("--print-pubkey and --generate-keypair take no command");
    }
    ensure_folder(&config.state_dir)?;
    match command {
        Command::Join { token, node_name } => join_node(&config, &token, node_name),
        Command::Run => run::run(&config),
        Command::Ledger => ledger::show(&config),
        Command::AcceptRollback { reason, yes } => ledger::accept(&config, &reason, yes),
        Command::Image { command } => image(&config, command),
    }
}

fn print_public_key(config: &Config, is_made: bool) -> anyhow::Result<()> {
    let key = if is_made {
        ensure_folder(&config.state_dir)?;
        join::ensure_key(&config.state_dir)?
    } else {
        load_key(&config.state_dir).with_context(|| {
            let state = config.state_dir.display();
            format!("{state} has no key; --generate-keypair makes one, and join as well")
        })?
    };
    writeln!(std::io::stdout(), "{}", key.public().to_base64())?;
    Ok(())
}

/// The agent's folder, for its owner alone.
fn ensure_folder(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("could not make {}", path.display()))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not start the runtime")
}

fn join_node(config: &Config, token: &str, node_name: Option<String>) -> anyhow::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let node = runtime()?.block_on(join::join(
        &config.state_dir,
        config.controller_ca.as_deref(),
        token,
        node_name,
        version,
    ))?;
    writeln!(
        std::io::stdout(),
        "{} joined {} as {}",
        node.node_name,
        node.controller_url,
        node.node_id
    )?;
    Ok(())
}

fn image(config: &Config, command: ImageCommand) -> anyhow::Result<()> {
    let images = Images::new(config.state_dir.join("images")).with_context(|| {
        format!(
            "could not open the images in {}",
            config.state_dir.display()
        )
    })?;
    match command {
        ImageCommand::Import(arguments) => {
            let source = ImageSource {
                name: arguments.name.parse().context("--name is not taken")?,
                kernel: arguments.kernel,
                initrd: arguments.initrd,
                disk: arguments.disk,
                cmdline: arguments.cmdline,
            };
            images.import(&source, &config.vmm)?;
            writeln!(std::io::stdout(), "imported {}", source.name)?;
        }
        ImageCommand::List => {
            let mut stdout = std::io::stdout();
            writeln!(stdout, "{:<24} {:>9}  DIGEST", "NAME", "DISK_MIB")?;
            for image in images.list().context("could not read the images")? {
                writeln!(
                    stdout,
                    "{:<24} {:>9}  {}",
                    image.name, image.disk_mib, image.digest
                )?;
            }
        }
    }
    Ok(())
}
