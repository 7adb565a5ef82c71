//! Manual pages of berth's programs, made from what their command lines say of themselves.
//!
//! Owns the pages' form and the `man FOLDER` that packaging calls on every program. Knows no program.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

/// What a page is for, as its number says (`man(1)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// 1: commands of users.
    Users,
    /// 8: commands of administrators, and daemons.
    Administrators,
}

impl Section {
    fn number(self) -> &'static str {
        match self {
            Self::Users => "1",
            Self::Administrators => "8",
        }
    }
}

/// Writes the pages of a daemon into a folder if it was started as `PROGRAM man FOLDER`, and tells how to
/// end. It comes before the command line is read: the pages are for who packages, not for who runs it.
#[must_use]
pub fn write_if_asked<A: CommandFactory>() -> Option<ExitCode> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [word, folder] = &arguments[..] else {
        return None;
    };
    if word != OsStr::new("man") {
        return None;
    }
    let written = write(A::command(), Section::Administrators, Path::new(folder));
    Some(written.map_or_else(
        |error| {
            // Nothing is left to be done if even this cannot be written.
            drop(writeln!(
                io::stderr(),
                "the manual pages could not be written: {error}"
            ));
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    ))
}

/// Writes one page for a program and one for each command of it that is shown, into a folder that is made
/// if it is not there.
///
/// # Errors
/// If the folder cannot be made or a page not be written.
pub fn write(mut program: Command, section: Section, folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    program.build();
    pages(&program, section, folder)
}

fn pages(command: &Command, section: Section, folder: &Path) -> io::Result<()> {
    let visible = |sub: &&Command| !sub.is_hide_set() && sub.get_name() != "help";
    for sub in command.get_subcommands().filter(visible) {
        pages(sub, section, folder)?;
    }
    Man::new(command.clone())
        .section(section.number())
        .source(concat!("berth ", env!("CARGO_PKG_VERSION")))
        .manual("berth")
        .generate_to(folder)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_and_each_command_that_is_shown_has_a_page_of_its_section() {
        let program = Command::new("berth-tool")
            .about("does things")
            .subcommand(Command::new("run").about("runs"))
            .subcommand(Command::new("secret").hide(true));
        let folder = tempfile::tempdir().unwrap();
        write(program, Section::Administrators, folder.path()).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|page| page.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["berth-tool-run.8", "berth-tool.8"]);
        let page = std::fs::read_to_string(folder.path().join("berth-tool.8")).unwrap();
        assert!(page.contains("does things"), "{page}");
    }
}
