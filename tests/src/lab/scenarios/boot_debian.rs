//! `boot-debian`: `berth-vmm` alone, without agent and controller, boots an unmodified guest.
//!
//! The guest tests itself (`berth.selftest` on its command line) and says what it saw on its
//! console; this side checks that against what the guest was given, and looks for the flushed
//! bytes in the disk's file after the guest has ended.
//!
//! The node's emulated processor now and then makes a triple fault of its own
//! (`docs/decisions/0014-one-triple-fault-of-the-lab-is-repeated.md`). One of them in all cases
//! together, before the guest has said a word, is a repeat that the run's summary counts.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::devices::Device;
use crate::lab::host::Host as _;
use crate::lab::node::{Node, NodeSpec};
use crate::lab::scenario::Context;

/// Memory of the node: the largest guest, and the host's own.
const NODE_MEMORY_MIB: u32 = 9000;
/// Bytes of the pattern that the guest writes to its second disk.
const PATTERN_BYTES: u32 = 16 * 64 * 1024;
/// How an end by a triple fault reads.
const TRIPLE_FAULT: &str = "reset by triple_fault";
/// Triple faults that the emulated processor may make in one run of the scenario.
const MOST_FAULTS: u32 = 1;
/// Lets the node's kernel note where a vCPU shut down: on AMD processors KVM has reset the vCPU
/// before the VMM can look.
const RECORD_SHUTDOWNS: &str = "mountpoint -q /sys/kernel/tracing || \
    mount -t tracefs tracefs /sys/kernel/tracing; cd /sys/kernel/tracing/events/kvm/kvm_exit && \
    echo 'exit_reason == 0x7f' >filter && echo 1 >enable";
const SHOW_SHUTDOWNS: &str = "grep -o 'vcpu .* reason shutdown.*' /sys/kernel/tracing/trace";

/// One guest.
#[derive(Clone, Copy, Debug)]
struct Case {
    vcpus: u32,
    memory_mib: u32,
    kernel: Kernel,
    end: End,
}

/// How the guest is entered.
#[derive(Clone, Copy, Debug)]
enum Kernel {
    /// The ELF image inside Debian's kernel, by its PVH note.
    Pvh,
    /// Debian's kernel as it is shipped.
    BzImage,
}

/// How the guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It powers itself off.
    PowerOff,
    /// It reboots once and then powers itself off.
    RebootFirst,
}

const CASES: [Case; 5] = [
    Case {
        vcpus: 1,
        memory_mib: 256,
        kernel: Kernel::BzImage,
        end: End::PowerOff,
    },
    Case {
        vcpus: 4,
        memory_mib: 6144,
        kernel: Kernel::BzImage,
        end: End::PowerOff,
    },
    Case {
        vcpus: 1,
        memory_mib: 6144,
        kernel: Kernel::Pvh,
        end: End::PowerOff,
    },
    Case {
        vcpus: 4,
        memory_mib: 256,
        kernel: Kernel::Pvh,
        end: End::RebootFirst,
    },
    Case {
        vcpus: 1,
        memory_mib: 128,
        kernel: Kernel::Pvh,
        end: End::PowerOff,
    },
];

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernel = match self.kernel {
            Kernel::Pvh => "PVH",
            Kernel::BzImage => "bzImage",
        };
        let end = match self.end {
            End::PowerOff => "power-off",
            End::RebootFirst => "reboot, then power-off",
        };
        write!(
            f,
            "{} vCPU, {} MiB, {kernel}, {end}",
            self.vcpus, self.memory_mib
        )
    }
}

/// What one boot of a guest said about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Word {
    disk: String,
    cpus: u32,
    memory_mib: u32,
    boots: u32,
    sha256: String,
}

/// Runs the scenario.
///
/// # Errors
/// The first guest that is not as it should be.
pub(crate) fn run(context: &Context) -> Result<()> {
    let spec = NodeSpec {
        memory_mib: NODE_MEMORY_MIB,
        devices: vec![Device::SharedDisk {
            image: context.guest.artefacts.clone(),
        }],
        ..NodeSpec::default()
    };
    let node = Node::boot("boot-debian", &context.node, &spec)?;
    let result = run_on(&node, context);
    if result.is_err() {
        node.collect();
    }
    result
}

