//! Following what other controllers on the same database change.
//!
//! Revocations, long polls and waits live in this process's memory. Once a second the database is asked
//! whether somebody else wrote. If it cannot be asked for [`TOO_OLD`], nothing is changed here any more:
//! a token may have been revoked elsewhere.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::app::App;

/// How often the database is asked.
const PAUSE: Duration = Duration::from_secs(1);
/// How old the knowledge of revocations may be for a change to be made by it.
const TOO_OLD: Duration = Duration::from_secs(10);

/// When this process last knew what the others know.
#[derive(Debug)]
pub(crate) struct Freshness(Mutex<Instant>);

impl Freshness {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    /// Whether changes may be made by what is known.
    pub(crate) fn is_enough(&self) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
            < TOO_OLD
    }

    fn renew(&self, asked_at: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = asked_at;
    }
}

/// Follow the others for as long as the process serves.
pub(crate) async fn follow(app: Arc<App>) {
    let mut ticks = tokio::time::interval(PAUSE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // What the others wrote is news until it was taken in, however often that fails.
    let mut is_behind = false;
    loop {
        ticks.tick().await;
        let asked_at = Instant::now();
        // A failure is logged where it is made.
        let Ok(others_wrote) = app.have_others_written().await else {
            continue;
        };
        is_behind |= others_wrote;
        if is_behind && app.catch_up().await.is_err() {
            continue;
        }
        is_behind = false;
        app.freshness.renew(asked_at);
    }
}
