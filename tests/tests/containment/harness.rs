//! One attempt as a process, its victim, and how it ended.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use berth_tests::workspace::program_beside_test;

/// The signal that a filter ends a process with.
const SIGSYS: i32 = 31;

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It did what it wanted.
    Succeeded,
    /// The kernel refused with this error.
    Refused(i32),
    /// The filter killed the process.
    Killed,
    /// Something else, in words.
    Strange(String),
}

/// A program that cargo built beside this test.
pub(crate) fn program(name: &str) -> PathBuf {
    program_beside_test(name).expect("the run builds the programs first")
}

/// Whether attacks can be staged, after saying why not.
pub(crate) fn can_attack() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("SKIPPED: staging attacks needs root, which is given up before each");
    }
    is_root
}

/// A process of the attacker's own user.
struct Victim(Child);

impl Victim {
    fn new() -> Self {
        let mut child = Command::new(program("jail-attempt"))
            .arg("victim")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = child.stdout.as_mut().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    /// Ends it; true if it lived until now.
    fn end(mut self) -> bool {
        drop(self.0.stdin.take());
        self.0.wait().unwrap().success()
    }
}

/// Makes one attempt; tells whether its victim survived, too.
pub(crate) fn attempt(name: &str, thread: &str, jail: &str) -> (Outcome, bool) {
    let folder = tempfile::tempdir().unwrap();
    // The attacker's user has to be let in: what keeps it out is to be the jail.
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let victim = Victim::new();
    let output = Command::new(program("jail-attempt"))
        .args([name, thread, jail])
        .arg(folder.path())
        .arg(victim.0.id().to_string())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (outcome(&output), victim.end())
}

fn outcome(output: &Output) -> Outcome {
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(number) = text.strip_prefix("attempting\n") else {
        return Outcome::Strange(format!("{output:?}"));
    };
    let number = number.trim().parse();
    match (output.status.code(), output.status.signal(), number) {
        (Some(0), ..) => Outcome::Succeeded,
        (Some(1), _, Ok(number)) => Outcome::Refused(number),
        (_, Some(SIGSYS), _) => Outcome::Killed,
        _ => Outcome::Strange(format!("{output:?}")),
    }
}

/// The names of all attempts.
pub(crate) fn all() -> Vec<String> {
    let output = Command::new(program("jail-attempt"))
        .arg("list")
        .output()
        .unwrap();
    let names = String::from_utf8(output.stdout).unwrap();
    names.lines().map(str::to_owned).collect()
}
