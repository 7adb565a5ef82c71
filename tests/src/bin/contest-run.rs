//! Runs one command and tells when two words came out of it: for comparing VMMs on a lab node.
//!
//! The command's output is copied to a file. When the second word has come, or the time is over, the
//! command is ended. One JSON line on standard output has the times, in seconds since just before
//! the command was started, what the command's process used, and what its threads and KVM did from
//! the first word to the first mark and from each mark to the next one.
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
use berth_tests::processor_time::{self, Moment, Stretch};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

const USAGE: &str = "usage: contest-run --first WORD --last WORD [--mark WORDS] --log FILE \
     --timeout SECONDS -- COMMAND...\n\
     A mark is a line that has WORDS in it; its name is the word that follows them.";
/// How long an ended command may take before it is killed.
const GRACE: Duration = Duration::from_secs(5);

struct Arguments {
    words: [String; 2],
    mark: Option<String>,
    log: PathBuf,
    limit: Duration,
    command: Vec<String>,
}

fn parse(words: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut words = words;
    let (mut first, mut last, mut mark) = (None, None, None);
    let (mut log, mut limit) = (None, None);
    while let Some(word) = words.next() {
        if word == "--" {
            break;
        }
        let value = words.next();
        match word.as_str() {
            "--first" => first = value,
            "--last" => last = value,
            "--mark" => mark = value,
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
        mark,
        log: log.context("--log is missing")?.into(),
        limit: Duration::from_secs(limit.context("--timeout is missing")?.parse()?),
        command,
    })
}

/// What was seen, in this order.
enum Seen {
    Word(usize, Instant),
    Mark(String),
    End,
}

/// Looks for the words and marks in what comes out, and tells of each: of a word once, the first one
/// first.
struct Looker<'a> {
    words: &'a [String; 2],
    mark: Option<&'a str>,
    seen: &'a Sender<Seen>,
    /// Which word is looked for.
    next: usize,
    /// What may be the beginning of that word.
    text: Vec<u8>,
    /// The line that has not ended yet.
    line: Vec<u8>,
}

impl Looker<'_> {
    fn take(&mut self, bytes: &[u8], now: Instant) {
        // Before the words: the last figure and the last word often come together.
        self.look_for_marks(bytes);
        self.text.extend_from_slice(bytes);
        while let Some(word) = self.words.get(self.next) {
            let Some(place) = find(&self.text, word.as_bytes()) else {
                break;
            };
            self.text.drain(..place + word.len());
            self.tell(Seen::Word(self.next, now));
            self.next += 1;
        }
        let longest = self.words.iter().map(String::len).max().unwrap_or(0);
        self.text.drain(..self.text.len().saturating_sub(longest));
    }

    fn look_for_marks(&mut self, bytes: &[u8]) {
        let Some(mark) = self.mark else { return };
        self.line.extend_from_slice(bytes);
        while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let after = line.split_once(mark).map(|(_, after)| after);
            if let Some(name) = after.and_then(|after| after.split_whitespace().next()) {
                self.tell(Seen::Mark(name.to_owned()));
            }
        }
    }

    fn tell(&self, what: Seen) {
        // Nobody listens once the last word has come.
        let _heard = self.seen.send(what);
    }
}

/// Copies the output and tells what is in it.
fn copy(mut output: std::io::PipeReader, mut log: File, mut looker: Looker<'_>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = output.read(&mut buffer) {
        let now = Instant::now();
        let bytes = &buffer[..count];
        // The log is for people; the measurement goes on without it.
        let _logged = log.write_all(bytes);
        looker.take(bytes, now);
    }
    looker.tell(Seen::End);
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window == word)
}

fn run(arguments: &Arguments) -> Result<serde_json::Value> {
    let log = File::create(&arguments.log).context("creating the log")?;
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    let (sender, seen) = channel();
    let (words, mark) = (arguments.words.clone(), arguments.mark.clone());
    let copying = std::thread::spawn(move || {
        let looker = Looker {
            words: &words,
            mark: mark.as_deref(),
            seen: &sender,
            next: 0,
            text: Vec::new(),
            line: Vec::new(),
        };
        copy(reader, log, looker);
    });
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
    let heard = hear(&seen, begun, arguments.limit, &group);
    end(&mut child)?;
    drop(copying.join());
    let heard = heard?;
    let [first, last] = heard.times;
    let stretches = heard
        .stretches
        .iter()
        .map(|(mark, stretch)| serde_json::json!({ "mark": mark, "stretch": stretch }));
    Ok(serde_json::json!({
        "first_s": first.map(|time| time.as_secs_f64()),
        "last_s": last.map(|time| time.as_secs_f64()),
        "cpu_first_s": heard.cpu_first.map(|time| time.as_secs_f64()),
        "stretches": stretches.collect::<Vec<_>>(),
    }))
}

/// What came out of the command until its end, or its last word.
#[derive(Default)]
struct Heard {
    /// When the words came; `None` for what did not come.
    times: [Option<Duration>; 2],
    /// Processor time when the first word came.
    cpu_first: Option<Duration>,
    /// What was done up to each mark.
    stretches: Vec<(String, Stretch)>,
}

/// Waits for both words.
fn hear(seen: &Receiver<Seen>, begun: Instant, limit: Duration, group: &Group) -> Result<Heard> {
    let mut heard = Heard::default();
    let mut before = None;
    while heard.times[1].is_none() {
        let left = limit.saturating_sub(begun.elapsed());
        match seen.recv_timeout(left) {
            Ok(Seen::Word(number, at)) => {
                heard.times[number] = Some(at.duration_since(begun));
                if number == 0 {
                    heard.cpu_first = Some(processor_time::group_cpu(&group.0)?);
                    before = Some(Moment::of(&group.0)?);
                }
            }
            Ok(Seen::Mark(name)) => {
                let now = Moment::of(&group.0)?;
                if let Some(before) = before.replace(now.clone()) {
                    heard.stretches.push((name, now.since(&before)));
                }
            }
            Ok(Seen::End) | Err(_) => break,
        }
    }
    Ok(heard)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_marks_are_seen_wherever_the_output_is_cut() {
        let words = ["began".to_owned(), "END 0".to_owned()];
        let output = b"[1] OUT began\r\n[2] OUT fio a_iops 7\r\n[3] fio b 8\nOUT fio c 9\nEND 0\n";
        for cut in 0..output.len() {
            let (sender, seen) = channel();
            let mut looker = Looker {
                words: &words,
                mark: Some("OUT fio "),
                seen: &sender,
                next: 0,
                text: Vec::new(),
                line: Vec::new(),
            };
            let now = Instant::now();
            looker.take(&output[..cut], now);
            looker.take(&output[cut..], now);
            drop(sender);
            let seen: Vec<String> = seen
                .iter()
                .map(|what| match what {
                    Seen::Word(number, _) => format!("word {number}"),
                    Seen::Mark(name) => format!("mark {name}"),
                    Seen::End => "end".to_owned(),
                })
                .collect();
            assert_eq!(seen.len(), 4, "cut at {cut}: {seen:?}");
            // Nobody listens after the last word.
            assert_eq!(seen[3], "word 1", "cut at {cut}");
            for what in ["word 0", "mark a_iops", "mark c", "word 1"] {
                assert!(seen.contains(&what.to_owned()), "cut at {cut}: {seen:?}");
            }
        }
    }
}
