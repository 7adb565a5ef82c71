//! `cargo xtask demo`: the whole way, as an operator and a tenant walk it.
//!
//! Owns the order and the words. What is done lies in `berth_tests::lab`, where the scenarios do the
//! same and judge it.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use berth_tests::command::{as_root, capture};
use berth_tests::lab::host::{Here, Host};
use berth_tests::lab::image;
use berth_tests::lab::kept::Kept;
use berth_tests::lab::node::{Node, run_folder};
use berth_tests::lab::scenario::NodeKind;
use berth_tests::lab::scenarios::{seed_001, vm_lifecycle::unit_of};
use berth_tests::lab::site::{Site, text};
use berth_tests::lab::ssh::Lifetime;
use berth_tests::progress::{Progress, say, short};
use berth_tests::workspace;

use crate::setup::{self, Need};
use crate::{lab, package};

/// How long the tenant's guest may take; on an emulated host the usual time is half a minute.
const GUEST: Duration = Duration::from_secs(180);
/// What `berth-vmm probe` says in full, for a refusal.
const PROBE_FIELD: &str = "runs_unmodified_guest";
/// Where the guest image lies, on a node as here.
const GUEST_FOLDER: &str = "/srv/guest";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Leave the host running, with the API on a loopback port, and print what to try
    #[arg(long)]
    keep: bool,
    /// Without the lab: install the packages on this machine and use its own KVM
    #[arg(long)]
    native: bool,
}

/// Runs the task.
///
/// # Errors
/// The first step that fails; the message says where the evidence is.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut progress = Progress::new(if arguments.native {
        "demo --native"
    } else {
        "demo"
    });
    let began = std::time::Instant::now();
    if arguments.native {
        native(&mut progress, arguments.keep)?;
    } else {
        in_the_lab(&mut progress, arguments.keep)?;
    }
    progress.finish();
    say(&format!("demo: passed in {}", short(began.elapsed())));
    Ok(ExitCode::SUCCESS)
}

fn in_the_lab(progress: &mut Progress, keep: bool) -> Result<()> {
    Kept::end()?;
    let context = lab::prepare(progress, NodeKind::Installed)?;
    progress.phase("boot a host");
    let lifetime = if keep {
        Lifetime::Detached
    } else {
        Lifetime::Ours
    };
    let site = Site::<Node>::boot("demo", &context, lifetime)?;
    let token = walk(&site, progress)
        .inspect_err(|_| site.node.collect())
        .with_context(|| {
            format!(
                "the demo failed; logs are in {}",
                run_folder("demo").display()
            )
        })?;
    if keep {
        let admin = site.admin_token.clone();
        print_what_to_try(&site.node.keep()?, &admin, &token);
    }
    Ok(())
}

/// Walks the whole way on a host with the packages installed; returns the tenant's token.
fn walk<H: Host>(site: &Site<H>, progress: &mut Progress) -> Result<String> {
    progress.phase("enrol the host");
    site.show("dpkg-query --show 'berth-*'")?;
    // It exits with 1 when something is missing, which is an answer and no failure.
    site.show("berthctl host check || true")?;
    site.enrol()?;
    site.show("berthctl node list; berthctl image list")?;

    progress.phase("the how-to for a tenant's namespace, and the tenant's guest");
    let token = seed_001::walk(site, say, |token| show_guest(site, token))?;

    progress.phase("delete it all");
    seed_001::delete_all(site, &token)?;
    site.show("BERTH_TOKEN=$(cat /root/acme.token) berthctl usage")?;
    site.show("systemctl list-units --all --no-legend 'berth-vm-*' | wc -l")?;

    progress.phase("what was written down");
    site.show("berthctl ledger read --filter tenant-id=acme-corp --limit 12 --verify")?;
    site.show("berthctl ledger verify")?;
    Ok(token)
}

/// Waits until the tenant's guest is up, and shows what it says and how it runs.
fn show_guest(site: &Site<impl Host>, token: &str) -> Result<()> {
    site.node
        .check(&format!("umask 077; echo '{token}' >/root/acme.token"))?;
    let console = site.wait_console(token, seed_001::FIRST_VM, "BERTH-READY", GUEST)?;
    say("  the guest's own console, read through GET /v1/vms/web/console/log:");
    let lines: Vec<&str> = console.lines().collect();
    for line in &lines[lines.len().saturating_sub(12)..] {
        say(&format!("    {}", without_colours(line)));
    }
    let vm = site.wait_vm(token, seed_001::FIRST_VM, "running", GUEST)?;
    site.show("BERTH_TOKEN=$(cat /root/acme.token) berthctl vm list")?;
    site.show(&format!(
        "systemctl status --no-pager --lines=3 {}",
        unit_of(&text(&vm, "id")?)?
    ))?;
    Ok(())
}

