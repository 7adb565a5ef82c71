//! Maintainer scripts of both formats, put together from the pieces in `packaging/scripts`.
//!
//! A script is a head with the package's own values, the functions that all scripts share, and the
//! steps of its occasion. What a step does is in the shell files; this module only joins them.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use super::manifest::Package;

/// Where the pieces lie, from the root of the repository.
pub(super) const FOLDER: &str = "packaging/scripts";
/// Scripts of a .deb: the name of the occasion, which is also the piece's.
pub(super) const DEB: [&str; 3] = ["postinst", "prerm", "postrm"];
/// Scripts of an .rpm.
pub(super) const RPM: [&str; 3] = ["post", "preun", "postun"];

/// The script of a package for one occasion; `None` where the package has nothing to do.
///
/// # Errors
/// If a piece cannot be read.
pub(super) fn script(package: &Package, root: &Path, piece: &str) -> Result<Option<String>> {
    let idle = package.enable.is_empty() && package.sysusers.is_empty() && !package.udev;
    if idle {
        return Ok(None);
    }
    let functions = read(root, "functions.sh")?;
    let steps = read(root, &format!("{piece}.sh"))?;
    Ok(Some(format!("{}\n{functions}\n{steps}", head(package))))
}

fn read(root: &Path, name: &str) -> Result<String> {
    let path = root.join(FOLDER).join(name);
    std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

fn head(package: &Package) -> String {
    let (folder, holds) = match &package.state {
        Some(state) => (state.folder.as_str(), state.holds.as_str()),
        None => ("", ""),
    };
    let mut text = "set -eu\n".to_owned();
    for (name, value) in [
        ("package", package.name.as_str()),
        ("units", &package.enable.join(" ")),
        ("sysusers", &package.sysusers),
        ("tmpfiles", &package.tmpfiles),
        ("udev", if package.udev { "yes" } else { "no" }),
        ("state", folder),
        ("state_holds", holds),
    ] {
        let value = value.replace('\'', r"'\''");
        writeln!(text, "{name}='{value}'").expect("a String takes all that is written");
    }
    text
}
