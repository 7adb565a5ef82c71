//! Locking that a panic elsewhere cannot turn into a second panic.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`. A poisoned lock is taken all the same: release builds abort on panic, and in a
/// test the first panic is the one worth reading.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
