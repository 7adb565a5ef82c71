//! The host's side of a guest's network interface, for hands and for the lab: the queues of a tap and
//! the descriptors of vhost-net, opened as an agent opens them.

use std::fs::{File, OpenOptions};
use std::io;

use anyhow::{Context as _, Result, bail};
use berth_api::vmm::Network;
use berth_vmm_sys::Tap;

use crate::launch::Descriptors;

/// A network interface of a guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TapOptions {
    /// The tap's name. It is made if it is not there.
    pub name: String,
    /// Queue pairs.
    pub queues: usize,
    /// Whether packets go through the host's kernel.
    pub vhost: bool,
    /// The guest's address on the link; made up from the name otherwise.
    pub mac: Option<String>,
}

impl TapOptions {
    /// Reads `NAME[,queues=N][,vhost][,mac=ADDRESS]`.
    ///
    /// # Errors
    /// If it is something else.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parts = text.split(',');
        let mut found = Self {
            name: parts.next().unwrap_or_default().to_owned(),
            queues: 1,
            vhost: false,
            mac: None,
        };
        for part in parts {
            match part.split_once('=') {
                None if part == "vhost" => found.vhost = true,
                Some(("queues", count)) => {
                    let count = count.parse().ok().filter(|&count| count > 0);
                    found.queues = count.with_context(|| format!("`{part}` is no number"))?;
                }
                Some(("mac", mac)) => found.mac = Some(mac.to_owned()),
                _ => bail!("`{part}` is none of queues=N, vhost and mac=ADDRESS"),
            }
        }
        Ok(found)
    }

    /// Opens everything that the interface needs.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(&self, descriptors: &mut Descriptors) -> Result<Network> {
        let mut taps = Vec::new();
        let mut vhost = Vec::new();
        for _ in 0..self.queues {
            let tap = open_tap(&self.name, self.queues > 1)
                .with_context(|| format!("making a queue of the tap {}", self.name))?;
            taps.push(descriptors.add(tap.into_descriptor()));
            if self.vhost {
                let file = open("/dev/vhost-net").context("opening /dev/vhost-net")?;
                vhost.push(descriptors.add(file));
            }
        }
        Ok(Network {
            taps,
            vhost,
            mac: self.mac.clone().unwrap_or_else(|| made_up_mac(&self.name)),
            mtu: None,
        })
    }
}

/// One more queue of the interface `name`. One that was made with a single queue cannot get several,
/// and one that was made for several says so at each.
///
/// # Errors
/// What the kernel says.
pub fn open_tap(name: &str, is_multiqueue: bool) -> io::Result<Tap> {
    let attach = |is_multiqueue| Tap::attach_to(open("/dev/net/tun")?.into(), name, is_multiqueue);
    match attach(is_multiqueue) {
        Err(error) if !is_multiqueue && error.kind() == io::ErrorKind::InvalidInput => attach(true),
        result => result,
    }
}

fn open(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Differs for interfaces whose names differ in their ends, as names on one host do.
fn made_up_mac(name: &str) -> String {
    let mut end = [0; 4];
    for (byte, letter) in end.iter_mut().zip(name.bytes().rev()) {
        *byte = letter;
    }
    let [a, b, c, d] = end;
    format!("52:54:{d:02x}:{c:02x}:{b:02x}:{a:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_in_any_order() {
        let all = TapOptions::parse("tap0,vhost,mac=52:54:00:00:00:01,queues=2").unwrap();
        assert_eq!(
            (all.name.as_str(), all.queues, all.vhost),
            ("tap0", 2, true)
        );
        assert_eq!(all.mac.as_deref(), Some("52:54:00:00:00:01"));
        let plain = TapOptions::parse("berth1").unwrap();
        assert_eq!((plain.queues, plain.vhost, plain.mac), (1, false, None));
        for wrong in [
            "tap0,queues=0",
            "tap0,queues=x",
            "tap0,vhost=1",
            "tap0,fast",
        ] {
            assert!(TapOptions::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn made_up_addresses_are_local_and_differ() {
        assert_eq!(made_up_mac("tap0"), "52:54:74:61:70:30");
        assert_eq!(made_up_mac("x"), "52:54:00:00:00:78");
        assert_ne!(made_up_mac("tap0"), made_up_mac("tap1"));
    }
}
