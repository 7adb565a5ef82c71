//! What the guest of a new VM is given, as arguments.

use std::path::{Path, PathBuf};

use berth_api::rest::CreateVm;
use clap::Args;

use crate::failure::Failure;

/// What the guest is given.
#[derive(Args, Debug)]
pub(crate) struct SeedArguments {
    /// An SSH public key that may log in, or a file of such keys; may be repeated [default: the tenant's]
    #[arg(long = "ssh-key", value_name = "KEY_OR_FILE")]
    ssh_keys: Vec<String>,
    /// A file with user data for cloud-init
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    /// Give each run's guest a token, with which it may read of its VM and have it deleted
    #[arg(long)]
    guest_token: bool,
}

impl SeedArguments {
    /// Read the files and put everything into a request.
    pub(crate) fn put_into(self, request: &mut CreateVm) -> Result<(), Failure> {
        if !self.ssh_keys.is_empty() {
            let mut keys = Vec::new();
            for argument in &self.ssh_keys {
                keys.extend(keys_of(argument)?);
            }
            request.ssh_keys = Some(keys);
        }
        request.user_data = self.user_data.as_deref().map(read).transpose()?;
        request.guest_token = self.guest_token;
        Ok(())
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(Failure::file("reading", path))
}

/// The keys of one argument: a key has a blank in it, and what has none names a file.
fn keys_of(argument: &str) -> Result<Vec<String>, Failure> {
    let text = if argument.contains(' ') {
        argument.to_owned()
    } else {
        read(Path::new(argument.strip_prefix('@').unwrap_or(argument)))?
    };
    // It would leave this machine with the request.
    if text.contains("PRIVATE KEY") {
        return Err(Failure::Usage {
            sentence: format!("{argument} holds a private key"),
            remedy: format!("Give the public one: --ssh-key {argument}.pub"),
        });
    }
    let keys: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    if keys.is_empty() {
        return Err(Failure::Usage {
            sentence: format!("{argument} holds no key"),
            remedy: "Give a .pub file, or a key itself in quotes.".to_owned(),
        });
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3Nz ops";

    #[test]
    fn a_key_is_given_by_itself_or_in_a_file_with_others() {
        assert_eq!(keys_of(KEY).unwrap(), [KEY]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys.pub");
        std::fs::write(&file, format!("# ours\n{KEY}\n\n  {KEY} two\r\n")).unwrap();
        let file = file.to_str().unwrap();
        let both = [KEY.to_owned(), format!("{KEY} two")];
        assert_eq!(keys_of(file).unwrap(), both);
        assert_eq!(keys_of(&format!("@{file}")).unwrap(), both);
    }

    #[test]
    fn a_private_key_does_not_leave_the_machine() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("id");
        std::fs::write(&file, "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n").unwrap();
        let failure = keys_of(file.to_str().unwrap()).unwrap_err();
        assert!(failure.to_string().ends_with("holds a private key"));
        std::fs::write(&file, "# nothing\n").unwrap();
        let failure = keys_of(file.to_str().unwrap()).unwrap_err();
        assert!(failure.to_string().ends_with("holds no key"));
        keys_of("/nonexistent/key.pub").unwrap_err();
    }

    #[test]
    fn what_is_not_given_is_not_said() {
        let mut request: CreateVm =
            serde_json::from_value(serde_json::json!({ "image": "debian" })).unwrap();
        let before = request.clone();
        let nothing = SeedArguments {
            ssh_keys: Vec::new(),
            user_data: None,
            guest_token: false,
        };
        nothing.put_into(&mut request).unwrap();
        assert_eq!(request, before);
    }
}
