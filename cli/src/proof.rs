//! Signs requests whose token demands it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use berth_token::Chain;
use berth_token::pop::{self, SignedRequest};

use crate::command::token::local::private_key;
use crate::connection::{Connection, Token};
use crate::failure::Failure;

const NONCE_BYTES: usize = 16;

/// The headers that prove who sends a request (method, path with query, body); none if the token does
/// not ask for them.
pub(crate) fn headers(
    connection: &Connection,
    token: &Token,
    authorization: &str,
    (method, target, body): (&str, &str, &str),
) -> Result<Vec<(&'static str, String)>, Failure> {
    // What is no token of ours is the controller's to refuse.
    let demands =
        Chain::read_unverified(token.secret()).is_ok_and(|chain| chain.last().requires_pop);
    if !demands {
        return Ok(Vec::new());
    }
    let key = private_key(&connection.key_file)?;
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce)
        .map_err(|_| Failure::GenerateKey(berth_ledger::keys::GenerateKeyError))?;
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let request = SignedRequest {
        method,
        authority: connection
            .url
            .split_once("://")
            .map_or("", |(_, rest)| rest),
        path,
        query,
        authorization,
        body: body.as_bytes(),
    };
    let now = jiff::Timestamp::now().as_second();
    let proof = pop::sign(&request, &key, &URL_SAFE_NO_PAD.encode(nonce), now);
    let digest = proof
        .content_digest
        .map(|digest| ("content-digest", digest));
    Ok([
        ("signature-input", proof.signature_input),
        ("signature", proof.signature),
    ]
    .into_iter()
    .chain(digest)
    .collect())
}
