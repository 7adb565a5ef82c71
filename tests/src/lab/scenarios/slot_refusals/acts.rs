//! What goes wrong while an agent works.
use crate::lab::scenario::Context;
use anyhow::Result;
pub(super) fn run(_context: &Context) -> Result<()> {
    Ok(())
}
