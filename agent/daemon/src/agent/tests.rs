//! The agent on a fake host: what tasks bring, and what a killed agent leaves to the next.

mod crashes;
mod lives;
mod seeds;
mod slot_crashes;
mod slot_lives;
mod slot_world;
mod world;
