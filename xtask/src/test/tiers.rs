//! The tiers: what each shows, and what it runs. Cheapest first, so that a mistake is told early.

use std::fs::OpenOptions;
use std::num::NonZero;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use berth_tests::command::capture;
use berth_tests::lab::scenario::{self, Context, NodeKind};
use berth_tests::progress::{Progress, say};
use berth_tests::workspace;

use super::cargo_tests::{Kind, TestProgram};
use super::{Tally, cargo_tests, schemathesis, verifiers};
use crate::package::{self, Format};
use crate::setup::{self, Need};
use crate::{check, fuzz, lab, python};

/// How many inputs each fuzz target gets, and for how long at most.
const FUZZ_INPUTS: (u32, Duration) = (20_000, Duration::from_secs(15));

/// One tier.
#[derive(Debug)]
pub(super) struct Tier {
    pub(super) name: &'static str,
    pub(super) shows: &'static str,
    /// What it asks of the machine.
    pub(super) needs: &'static [Need],
    pub(super) run: fn(&mut Tally) -> Result<()>,
}

/// All tiers in the order they run.
pub(super) const TIERS: &[Tier] = &[
    Tier {
        name: "check",
        shows: "formatting, house rules, lints",
        needs: &[Need::Compile],
        run: check,
    },
    Tier {
        name: "unit",
        shows: "tests beside the code; no privileges, no devices",
        // The packager's own tests make packages.
        needs: &[Need::Compile, Need::Package],
        run: unit,
    },
    Tier {
        name: "fuzz",
        shows: "every fuzz target on its committed corpus and some thousand inputs beyond",
        needs: &[Need::Compile, Need::Fuzz],
        run: fuzz_targets,
    },
    Tier {
        name: "native-kvm",
        shows: "berth-vmm with tiny guests on this machine's /dev/kvm",
        needs: &[Need::Compile],
        run: native_kvm,
    },
    Tier {
        name: "containment",
        shows: "attempts to break out of the VMM's jail from inside",
        needs: &[Need::Compile],
        run: containment,
    },
    Tier {
        name: "controller",
        shows: "the controller and the command line, on SQLite and on PostgreSQL",
        needs: &[Need::Compile, Need::Database, Need::Python],
        run: controller,
    },
    Tier {
        name: "ledger",
        shows: "the transparency log before verifiers that are not ours",
        needs: &[Need::Compile],
        run: ledger,
    },
    Tier {
        name: "agent",
        shows: "the agent against fakes of its host",
        needs: &[Need::Compile],
        run: agent,
    },
    Tier {
        name: "slots",
        shows: "the life of slots: state machine, receipts, a scripted drive, an agent that dies anywhere",
        needs: &[Need::Compile],
        run: slots,
    },
    Tier {
        name: "package",
        shows: ".deb and .rpm built, read back, installed",
        // The packages are installed in a Debian tree of the lab.
        needs: &[Need::Compile, Need::Package, Need::Lab],
        run: package,
    },
    Tier {
        name: "lab",
        shows: "the core scenarios on an emulated host; the others run by name",
        needs: &[Need::Compile, Need::Package, Need::Lab],
        run: scenarios,
    },
];

fn check(tally: &mut Tally) -> Result<()> {
    for (name, check) in check::CHECKS {
        tally.count(name, check());
    }
    match check::dependency_policy() {
        Ok(Some(reason)) => tally.skipped.push(format!("dependency policy: {reason}")),
        checked => tally.count("dependency policy", checked.map(drop)),
    }
    Ok(())
}

fn unit(tally: &mut Tally) -> Result<()> {
    run_tier("unit", tally)
}

