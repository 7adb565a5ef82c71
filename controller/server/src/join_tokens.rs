//! Making join tokens: what is stored of one, and what its holder is told this once.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use berth_api::agent::{JOIN_TOKEN_PREFIX, JoinToken};
use berth_api::ids::TenantId;
use berth_api::rest::IssuedJoinToken;
use berth_controller_store::NewJoinToken;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::http::rfc3339_s;

/// Why none was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinTokenError {
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
    /// It could not be written as text.
    #[error("the token could not be written")]
    Text(#[source] serde_json::Error),
}

/// What a join token is for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted<'u> {
    /// Where the node finds the controller.
    pub(crate) public_url: &'u str,
    /// The only name that may enrol with it.
    pub(crate) node_name: Option<String>,
    /// The tenant whose own the node will be.
    pub(crate) owner: Option<TenantId>,
    /// How long it is good for, in seconds.
    pub(crate) lifetime_s: u64,
}

/// What a join token's secret is known by here.
pub(crate) fn secret_hash(secret: &str) -> Vec<u8> {
    digest(&SHA256, secret.as_bytes()).as_ref().to_vec()
}

/// A join token with a new secret.
pub(crate) fn fresh(wanted: Wanted<'_>) -> Result<(NewJoinToken, IssuedJoinToken), JoinTokenError> {
    let mut random = [0; 16];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| JoinTokenError::Random)?;
    let secret = URL_SAFE_NO_PAD.encode(random);
    let now = jiff::Timestamp::now().as_second();
    let expires_at = now.saturating_add(i64::try_from(wanted.lifetime_s).unwrap_or(i64::MAX));
    let new = NewJoinToken {
        secret_hash: secret_hash(&secret),
        node_name: wanted.node_name.clone(),
        expires_at: expires_at.saturating_mul(1000),
        tenant_id: wanted.owner,
    };
    let token = JoinToken {
        controller_url: wanted.public_url.to_owned(),
        secret,
        expires_at,
        node_name: wanted.node_name,
    };
    let text = serde_json::to_vec(&token).map_err(JoinTokenError::Text)?;
    let token = format!("{JOIN_TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(text));
    let issued = IssuedJoinToken {
        install_command: format!("berth-agent join {token}"),
        token,
        expires_at: rfc3339_s(expires_at),
    };
    Ok((new, issued))
}

/// Until when a join token is good, in seconds since the epoch; `None` of a text that is none.
pub(crate) fn end_of(text: &str) -> Option<i64> {
    let json = URL_SAFE_NO_PAD
        .decode(text.trim().strip_prefix(JOIN_TOKEN_PREFIX)?)
        .ok()?;
    let token: JoinToken = serde_json::from_slice(&json).ok()?;
    Some(token.expires_at)
}
