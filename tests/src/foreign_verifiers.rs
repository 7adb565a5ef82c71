//! The foreign verifiers, as commands. `cargo xtask test --tier ledger` makes what they need.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::progress::say;
use crate::published_log::PublishedLog;
use crate::workspace;

/// A program that is not ours.
#[derive(Debug)]
pub struct Verifier {
    /// What it is, for messages.
    pub name: &'static str,
    words: Vec<PathBuf>,
}

/// What a verifier says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All is well, in its words.
    Accepted(String),
    /// Something is not, in its words.
    Rejected(String),
}

impl Verdict {
    /// Whether it accepts.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        matches!(self, Self::Accepted(_))
    }
}

/// Those that this machine can run; the others are named on standard output.
#[must_use]
pub fn at_hand() -> Vec<Verifier> {
    let sources = workspace::root().join("tests/verifiers");
    let made = workspace::build_dir().join("verifiers");
    let all = [
        (
            Verifier {
                name: "plain Python",
                words: vec!["python3".into(), sources.join("plain.py")],
            },
            "python3 with the module `cryptography`",
        ),
        (
            Verifier {
                name: "aics-tlog",
                words: vec![made.join("venv/bin/python"), sources.join("aics.py")],
            },
            "aics-tlog from PyPI",
        ),
        (
            Verifier {
                name: "the reference Go code",
                words: vec![made.join("reference")],
            },
            "the packages note and tlog of golang.org/x/mod",
        ),
    ];
    let (found, missing): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(verifier, _)| verifier.runs());
    for (_, need) in missing {
        say(&format!(
            "SKIPPED: no {need}; `cargo xtask test --tier ledger` fetches it"
        ));
    }
    found.into_iter().map(|(verifier, _)| verifier).collect()
}

impl Verifier {
    /// What it says of a whole log.
    ///
    /// # Panics
    /// If it cannot be started any more, or speaks otherwise than it should.
    #[must_use]
    pub fn log(&self, log: &PublishedLog) -> Verdict {
        let keys = [log.log_key.to_string(), log.witness_key.to_string()];
        self.run("log", log.folder(), &keys)
    }

    /// What it says of a checkpoint alone.
    ///
    /// # Panics
    /// If it cannot be started any more, or speaks otherwise than it should.
    #[must_use]
    pub fn note(&self, file: &Path, log_key: &str) -> Verdict {
        self.run("note", file, &[log_key.to_owned()])
    }

    /// It runs if it rejects a file that is not there, in its own words and not its interpreter's.
    fn runs(&self) -> bool {
        let key = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
        let Some(output) = self.command("note", Path::new("/nonexistent"), &[key.to_owned()])
        else {
            return false;
        };
        String::from_utf8_lossy(&output.stderr).starts_with("rejected:")
    }

    fn run(&self, what: &str, path: &Path, keys: &[String]) -> Verdict {
        let output = self
            .command(what, path, keys)
            .expect("it has been seen to run");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            let said = said(&output.stdout);
            assert!(said.starts_with("accepted:"), "{} says {said}", self.name);
            return Verdict::Accepted(said);
        }
        let said = said(&output.stderr);
        assert!(said.starts_with("rejected:"), "{} says {said}", self.name);
        Verdict::Rejected(said)
    }

    fn command(&self, what: &str, path: &Path, keys: &[String]) -> Option<std::process::Output> {
        let (program, words) = self.words.split_first()?;
        let mut command = Command::new(program);
        command.args(words).arg(what).arg(path).args(keys);
        command.env("PYTHONDONTWRITEBYTECODE", "1").output().ok()
    }
}
