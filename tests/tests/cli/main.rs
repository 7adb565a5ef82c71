//! `berthctl` and `service-fs` against a real controller, as a user meets them: arguments in, text,
//! JSON and exit codes out. The one thing that is not real is the node, which does what it is told
//! at once; it speaks the agents' protocol.

#[cfg(test)]
mod bench;
#[cfg(test)]
mod node;

#[cfg(test)]
mod ledger;
#[cfg(test)]
mod slots;
#[cfg(test)]
mod tenants;
#[cfg(test)]
mod tokens;
#[cfg(test)]
mod vms;
