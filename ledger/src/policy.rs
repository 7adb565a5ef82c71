//! Trust policies (C2SP tlog-policy): which logs are believed, and how many witnesses must have seen a
//! checkpoint.
//!
//! Owns the text and the decision. A policy comes to its user from elsewhere than the log, or it says
//! nothing.

use std::collections::{HashMap, HashSet};

use crate::checkpoint::{OpenCheckpointError, SignedCheckpoint};
use crate::keys::PublicKey;
use crate::note::{KeyKind, Vkey};

/// The most lines that are read.
const MAX_LINES: usize = 1024;

/// Whom to believe.
#[derive(Clone, Debug)]
pub struct Policy {
    logs: Vec<Vkey>,
    witnesses: Vec<Witness>,
    /// In the order of the file: members stand before the groups that they are in.
    rules: Vec<Rule>,
    /// Which rule has to hold; `None` if no witness is asked for.
    quorum: Option<usize>,
}

/// A witness of a policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Witness {
    /// Its key.
    pub vkey: Vkey,
    /// Where it takes checkpoints, if the policy says so.
    pub url: Option<String>,
}

#[derive(Clone, Debug)]
enum Rule {
    /// This witness has cosigned.
    Cosigned(usize),
    /// So many of these rules hold.
    AtLeast(usize, Vec<usize>),
}

/// Why text is not a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParsePolicyError {
    /// Control characters, or more than a thousand lines.
    #[error(
        "a policy is text of at most {MAX_LINES} lines, with tabs alone for control characters"
    )]
    Text,
    /// Not `log`, `witness`, `group` or `quorum` with what belongs to it.
    #[error("line {line}: {problem}")]
    Line {
        /// Which one, from 1.
        line: usize,
        /// What is wrong with it.
        problem: LineProblem,
    },
    /// No line says what is enough.
    #[error("the policy has no line `quorum`")]
    NoQuorum,
}

/// What is wrong with one line of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LineProblem {
    /// Another word, or too few or too many of them.
    #[error(
        "a line is `log <vkey> [<url>]`, `witness <name> <vkey> [<url>]`, \
         `group <name> any|all|<number> <name>…` or `quorum <name>|none`"
    )]
    Shape,
    /// A key that is none, or of the wrong kind for its use.
    #[error("the key is not a verifier key of the kind that is needed here")]
    Key,
    /// The same key twice.
    #[error("the same key stands above already")]
    SameKey,
    /// A name twice, or `none`.
    #[error("the name is taken")]
    SameName,
    /// A name that no line above has.
    #[error("no line above has that name")]
    UnknownName,
    /// A member of two groups, or twice of one.
    #[error("a name may be a member once")]
    MemberTwice,
    /// A number that is 0 or above the number of members.
    #[error("the number must be 1 to the number of members")]
    Threshold,
    /// A second quorum.
    #[error("there is a quorum above already")]
    SecondQuorum,
}

/// Why a checkpoint is not enough for a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// It is not one, or not signed by one of the policy's logs.
    #[error("the checkpoint is not of a log of this policy")]
    Checkpoint(#[source] OpenCheckpointError),
    /// Too few witnesses have seen it, or a known one's signature is wrong.
    #[error(
        "the checkpoint is cosigned by {cosigned} witnesses of the policy, which is not enough"
    )]
    NotEnoughWitnesses {
        /// How many have.
        cosigned: usize,
    },
}

impl Policy {
    /// Read a policy file.
    ///
    /// # Errors
    /// The first line that is wrong, and what to write instead.
    pub fn parse(text: &str) -> Result<Self, ParsePolicyError> {
        let is_bad = |c: char| c < ' ' && c != '\t' && c != '\n' || c == '\x7f';
        if text.contains(is_bad) || text.lines().count() > MAX_LINES {
            return Err(ParsePolicyError::Text);
        }
        let mut reader = Reader::default();
        for (number, line) in text.split('\n').enumerate() {
            let line_number = number + 1;
            reader
                .line(line)
                .map_err(|problem| ParsePolicyError::Line {
                    line: line_number,
                    problem,
                })?;
        }
        let quorum = reader.quorum.ok_or(ParsePolicyError::NoQuorum)?;
        Ok(Self {
            logs: reader.logs,
            witnesses: reader.witnesses,
            rules: reader.rules,
            quorum,
        })
    }

    /// The keys of the logs that it believes.
    #[must_use]
    pub fn logs(&self) -> &[Vkey] {
        &self.logs
    }

    /// Its witnesses.
    #[must_use]
    pub fn witnesses(&self) -> &[Witness] {
        &self.witnesses
    }

    /// Read a checkpoint, check its log's signature and that enough witnesses have cosigned it.
    ///
    /// # Errors
    /// If it is not believed.
    pub fn open(&self, bytes: &[u8]) -> Result<SignedCheckpoint, PolicyError> {
        let signed = SignedCheckpoint::open(bytes, &self.logs).map_err(PolicyError::Checkpoint)?;
        self.check_witnesses(&signed)?;
        Ok(signed)
    }

