//! One attempt to break out of the VMM's jail, from inside, as a guest would that has taken over its
//! VMM.
//!
//! `jail-attempt <attempt> <vcpu|io> <free|landlock|whole> <folder> <victim>` becomes what a VMM's
//! unit makes of a process, enters the jail of `berth-vmm` itself, and then makes the attempt on a
//! thread of the kind that was named. It ends with 0 if the attempt succeeded, with 1 and the error's
//! number on standard output if the kernel refused it, and by a signal if the jail killed it. What it
//! says first is that it got as far as the attempt. `free`
//! has no jail, so that whoever asks can see that the attempt is a real one; `landlock` has nothing
//! but Landlock. `jail-attempt list` names the attempts, `jail-attempt victim` waits to be attacked.
//!
//! No `forbid(unsafe_code)` here: attackers make system calls that no safe crate offers.

mod attempts;
mod raw;
mod scene;
mod unit;

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Barrier;

use anyhow::{Context as _, Result, bail, ensure};
use attempts::{ATTEMPTS, Attempt};
use berth_vmm::jail;
use scene::Scene;

/// How an attempt that the kernel refused ends.
const REFUSED: u8 = 1;
/// How this program ends when it could not get as far as the attempt.
const NOT_READY: u8 = 70;

/// How much of the jail there is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Jail {
    Free,
    Landlock,
    Whole,
}

/// Whose filter the attempt meets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Thread {
    Vcpu,
    Io,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["list"] => list(),
        ["victim"] => unit::drop_privileges().and_then(|()| be_attacked()),
        [name, thread, jail, folder, victim] => run(name, thread, jail, folder, victim),
        _ => Err(anyhow::anyhow!(
            "usage: jail-attempt list | victim | <attempt> <thread> <jail> <folder> <victim>"
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if standard error is gone.
            let _told = writeln!(io::stderr(), "jail-attempt: {error:#}");
            ExitCode::from(NOT_READY)
        }
    }
}

fn list() -> Result<()> {
    for attempt in ATTEMPTS {
        writeln!(io::stdout(), "{}", attempt.name)?;
    }
    Ok(())
}

/// Lives until standard input is closed.
fn be_attacked() -> Result<()> {
    writeln!(io::stdout(), "ready")?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn run(name: &str, thread: &str, jail: &str, folder: &str, victim: &str) -> Result<()> {
    let attempt = ATTEMPTS.iter().find(|attempt| attempt.name == name);
    let attempt = attempt.with_context(|| format!("there is no attempt {name}"))?;
    let thread = match thread {
        "vcpu" => Thread::Vcpu,
        "io" => Thread::Io,
        _ => bail!("no kind of thread: {thread}"),
    };
    let jail = match jail {
        "free" => Jail::Free,
        "landlock" => Jail::Landlock,
        "whole" => Jail::Whole,
        _ => bail!("no such jail: {jail}"),
    };
    unit::own_mounts()?;
    let scene = Scene::set(Path::new(folder), victim.parse()?)?;
    if jail == Jail::Whole {
        unit::empty_root(Path::new(folder))?;
        unit::drop_privileges()?;
    }
    if jail != Jail::Free {
        let gaps = jail::confine();
        let gaps: Vec<String> = gaps.iter().map(ToString::to_string).collect();
        ensure!(
            jail != Jail::Whole || gaps.is_empty(),
            "the jail has gaps: {}",
            gaps.join("; ")
        );
    }
    let is_filtered = jail == Jail::Whole;
    match thread {
        Thread::Io => on_io_thread(attempt, &scene, is_filtered),
        Thread::Vcpu => on_vcpu_thread(attempt, &scene, is_filtered),
    }
}

fn on_io_thread(attempt: &Attempt, scene: &Scene, is_filtered: bool) -> Result<()> {
    if is_filtered {
        jail::shut().context("filtering system calls")?;
    }
    attempt_and_end(attempt, scene)
}

/// In the order of a real start: the thread exists, all threads are filtered, it narrows itself.
fn on_vcpu_thread(attempt: &Attempt, scene: &Scene, is_filtered: bool) -> Result<()> {
    let gate = Barrier::new(2);
    std::thread::scope(|scope| {
        let vcpu = scope.spawn(|| {
            // A thread that only begins makes calls of its own.
            gate.wait();
            gate.wait();
            if is_filtered {
                jail::narrow_vcpu().context("narrowing the thread")?;
            }
            attempt_and_end(attempt, scene)
        });
        gate.wait();
        if is_filtered {
            jail::shut().context("filtering system calls")?;
        }
        gate.wait();
        vcpu.join()
            .unwrap_or_else(|_| bail!("the attempt panicked"))
    })
}

/// Ends the process from whichever thread this is.
fn attempt_and_end(attempt: &Attempt, scene: &Scene) -> Result<()> {
    writeln!(io::stdout(), "attempting")?;
    match (attempt.make)(scene) {
        Ok(_) => berth_vmm_sys::exit_now(0),
        Err(error) => {
            let number = error.raw_os_error().context("an error without a number")?;
            writeln!(io::stdout(), "{number}")?;
            berth_vmm_sys::exit_now(REFUSED)
        }
    }
}
