//! `quickstart`: the way from packages to a running guest, executed as the document has it.
//!
//! All blocks run in one shell, as a reader would type them. The document's own claims are the checks:
//! a command that fails ends the scenario.

use anyhow::{Context as _, Result, ensure};

use crate::lab::document::blocks;
use crate::lab::host::Host;
use crate::lab::scenario::Context;
use crate::lab::site::Site;
use crate::lab::ssh::Lifetime;
use crate::workspace;

/// Where the document says that the reader's image is.
const READERS_IMAGE: &str = "mkdir -p /srv/images && ln -sfn /srv/guest /srv/images/debian";

/// Runs the scenario.
///
/// # Errors
/// The first command that fails, or an end that is not the document's.
pub(crate) fn run(context: &Context) -> Result<()> {
    let site = Site::boot("quickstart", context, Lifetime::Ours)?;
    let result = walk(&site);
    if result.is_err() {
        site.node.collect();
    }
    result
}

fn walk(site: &Site<impl Host>) -> Result<()> {
    let path = workspace::root().join("docs/quickstart.md");
    let document =
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let script: Vec<String> = blocks(&document)
        .into_iter()
        .map(|block| block.text)
        .collect();
    site.node.check(READERS_IMAGE)?;
    let output = site.show(&format!("set -euo pipefail\n{}", script.join("\n")))?;
    for promised in [
        "debian-12",
        "running",
        "TENANT_CREATED",
        "VM_DELETED",
        "verified:",
    ] {
        ensure!(
            output.contains(promised),
            "the quickstart never showed {promised:?}:\n{output}"
        );
    }
    Ok(())
}
