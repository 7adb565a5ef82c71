//! `berthctl api`: one raw call, for what has no command of its own.

use std::io::Read as _;

use serde_json::Value;

use crate::client::Path;
use crate::failure::Failure;
use crate::session::Session;

/// The arguments of a raw call.
#[derive(clap::Args, Debug)]
pub(crate) struct ApiCommand {
    /// GET, POST, PATCH, PUT or DELETE
    #[arg(value_parser = parse_method)]
    method: String,
    /// The path with its query, such as /v1/vms?limit=5
    #[arg(value_parser = parse_path)]
    path: String,
    /// The JSON body, or - to read it from standard input
    body: Option<String>,
}

fn parse_method(text: &str) -> Result<String, String> {
    let method = text.to_ascii_uppercase();
    if ["GET", "POST", "PATCH", "PUT", "DELETE"].contains(&method.as_str()) {
        Ok(method)
    } else {
        Err("use GET, POST, PATCH, PUT or DELETE".to_owned())
    }
}

fn parse_path(text: &str) -> Result<String, String> {
    if text.starts_with('/') && text.chars().all(|c| c.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("begin it with / and write other characters as %XX".to_owned())
    }
}

/// Make the call and print the reply: JSON indented, anything else as it is.
pub(crate) fn run(session: &mut Session, command: &ApiCommand) -> Result<(), Failure> {
    let body = command.body.as_deref().map(read_body).transpose()?;
    let path = Path::raw(&command.path);
    let reply = session
        .client
        .call_as_is(&command.method, &path, body.as_ref())?;
    if reply.bytes().is_empty() {
        return Ok(());
    }
    match serde_json::from_slice::<Value>(reply.bytes()) {
        Ok(value) => session.screen.show_json(&value),
        Err(_text) => session.screen.write(reply.bytes()),
    }
}

fn read_body(argument: &str) -> Result<Value, Failure> {
    let mut text = argument.to_owned();
    if argument == "-" {
        text.clear();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|cause| Failure::File {
                doing: "reading",
                path: "standard input".into(),
                cause,
            })?;
    }
    serde_json::from_str(&text).map_err(|cause| Failure::Usage {
        sentence: format!("the body is not JSON: {cause}"),
        remedy: "Put it between single quotes, such as '{\"image\":\"debian-12\"}'.".to_owned(),
    })
}
