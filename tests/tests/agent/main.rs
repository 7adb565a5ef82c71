//! `berth-agent` as its operator and its controller meet it: arguments in, text and exit status out,
//! and signed envelopes over HTTP. The controller and the system bus are stand-ins of this test, so
//! neither systemd nor a network is needed; nothing here starts a VM.

#[cfg(test)]
mod bus;
#[cfg(test)]
mod controller;
#[cfg(test)]
mod host;

#[cfg(test)]
mod join;
#[cfg(test)]
mod log;
#[cfg(test)]
mod tasks;
