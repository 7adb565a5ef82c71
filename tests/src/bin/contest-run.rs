//! Runs one command and tells when two words came out of it: for comparing VMMs on a lab node.
//!
//! The command's output is copied to a file. When the second word has come, or the time is over, the
//! command is ended. One JSON line on standard output has the times, in seconds since just before
//! the command was started, and what the command's process used.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

const USAGE: &str =
    "usage: contest-run --first WORD --last WORD --log FILE --timeout SECONDS -- COMMAND...";
/// How long an ended command may take before it is killed.
const GRACE: Duration = Duration::from_secs(5);

struct Arguments {
    words: [String; 2],
    log: PathBuf,
    limit: Duration,
    command: Vec<String>,
}

fn parse(words: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut words = words;
    let (mut first, mut last, mut log, mut limit) = (None, None, None, None);
    while let Some(word) = words.next() {
        if word == "--" {
            break;
        }
        let value = words.next();
        match word.as_str() {
            "--first" => first = value,
            "--last" => last = value,
            "--log" => log = value,
            "--timeout" => limit = value,
            _ => bail!("unknown option `{word}`"),
        }
    }
    let command: Vec<String> = words.collect();
    ensure!(!command.is_empty(), "there is no command");
    Ok(Arguments {
        words: [
            first.context("--first is missing")?,
            last.context("--last is missing")?,
        ],
        log: log.context("--log is missing")?.into(),
        limit: Duration::from_secs(limit.context("--timeout is missing")?.parse()?),
        command,
    })
}

/// What was seen, in this order.
enum Seen {
    Word(usize, Instant),
    End,
}

/// Copies the output and tells of each word once, the first one first.
fn copy(mut output: std::io::PipeReader, mut log: File, words: &[String; 2], seen: &Sender<Seen>) {
    let mut text = Vec::new();
    let mut next = 0;
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = output.read(&mut buffer) {
        let now = Instant::now();
        let bytes = &buffer[..count];
        // The log is for people; the measurement goes on without it.
        let _logged = log.write_all(bytes);
        text.extend_from_slice(bytes);
        while let Some(word) = words.get(next) {
            let Some(place) = find(&text, word.as_bytes()) else {
                break;
            };
            text.drain(..place + word.len());
            let _heard = seen.send(Seen::Word(next, now));
            next += 1;
        }
        let longest = words.iter().map(String::len).max().unwrap_or(0);
        text.drain(..text.len().saturating_sub(longest));
    }
    let _heard = seen.send(Seen::End);
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window == word)
}

fn run(arguments: &Arguments) -> Result<serde_json::Value> {
    let log = File::create(&arguments.log).context("creating the log")?;
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    let (sender, seen) = channel();
    let words = arguments.words.clone();
    let copying = std::thread::spawn(move || copy(reader, log, &words, &sender));
    let mut command = Command::new(&arguments.command[0]);
    command
        .args(&arguments.command[1..])
        // A group of its own, so that what it starts ends with it.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(OwnedFd::from(writer.try_clone()?))
        .stderr(OwnedFd::from(writer));
    let group = Group::enter()?;
    let begun = Instant::now();
    let mut child = command.spawn().context("starting the command")?;
    drop(command);
    let mut cpu = None;
    let times = wait(&seen, begun, arguments.limit, || cpu = group.cpu_seconds());
    end(&mut child)?;
    drop(copying.join());
    let [first, last] = times;
    Ok(serde_json::json!({
        "first_s": first.map(|time| time.as_secs_f64()),
        "last_s": last.map(|time| time.as_secs_f64()),
        "cpu_first_s": cpu,
    }))
}

/// Waits for both words; `None` for what did not come.
fn wait(
    seen: &Receiver<Seen>,
    begun: Instant,
    limit: Duration,
    mut on_first: impl FnMut(),
) -> [Option<Duration>; 2] {
    let mut times = [None; 2];
    while times[1].is_none() {
        let left = limit.saturating_sub(begun.elapsed());
        match seen.recv_timeout(left) {
            Ok(Seen::Word(number, at)) => {
                times[number] = Some(at.duration_since(begun));
                if number == 0 {
                    on_first();
                }
            }
            Ok(Seen::End) | Err(_) => break,
        }
    }
    times
}

/// A control group of this process and all that it starts.
struct Group(PathBuf);

impl Group {
    /// Makes a group and moves this process there.
    fn enter() -> Result<Self> {
        let path = PathBuf::from(format!("/sys/fs/cgroup/contest-{}", std::process::id()));
        std::fs::create_dir(&path).context("making a control group")?;
        std::fs::write(path.join("cgroup.procs"), "0").context("entering the control group")?;
        Ok(Self(path))
    }

    /// The processor time that was used in the group, by the kernel on its behalf included.
    fn cpu_seconds(&self) -> Option<f64> {
        let text = std::fs::read_to_string(self.0.join("cpu.stat")).ok()?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "))?;
        Some(Duration::from_micros(line.parse().ok()?).as_secs_f64())
    }
}

/// Ends the command: asked first, by force after a while.
fn end(child: &mut Child) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let began = Instant::now();
    let mut signal = Some(Signal::SIGTERM);
    loop {
        let state = waitpid(pid, Some(WaitPidFlag::WNOHANG))?;
        if state != WaitStatus::StillAlive {
            // Nobody may be left in the group.
            killpg(pid, Signal::SIGKILL).unwrap_or(());
            return Ok(());
        }
        if let Some(signal) = signal.take() {
            killpg(pid, signal)?;
        } else if began.elapsed() > GRACE {
            killpg(pid, Signal::SIGKILL)?;
            waitpid(pid, None)?;
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn main() -> ExitCode {
    let outcome = parse(std::env::args().skip(1))
        .map_err(|error| format!("{error:#}\n{USAGE}"))
        .and_then(|arguments| run(&arguments).map_err(|error| format!("{error:#}")));
    let (text, code) = match outcome {
        Ok(value) => (value.to_string(), ExitCode::SUCCESS),
        Err(message) => (format!("contest-run: {message}"), ExitCode::FAILURE),
    };
    // Nobody is left to tell if standard output is gone.
    let _told = writeln!(std::io::stdout(), "{text}");
    code
}
