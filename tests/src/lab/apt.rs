//! Which package sources the images are made from: those that this machine itself uses.
//!
//! The repository names no mirror. Only entries of Debian 12's own suites count, so third-party
//! sources of the machine never reach an image.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::capture;

/// The release that images are made of.
pub const SUITE: &str = "bookworm";

/// The machine's sources of [`SUITE`] as lines of a `sources.list`.
///
/// # Errors
/// If the machine has no source for the release itself.
pub fn machine_sources() -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let apt = Path::new("/etc/apt");
    let main = std::fs::read_to_string(apt.join("sources.list")).unwrap_or_default();
    lines.extend(one_line_entries(&main));
    let mut parts: Vec<_> = std::fs::read_dir(apt.join("sources.list.d"))
        .map(|folder| folder.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    parts.sort();
    for part in parts {
        let text = std::fs::read_to_string(&part)
            .with_context(|| format!("reading {}", part.display()))?;
        match part.extension().and_then(|extension| extension.to_str()) {
            Some("list") => lines.extend(one_line_entries(&text)),
            Some("sources") => lines.extend(stanza_entries(&text)),
            _ => {}
        }
    }
    let whole = lines
        .iter()
        .any(|line| line.split(' ').any(|word| word == SUITE));
    ensure!(
        whole,
        "no package source for Debian {SUITE} in /etc/apt; add one (the lab's images are made from \
         the sources that this machine uses)"
    );
    Ok(lines)
}

/// How this machine fetches packages (proxies, validity checks), as apt options.
///
/// # Errors
/// If `apt-config` fails.
pub fn machine_options() -> Result<Vec<String>> {
    let dump =
        capture(Command::new("apt-config").args(["dump", "--format", "%f \"%v\";%n", "Acquire"]))?;
    let wanted = ["Acquire::http", "Acquire::Check-", "Acquire::Retries"];
    Ok(dump
        .lines()
        .filter(|line| wanted.iter().any(|start| line.starts_with(start)))
        .filter(|line| !line.ends_with(" \"\";"))
        .map(ToOwned::to_owned)
        .collect())
}

fn is_ours(suite: &str) -> bool {
    suite == SUITE
        || ["updates", "security"]
            .iter()
            .any(|part| suite == format!("{SUITE}-{part}"))
}

/// `deb` lines whose suite is ours, without a change.
fn one_line_entries(text: &str) -> Vec<String> {
    let ours = |line: &&str| {
        let bare = match (line.find('['), line.find(']')) {
            (Some(open), Some(close)) if open < close => {
                format!("{}{}", &line[..open], &line[close + 1..])
            }
            _ => (*line).to_owned(),
        };
        let words: Vec<&str> = bare.split_whitespace().collect();
        matches!(words[..], ["deb", _, suite, "main", ..] if is_ours(suite))
    };
    text.lines()
        .map(str::trim)
        .filter(ours)
        .map(ToOwned::to_owned)
        .collect()
}

/// Entries of a deb822 file whose suites are ours, as one line each.
fn stanza_entries(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            stanza.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        let binary = field("Types").is_some_and(|types| types.split(' ').any(|kind| kind == "deb"));
        if !binary || field("Enabled").is_some_and(|value| value == "no") {
            continue;
        }
        let key = field("Signed-By").filter(|key| key.starts_with('/'));
        let options = key.map_or_else(String::new, |key| format!("[signed-by={key}] "));
        let components = field("Components").unwrap_or_default();
        if !components
            .split_whitespace()
            .any(|component| component == "main")
        {
            continue;
        }
        for uri in field("URIs").unwrap_or_default().split_whitespace() {
            for suite in field("Suites").unwrap_or_default().split_whitespace() {
                if is_ours(suite) {
                    lines.push(format!("deb {options}{uri} {suite} {components}"));
                }
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanzas_of_other_vendors_and_suites_are_left_out() {
        let text = "Types: deb\n# a remark\nURIs: http://a.example/debian\n\
            Suites: bookworm bookworm-updates bookworm-backports\nComponents: main\n\
            Signed-By: /usr/share/keyrings/k.gpg\n\nTypes: deb\nURIs: http://b.example\n\
            Suites: nodistro\nComponents: main\n\nEnabled: no\nTypes: deb\n\
            URIs: http://c.example\nSuites: bookworm\nComponents: main\n";
        assert_eq!(
            stanza_entries(text),
            [
                "deb [signed-by=/usr/share/keyrings/k.gpg] http://a.example/debian bookworm main",
                "deb [signed-by=/usr/share/keyrings/k.gpg] http://a.example/debian bookworm-updates main",
            ]
        );
    }

    #[test]
    fn lines_keep_their_options_and_sources_are_left_out() {
        let text = "# deb http://x.example bookworm main\n\
            deb [arch=amd64 trusted=yes] http://a.example bookworm main contrib\n\
            deb-src http://a.example bookworm main\n\
            deb http://b.example trixie main\n\
            deb http://c.example vendor-bookworm main\n";
        assert_eq!(
            one_line_entries(text),
            ["deb [arch=amd64 trusted=yes] http://a.example bookworm main contrib"]
        );
    }
}
