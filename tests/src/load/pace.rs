//! The open loop: requests leave at planned times, whatever the answers do, and are measured from
//! those times. A server that stalls for a second has a second of late answers to show for it, not
//! one; a generator that waits for answers would have hidden the others.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use super::latency::{Latencies, Percentiles};

/// When requests leave.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Requests per second, at least 1.
    pub per_second: u32,
    /// How many in all.
    pub count: u64,
    /// Most that are unanswered at once. A request beyond that cannot leave: it is counted as unsent,
    /// and the rate as not borne.
    pub most_open: usize,
}

impl Pace {
    /// So many per second for so long.
    #[must_use]
    pub fn new(per_second: u32, lasts: Duration, most_open: usize) -> Self {
        let per_second = per_second.max(1);
        Self {
            per_second,
            count: u64::from(per_second) * lasts.as_secs(),
            most_open,
        }
    }

    /// When a request leaves, counted from the first.
    #[must_use]
    pub fn at(&self, number: u64) -> Duration {
        let per_second = u64::from(self.per_second.max(1));
        let rest = (number % per_second) * 1_000_000_000 / per_second;
        Duration::from_secs(number / per_second) + Duration::from_nanos(rest)
    }
}

/// What became of a paced run.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Paced {
    /// Requests per second that were planned.
    pub planned_per_s: u32,
    /// Requests that left.
    pub sent: u64,
    /// Requests that could not leave, as too many others were unanswered.
    pub unsent: u64,
    /// Answers as wanted.
    pub wanted: u64,
    /// Answers of other kinds, by their kind.
    pub unwanted: BTreeMap<String, u64>,
    /// Answers as wanted per second, from the first planned time to the last answer.
    pub wanted_per_s: f64,
    /// From each planned time to its answer, of answers as wanted.
    pub latency: Percentiles,
    /// How late requests left: the generator's own share of that.
    pub lateness: Percentiles,
}

impl Paced {
    /// Whether the rate was borne: everything left, was answered as wanted, and the answers kept up.
    #[must_use]
    pub fn is_borne(&self) -> bool {
        self.unsent == 0
            && self.unwanted.is_empty()
            && self.wanted_per_s >= 0.95 * f64::from(self.planned_per_s)
    }
}

struct Answered {
    planned: Instant,
    left: Instant,
    arrived: Instant,
    answer: Result<(), String>,
}

/// Send requests at this pace. `send` makes one, by its number; it says what was wrong with an answer
/// that was not as wanted.
pub async fn run<F>(pace: Pace, send: impl Fn(u64) -> F) -> Paced
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let open = Arc::new(Semaphore::new(pace.most_open));
    let (answers, arriving) = mpsc::unbounded_channel();
    let begun = Instant::now();
    let counting = tokio::spawn(count(pace, begun, arriving));
    let mut unsent = 0;
    for number in 0..pace.count {
        let planned = begun + pace.at(number);
        sleep_until(planned).await;
        match Arc::clone(&open).try_acquire_owned() {
            Ok(permit) => {
                drop(tokio::spawn(one(
                    planned,
                    permit,
                    send(number),
                    answers.clone(),
                )));
            }
            Err(_) => unsent += 1,
        }
    }
    drop(answers);
    let counted = counting.await.unwrap_or_default();
    Paced { unsent, ..counted }
}

async fn one(
    planned: Instant,
    permit: OwnedSemaphorePermit,
    request: impl Future<Output = Result<(), String>>,
    answers: mpsc::UnboundedSender<Answered>,
) {
    let left = Instant::now();
    let answer = request.await;
    drop(permit);
    // The counting side lives until the last of these is dropped.
    drop(answers.send(Answered {
        planned,
        left,
        arrived: Instant::now(),
        answer,
    }));
}

