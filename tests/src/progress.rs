//! What a person sees while something long runs: phase, elapsed time, and time left.
//!
//! Time left comes from the durations of the last successful run, kept in `build/durations.json`.
//! On a terminal one live line is redrawn; elsewhere each phase prints one line when it begins.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Whether a live line is on the terminal, which another line has to wipe first.
static LIVE: AtomicBool = AtomicBool::new(false);
/// Whether standard output is left to a document that the task prints.
static STDOUT_IS_TAKEN: AtomicBool = AtomicBool::new(false);
/// How often the live line is redrawn.
const REDRAW: Duration = Duration::from_millis(250);

/// The phases of one task. Ends its live line when dropped.
#[derive(Debug)]
pub struct Progress {
    task: String,
    history: History,
    done: Vec<(String, Duration)>,
    began: Instant,
    current: Option<Phase>,
    terminal: bool,
    failed: bool,
}

#[derive(Debug)]
struct Phase {
    name: String,
    began: Instant,
    ticker: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Progress of a task; its name is the key under which durations are kept.
    #[must_use]
    pub fn new(task: &str) -> Self {
        Self {
            task: task.to_owned(),
            history: History::load(crate::workspace::build_dir().join("durations.json")),
            done: Vec::new(),
            began: Instant::now(),
            current: None,
            // A task inside another one leaves the live line to the outer one.
            terminal: std::io::stdout().is_terminal() && !LIVE.load(Ordering::Relaxed),
            failed: false,
        }
    }

    /// Ends the phase before and begins another.
    pub fn phase(&mut self, name: &str) {
        self.end_phase();
        let expected = self.history.phase(&self.task, name);
        let left_after = self.history.after(&self.task, name);
        let number = self.done.len() + 1;
        let began = Instant::now();
        let ticker = if self.terminal {
            Some(start_ticker(number, name.to_owned(), expected, left_after))
        } else {
            say(&format!(
                "[{number}] {name}{}",
                outlook(expected, left_after)
            ));
            None
        };
        self.current = Some(Phase {
            name: name.to_owned(),
            began,
            ticker,
        });
    }

    /// Ends the task well: its durations become the next run's forecast.
    pub fn finish(mut self) -> Duration {
        self.end_phase();
        self.history.record(&self.task, &self.done);
        self.began.elapsed()
    }

    fn end_phase(&mut self) {
        let Some(phase) = self.current.take() else {
            return;
        };
        if let Some((stop, thread)) = phase.ticker {
            drop(stop);
            // A ticker that panicked has drawn its last line; nothing else depends on it.
            if thread.join().is_ok() {
                say(&format!(
                    "[{}] {}: {}{}",
                    self.done.len() + 1,
                    phase.name,
                    short(phase.began.elapsed()),
                    if self.failed { ", not finished" } else { "" }
                ));
            }
            LIVE.store(false, Ordering::Relaxed);
        }
        self.done.push((phase.name, phase.began.elapsed()));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // `finish` has ended the last phase; one that is still open did not get to its end.
        self.failed = true;
        self.end_phase();
    }
}

/// A duration for people, such as `4.2 s` or `1 min 05 s`.
#[must_use]
pub fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    }
}

/// From now on [`say`] writes to standard error: standard output is for a document alone.
pub fn leave_stdout_alone() {
    STDOUT_IS_TAKEN.store(true, Ordering::Relaxed);
}

/// Writes one line to standard output, above the live line if there is one. A reader that went away
/// is not this program's problem.
pub fn say(text: &str) {
    if STDOUT_IS_TAKEN.load(Ordering::Relaxed) {
        if writeln!(std::io::stderr(), "{text}").is_err() {
            // As below.
        }
        return;
    }
    let wipe = if LIVE.load(Ordering::Relaxed) {
        "\r\x1b[K"
    } else {
        ""
    };
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{wipe}{text}")
        .and_then(|()| out.flush())
        .is_err()
    {
        // Nobody reads any more; the exit status still tells how it went.
    }
}

fn outlook(expected: Option<Duration>, after: Duration) -> String {
    match expected {
        Some(expected) => format!(
            " (took {} last time; about {} left in all)",
            short(expected),
            short(expected + after)
        ),
        None => String::new(),
    }
}

fn start_ticker(
    number: usize,
    name: String,
    expected: Option<Duration>,
    after: Duration,
) -> (Sender<()>, JoinHandle<()>) {
    let (stop, stopped) = channel::<()>();
    let began = Instant::now();
    LIVE.store(true, Ordering::Relaxed);
    let thread = std::thread::spawn(move || {
        while stopped.recv_timeout(REDRAW) == Err(RecvTimeoutError::Timeout) {
            let elapsed = began.elapsed();
            let left = expected.map_or_else(String::new, |expected| {
                format!(
                    ", about {} left",
                    short(expected.saturating_sub(elapsed) + after)
                )
            });
            let line = format!("\r\x1b[K[{number}] {name}: {}{left}", short(elapsed));
            let mut out = std::io::stdout().lock();
            if out
                .write_all(line.as_bytes())
                .and_then(|()| out.flush())
                .is_err()
            {
                return;
            }
        }
    });
    (stop, thread)
}

/// Durations of the last successful run of each task, phase by phase in order.
#[derive(Debug)]
struct History {
    path: PathBuf,
    tasks: BTreeMap<String, Vec<(String, u64)>>,
}

impl History {
    fn load(path: PathBuf) -> Self {
        // A missing or damaged file means that there is no forecast, no more.
        let tasks = std::fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self { path, tasks }
    }

    fn phase(&self, task: &str, name: &str) -> Option<Duration> {
        let phases = self.tasks.get(task)?;
        let (_, ms) = phases.iter().find(|(phase, _)| phase == name)?;
        Some(Duration::from_millis(*ms))
    }

    /// What came after the named phase last time.
    fn after(&self, task: &str, name: &str) -> Duration {
        let phases = self.tasks.get(task).map_or(&[][..], Vec::as_slice);
        let rest = phases.iter().skip_while(|(phase, _)| phase != name).skip(1);
        Duration::from_millis(rest.map(|(_, ms)| ms).sum())
    }

    fn record(&mut self, task: &str, done: &[(String, Duration)]) {
        let phases = done.iter().map(|(name, took)| {
            (
                name.clone(),
                u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            )
        });
        self.tasks.insert(task.to_owned(), phases.collect());
        let Ok(text) = serde_json::to_vec_pretty(&self.tasks) else {
            return;
        };
        if let Some(folder) = self.path.parent()
            && std::fs::create_dir_all(folder).is_ok()
            && std::fs::write(&self.path, text).is_err()
        {
            // Without a record the next run has no forecast, and that is all.
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forecast_is_the_last_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("durations.json");
        let mut history = History::load(path.clone());
        let done = [("build", 30), ("boot", 20), ("walk", 10)]
            .map(|(name, seconds)| (name.to_owned(), Duration::from_secs(seconds)));
        history.record("demo", &done);
        let history = History::load(path);
        assert_eq!(history.phase("demo", "boot"), Some(Duration::from_secs(20)));
        assert_eq!(history.after("demo", "build"), Duration::from_secs(30));
        assert_eq!(history.phase("demo", "unheard of"), None);
        assert_eq!(history.phase("test", "boot"), None);
    }

    #[test]
    fn a_damaged_record_is_no_forecast() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("durations.json");
        std::fs::write(&path, "{").unwrap();
        assert_eq!(History::load(path).phase("demo", "boot"), None);
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(short(Duration::from_millis(4_240)), "4.2 s");
        assert_eq!(short(Duration::from_secs(65)), "1 min 05 s");
    }
}
