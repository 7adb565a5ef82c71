//! Counting again: at the start and once a day, counters are compared with the rows that they count.
//!
//! A difference is told and never mended here: it is a fault of the program, and the rows say how large.

use std::sync::Arc;
use std::time::Duration;

use crate::app::App;

/// How often.
const PAUSE: Duration = Duration::from_hours(24);

/// Count for as long as the controller serves.
pub(crate) async fn every_day(app: Arc<App>) {
    let mut ticks = tokio::time::interval(PAUSE);
    loop {
        ticks.tick().await;
        // A failure is logged where it is made.
        let Ok(differences) = app.read(|db| db.check()).await else {
            continue;
        };
        for found in &differences {
            tracing::error!(
                counter = found.counter,
                stored = found.stored,
                counted = found.counted,
                "a counter does not agree with its rows"
            );
        }
        app.metrics.counted_again(differences.len());
    }
}
