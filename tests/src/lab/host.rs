//! A place where scripts run as root: an emulated node, or this very machine.

use std::fmt::Debug;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::ssh::wait_for;
use crate::command::{self, as_root};

/// A host as scenarios use it.
pub trait Host: Debug {
    /// Runs a shell script as root and returns whatever came of it.
    ///
    /// # Errors
    /// If the host does not answer.
    fn run(&self, script: &str) -> Result<Output>;

    /// Collects the evidence of a failure. Best effort.
    fn collect(&self);

    /// Runs a shell script that has to succeed, and returns its standard output.
    ///
    /// # Errors
    /// If the script's exit status is not 0; the message has its whole output.
    fn check(&self, script: &str) -> Result<String> {
        let output = self.run(script)?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "on the host, `{script}` ended with {}:\n{}{}",
            ended(&output),
            text,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(text.into_owned())
    }

    /// Runs a shell script again and again until it succeeds; returns its standard output then.
    ///
    /// # Errors
    /// If it never does within `limit`; the message has the last output.
    fn wait_until(&self, what: &str, limit: Duration, script: &str) -> Result<String> {
        let mut last = None;
        let done = wait_for(limit, || {
            let output = self.run(script)?;
            let good = output.status.success();
            last = Some(output);
            Ok(good)
        })?;
        let output = last.context("a condition was never asked")?;
        ensure!(
            done,
            "{what}: not within {} s; `{script}` last said:\n{}{}",
            limit.as_secs(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// This machine.
#[derive(Debug, Clone, Copy)]
pub struct Here;

impl Host for Here {
    fn run(&self, script: &str) -> Result<Output> {
        let mut shell: Command = as_root("sh");
        command::output(shell.arg("-c").arg(script))
    }

    fn collect(&self) {
        // Its journal stays where it is.
    }
}

fn ended(output: &Output) -> String {
    match (output.status.code(), output.status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no status".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts how often it was asked, and succeeds the third time.
    #[derive(Debug, Default)]
    struct Slow(std::cell::Cell<u32>);

    impl Host for Slow {
        fn run(&self, _script: &str) -> Result<Output> {
            self.0.set(self.0.get() + 1);
            let mut shell = Command::new("sh");
            shell.args([
                "-c",
                if self.0.get() < 3 {
                    "echo no; exit 7"
                } else {
                    "echo yes"
                },
            ]);
            command::output(&mut shell)
        }

        fn collect(&self) {}
    }

    #[test]
    fn waiting_ends_with_the_first_success() {
        let host = Slow::default();
        let answer = host.wait_until("it", Duration::from_secs(30), "x").unwrap();
        assert_eq!((answer.as_str(), host.0.get()), ("yes\n", 3));
    }

    #[test]
    fn a_failed_script_tells_its_output() {
        let message = Slow::default().check("x").unwrap_err().to_string();
        assert!(
            message.contains("exit status 7") && message.contains("no"),
            "{message}"
        );
    }
}