    /// Check that enough witnesses have cosigned a checkpoint. A wrong cosignature counts as none.
    ///
    /// # Errors
    /// If they have not.
    pub fn check_witnesses(&self, signed: &SignedCheckpoint) -> Result<(), PolicyError> {
        let has_cosigned = |witness: &Witness| {
            let key = std::slice::from_ref(&witness.vkey);
            signed.note().verify(key).is_ok()
        };
        let cosigned: Vec<bool> = self.witnesses.iter().map(has_cosigned).collect();
        let mut holds: Vec<bool> = Vec::with_capacity(self.rules.len());
        for rule in &self.rules {
            let does = match rule {
                Rule::Cosigned(witness) => cosigned.get(*witness) == Some(&true),
                Rule::AtLeast(number, members) => {
                    let does = |member: &&usize| holds.get(**member) == Some(&true);
                    members.iter().filter(does).count() >= *number
                }
            };
            holds.push(does);
        }
        match self.quorum {
            Some(quorum) if holds.get(quorum) != Some(&true) => {
                Err(PolicyError::NotEnoughWitnesses {
                    cosigned: cosigned.into_iter().filter(|has| *has).count(),
                })
            }
            Some(_) | None => Ok(()),
        }
    }
}

#[derive(Default)]
struct Reader {
    logs: Vec<Vkey>,
    witnesses: Vec<Witness>,
    rules: Vec<Rule>,
    names: HashMap<String, usize>,
    members: HashSet<usize>,
    quorum: Option<Option<usize>>,
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), LineProblem> {
        let words: Vec<&str> = line
            .split([' ', '\t'])
            .filter(|word| !word.is_empty())
            .collect();
        match words.as_slice() {
            [] => Ok(()),
            [first, ..] if first.starts_with('#') => Ok(()),
            ["log", vkey] | ["log", vkey, _] => self.log(vkey),
            ["witness", name, vkey] => self.witness(name, vkey, None),
            ["witness", name, vkey, url] => self.witness(name, vkey, Some(url)),
            ["group", name, number, members @ ..] if !members.is_empty() => {
                self.group(name, number, members)
            }
            ["quorum", name] => self.quorum(name),
            [..] => Err(LineProblem::Shape),
        }
    }

    fn log(&mut self, text: &str) -> Result<(), LineProblem> {
        let vkey = key(text, KeyKind::Ed25519, self.logs.iter())?;
        self.logs.push(vkey);
        Ok(())
    }

    fn witness(&mut self, name: &str, text: &str, url: Option<&str>) -> Result<(), LineProblem> {
        let known = self.witnesses.iter().map(|witness| &witness.vkey);
        let vkey = key(text, KeyKind::Cosignature, known)?;
        self.name(name, Rule::Cosigned(self.witnesses.len()))?;
        self.witnesses.push(Witness {
            vkey,
            url: url.map(str::to_owned),
        });
        Ok(())
    }

    fn group(&mut self, name: &str, number: &str, members: &[&str]) -> Result<(), LineProblem> {
        let number = match number {
            "any" => 1,
            "all" => members.len(),
            digits if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                digits.parse().map_err(|_| LineProblem::Threshold)?
            }
            _ => return Err(LineProblem::Shape),
        };
        if number == 0 || number > members.len() {
            return Err(LineProblem::Threshold);
        }
        let mut rules = Vec::new();
        for member in members {
            let rule = self.names.get(*member).ok_or(LineProblem::UnknownName)?;
            if !self.members.insert(*rule) {
                return Err(LineProblem::MemberTwice);
            }
            rules.push(*rule);
        }
        self.name(name, Rule::AtLeast(number, rules))
    }

    fn quorum(&mut self, name: &str) -> Result<(), LineProblem> {
        if self.quorum.is_some() {
            return Err(LineProblem::SecondQuorum);
        }
        let rule = match name {
            "none" => None,
            name => Some(*self.names.get(name).ok_or(LineProblem::UnknownName)?),
        };
        self.quorum = Some(rule);
        Ok(())
    }

    fn name(&mut self, name: &str, rule: Rule) -> Result<(), LineProblem> {
        if name == "none" || self.names.contains_key(name) {
            return Err(LineProblem::SameName);
        }
        self.names.insert(name.to_owned(), self.rules.len());
        self.rules.push(rule);
        Ok(())
    }
}

/// A key of this kind that is not among those known, under whatever name.
fn key<'a>(
    text: &str,
    kind: KeyKind,
    mut known: impl Iterator<Item = &'a Vkey>,
) -> Result<Vkey, LineProblem> {
    let vkey: Vkey = text.parse().map_err(|_| LineProblem::Key)?;
    if vkey.kind() != kind {
        return Err(LineProblem::Key);
    }
    let bare: &PublicKey = vkey.public_key();
    if known.any(|known| known.public_key() == bare) {
        return Err(LineProblem::SameKey);
    }
    Ok(vkey)
}

#[cfg(test)]
mod tests;