fn run_on(node: &Node, context: &Context) -> Result<()> {
    node.mount_guest_image()?;
    node.bring_vmm(context)?;
    node.check(RECORD_SHUTDOWNS)?;
    let mut faults = 0;
    for case in CASES {
        let began = std::time::Instant::now();
        let faulted = boot(node, case).with_context(|| format!("guest with {case}"))?;
        let seconds = began.elapsed().as_secs_f64();
        if let Faulted::Once = faulted {
            faults += 1;
            let place = node.check(SHOW_SHUTDOWNS);
            let place = place.context("a triple fault that KVM's trace does not explain")?;
            ensure!(
                faults <= MOST_FAULTS,
                "guest with {case}: triple fault number {faults}:\n{place}"
            );
            let repeat = format!("guest with {case}: triple fault: {}", place.trim());
            (context.say)(&format!("  {repeat}"));
            context.repeats.note(repeat);
        }
        (context.say)(&format!("  {case}: as it should be after {seconds:.0} s"));
    }
    Ok(())
}

fn boot(node: &Node, case: Case) -> Result<Faulted> {
    let (kernel, mode) = match (case.kernel, case.end) {
        (Kernel::Pvh, End::PowerOff) => ("vmlinux", "poweroff"),
        (Kernel::Pvh, End::RebootFirst) => ("vmlinux", "reboot"),
        (Kernel::BzImage, End::PowerOff) => ("vmlinuz", "poweroff"),
        (Kernel::BzImage, End::RebootFirst) => ("vmlinuz", "reboot"),
    };
    let output = node.run(&format!(
        "rm -rf /root/guest && mkdir /root/guest && cd /root/guest && \
         cp --sparse=always /srv/guest/disk.raw root.raw && truncate -s 64M second.raw && \
         vmm-run --vmm /usr/libexec/berth/berth-vmm --kernel /srv/guest/{kernel} \
         --initrd /srv/guest/initrd --disk root.raw --disk second.raw --entropy \
         --vcpus {} --memory-mib {} --console console --follow-resets --timeout 240 \
         --cmdline 'console=ttyS0 root=/dev/vda rw quiet berth.selftest={mode}' 2>events",
        case.vcpus, case.memory_mib
    ))?;
    node.copy_out("/root/guest/console", &log(node, case, "console"))?;
    node.copy_out("/root/guest/events", &log(node, case, "events"))?;
    let console = std::fs::read(log(node, case, "console")).context("reading the console")?;
    let console = String::from_utf8_lossy(&console);
    let events =
        std::fs::read_to_string(log(node, case, "events")).context("reading the events")?;
    ensure!(
        output.status.success(),
        "vmm-run ended with {}; events:\n{events}\nconsole:\n{}",
        output.status,
        last_lines(&console, 25)
    );
    let faulted = judge_ends(&ends(&events), case.end)?;
    let words = words(&console);
    judge_words(&words, case).with_context(|| last_lines(&console, 25))?;
    let wrote = &words.last().context("no word of the guest")?.sha256;
    let in_file = node.check(&format!(
        "head -c {PATTERN_BYTES} /root/guest/second.raw | sha256sum | cut -d' ' -f1"
    ))?;
    ensure!(
        in_file.trim() == wrote,
        "the disk's file does not have what the guest flushed"
    );
    Ok(faulted)
}

fn log(node: &Node, case: Case, what: &str) -> std::path::PathBuf {
    let name = format!(
        "guest-{}x{}-{:?}-{what}.log",
        case.vcpus, case.memory_mib, case.kernel
    );
    Path::new(node.folder()).join(name)
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// How the VMM said that each run of the guest ended: exit, or `reset` and its cause.
fn ends(events: &str) -> Vec<String> {
    events
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|event| event["event"] == "exited")
        .map(
            |event| match (event["exit"].as_str(), event["cause"].as_str()) {
                (Some(exit), Some(cause)) => format!("{exit} by {cause}"),
                (exit, _) => exit.unwrap_or("nothing").to_owned(),
            },
        )
        .collect()
}

/// Whether a triple fault came between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Faulted {
    /// All ends are the guest's wish.
    Never,
    /// One is not, and the guest was started again after it.
    Once,
}

/// Judges how the runs of a guest ended. That the guest had not said a word before the triple fault
/// shows in its words: [`judge_words`] wants no more of them than the guest was asked for.
fn judge_ends(ends: &[String], end: End) -> Result<Faulted> {
    let wanted: &[&str] = match end {
        End::PowerOff => &["power_off"],
        End::RebootFirst => &["reset by register", "power_off"],
    };
    if ends == wanted {
        return Ok(Faulted::Never);
    }
    let (faults, others): (Vec<_>, Vec<_>) = ends.iter().partition(|end| *end == TRIPLE_FAULT);
    ensure!(
        faults.len() == 1 && others == wanted,
        "the VMM ended with {ends:?} instead of {wanted:?}"
    );
    Ok(Faulted::Once)
}

