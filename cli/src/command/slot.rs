//! `berthctl slot`: what is rented out. `local` is what a host's owner does on the host itself.

use clap::Subcommand;

pub(crate) mod local;

/// What can be done with slots.
#[derive(Subcommand, Debug)]
pub(crate) enum SlotCommand {
    /// What this host's owner does here, without a controller.
    #[command(flatten)]
    Local(local::LocalSlotCommand),
}
