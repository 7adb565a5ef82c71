//! The model over sane devices and over devices that lie, fail or go away.
