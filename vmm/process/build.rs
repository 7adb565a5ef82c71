//! Compiles the tables of `src/jail/system_calls.rs` to filters, so that a start need not.
//!
//! Owns the translation to seccompiler's rules and the form of the generated arrays. What is allowed
//! is not decided here.

#[path = "src/jail/system_calls.rs"]
mod system_calls;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use system_calls::{ANY, Argument, EVERY_THREAD, IO_THREAD, OWN_PROCESS, Rule, VCPU_THREAD};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn main() -> Result<(), Box<dyn Error>> {
    let mut text = String::new();
    let base = every_call([EVERY_THREAD, VCPU_THREAD, IO_THREAD].concat());
    write_filter(&mut text, "BASE", base)?;
    write_filter(
        &mut text,
        "VCPU",
        exact(&[VCPU_THREAD, EVERY_THREAD].concat())?,
    )?;
    write_filter(&mut text, "IO", exact(&[IO_THREAD, EVERY_THREAD].concat())?)?;
    writeln!(
        text,
        "/// Stands for the id of the process.\nconst OWN_PROCESS: u32 = {OWN_PROCESS};"
    )?;
    let folder = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    std::fs::write(Path::new(&folder).join("filters.rs"), text)?;
    Ok(())
}

/// All calls of the tables with any arguments, and the one that narrows a thread further.
fn every_call(rules: Vec<Rule>) -> Rules {
    let calls = rules.into_iter().map(|rule| rule.call);
    calls
        .chain([libc::SYS_seccomp])
        .map(|call| (call, Vec::new()))
        .collect()
}

/// The tables' calls with their conditions.
fn exact(rules: &[Rule]) -> Result<Rules, Box<dyn Error>> {
    let mut all = Rules::new();
    for rule in rules {
        let alternatives = all.entry(rule.call).or_default();
        if rule.arguments == ANY {
            continue;
        }
        let conditions: Result<_, _> = rule
            .arguments
            .into_iter()
            .flatten()
            .map(condition)
            .collect();
        alternatives.push(SeccompRule::new(conditions?)?);
    }
    for rule in rules.iter().filter(|rule| rule.arguments == ANY) {
        if all.get(&rule.call).is_some_and(|found| !found.is_empty()) {
            return Err(format!(
                "call {} ({}) is allowed with any arguments and with some",
                rule.call, rule.needed_by
            )
            .into());
        }
    }
    Ok(all)
}

fn condition(argument: Argument) -> Result<SeccompCondition, seccompiler::BackendError> {
    let Argument {
        position,
        mask,
        value,
    } = argument;
    let (length, operation) = if mask == u64::from(u32::MAX) {
        (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq)
    } else {
        (SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask))
    };
    SeccompCondition::new(position, length, operation, value)
}

fn write_filter(text: &mut String, name: &str, rules: Rules) -> Result<(), Box<dyn Error>> {
    let filter: BpfProgram = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?
    .try_into()?;
    writeln!(
        text,
        "const {name}: [FilterInstruction; {}] = [",
        filter.len()
    )?;
    for instruction in filter {
        let seccompiler::sock_filter { code, jt, jf, k } = instruction;
        writeln!(
            text,
            "    FilterInstruction {{ code: {code}, jt: {jt}, jf: {jf}, k: {k} }},"
        )?;
    }
    writeln!(text, "];")?;
    Ok(())
}