fn fuzz_targets(tally: &mut Tally) -> Result<()> {
    if let Some(reason) = fuzz::missing() {
        tally.skipped.push(format!("tier fuzz: {reason}"));
        return Ok(());
    }
    let mut progress = Progress::new("test fuzz");
    progress.phase("build the fuzz targets");
    fuzz::build()?;
    let budget = fuzz::Budget {
        limit: fuzz::Limit::Inputs(FUZZ_INPUTS.0, FUZZ_INPUTS.1),
        jobs: 1,
        keeps_what_it_learns: false,
    };
    let targets = fuzz::targets()?;
    progress.phase("run them");
    let next = Mutex::new(targets.iter());
    let counted = Mutex::new(tally);
    let take_turns = || {
        loop {
            // Others take theirs while this one runs.
            let target = locked(&next).next();
            let Some(target) = target else {
                break;
            };
            let outcome = fuzz::run_target(target, &budget);
            if let Ok(outcome) = &outcome {
                say(&format!("  {}: {outcome}", target.name));
            }
            locked(&counted).count(&target.name, outcome.map(drop));
        }
    };
    // Each is one thread.
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..processors {
            scope.spawn(take_turns);
        }
    });
    progress.finish();
    Ok(())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn native_kvm(tally: &mut Tally) -> Result<()> {
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        tally.skipped.push(format!(
            "tier native-kvm: /dev/kvm cannot be opened: {error}"
        ));
        return Ok(());
    }
    run_tier("native-kvm", tally)
}

fn containment(tally: &mut Tally) -> Result<()> {
    let own = std::fs::metadata("/proc/self");
    if !own.is_ok_and(|process| process.uid() == 0) {
        tally.skipped.push(
            "tier containment: staging attacks needs root, which is given up before each"
                .to_owned(),
        );
        return Ok(());
    }
    run_tier("containment", tally)
}

fn controller(tally: &mut Tally) -> Result<()> {
    run_tier("controller", tally)?;
    say("  the controller once more, on PostgreSQL");
    let whole = cargo_tests::programs()?
        .iter()
        .filter(|program| program.package == "berth-tests" && program.target == "controller");
    let postgres = [("BERTH_TEST_DATABASE", "postgres")];
    cargo_tests::run(whole, ("", &postgres), "test-controller-postgres", tally)?;
    foreign_paseto(tally)?;
    schemathesis::run(tally)
}

/// The vectors of tokens, each link checked by a PASETO library that is not ours.
fn foreign_paseto(tally: &mut Tally) -> Result<()> {
    match python::environment("paseto", &["pyseto==1.10.0"])? {
        Err(reason) => tally.skipped.push(format!("tokens by pyseto: {reason}")),
        Ok(python) => {
            let root = workspace::root();
            let mut check = Command::new(python);
            check
                .arg(root.join("tests/peers/paseto_links.py"))
                .arg(root.join("controller/token/vectors/chains.json"));
            let answer = capture(&mut check);
            if let Ok(text) = &answer {
                say(&format!("  {}", text.trim_end()));
            }
            tally.count("tokens by pyseto", answer.map(drop));
        }
    }
    Ok(())
}

/// The crates whose own tests are about the ledger.
const LEDGER_CRATES: &[&str] = &["berth-ledger", "berth-witness", "berth-publish"];

fn ledger(tally: &mut Tally) -> Result<()> {
    // Without a network the tests run with those verifiers that are there.
    if let Err(error) = setup::ensure(&[Need::Verifiers]) {
        tally
            .skipped
            .push(format!("verifiers' packages: {error:#}"));
    }
    tally.skipped.extend(verifiers::make());
    if let Err(reason) = python::environment("moto", &["moto[server]==5.2.5"])? {
        tally
            .skipped
            .push(format!("an S3-compatible store: {reason}"));
    }
    let crates = cargo_tests::programs()?.iter().filter(|program| {
        program.kind == Kind::Unit && LEDGER_CRATES.contains(&program.package.as_str())
    });
    cargo_tests::run(crates, EVERY_TEST, "test-ledger-crates", tally)?;
    run_tier("ledger", tally)
}

fn agent(tally: &mut Tally) -> Result<()> {
    run_tier("agent", tally)
}

