//! What a guest can be given: is a text an SSH key, is it user data? Where they go is the agent's.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

/// Most SSH keys of one guest.
pub const MAX_SSH_KEYS: usize = 32;
/// Longest SSH key with its comment, in bytes.
pub const MAX_SSH_KEY_BYTES: usize = 8192;
/// Most user data of one guest, in bytes.
pub const MAX_USER_DATA_BYTES: usize = 64 * 1024;
/// What a list of SSH keys has to be.
pub const SSH_KEYS_RULE: &str = "must be at most 32 OpenSSH public keys, each one line of at most 8192 bytes: type, key in base64, comment; give the content of a .pub file";
/// What user data has to be.
pub const USER_DATA_RULE: &str = "must be at most 65536 bytes of text without NUL that begin as cloud-init knows it: #cloud-config, #!, another # header, or a MIME header; leave it out for none";

/// What begins user data that is a MIME message, in lower case.
const MIME_HEADERS: [&str; 3] = ["content-type:", "mime-version:", "from:"];

/// Whether these are SSH keys for a guest.
#[must_use]
pub fn are_ssh_keys(keys: &[String]) -> bool {
    keys.len() <= MAX_SSH_KEYS && keys.iter().all(|key| key_blob(key).is_some())
}

/// The key itself of an OpenSSH public key in one line; `None` if the line is none. What the line calls
/// the key is what the key says of itself, so no options can stand before it.
#[must_use]
pub fn key_blob(line: &str) -> Option<Vec<u8>> {
    if line.len() > MAX_SSH_KEY_BYTES || line.chars().any(char::is_control) {
        return None;
    }
    let mut words = line.split(' ');
    let (kind, text) = (words.next()?, words.next()?);
    if kind.is_empty() {
        return None;
    }
    let engine = if text.ends_with('=') {
        STANDARD
    } else {
        STANDARD_NO_PAD
    };
    let blob = engine.decode(text).ok()?;
    let (length, rest) = blob.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (named, body) = rest.split_at_checked(length)?;
    (named == kind.as_bytes() && !body.is_empty()).then_some(blob)
}

/// Whether cloud-init would take a text for user data.
#[must_use]
pub fn is_user_data(text: &str) -> bool {
    let begins = |header: &str| {
        text.get(..header.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(header))
    };
    text.len() <= MAX_USER_DATA_BYTES
        && !text.contains('\0')
        && (text.starts_with('#') || MIME_HEADERS.into_iter().any(begins))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

    fn key(line: &str) -> bool {
        key_blob(line).is_some()
    }

    #[test]
    fn a_key_is_one_line_whose_name_is_what_the_key_says_of_itself() {
        assert!(key(KEY));
        assert!(key(&format!("{KEY} ops@acme, second desk")));
        for wrong in [
            String::new(),
            "ssh-ed25519".to_owned(),
            "ssh-ed25519 ".to_owned(),
            "ssh-ed25519 AAAAC3Nz ops".to_owned(),
            KEY.replacen("ssh-ed25519", "ssh-rsa", 1),
            KEY.replace("IAAB", "I_AB"),
            format!("{KEY}\n{KEY}"),
            format!("{KEY}\0"),
            format!("command=\"reboot\" {KEY}"),
            format!(" {KEY}"),
            format!("{KEY} {}", "x".repeat(MAX_SSH_KEY_BYTES)),
            // A name of four gigabytes.
            "ssh-rsa /////3NzaC1yc2E".to_owned(),
        ] {
            assert!(!key(&wrong), "{wrong}");
        }
        assert!(are_ssh_keys(&vec![KEY.to_owned(); MAX_SSH_KEYS]));
        assert!(!are_ssh_keys(&vec![KEY.to_owned(); MAX_SSH_KEYS + 1]));
    }

    #[test]
    fn user_data_is_what_cloud_init_takes() {
        for right in [
            "#cloud-config\npackages: [nginx]\n",
            "#!/bin/sh\nexit 0\n",
            "#include\nhttps://example.com/x\n",
            "## template: jinja\n#cloud-config\n{}\n",
            "Content-Type: multipart/mixed; boundary=x\n\n--x--\n",
            "MIME-Version: 1.0\n",
        ] {
            assert!(is_user_data(right), "{right}");
        }
        let longest = format!("#!{}", "x".repeat(MAX_USER_DATA_BYTES - 2));
        assert!(is_user_data(&longest));
        for wrong in ["", "packages: [nginx]", "\u{feff}#!", "#!/bin/sh\n\0"] {
            assert!(!is_user_data(wrong), "{wrong}");
        }
        assert!(!is_user_data(&format!("{longest}x")));
    }
}
