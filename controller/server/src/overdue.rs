//! Telling of VMs that stay in a state longer than they should, for as long as the controller serves.
//! Of several controllers each VM is told of by one.

use std::sync::Arc;
use std::time::Duration;

use crate::api_error::ApiError;
use crate::app::App;

/// How often it is looked: deadlines are minutes.
const PAUSE: Duration = Duration::from_secs(2);

/// Look again and again. A failure is logged where it is made, and the next look comes.
pub(crate) async fn watch(app: Arc<App>) {
    let mut ticks = tokio::time::interval(PAUSE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        drop(tell(&app).await);
    }
}

async fn tell(app: &App) -> Result<(), ApiError> {
    while app.read(|db| db.has_overdue_vms()).await? {
        let told = app.write(|tx| tx.tell_overdue_vms()).await?;
        tracing::warn!(vms = told, "VMs are overdue in their states");
    }
    Ok(())
}
