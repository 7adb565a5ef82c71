//! `berthctl slot`: what is rented out. `local` is what a host's owner does on the host itself, `remote`
//! what operators do through the controller.

use clap::Subcommand;

pub(crate) mod local;
pub(crate) mod receipts;
pub(crate) mod remote;

/// What can be done with slots.
#[derive(Subcommand, Debug)]
pub(crate) enum SlotCommand {
    /// What this host's owner does here, without a controller.
    #[command(flatten)]
    Local(local::LocalSlotCommand),
    /// What is done through the controller.
    #[command(flatten)]
    Remote(remote::RemoteSlotCommand),
}