/// Where the tests of slots are: package, test program (its only one unless said), and what their
/// names hold. Each part must have some.
const SLOT_TESTS: &[(&str, Option<&str>, &str)] = &[
    ("berth-agent-core", None, "slot::"),
    ("berth-ledger", None, "receipt::"),
    ("berth-inventory", None, ""),
    ("berth-nvme", None, ""),
    ("berth-agent-host", None, "slot_"),
    ("berth-agent", None, "slot_"),
    ("berth-cli", Some("receipt"), ""),
];

fn slots(tally: &mut Tally) -> Result<()> {
    let programs = cargo_tests::programs()?;
    for (package, target, filter) in SLOT_TESTS {
        let part = programs.iter().filter(|program| {
            program.package == *package
                && target.map_or(filter.is_empty() || program.kind == Kind::Unit, |target| {
                    program.target == target
                })
        });
        // A part that says nothing of any test is an error, so a renamed module cannot pass unseen.
        cargo_tests::run(part, (filter, &[]), "test-slots", tally)
            .with_context(|| format!("the tests of {package} that hold {filter:?}"))?;
    }
    Ok(())
}

fn package(tally: &mut Tally) -> Result<()> {
    let mut progress = Progress::new("test package");
    package::build(&[Format::Deb, Format::Rpm], &mut progress)?;
    progress.phase("read the packages back");
    run_tier("package", tally)?;
    progress.finish();
    Ok(())
}

/// Runs the tests that belong to a tier.
fn run_tier(tier: &str, tally: &mut Tally) -> Result<()> {
    let programs = cargo_tests::programs()?.iter();
    let own = programs.filter(|program| tier_of(program) == tier);
    cargo_tests::run(own, EVERY_TEST, &format!("test-{tier}"), tally)
}

/// No filter, and no variables.
const EVERY_TEST: (&str, &[(&str, &str)]) = ("", &[]);

/// Where a test program belongs. What nobody has placed is run with the unit tests.
fn tier_of(program: &TestProgram) -> &'static str {
    if program.kind == Kind::Unit {
        return "unit";
    }
    match (program.package.as_str(), program.target.as_str()) {
        ("berth-tests", "vmm_native") => "native-kvm",
        ("berth-tests", "containment") => "containment",
        ("berth-tests", "cli" | "controller") => "controller",
        ("berth-tests", "agent") => "agent",
        ("berth-tests", "ledger") => "ledger",
        ("berth-tests", "packages") => "package",
        (package, _) if package.starts_with("berth-vmm") => "native-kvm",
        (package, _) if package.starts_with("berth-controller") => "controller",
        (package, _) if package.starts_with("berth-agent") => "agent",
        _ => "unit",
    }
}

fn scenarios(tally: &mut Tally) -> Result<()> {
    let mut progress = Progress::new("test lab");
    let prepare =
        |progress: &mut Progress, kind| lab::prepare(progress, kind).context("preparing the lab");
    let (core, by_name): (Vec<_>, Vec<_>) = scenario::ALL.iter().partition(|found| found.is_core);
    let others: Vec<_> = by_name.iter().map(|scenario| scenario.name).collect();
    if !others.is_empty() {
        say(&format!(
            "  run by name with `cargo xtask lab NAME`: {}",
            others.join(", ")
        ));
    }
    let mut prepared: Option<(NodeKind, Context)> = None;
    for scenario in core {
        // Scenarios on nodes of the same kind stand together.
        let context = match prepared.take() {
            Some((kind, context)) if kind == scenario.node => context,
            Some(_) | None => prepare(&mut progress, scenario.node)?,
        };
        progress.phase(scenario.name);
        let (_, context) = prepared.insert((scenario.node, context));
        let result = lab::run_one(scenario, context);
        tally.repeated.extend(context.repeats.take());
        if result.is_ok() {
            say(&format!("  {} passed", scenario.name));
        }
        tally.count(scenario.name, result);
    }
    progress.finish();
    Ok(())
}