/// What the guest said about itself, boot by boot.
fn words(console: &str) -> Vec<Word> {
    let parse = |line: &str| {
        let (_, facts) = line.split_once("BERTH-SELFTEST ")?;
        let fact = |name: &str| {
            facts
                .split_whitespace()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        Some(Word {
            disk: fact("disk")?.to_owned(),
            cpus: fact("cpus")?.parse().ok()?,
            memory_mib: fact("memory_mib")?.parse().ok()?,
            boots: fact("boots")?.parse().ok()?,
            sha256: fact("sha256")?.to_owned(),
        })
    };
    console.lines().filter_map(parse).collect()
}

fn judge_words(words: &[Word], case: Case) -> Result<()> {
    let boots = match case.end {
        End::PowerOff => 1,
        End::RebootFirst => 2,
    };
    ensure!(
        words.len() == boots,
        "the guest spoke {} times, not {boots}",
        words.len()
    );
    for (boot, word) in (1..).zip(words) {
        ensure!(
            word.boots == boot,
            "boot {boot} counted itself as {}",
            word.boots
        );
        ensure!(word.disk == "ok", "boot {boot}: its disk is {}", word.disk);
        ensure!(
            word.cpus == case.vcpus,
            "boot {boot}: it sees {} vCPUs",
            word.cpus
        );
        // The kernel keeps some for itself: its image, and 1/64 of all for its page structures.
        let least = case.memory_mib - case.memory_mib / 32 - 64;
        ensure!(
            (least..=case.memory_mib).contains(&word.memory_mib),
            "boot {boot}: it sees {} MiB",
            word.memory_mib
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "[    5.1] BERTH-SELFTEST disk=ok cpus=4 memory_mib=213 boots=1 sha256=ab target=/dev/vdb\r\n\
        [    5.2] BERTH-SELFTEST end=reboot\r\n\
        [    5.1] BERTH-SELFTEST disk=ok cpus=4 memory_mib=213 boots=2 sha256=cd target=/dev/vdb\r\n";
    const CASE: Case = Case {
        vcpus: 4,
        memory_mib: 256,
        kernel: Kernel::Pvh,
        end: End::RebootFirst,
    };

    #[test]
    fn a_guest_that_saw_what_it_was_given_passes() {
        let words = words(CONSOLE);
        assert_eq!(words[1].sha256, "cd");
        judge_words(&words, CASE).unwrap();
    }

    #[test]
    fn a_guest_that_saw_something_else_fails() {
        for (from, to) in [
            ("cpus=4", "cpus=1"),
            ("disk=ok", "disk=differs"),
            ("=213", "=100"),
        ] {
            let found = words(&CONSOLE.replace(from, to));
            assert!(judge_words(&found, CASE).is_err(), "{to}");
        }
        assert!(
            judge_words(&words(CONSOLE)[..1], CASE).is_err(),
            "it did not come back"
        );
    }

    #[test]
    fn the_ends_are_read_from_the_events() {
        let events = "{\"event\":\"running\",\"pid\":7}\nnoise\n\
            {\"event\":\"exited\",\"exit\":\"reset\",\"cause\":\"register\"}\n\
            {\"event\":\"exited\",\"exit\":\"power_off\"}\n";
        assert_eq!(ends(events), ["reset by register", "power_off"]);
    }

    #[track_caller]
    fn check_ends(ends: &[&str], end: End, expected: Option<Faulted>) {
        let ends: Vec<_> = ends.iter().map(ToString::to_string).collect();
        assert_eq!(judge_ends(&ends, end).ok(), expected);
    }

    #[test]
    fn ends_that_the_guest_was_asked_for_pass() {
        check_ends(&["power_off"], End::PowerOff, Some(Faulted::Never));
        let asked = ["reset by register", "power_off"];
        check_ends(&asked, End::RebootFirst, Some(Faulted::Never));
    }

    #[test]
    fn one_triple_fault_before_a_good_start_is_told() {
        let ends = [TRIPLE_FAULT, "power_off"];
        check_ends(&ends, End::PowerOff, Some(Faulted::Once));
        let ends = ["reset by register", TRIPLE_FAULT, "power_off"];
        check_ends(&ends, End::RebootFirst, Some(Faulted::Once));
    }

    #[test]
    fn any_other_end_that_nobody_asked_for_fails() {
        for ends in [
            &["reset by register", "power_off"][..],
            &["reset by keyboard", "power_off"],
            &["reset", "power_off"],
            &[TRIPLE_FAULT, TRIPLE_FAULT, "power_off"],
            &["guest_crash"],
            &[TRIPLE_FAULT],
            &[],
        ] {
            check_ends(ends, End::PowerOff, None);
        }
        check_ends(&[TRIPLE_FAULT, "power_off"], End::RebootFirst, None);
        check_ends(&["power_off"], End::RebootFirst, None);
    }
}
