//! `berthctl completion` and `berthctl man`: what packages ship for shells and readers.

use std::path::Path;

use berth_manual::Section;
use clap::{CommandFactory as _, ValueEnum};
use clap_complete::{Shell, generate};

use crate::failure::Failure;
use crate::screen::Screen;

/// The shells that Debian and Fedora know completions for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum CompletionShell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// Print the completion script.
pub(crate) fn completion(screen: &mut Screen, shell: CompletionShell) -> Result<(), Failure> {
    let shell = match shell {
        CompletionShell::Bash => Shell::Bash,
        CompletionShell::Zsh => Shell::Zsh,
        CompletionShell::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    generate(
        shell,
        &mut crate::Berthctl::command(),
        "berthctl",
        &mut script,
    );
    screen.write(&script)
}

/// Write the manual pages of both programs into a folder, one for each command.
pub(crate) fn man(folder: &Path) -> Result<(), Failure> {
    let failed = |cause| Failure::File {
        doing: "writing into",
        path: folder.to_owned(),
        cause,
    };
    for program in [crate::Berthctl::command(), crate::ServiceFs::command()] {
        berth_manual::write(program, Section::Users, folder).map_err(failed)?;
    }
    Ok(())
}
