//! Frames through a real tap where the machine lets us make one, and the checks before it.
