//! The gate that every vCPU's thread passes before it enters the guest.
//!
//! ```text
//! closed (as built) ──open──▶ open ──close: kick, wait for all──▶ closed
//!                               ▲                └──not all in time──┐
//!                               └────────────────────────────────────┘
//! ```
//! Owns who waits and the kicks. Why it is opened or closed is the caller's business.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use berth_vmm_sys::VcpuThread;

/// One machine's gate.
#[derive(Debug)]
pub struct Gate {
    is_closed: AtomicBool,
    waiters: Mutex<Waiters>,
    changed: Condvar,
    vcpus: usize,
}

#[derive(Debug, Default)]
struct Waiters {
    threads: Vec<VcpuThread>,
    waiting: usize,
    /// Nobody has to wait any more: the machine has ended.
    is_over: bool,
}

impl Gate {
    /// A closed gate for `vcpus` threads.
    #[must_use]
    pub fn new(vcpus: usize) -> Self {
        Self {
            is_closed: AtomicBool::new(true),
            waiters: Mutex::default(),
            changed: Condvar::new(),
            vcpus,
        }
    }

    /// Makes the calling thread one that [`Self::close`] kicks and waits for.
    pub fn join(&self) {
        self.lock().threads.push(VcpuThread::current());
    }

    /// Waits until the gate is open. Called before every entry into the guest.
    pub fn pass(&self) {
        if !self.is_closed.load(Ordering::SeqCst) {
            return;
        }
        let mut waiters = self.lock();
        waiters.waiting += 1;
        self.changed.notify_all();
        while self.is_closed.load(Ordering::SeqCst) {
            waiters = self.wait(waiters);
        }
        waiters.waiting -= 1;
    }

    /// Lets all threads through.
    pub fn open(&self) {
        let _waiters = self.lock();
        self.is_closed.store(false, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Closes the gate and waits until no thread is in the guest, or until the machine is over.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if that takes longer than `patience`, or if a thread cannot be
    /// kicked. The gate is open again then.
    pub fn close(&self, patience: Duration) -> io::Result<()> {
        let closed = self.try_close(patience);
        if closed.is_err() {
            self.open();
        }
        closed
    }

    fn try_close(&self, patience: Duration) -> io::Result<()> {
        let threads = {
            let waiters = self.lock();
            self.is_closed.store(true, Ordering::SeqCst);
            waiters.threads.clone()
        };
        for thread in threads {
            thread.kick()?;
        }
        let start = Instant::now();
        let mut waiters = self.lock();
        while !self.is_at_rest(&waiters) {
            let left = patience
                .checked_sub(start.elapsed())
                .ok_or(io::ErrorKind::TimedOut)?;
            let waited = self.changed.wait_timeout(waiters, left);
            (waiters, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Waits until every thread waits at the closed gate, or until the machine is over.
    pub fn wait_for_all(&self) {
        let mut waiters = self.lock();
        while !self.is_at_rest(&waiters) {
            waiters = self.wait(waiters);
        }
    }

    fn is_at_rest(&self, waiters: &Waiters) -> bool {
        waiters.waiting >= self.vcpus || waiters.is_over
    }

    /// Nobody waits for the threads any more: some of them never come again.
    pub fn give_up(&self) {
        self.lock().is_over = true;
        self.changed.notify_all();
    }

    /// Whether threads are held.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, Waiters> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, waiters: MutexGuard<'a, Waiters>) -> MutexGuard<'a, Waiters> {
        self.changed
            .wait(waiters)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// Threads that pass a gate over and over and count how often.
    fn with_runners(vcpus: usize, test: impl FnOnce(&Gate, &AtomicU64)) {
        berth_vmm_sys::install_kick_handler().unwrap();
        let (gate, passes, is_done) = (Gate::new(vcpus), AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..vcpus {
                scope.spawn(|| {
                    gate.join();
                    while !is_done.load(Ordering::SeqCst) {
                        gate.pass();
                        passes.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            test(&gate, &passes);
            is_done.store(true, Ordering::SeqCst);
            gate.open();
        });
    }

    #[test]
    fn nobody_passes_before_the_gate_is_opened_or_after_it_was_closed() {
        with_runners(3, |gate, passes| {
            gate.wait_for_all();
            assert_eq!(passes.load(Ordering::SeqCst), 0);
            for _ in 0..20 {
                gate.open();
                let before = passes.load(Ordering::SeqCst);
                while passes.load(Ordering::SeqCst) == before {
                    std::thread::yield_now();
                }
                gate.close(PATIENCE).unwrap();
                assert!(gate.is_closed());
                let at_rest = passes.load(Ordering::SeqCst);
                std::thread::yield_now();
                assert_eq!(passes.load(Ordering::SeqCst), at_rest);
            }
        });
    }

    #[test]
    fn who_closes_does_not_wait_for_threads_of_a_machine_that_is_over() {
        let gate = Gate::new(1);
        gate.open();
        gate.give_up();
        gate.close(PATIENCE).unwrap();
        assert!(gate.is_closed());
    }

    #[test]
    fn a_gate_that_not_all_reach_in_time_is_open_again() {
        // One thread of two never comes.
        let gate = Gate::new(2);
        gate.open();
        let error = gate.close(Duration::from_millis(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(!gate.is_closed());
    }
}
