//! `berth-agent join`: a host becomes a node.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use berth_agent_host::capacity::{self, ReadHostError};
use berth_api::agent::{
    ENROLL_PAYLOAD_TYPE, EnrollRequest, JOIN_TOKEN_PREFIX, JoinToken, PROTOCOL_VERSION,
};
use berth_ledger::envelope::seal;
use berth_ledger::keys::{GenerateKeyError, PublicKey, SigningKey};

use crate::clock;
use crate::controller::{CallError, Controller, ControllerUrl, ControllerUrlDenied};
use crate::node::{Node, NodeFileError, load_key, save_key};

/// Longest wait for the controller's answer.
const ENROLL_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a host did not become a node.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It is one.
    #[error(
        "this host is {node_id} already; to join anew, delete its VMs and move {state} away first"
    )]
    Joined {
        /// Its id.
        node_id: berth_api::ids::NodeId,
        /// The agent's folder.
        state: String,
    },
    /// The token is not one.
    #[error("the token is not a join token: {problem}; get one with: berthctl node join-token")]
    Malformed {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The token is too old.
    #[error("the token expired {seconds} s ago; get a new one with: berthctl node join-token")]
    Expired {
        /// Since when.
        seconds: i64,
    },
    /// The token is for another name.
    #[error("the token is for the node name {token:?}, not {asked:?}; leave --node-name out")]
    OtherName {
        /// The token's name.
        token: String,
        /// The name that was asked for.
        asked: String,
    },
    /// The controller's address is refused.
    #[error(transparent)]
    Address(#[from] ControllerUrlDenied),
    /// This host could not be read.
    #[error(transparent)]
    Host(#[from] ReadHostError),
    /// The node's files could not be read or written.
    #[error(transparent)]
    Files(#[from] NodeFileError),
    /// No key could be made.
    #[error(transparent)]
    Key(#[from] GenerateKeyError),
    /// The request did not become JSON.
    #[error("could not write the request")]
    Encode(#[source] serde_json::Error),
    /// The controller did not enrol this host.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The controller's keys are not keys.
    #[error("the controller sent task keys that are not keys")]
    TaskKeys,
}

/// Read a join token and check everything that can be checked without the controller. `now` in
/// seconds since the epoch.
pub fn read_token(text: &str, now: i64) -> Result<(JoinToken, ControllerUrl), JoinError> {
    let malformed = |problem| JoinError::Malformed { problem };
    let body = text
        .trim()
        .strip_prefix(JOIN_TOKEN_PREFIX)
        .ok_or(malformed("it does not begin with `berth-join.`"))?;
    let json = URL_SAFE_NO_PAD
        .decode(body)
        .map_err(|_| malformed("it is not whole"))?;
    let token: JoinToken = serde_json::from_slice(&json)
        .map_err(|_| malformed("it is of another version of berth"))?;
    if token.expires_at <= now {
        return Err(JoinError::Expired {
            seconds: now.saturating_sub(token.expires_at),
        });
    }
    let url = ControllerUrl::parse(&token.controller_url)?;
    Ok((token, url))
}

/// Enrol this host and write down who it is.
pub async fn join(
    state: &Path,
    authority: Option<&Path>,
    token: &str,
    node_name: Option<String>,
    agent_version: &str,
) -> Result<Node, JoinError> {
    match Node::load(state) {
        Ok(node) => {
            return Err(JoinError::Joined {
                node_id: node.node_id,
                state: state.display().to_string(),
            });
        }
        Err(NodeFileError::NotJoined) => {}
        Err(error) => return Err(error.into()),
    }
    let (token, url) = read_token(token, clock::now())?;
    let controller = Controller::new(url.clone(), authority)?;
    let host = capacity::identity()?;
    let node_name = choose_name(&token, node_name, host.node_name)?;
    let key = ensure_key(state)?;
    let request = EnrollRequest {
        protocol_version: PROTOCOL_VERSION,
        secret: token.secret,
        node_name: node_name.clone(),
        node_public_key: key.public().to_base64(),
        machine_id: host.machine_id,
        boot_id: host.boot_id,
        agent_version: agent_version.to_owned(),
        capacity: capacity::capacity(state)?,
    };
    let envelope = seal(&key, ENROLL_PAYLOAD_TYPE, &request).map_err(JoinError::Encode)?;
    let reply = controller.enroll(&envelope, ENROLL_TIMEOUT).await?;
    let keys_are_keys = !reply.task_public_keys.is_empty()
        && reply
            .task_public_keys
            .iter()
            .all(|text| PublicKey::from_base64(text).is_ok());
    if !keys_are_keys {
        return Err(JoinError::TaskKeys);
    }
    let node = Node::new(reply, node_name, url.as_str().to_owned());
    node.save(state)?;
    Ok(node)
}

fn choose_name(
    token: &JoinToken,
    asked: Option<String>,
    host_name: String,
) -> Result<String, JoinError> {
    match (token.node_name.clone(), asked) {
        (Some(token), Some(asked)) if token != asked => Err(JoinError::OtherName { token, asked }),
        (Some(name), _) | (None, Some(name)) => Ok(name),
        (None, None) => Ok(host_name),
    }
}

/// The key that this host has, or a new one that is on the disk before anybody hears of it.
pub fn ensure_key(state: &Path) -> Result<SigningKey, JoinError> {
    match load_key(state) {
        Ok(key) => Ok(key),
        Err(NodeFileError::NotJoined) => {
            let key = SigningKey::generate()?;
            save_key(state, &key)?;
            Ok(key)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(controller_url: &str, expires_at: i64) -> String {
        let token = JoinToken {
            controller_url: controller_url.to_owned(),
            secret: "s".to_owned(),
            expires_at,
            node_name: Some("metal-1".to_owned()),
        };
        let json = serde_json::to_vec(&token).unwrap();
        format!("{JOIN_TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }

    #[test]
    fn a_good_token_is_read() {
        let (token, url) = read_token(&token("http://127.0.0.1:9221", 11), 10).unwrap();
        assert_eq!(token.secret, "s");
        assert_eq!(url.as_str(), "http://127.0.0.1:9221");
    }

    #[test]
    fn each_bad_token_is_refused_with_its_reason() {
        let whole = token("http://127.0.0.1:9221", 11);
        for (text, words) in [
            ("eyJ".to_owned(), "does not begin with"),
            (format!("{whole}!"), "not whole"),
            (format!("{JOIN_TOKEN_PREFIX}e30"), "another version"),
            (token("http://127.0.0.1:9221", 10), "expired 0 s ago"),
            (token("http://192.0.2.1:9221", 11), "loopback"),
        ] {
            let error = read_token(&text, 10).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn a_name_that_the_token_does_not_allow_is_refused() {
        let (token, _) = read_token(&token("http://127.0.0.1:9221", 11), 10).unwrap();
        let named =
            |asked: Option<&str>| choose_name(&token, asked.map(str::to_owned), "host".to_owned());
        assert_eq!(named(None).unwrap(), "metal-1");
        assert!(matches!(
            named(Some("metal-2")),
            Err(JoinError::OtherName { .. })
        ));
    }
}
