//! Reads packages back and says what is wrong with them.