/// A console line without the sequences that colour it (`ESC [ … m`).
fn without_colours(line: &str) -> String {
    let mut pieces = line.split("\x1b[");
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        plain.push_str(piece.split_once('m').map_or(piece, |(_, rest)| rest));
    }
    plain.trim_end().to_owned()
}

fn print_what_to_try(kept: &Kept, admin: &str, tenant: &str) {
    let berthctl = workspace::build_dir().join("programs/berthctl");
    let keys = image::lab_dir();
    say(&format!(
        "\nThe host is running; its API is at http://127.0.0.1:{port}. Try:\n\n\
         \x20 export BERTH_URL=http://127.0.0.1:{port}\n\
         \x20 export BERTH_TOKEN={tenant}\n\
         \x20 {ctl} vm create again --image debian-12 --memory-mb 256 --wait\n\
         \x20 {ctl} vm console again\n\
         \x20 curl -s -H \"Authorization: Bearer $BERTH_TOKEN\" $BERTH_URL/v1/vms\n\
         \x20 BERTH_TOKEN={admin} {ctl} ledger read --verify\n\n\
         Its logs are in {folder}, its ssh server is at port {ssh} (key below {keys}).\n\
         End it with: cargo xtask lab stop\n",
        port = kept.api_port,
        ssh = kept.ssh_port,
        ctl = berthctl.display(),
        folder = kept.folder.display(),
        keys = keys.display(),
    ));
}

fn native(progress: &mut Progress, keep: bool) -> Result<()> {
    setup::ensure(&[Need::Compile, Need::Package, Need::Lab])?;
    progress.phase("build the programs");
    let programs = package::programs()?;
    refuse_unless_it_can(&programs.join("berth-vmm"))?;
    progress.phase("pack");
    let packages = package::debs()?;
    progress.phase("image of the guest");
    let guest = image::guest_image()?;
    progress.phase("install the packages here");
    capture(as_root("dpkg").arg("--install").args(&packages))?;
    capture(as_root("mkdir").args(["-p", GUEST_FOLDER]))?;
    capture(
        as_root("mount")
            .args(["-o", "ro,loop"])
            .arg(&guest.artefacts)
            .arg(GUEST_FOLDER),
    )?;
    let result = Site::<Here>::here(say).and_then(|site| {
        let token = walk(&site, progress)?;
        Ok((site.admin_token.clone(), token))
    });
    capture(as_root("umount").arg(GUEST_FOLDER))?;
    match result {
        Ok((_, token)) if keep => {
            say(&format!(
                "\nEverything is running; the API is at {}. Try:\n\n  export BERTH_TOKEN={token}\n  \
                 berthctl vm create again --image debian-12 --memory-mb 256 --wait\n\n\
                 Remove it with: dpkg --purge berth-agent berth-controller berth-cli; \
                 rm -r /var/lib/berth\n",
                berth_tests::lab::site::URL
            ));
            Ok(())
        }
        result => {
            capture(as_root("dpkg").args([
                "--purge",
                "berth-agent",
                "berth-controller",
                "berth-cli",
            ]))?;
            capture(as_root("rm").args(["-rf", "/var/lib/berth"]))?;
            result.map(|_| ())
        }
    }
}

/// Refuses with the reason where this machine cannot do it, or already has an installation.
fn refuse_unless_it_can(vmm: &Path) -> Result<()> {
    let answer = capture(as_root(vmm).arg("probe"))?;
    let answer: serde_json::Value =
        serde_json::from_str(&answer).context("reading what berth-vmm probe says")?;
    if answer[PROBE_FIELD] != true {
        let problem = answer["problem"]
            .as_str()
            .unwrap_or("berth-vmm probe gave no reason");
        bail!(
            "this machine's KVM cannot run a Linux guest: {problem}\n`cargo xtask demo` without \
             --native needs no KVM"
        );
    }
    ensure!(
        Path::new("/run/systemd/system").exists(),
        "this machine does not run systemd, which starts berth's daemons and guests"
    );
    let state = Path::new("/var/lib/berth");
    ensure!(
        !state.exists(),
        "{} is there already; the demo does not touch an installation that somebody uses",
        state.display()
    );
    let mut dpkg = Command::new("dpkg-query");
    ensure!(
        !berth_tests::command::output(dpkg.args(["--show", "berth-agent"]))?
            .status
            .success(),
        "berth-agent is installed already; remove it first"
    );
    Ok(())
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn a_console_line_is_shown_without_its_colours() {
        assert_eq!(
            without_colours("[\x1b[0;32m  OK  \x1b[0m] Started\r"),
            "[  OK  ] Started"
        );
        assert_eq!(without_colours("plain m"), "plain m");
    }
}
