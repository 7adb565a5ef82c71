//! Placeholder.
use super::super::scenario::Context;
pub(crate) fn run(_context: &Context) -> anyhow::Result<()> {
    anyhow::bail!("not written")
}
