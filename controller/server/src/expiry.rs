//! Ending VMs whose time to live is over, for as long as the controller serves. Of several controllers
//! each VM is ended by one.

use std::sync::Arc;
use std::time::Duration;

use crate::api_error::ApiError;
use crate::app::App;

/// How often it is looked: times to live are given in seconds.
const PAUSE: Duration = Duration::from_secs(1);

/// Look again and again. A failure is logged where it is made, and the next look comes.
pub(crate) async fn watch(app: Arc<App>) {
    let mut ticks = tokio::time::interval(PAUSE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        drop(end(&app).await);
    }
}

async fn end(app: &App) -> Result<(), ApiError> {
    while app.read(|db| db.has_expired_vms()).await? {
        let ended = app.write(|tx| tx.end_expired_vms()).await?;
        for vm_id in &ended.vms {
            tracing::info!(%vm_id, "the VM's time to live is over");
        }
        app.vms_changed(ended.wake);
    }
    Ok(())
}
