//! Which C library a static program brings along: musl, or glibc where Rust's standard library for
//! musl cannot be had.
//!
//! Decides and tells; what follows for cargo is said here and done in `programs`.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::Result;
use berth_tests::command::{capture, run_logged};
use berth_tests::progress::say;
use berth_tests::workspace;

/// The target whose programs have musl in them.
const MUSL_TARGET: &str = "x86_64-unknown-linux-musl";

/// The C library in a static program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StaticLibc {
    /// The smaller one, whose programs also start faster.
    Musl,
    /// The one that every C compiler on Debian brings.
    Glibc,
}

impl StaticLibc {
    /// Its name in files.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Musl => "musl",
            Self::Glibc => "glibc",
        }
    }

    /// cargo's arguments to select the target, if it is not this machine's.
    pub(super) const fn target(self) -> Option<&'static str> {
        match self {
            Self::Musl => Some(MUSL_TARGET),
            Self::Glibc => None,
        }
    }

    /// rustc's flags for the last link; musl programs are static without any.
    pub(super) const fn link_flags(self) -> &'static [&'static str] {
        match self {
            Self::Musl => &[],
            Self::Glibc => &["-C", "target-feature=+crt-static"],
        }
    }
}

/// The C library of this machine's static programs. Asks the network at most once in a run.
pub(super) fn choose() -> StaticLibc {
    static CHOSEN: OnceLock<StaticLibc> = OnceLock::new();
    *CHOSEN.get_or_init(|| decide(has_musl, add_musl, say))
}

/// Takes musl where it is there or can be fetched; tells when it is not, and what follows.
fn decide(
    has_musl: impl Fn() -> bool,
    fetch: impl FnOnce() -> Result<()>,
    mut tell: impl FnMut(&str),
) -> StaticLibc {
    if has_musl() {
        return StaticLibc::Musl;
    }
    tell(&format!(
        "Rust's standard library for {MUSL_TARGET} is missing and is installed now by rustup"
    ));
    let problem = match fetch() {
        Ok(()) if has_musl() => return StaticLibc::Musl,
        Ok(()) => "rustup installed it, but not for the compiler in use".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    tell(&format!(
        "berth-vmm is built as a static glibc program instead: it works the same, but starts slower \
         and takes more memory. When there is a network, `rustup target add {MUSL_TARGET}` changes \
         that. What went wrong: {problem}"
    ));
    StaticLibc::Glibc
}

/// Whether the compiler in use finds a standard library for musl.
fn has_musl() -> bool {
    let mut rustc = Command::new("rustc");
    rustc.current_dir(workspace::root());
    rustc.args(["--print", "target-libdir", "--target", MUSL_TARGET]);
    capture(&mut rustc).is_ok_and(|folder| has_entries(Path::new(folder.trim_end())))
}

fn has_entries(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

fn add_musl() -> Result<()> {
    let mut rustup = Command::new("rustup");
    rustup
        .current_dir(workspace::root())
        .args(["target", "add", MUSL_TARGET]);
    run_logged(&mut rustup, &workspace::build_dir().join("logs/setup.log"))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use anyhow::bail;

    use super::*;

    /// Decides and returns what was told.
    fn decided(has: impl Fn() -> bool, fetch: impl FnOnce() -> Result<()>) -> (StaticLibc, String) {
        let mut told = String::new();
        let libc = decide(has, fetch, |line| told.push_str(line));
        (libc, told)
    }

    #[test]
    fn musl_that_is_there_is_taken_without_a_word() {
        let (libc, told) = decided(|| true, || panic!("nothing is to be fetched"));
        assert_eq!((libc, told.as_str()), (StaticLibc::Musl, ""));
    }

    #[test]
    fn musl_that_is_missing_is_fetched_and_taken() {
        let there = Cell::new(false);
        let fetch = || {
            there.set(true);
            Ok(())
        };
        let (libc, told) = decided(|| there.get(), fetch);
        assert_eq!(libc, StaticLibc::Musl);
        assert!(told.contains("is installed now"), "{told}");
    }

    #[test]
    fn without_a_network_glibc_is_taken_and_the_reason_told() {
        let (libc, told) = decided(|| false, || bail!("no such host"));
        assert_eq!(libc, StaticLibc::Glibc);
        assert!(told.contains("static glibc program"), "{told}");
        assert!(told.contains("no such host"), "{told}");
    }

    #[test]
    fn musl_for_another_compiler_is_not_taken() {
        let (libc, told) = decided(|| false, || Ok(()));
        assert_eq!(libc, StaticLibc::Glibc);
        assert!(told.contains("not for the compiler in use"), "{told}");
    }

    #[test]
    fn an_empty_folder_holds_no_standard_library() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!has_entries(folder.path()));
        assert!(!has_entries(&folder.path().join("absent")));
        std::fs::write(folder.path().join("libstd.rlib"), "").unwrap();
        assert!(has_entries(folder.path()));
    }
}