async fn count(
    pace: Pace,
    begun: Instant,
    mut arriving: mpsc::UnboundedReceiver<Answered>,
) -> Paced {
    let (mut latency, mut lateness) = (Latencies::default(), Latencies::default());
    let mut paced = Paced {
        planned_per_s: pace.per_second,
        ..Paced::default()
    };
    let mut last = begun;
    while let Some(answered) = arriving.recv().await {
        paced.sent += 1;
        lateness.record(answered.left.duration_since(answered.planned));
        last = last.max(answered.arrived);
        match answered.answer {
            Ok(()) => {
                paced.wanted += 1;
                latency.record(answered.arrived.duration_since(answered.planned));
            }
            Err(kind) => *paced.unwanted.entry(kind).or_default() += 1,
        }
    }
    // A run that is shorter than its plan was cut by nothing but its last answer's haste.
    let took = last.duration_since(begun).max(pace.at(pace.count));
    paced.wanted_per_s = rate(paced.wanted, took);
    paced.latency = latency.percentiles();
    paced.lateness = lateness.percentiles();
    paced
}

/// So many in such a time, per second; 0 of no time.
#[must_use]
pub fn rate(count: u64, took: Duration) -> f64 {
    let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    if took.is_zero() {
        0.0
    } else {
        count / took.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::sync::Barrier;

    use super::*;

    fn pace(per_second: u32, count: u64, most_open: usize) -> Pace {
        Pace {
            per_second,
            count,
            most_open,
        }
    }

    #[test]
    fn planned_times_are_even_and_do_not_drift() {
        let thirds = pace(3, 7, 1);
        assert_eq!(thirds.at(0), Duration::ZERO);
        assert_eq!(thirds.at(1), Duration::from_nanos(333_333_333));
        assert_eq!(thirds.at(3), Duration::from_secs(1));
        assert_eq!(thirds.at(3_000_000), Duration::from_secs(1_000_000));
        assert_eq!(Pace::new(20, Duration::from_secs(3), 1).count, 60);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_leave_though_no_answer_comes() {
        // Nobody is answered before the last has left: a closed loop would never end.
        let all_left = Arc::new(Barrier::new(100));
        let paced = run(pace(1000, 100, 100), |_| {
            let all_left = Arc::clone(&all_left);
            async move {
                all_left.wait().await;
                Ok(())
            }
        })
        .await;
        assert_eq!((paced.sent, paced.wanted, paced.unsent), (100, 100, 0));
        // The first has waited for the last, 99 ms later; the last for nobody.
        assert!(paced.latency.max_ms >= 99.0, "{paced:?}");
        assert!(paced.latency.p50_ms < 60.0, "{paced:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_is_in_the_latency_of_everybody_who_was_due_meanwhile() {
        let begun = Instant::now();
        let paced = run(pace(100, 200, 1000), |_| async move {
            // Nobody is served in the first second.
            sleep_until(begun + Duration::from_secs(1)).await;
            Ok(())
        })
        .await;
        // The hundred that were due in that second waited half a second on average.
        assert!((400.0..600.0).contains(&paced.latency.p50_ms) || paced.latency.p90_ms >= 700.0);
        assert!(paced.latency.p90_ms >= 700.0, "{paced:?}");
        assert!(paced.lateness.max_ms < 3.0, "{paced:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_leave_and_what_is_refused_is_told() {
        let never = Arc::new(AtomicU64::new(0));
        let paced = run(pace(10, 20, 2), |number| {
            let never = Arc::clone(&never);
            async move {
                match number {
                    0 => Err("503".to_owned()),
                    _ => {
                        never.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_secs(60)).await;
                        Ok(())
                    }
                }
            }
        })
        .await;
        assert_eq!(paced.unwanted, BTreeMap::from([("503".to_owned(), 1)]));
        assert_eq!((paced.sent, paced.wanted, paced.unsent), (3, 2, 17));
        assert!(!paced.is_borne());
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_borne_if_all_is_answered_in_its_time() {
        let paced = run(pace(50, 100, 10), |_| async { Ok(()) }).await;
        assert!(paced.is_borne(), "{paced:?}");
        assert!((49.0..=50.5).contains(&paced.wanted_per_s), "{paced:?}");
    }
}
