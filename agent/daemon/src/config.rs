//! `/etc/berth/agent.toml` and the host's policy file: where things are, and what is allowed.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use berth_agent_core::policy::{Policy, ReadPolicyError};
use serde::Deserialize;

/// Where the configuration is looked for.
pub const CONFIG_PATH: &str = "/etc/berth/agent.toml";

/// Where the agent finds its things. Each key is optional.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The agent's own folder.
    pub state_dir: PathBuf,
    /// The VMM's executable, absolute.
    pub vmm: PathBuf,
    /// The host's policy file; may be absent.
    pub policy: PathBuf,
    /// The folder of approvals of slots; may be absent.
    pub slots: PathBuf,
    /// PEM of the authority that vouches for the controller's certificate; needed for https.
    pub controller_ca: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from("/var/lib/berth/agent"),
            vmm: PathBuf::from("/usr/libexec/berth/berth-vmm"),
            policy: PathBuf::from("/etc/berth/agent-policy.toml"),
            slots: PathBuf::from("/etc/berth/slots.d"),
            controller_ca: None,
        }
    }
}

/// Why a configuration is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReadConfigError {
    /// It could not be read.
    #[error("could not read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// It is not a configuration.
    #[error("{} is not valid", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        #[source]
        cause: toml::de::Error,
    },
    /// The policy is not taken.
    #[error("{} is refused", path.display())]
    Policy {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: ReadPolicyError,
    },
}

impl Config {
    /// Read the file named on the command line, which must be there, or the usual one, which need
    /// not.
    pub fn read(named: Option<&Path>) -> Result<Self, ReadConfigError> {
        let path = named.unwrap_or(Path::new(CONFIG_PATH));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(cause) => {
                return Err(ReadConfigError::Read {
                    path: path.to_owned(),
                    cause,
                });
            }
        };
        toml::from_str(&text).map_err(|cause| ReadConfigError::Invalid {
            path: path.to_owned(),
            cause,
        })
    }

    /// Read the policy file. `trusted_uid` is who must own it: the agent's own user, so root.
    pub fn read_policy(&self, trusted_uid: u32) -> Result<Policy, ReadConfigError> {
        let path = self.policy.clone();
        let read = || -> io::Result<_> {
            // Owner and mode are those of the very file that is read.
            let mut file = File::open(&path)?;
            let metadata = file.metadata()?;
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            Ok((text, metadata))
        };
        let (text, metadata) = match read() {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Policy::default()),
            Err(cause) => return Err(ReadConfigError::Read { path, cause }),
        };
        Policy::read(&text, metadata.uid(), metadata.mode(), trusted_uid)
            .map_err(|cause| ReadConfigError::Policy { path, cause })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_named_file_must_be_there_and_hold_known_keys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        assert!(matches!(
            Config::read(Some(&path)),
            Err(ReadConfigError::Read { .. })
        ));
        std::fs::write(&path, "state_dir = \"/x\"").unwrap();
        let config = Config::read(Some(&path)).unwrap();
        assert_eq!(config.state_dir, Path::new("/x"));
        assert_eq!(config.vmm, Config::default().vmm);
        std::fs::write(&path, "statedir = \"/x\"").unwrap();
        assert!(matches!(
            Config::read(Some(&path)),
            Err(ReadConfigError::Invalid { .. })
        ));
    }

    #[test]
    fn a_policy_that_others_can_write_is_refused_and_a_missing_one_is_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            policy: folder.path().join("policy.toml"),
            ..Config::default()
        };
        let me = std::fs::metadata(folder.path()).unwrap().uid();
        assert_eq!(config.read_policy(me).unwrap(), Policy::default());
        std::fs::write(&config.policy, "max_vcpus = 2").unwrap();
        let mode = |mode| {
            std::fs::set_permissions(&config.policy, std::fs::Permissions::from_mode(mode))
                .unwrap();
        };
        mode(0o644);
        assert_eq!(config.read_policy(me).unwrap().max_vcpus, 2);
        mode(0o664);
        assert!(matches!(
            config.read_policy(me),
            Err(ReadConfigError::Policy { .. })
        ));
    }
}
