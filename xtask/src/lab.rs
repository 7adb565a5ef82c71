//! `cargo xtask lab`: the metal lab's front.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use berth_tests::command::tail;
use berth_tests::lab::image;
use berth_tests::lab::kept::Kept;
use berth_tests::lab::node::{self, Node, NodeSpec, run_folder};
use berth_tests::lab::scenario::{self, Context, NodeKind, Repeats};
use berth_tests::progress::{Progress, say, short};

use crate::package;
use crate::setup::{self, Need};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A scenario's name, `shell` for a prompt on a node with our packages, or `stop` to end the node
    /// that `demo --keep` has left running
    scenario: Option<String>,
    /// List the scenarios and what each shows
    #[arg(long)]
    list: bool,
}

/// Runs the task.
///
/// # Errors
/// If the scenario fails; the message says where its logs are.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    match (&arguments.scenario, arguments.list) {
        (Some(name), false) if name == "shell" => shell(),
        (Some(name), false) if name == "stop" => {
            say(if Kept::end()? {
                "the kept node has ended"
            } else {
                "no kept node is running"
            });
            Ok(ExitCode::SUCCESS)
        }
        (Some(name), false) => {
            let Some(found) = scenario::by_name(name) else {
                bail!("there is no scenario {name}; `cargo xtask lab --list` shows them");
            };
            let mut progress = Progress::new(&format!("lab {name}"));
            let context = prepare(&mut progress, found.node)?;
            progress.phase(found.name);
            let result = run_one(found, &context);
            for repeat in context.repeats.take() {
                say(&format!("repeated {repeat}"));
            }
            result?;
            say(&format!("{name}: passed in {}", short(progress.finish())));
            Ok(ExitCode::SUCCESS)
        }
        (None, false) | (_, true) => {
            for scenario in scenario::ALL {
                say(&format!("{:<18} {}", scenario.name, scenario.shows));
            }
            say(&format!(
                "{:<18} a prompt on a node with our packages installed",
                "shell"
            ));
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Builds programs, packages and images: all that scenarios on such a node need.
///
/// # Errors
/// If one of the builds fails.
pub(crate) fn prepare(progress: &mut Progress, node_kind: NodeKind) -> Result<Context> {
    setup::ensure(&[Need::Compile, Need::Package, Need::Lab])?;
    progress.phase("build the programs");
    let (vmm, packages) = match node_kind {
        NodeKind::Bare => (package::vmm()?, Vec::new()),
        NodeKind::Installed | NodeKind::WithFailPoints => {
            let programs = package::programs()?;
            progress.phase("pack");
            (programs.join("berth-vmm"), package::debs()?)
        }
    };
    let failing_agent = match node_kind {
        NodeKind::WithFailPoints => {
            progress.phase("build the agent that ends where it is told to");
            Some(package::failing_agent()?)
        }
        NodeKind::Bare | NodeKind::Installed => None,
    };
    let programs = match node_kind {
        NodeKind::Bare => {
            progress.phase("build the lab's own programs");
            package::lab_programs()?
        }
        // What runs there is in the packages.
        NodeKind::Installed | NodeKind::WithFailPoints => PathBuf::new(),
    };
    progress.phase("Debian trees for host and guest");
    image::node_tree()?;
    image::guest_tree()?;
    progress.phase("images of host and guest");
    let guest = image::guest_image()?;
    let node = image::node_image(&packages)?;
    Ok(Context {
        node,
        guest,
        programs,
        vmm,
        failing_agent,
        say,
        repeats: Repeats::default(),
    })
}

/// Runs one scenario and, when it fails, says where the evidence is.
///
/// # Errors
/// The scenario's.
pub(crate) fn run_one(scenario: &scenario::Scenario, context: &Context) -> Result<()> {
    let mut result = (scenario.run)(context);
    if result.is_err() && node::fell(scenario.name) {
        let repeat = format!(
            "{}: the emulated host itself ended in a triple fault",
            scenario.name
        );
        say(&format!("  repeated {repeat}"));
        context.repeats.note(repeat);
        result = (scenario.run)(context);
    }
    result.with_context(|| {
        format!(
            "scenario {} failed; logs are in {}",
            scenario.name,
            run_folder(scenario.name).display()
        )
    })
}

fn shell() -> Result<ExitCode> {
    let mut progress = Progress::new("lab shell");
    let context = prepare(&mut progress, NodeKind::Installed)?;
    progress.phase("boot a node");
    let devices = vec![berth_tests::lab::devices::Device::SharedDisk {
        image: context.guest.artefacts.clone(),
    }];
    let node = Node::boot(
        "shell",
        &context.node,
        &NodeSpec {
            devices,
            ..NodeSpec::default()
        },
    )?;
    node.mount_guest_image()?;
    progress.finish();
    say("The guest image for tenants is in /srv/guest. The node ends when you leave.");
    let log: PathBuf = node.folder().join("serial.log");
    let status = node.channel()?.shell().status().context("starting ssh")?;
    if status.code() == Some(255) {
        bail!("the node went away; its console says:\n{}", tail(&log, 10));
    }
    Ok(ExitCode::SUCCESS)
}
