//! Guests' tokens: each is good while the run of the VM lasts for which it was made, whatever it says of
//! its own end.

use berth_token::Grant;

use super::authenticate::revoked;
use crate::api_error::ApiError;
use crate::app::App;

/// Refuse a guest whose VM's run is over. A link that says that it is a guest's and that this
/// controller did not make for one, as its holder derived it, has no run at all.
pub(crate) async fn alive(app: &App, grant: &Grant) -> Result<(), ApiError> {
    if !grant.is_guests() {
        return Ok(());
    }
    let (Some(tenant), Some(token)) = (grant.tenant.clone(), grant.token_ids.last().copied())
    else {
        return Err(revoked());
    };
    let vm = app
        .read(move |db| db.vm_of_guest_token(&tenant, token))
        .await?;
    vm.map(drop).ok_or_else(revoked)
}
