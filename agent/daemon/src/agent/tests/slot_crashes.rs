//! Crashes of slots.
