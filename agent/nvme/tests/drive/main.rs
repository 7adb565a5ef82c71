//! The driver and the wipe against the scripted drive: what an honest drive yields, every lie and failure
//! of a dishonest one, what a crash leaves, and one property over all of them.
#![forbid(unsafe_code)]

#[cfg(test)]
mod bench;
#[cfg(test)]
mod crashes;
#[cfg(test)]
mod honest;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod lies;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tenants;
