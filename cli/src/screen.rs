//! Where output goes: results to standard output, everything else to standard error.
//!
//! The one place that knows whether people or programs read. Commands hand it results and never
//! write on their own.

use std::io::{self, IsTerminal as _, Write};

use serde::Serialize;

use crate::failure::Failure;
use crate::table::{Style, Table};

/// Standard output and error with the caller's wishes.
#[derive(Debug)]
pub(crate) struct Screen {
    json: bool,
    style: Style,
    stdout: io::Stdout,
    stderr: io::Stderr,
    live: bool,
    step_is_open: bool,
}

impl Screen {
    /// The process's own streams. Colour needs a terminal and no `NO_COLOR`.
    #[must_use]
    pub(crate) fn new(json: bool, no_headers: bool) -> Self {
        let stdout = io::stdout();
        let stderr = io::stderr();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            json,
            style: Style {
                no_headers,
                colour: stdout.is_terminal() && !plain,
            },
            live: stderr.is_terminal(),
            stdout,
            stderr,
            step_is_open: false,
        }
    }

    /// Whether a person looks at standard output.
    #[must_use]
    pub(crate) fn is_terminal(&self) -> bool {
        self.stdout.is_terminal()
    }

    /// A result: `value` for programs, the table for people.
    pub(crate) fn show<T: Serialize>(
        &mut self,
        value: &T,
        table: impl FnOnce() -> Table,
    ) -> Result<(), Failure> {
        if self.json {
            return self.show_json(value);
        }
        let text = table().render(self.style);
        self.write(text.as_bytes())
    }

    /// A result that is JSON for everybody.
    pub(crate) fn show_json<T: Serialize>(&mut self, value: &T) -> Result<(), Failure> {
        let mut text = serde_json::to_string_pretty(value).map_err(io::Error::from)?;
        text.push('\n');
        self.write(text.as_bytes())
    }

    /// A result that is one sentence for people.
    pub(crate) fn say<T: Serialize>(&mut self, value: &T, sentence: &str) -> Result<(), Failure> {
        if self.json {
            return self.show_json(value);
        }
        self.write(format!("{sentence}\n").as_bytes())
    }

    /// Bytes as they are.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.close_step();
        self.stdout.write_all(bytes)?;
        self.stdout.flush()?;
        Ok(())
    }

    /// A remark on standard error; none for programs, which read errors there.
    pub(crate) fn note(&mut self, line: &str) {
        if self.json {
            return;
        }
        self.close_step();
        self.write_error(&format!("{line}\n"));
    }

    /// A step of something long: replaces the last one on a terminal, else a line of its own.
    pub(crate) fn progress(&mut self, step: &str) {
        if self.json {
            return;
        }
        if self.live {
            self.write_error(&format!("\r\x1b[K{step}"));
            self.step_is_open = true;
        } else {
            self.write_error(&format!("{step}\n"));
        }
    }

    /// Whether steps replace each other, so that there may be many.
    #[must_use]
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    /// Why the command ended early.
    pub(crate) fn fail(&mut self, failure: &Failure) {
        self.close_step();
        let text = if self.json {
            format!("{:#}\n", failure.to_json())
        } else {
            failure.to_text()
        };
        self.write_error(&text);
    }

    fn close_step(&mut self) {
        if std::mem::take(&mut self.step_is_open) {
            self.write_error("\n");
        }
    }

    fn write_error(&mut self, text: &str) {
        // With standard error closed there is nobody to tell; the exit code still says it.
        self.stderr.write_all(text.as_bytes()).ok();
    }
}
