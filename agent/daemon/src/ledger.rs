//! `berth-agent ledger` and `berth-agent accept-rollback`: what this host has seen of the ledger, and an
//! operator's decision to follow another one. Both beside the running agent, which alone changes what
//! is kept.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Context as _, bail};
use berth_agent::config::Config;
use berth_agent::log_memory::LogMemory;
use berth_agent::node::{Node, load_key};
use berth_agent_core::log_watch::head_of;
use berth_api::agent::TreeHead;
use berth_ledger::keys::SigningKey;

fn memory(config: &Config) -> anyhow::Result<(LogMemory, SigningKey)> {
    let node = Node::load(&config.state_dir)?;
    let key = load_key(&config.state_dir)?;
    let Some(ledger_key) = node.ledger_key() else {
        bail!("node.json holds a ledger key that is not a key; join again");
    };
    let memory = LogMemory::open(&config.state_dir, (node.node_id, &key), ledger_key)?;
    Ok((memory, key))
}

fn text_of(head: Option<&TreeHead>) -> String {
    head.map_or("nothing that can be read".to_owned(), |head| {
        format!(
            "{} entries of {}, root {}",
            head.size, head.origin, head.root
        )
    })
}

/// Print it.
pub(crate) fn show(config: &Config) -> anyhow::Result<()> {
    let watch = memory(config)?.0.watch_now();
    let seen = watch.seen().map(head_of);
    let mut out = std::io::stdout();
    match &seen {
        Some(seen) => writeln!(out, "seen:   {}", text_of(Some(seen)))?,
        None => writeln!(out, "seen:   nothing yet")?,
    }
    if let Some(freeze) = watch.freeze() {
        writeln!(out, "shown:  {}", text_of(freeze.shown.as_ref()))?;
        writeln!(
            out,
            "frozen: {:?}; VMs go on, nothing is started, stopped, deleted or wiped",
            freeze.code
        )?;
    }
    Ok(())
}

/// Ask, sign, and leave it for the agent.
pub(crate) fn accept(config: &Config, reason: &str, yes: bool) -> anyhow::Result<()> {
    if reason.trim().is_empty() || reason.chars().count() > 500 {
        bail!("--reason is empty or longer than 500 characters; say in a sentence what was lost");
    }
    let (memory, key) = memory(config)?;
    let word = memory
        .acceptance(reason)
        .context("nothing was changed; see `berth-agent ledger`")?;
    let mut out = std::io::stdout();
    writeln!(out, "seen:   {}", text_of(word.seen.as_ref()))?;
    writeln!(out, "follow: {}", text_of(Some(&word.shown)))?;
    if !yes && !is_confirmed()? {
        bail!("nothing was changed");
    }
    memory.leave_word(&word, &key)?;
    writeln!(out, "signed; the agent follows it with its next sync")?;
    Ok(())
}

fn is_confirmed() -> anyhow::Result<bool> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!("nobody can be asked; compare both trees and give --yes");
    }
    let mut stderr = std::io::stderr();
    write!(
        stderr,
        "Orders of that ledger will be obeyed, and what happened after it is forgotten by its controller. \
         Follow it? [y/N] "
    )?;
    stderr.flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "yes"))
}
