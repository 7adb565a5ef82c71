//! Debian packages that the tasks need: finds out what is missing, says so, installs it.
//!
//! Nothing is asked of the network when all is there, which takes milliseconds to see.

use std::process::Command;

use anyhow::{Result, bail};
use berth_tests::command::{as_root, output, run_logged};
use berth_tests::progress::say;
use berth_tests::workspace;

/// What a task needs from the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// To build the programs.
    Compile,
    /// To build and look into packages.
    Package,
    /// To build libFuzzer.
    Fuzz,
    /// To make images and boot nodes.
    Lab,
    /// To run verifiers of the ledger that are not ours.
    Verifiers,
}

impl Need {
    fn packages(self) -> &'static [&'static str] {
        match self {
            // Tests that run beside the code also read programs with objdump and send signals with kill.
            Self::Compile => &["binutils", "gcc", "git", "libc6-dev", "procps"],
            // `rpm` brings rpmbuild, `systemd` systemd-analyze.
            Self::Package => &["binutils", "coreutils", "dpkg", "gzip", "rpm", "systemd"],
            Self::Fuzz => &["g++"],
            Self::Verifiers => &[
                "golang-golang-x-mod-dev",
                "golang-go",
                "python3",
                "python3-cryptography",
                "python3-venv",
            ],
            Self::Lab => &[
                "ca-certificates",
                "coreutils",
                "curl",
                "debian-archive-keyring",
                "e2fsprogs",
                "lz4",
                "mmdebstrap",
                "mount",
                "openssh-client",
                "qemu-system-x86",
                "util-linux",
            ],
        }
    }
}

/// Makes sure that all packages of these needs are installed.
///
/// # Errors
/// If this is not a Debian machine, or apt-get fails; the message quotes its log.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let mut wanted: Vec<&str> = needs
        .iter()
        .flat_map(|need| need.packages())
        .copied()
        .collect();
    wanted.sort_unstable();
    wanted.dedup();
    let missing = missing(&wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    say(&format!(
        "Debian packages that are missing and are installed now by apt-get: {list}"
    ));
    let log = workspace::build_dir().join("logs/setup.log");
    if install(&missing, &log).is_ok() {
        return Ok(());
    }
    // Package lists that are absent or too old are the usual reason.
    run_logged(as_root("apt-get").args(["update", "-q"]), &log)?;
    install(&missing, &log)
}

fn install(packages: &[&str], log: &std::path::Path) -> Result<()> {
    let mut command = as_root("env");
    command.args([
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "install",
        "-q",
        "-y",
    ]);
    command.arg("--no-install-recommends").args(packages);
    run_logged(&mut command, log)
}

fn missing<'a>(wanted: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut query = Command::new("dpkg-query");
    query
        .args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"])
        .args(wanted);
    // It exits with 1 when one of the names is unknown, which is an answer too.
    let Ok(answer) = output(&mut query) else {
        bail!(
            "this is not a Debian machine (no dpkg-query); install the equivalents of {} yourself",
            wanted.join(", ")
        );
    };
    let text = String::from_utf8_lossy(&answer.stdout);
    let installed = |name: &str| text.lines().any(|line| line == format!("{name} installed"));
    Ok(wanted
        .iter()
        .copied()
        .filter(|name| !installed(name))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_installed_is_missing() {
        let wanted = ["coreutils", "no-such-package-anywhere"];
        assert_eq!(missing(&wanted).unwrap(), ["no-such-package-anywhere"]);
    }
}
