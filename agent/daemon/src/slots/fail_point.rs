//! Where a test lets the agent die: right after a record was written that ends with a named point.
//!
//! Only with the cargo feature `fail-points`, which no package has. The points are those of
//! `SlotRecord::journal_point`: a phase, or a phase and the step that it journals.

/// End this process without any cleanup if `BERTH_AGENT_EXIT_AFTER` names the point.
#[cfg(feature = "fail-points")]
pub(super) fn reached(point: &str) {
    /// Told apart from every other end of the agent.
    const EXIT_STATUS: i32 = 86;
    if std::env::var_os("BERTH_AGENT_EXIT_AFTER").is_some_and(|wanted| wanted == *point) {
        tracing::warn!(point, "the agent ends here, as it was told to");
        std::process::exit(EXIT_STATUS);
    }
}

/// Without the feature nothing ends here.
#[cfg(not(feature = "fail-points"))]
pub(super) fn reached(_: &str) {}
