//! Which libraries the programs load, and which Debian packages bring them.
//!
//! The least version of the C library is read from the programs, so that they are never installed
//! where they cannot start. For RPMs, `rpmbuild` finds the same out by itself.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result};
use berth_tests::command::capture;

use super::stage::Staged;

/// Libraries that programs may load: file name, Debian package, prefix of its version names.
const KNOWN: [(&str, &str, &str); 4] = [
    ("ld-linux-x86-64.so.2", "libc6", "GLIBC_"),
    ("libc.so.6", "libc6", "GLIBC_"),
    ("libm.so.6", "libc6", "GLIBC_"),
    ("libgcc_s.so.1", "libgcc-s1", "GCC_"),
];

/// What begins an ELF file.
const ELF: &[u8] = b"\x7fELF";

/// The `Depends` of all programs that were laid out.
///
/// # Errors
/// If a program cannot be read, or loads a library that is not in the table above.
pub(super) fn debian_depends(staged: &Staged) -> Result<Vec<String>> {
    let mut needs = Needs::default();
    for file in staged.files.iter().filter(|file| file.mode & 0o111 != 0) {
        let path = staged.path(&file.target);
        let content =
            std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        if content.starts_with(ELF) {
            let headers = capture(Command::new("objdump").arg("--private-headers").arg(&path))?;
            needs
                .add(&headers)
                .with_context(|| format!("reading what {} loads", file.target))?;
        }
    }
    Ok(needs.depends())
}

/// Least versions by Debian package; an empty version is any.
#[derive(Debug, Default)]
struct Needs(BTreeMap<&'static str, Vec<u32>>);

impl Needs {
    /// Adds what `objdump --private-headers` says about one program.
    fn add(&mut self, headers: &str) -> Result<()> {
        let mut library = None;
        for line in headers.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["NEEDED", name] => {
                    self.0.entry(known(name)?.0).or_default();
                }
                ["required", "from", name] => library = Some(known(name.trim_end_matches(':'))?),
                [_, _, _, symbols] if symbols.contains('_') => {
                    if let Some((package, prefix)) = library
                        && let Some(version) = symbols.strip_prefix(prefix)
                    {
                        self.raise(package, version);
                    }
                }
                [] => library = None,
                _ => {}
            }
        }
        Ok(())
    }

    /// Names that are no version, such as `GLIBC_PRIVATE`, say nothing about a version.
    fn raise(&mut self, package: &'static str, version: &str) {
        let parts: Result<Vec<u32>, _> = version.split('.').map(str::parse).collect();
        if let Ok(parts) = parts {
            let least = self.0.entry(package).or_default();
            *least = parts.max(std::mem::take(least));
        }
    }

    fn depends(&self) -> Vec<String> {
        let depend = |(package, version): (&&str, &Vec<u32>)| {
            if version.is_empty() {
                return (*package).to_owned();
            }
            let parts: Vec<String> = version.iter().map(u32::to_string).collect();
            format!("{package} (>= {})", parts.join("."))
        };
        self.0.iter().map(depend).collect()
    }
}

fn known(name: &str) -> Result<(&'static str, &'static str)> {
    KNOWN
        .iter()
        .find(|(library, ..)| *library == name)
        .map(|(_, package, prefix)| (*package, *prefix))
        .with_context(|| format!("no Debian package is known for {name}; name it in libraries.rs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADERS: &str = "
Dynamic Section:
  NEEDED               libgcc_s.so.1
  NEEDED               libc.so.6
  INIT                 0x000000000004b000

Version References:
  required from libgcc_s.so.1:
    0x0b792650 0x00 15 GCC_3.0
    0x09276060 0x00 11 GCC_4.2.0
  required from libc.so.6:
    0x069691b4 0x00 19 GLIBC_2.34
    0x06969189 0x00 02 GLIBC_2.9
    0x0963cf85 0x00 03 GLIBC_PRIVATE
";

    #[test]
    fn the_newest_symbol_decides_about_the_version() {
        let mut needs = Needs::default();
        needs.add(HEADERS).unwrap();
        assert_eq!(needs.depends(), ["libc6 (>= 2.34)", "libgcc-s1 (>= 4.2.0)"]);
    }

    #[test]
    fn a_library_of_no_known_package_is_refused() {
        let error = Needs::default()
            .add("  NEEDED   libssl.so.3\n")
            .unwrap_err();
        assert!(error.to_string().contains("libssl.so.3"), "{error}");
    }

    #[test]
    fn a_static_program_needs_nothing() {
        let mut needs = Needs::default();
        needs.add("Program Header:\n    LOAD off 0x0\n").unwrap();
        assert!(needs.depends().is_empty());
    }
}
