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

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW,
    SECCOMP_RET_KILL_PROCESS,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};
use system_calls::{ANY, Argument, EVERY_THREAD, IO_THREAD, OWN_PROCESS, Rule, VCPU_THREAD};

/// Where a filter finds the number of the call and the architecture that it was made for.
const NUMBER_OFFSET: u32 = 0;
const ARCHITECTURE_OFFSET: u32 = 4;
/// 64-bit, little endian, EM_X86_64.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

fn main() -> Result<(), Box<dyn Error>> {
    let mut text = String::new();
    let base = by_number(&[EVERY_THREAD, VCPU_THREAD, IO_THREAD].concat())?;
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

/// A filter that allows all calls of the tables whatever their arguments are, and the one that narrows
/// a thread further. The kernel runs it once for every number there is when it is installed, to
/// remember the answers: a search by halves makes that several times faster than a list.
fn by_number(rules: &[Rule]) -> Result<BpfProgram, Box<dyn Error>> {
    let mut calls: Vec<u32> = vec![u32::try_from(libc::SYS_seccomp)?];
    for rule in rules {
        calls.push(u32::try_from(rule.call)?);
    }
    calls.sort_unstable();
    calls.dedup();
    // Where the answer changes, with the answer from there on.
    let mut answers = vec![(0, SECCOMP_RET_KILL_PROCESS)];
    for call in calls {
        // The one that ended the call before, if this is the next number.
        answers.retain(|&(start, _)| start != call);
        answers.push((call, SECCOMP_RET_ALLOW));
        answers.push((call + 1, SECCOMP_RET_KILL_PROCESS));
    }
    answers.dedup_by_key(|&mut (_, answer)| answer);
    let load = |offset| instruction(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0);
    let mut filter = vec![
        load(ARCHITECTURE_OFFSET),
        instruction(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
        instruction(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS, 0, 0),
        load(NUMBER_OFFSET),
    ];
    filter.extend(search(&answers)?);
    Ok(filter)
}

/// Finds the last answer whose start is not above the number.
fn search(answers: &[(u32, u32)]) -> Result<BpfProgram, Box<dyn Error>> {
    if let [(_, answer)] = answers {
        return Ok(vec![instruction(BPF_RET | BPF_K, *answer, 0, 0)]);
    }
    let (below, above) = answers.split_at(answers.len() / 2);
    let (pivot, _) = above.first().ok_or("a search without answers")?;
    let below = search(below)?;
    let over = u8::try_from(below.len())?;
    let mut program = vec![instruction(BPF_JMP | BPF_JGE | BPF_K, *pivot, over, 0)];
    program.extend(below);
    program.extend(search(above)?);
    Ok(program)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    let code = u16::try_from(code).expect("codes have 16 bits");
    sock_filter { code, jt, jf, k }
}

/// A filter of the tables' calls with their conditions.
fn exact(rules: &[Rule]) -> Result<BpfProgram, Box<dyn Error>> {
    let mut all: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
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
    let filter = SeccompFilter::new(
        all,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    Ok(filter.try_into()?)
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

fn write_filter(text: &mut String, name: &str, filter: BpfProgram) -> Result<(), Box<dyn Error>> {
    writeln!(
        text,
        "const {name}: [FilterInstruction; {}] = [",
        filter.len()
    )?;
    for instruction in filter {
        let sock_filter { code, jt, jf, k } = instruction;
        writeln!(
            text,
            "    FilterInstruction {{ code: {code}, jt: {jt}, jf: {jf}, k: {k} }},"
        )?;
    }
    writeln!(text, "];")?;
    Ok(())
}
