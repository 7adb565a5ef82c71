//! The emulated machine's own control socket (QMP): devices come and go while a node runs.
//!
//! Owns the socket in a run's folder and the words on it. What is plugged is a scenario's.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::ssh::wait_for;

/// The socket's name in a run's folder.
const SOCKET: &str = "monitor";
/// How long the machine may take for one command.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// An open talk with a machine.
#[derive(Debug)]
pub struct Monitor {
    stream: BufReader<UnixStream>,
    /// Names of events, and the device that each was about, in the order in which they came.
    events: Vec<(String, String)>,
}

/// QEMU's argument for the socket in that folder.
pub(super) fn argument(folder: &Path) -> OsString {
    let mut argument = OsString::from("unix:");
    // A comma in a path is doubled in QEMU's option syntax.
    argument.push(folder.join(SOCKET).to_string_lossy().replace(',', ",,"));
    argument.push(",server=on,wait=off");
    argument
}

impl Monitor {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        // By way of an open folder, for a socket's address is at most 107 bytes long.
        let opened = std::fs::File::open(folder).context("opening the run's folder")?;
        let near = format!("/proc/self/fd/{}/{SOCKET}", opened.as_raw_fd());
        let stream = UnixStream::connect(near).context("connecting to the machine's monitor")?;
        stream.set_read_timeout(Some(COMMAND_LIMIT))?;
        let mut monitor = Self {
            stream: BufReader::new(stream),
            events: Vec::new(),
        };
        monitor.read().context("the monitor's greeting")?;
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Has the machine do one thing, and returns what it says.
    ///
    /// # Errors
    /// If the machine refuses, or does not answer.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        let stream = self.stream.get_mut();
        writeln!(stream, "{request}").with_context(|| format!("asking for {command}"))?;
        loop {
            let answer = self.read().with_context(|| command.to_owned())?;
            if let Some(error) = answer.get("error") {
                bail!("the machine refused {command}: {error}");
            }
            if let Some(result) = answer.get("return") {
                return Ok(result.clone());
            }
        }
    }

    /// Pulls a device that has the QEMU id `id`, and waits until the node has let it go.
    ///
    /// # Errors
    /// If it has not within `limit`.
    pub fn unplug(&mut self, id: &str, limit: Duration) -> Result<()> {
        self.execute("device_del", &json!({ "id": id }))?;
        let gone = ("DEVICE_DELETED".to_owned(), id.to_owned());
        let went = wait_for(limit, || {
            // Events come with the answer to whatever is asked.
            self.execute("query-status", &json!({}))?;
            Ok(self.events.contains(&gone))
        })?;
        ensure!(
            went,
            "the node did not let {id} go within {} s",
            limit.as_secs()
        );
        self.events.retain(|event| *event != gone);
        Ok(())
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        let bytes = self.stream.read_line(&mut line)?;
        ensure!(bytes > 0, "the machine has ended");
        let answer: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        if let Some(event) = answer.get("event").and_then(Value::as_str) {
            let device = answer["data"]["device"].as_str().unwrap_or_default();
            self.events.push((event.to_owned(), device.to_owned()));
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn an_event_between_question_and_answer_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join(SOCKET)).unwrap();
        let machine = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let say = |words: &str| writeln!(&stream, "{words}").unwrap();
            say(r#"{"QMP": {}}"#);
            let mut heard = Vec::new();
            for answer in [
                r#"{"return": {}}"#,
                "{\"return\": {}}\n{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"d1\"}}",
                r#"{"return": {"running": true}}"#,
                r#"{"error": {"desc": "no"}}"#,
            ] {
                heard.push(lines.next().unwrap().unwrap());
                say(answer);
            }
            heard
        });
        let mut monitor = Monitor::open(folder.path()).unwrap();
        monitor.unplug("d1", COMMAND_LIMIT).unwrap();
        monitor.execute("device_add", &json!({})).unwrap_err();
        let heard = machine.join().unwrap();
        assert!(heard[1].contains("device_del") && heard[2].contains("query-status"));
    }
}
