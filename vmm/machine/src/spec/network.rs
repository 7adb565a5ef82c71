//! Checks of network interfaces: addresses, and that descriptors are queues of one tap.

use std::os::fd::OwnedFd;

use berth_api::vmm::{self, FdIndex};
use berth_vmm_sys::{Tap, TapInterface};
use rustix::fs::{FileType, major, minor};

use super::{Access, Intake, check_access, not_a, status};
use crate::refusal::Refusal;

/// Device number of `/dev/net/tun`: fixed by the kernel.
const TUN_DEVICE: (u32, u32) = (10, 200);
/// Device number of `/dev/vhost-net`: fixed by the kernel.
const VHOST_NET_DEVICE: (u32, u32) = (10, 238);
/// Least MTU of a link with IPv4.
const MIN_MTU: u16 = 68;
/// Bits of a MAC address' first byte.
const MAC_MULTICAST: u8 = 1;
const MAC_LOCAL: u8 = 2;

/// One network interface.
#[derive(Debug)]
pub struct NetworkSpec {
    /// The queues of one tap interface, one for each queue pair.
    pub taps: Vec<Tap>,
    /// No descriptors, or as many `/dev/vhost-net`.
    pub vhost: Vec<OwnedFd>,
    /// The guest's address on the link.
    pub mac: [u8; 6],
    /// The link's MTU, if the guest is told.
    pub mtu: Option<u16>,
}

/// Refuses what can be refused without descriptors.
pub(super) fn check_values(networks: &[vmm::Network]) -> Result<(), Refusal> {
    if networks.len() > vmm::MAX_NETWORKS {
        return Err(Refusal::new(
            "networks",
            format!("{} interfaces are more than a machine has", networks.len()),
            format!("give at most {}", vmm::MAX_NETWORKS),
        ));
    }
    for (position, network) in networks.iter().enumerate() {
        let field = |name: &str| format!("networks[{position}].{name}");
        check_mac(&field("mac"), &network.mac)?;
        if network.mtu.is_some_and(|mtu| mtu < MIN_MTU) {
            return Err(Refusal::new(
                field("mtu"),
                "it is less than any link with IP has",
                format!("use {MIN_MTU} to {}, or leave it out", u16::MAX),
            ));
        }
        if !(1..=vmm::MAX_QUEUE_PAIRS).contains(&network.taps.len()) {
            return Err(Refusal::new(
                field("taps"),
                format!("it has {} descriptors", network.taps.len()),
                format!(
                    "give 1 to {}, one for each queue pair",
                    vmm::MAX_QUEUE_PAIRS
                ),
            ));
        }
        if !network.vhost.is_empty() && network.vhost.len() != network.taps.len() {
            return Err(Refusal::new(
                field("vhost"),
                format!(
                    "it has {} descriptors for {} queue pairs",
                    network.vhost.len(),
                    network.taps.len()
                ),
                "give none, or one for each queue pair",
            ));
        }
    }
    Ok(())
}

/// The interface at `position`, whose values were checked.
pub(super) fn take(
    intake: &mut Intake,
    position: usize,
    network: &vmm::Network,
) -> Result<NetworkSpec, Refusal> {
    let field = |name: &str| format!("networks[{position}].{name}");
    let mut taps = Vec::with_capacity(network.taps.len());
    let mut first: Option<TapInterface> = None;
    for (queue, &index) in network.taps.iter().enumerate() {
        let field = field(&format!("taps[{queue}]"));
        let (tap, interface) = take_tap(intake, &field, index)?;
        if network.taps.len() > 1 && !interface.is_multiqueue {
            return Err(not_a(
                &field,
                "a queue of an interface with several",
                "make the interface with IFF_MULTI_QUEUE, or give one queue",
            ));
        }
        match &first {
            Some(first) if first.name != interface.name => {
                return Err(Refusal::new(
                    field,
                    format!("it is a queue of {}, not of {}", interface.name, first.name),
                    "give queues of one interface",
                ));
            }
            Some(_) => {}
            None => first = Some(interface),
        }
        taps.push(tap);
    }
    let vhost = network.vhost.iter().enumerate();
    let vhost = vhost
        .map(|(pair, &index)| take_vhost(intake, &field(&format!("vhost[{pair}]")), index))
        .collect::<Result<_, _>>()?;
    Ok(NetworkSpec {
        taps,
        vhost,
        mac: check_mac(&field("mac"), &network.mac)?,
        mtu: network.mtu,
    })
}

fn take_tap(
    intake: &mut Intake,
    field: &str,
    index: FdIndex,
) -> Result<(Tap, TapInterface), Refusal> {
    let descriptor = intake.take(field, index)?;
    check_device(
        field,
        &descriptor,
        TUN_DEVICE,
        "/dev/net/tun",
        "open /dev/net/tun for reading and writing, and set its interface",
    )?;
    let tap = Tap::new(descriptor);
    let remedy = "set an interface with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR";
    let interface = tap.interface().map_err(|error| {
        Refusal::new(
            field,
            format!("it belongs to no interface: {error}"),
            remedy,
        )
    })?;
    if !interface.is_tap_with_header {
        return Err(not_a(field, "a tap with virtio headers", remedy));
    }
    Ok((tap, interface))
}

fn take_vhost(intake: &mut Intake, field: &str, index: FdIndex) -> Result<OwnedFd, Refusal> {
    let descriptor = intake.take(field, index)?;
    check_device(
        field,
        &descriptor,
        VHOST_NET_DEVICE,
        "/dev/vhost-net",
        "open /dev/vhost-net for reading and writing, once for each queue pair",
    )?;
    Ok(descriptor)
}

fn check_device(
    field: &str,
    descriptor: &OwnedFd,
    number: (u32, u32),
    name: &str,
    remedy: &str,
) -> Result<(), Refusal> {
    let stat = status(field, descriptor)?;
    let found = (major(stat.st_rdev), minor(stat.st_rdev));
    if FileType::from_raw_mode(stat.st_mode).is_char_device() && found == number {
        return check_access(field, descriptor, Access::ReadWrite);
    }
    Err(not_a(field, name, remedy))
}

/// A unicast address that no manufacturer gave out.
fn check_mac(field: &str, text: &str) -> Result<[u8; 6], Refusal> {
    let refuse = |problem: &str| {
        Err(Refusal::new(
            field,
            problem,
            "use an address such as 52:54:00:12:34:56: unicast, locally administered",
        ))
    };
    let Some(mac) = parse_mac(text) else {
        return refuse("it is not six bytes of two hexadecimal digits with colons between them");
    };
    let [first, ..] = mac;
    if first & MAC_MULTICAST != 0 {
        return refuse("it is the address of a group");
    }
    if first & MAC_LOCAL == 0 {
        return refuse("it is the address of a manufactured device");
    }
    Ok(mac)
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next()?;
        let is_byte = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
        *byte = u8::from_str_radix(part, 16).ok().filter(|_| is_byte)?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn network() -> vmm::Network {
        vmm::Network {
            taps: vec![FdIndex(0)],
            vhost: Vec::new(),
            mac: "52:54:00:12:34:56".to_owned(),
            mtu: Some(1500),
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut vmm::Network), field: &str) {
        let mut network = network();
        change(&mut network);
        let refusal = check_values(&[self::network(), network]).unwrap_err();
        assert_eq!(refusal.field, format!("networks[1].{field}"));
        assert!(!refusal.problem.is_empty() && !refusal.remedy.is_empty());
    }

    #[test]
    fn values_of_interfaces_are_checked() {
        check_values(&[network()]).unwrap();
        for mac in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5g",
            "52:54:00:12:34:+5",
            "525:4:00:12:34:56",
            "53:54:00:12:34:56",
            "50:54:00:12:34:56",
            "ff:ff:ff:ff:ff:ff",
        ] {
            check(|network| network.mac = mac.to_owned(), "mac");
        }
        check(|network| network.mtu = Some(67), "mtu");
        check(|network| network.taps.clear(), "taps");
        check(|network| network.taps = vec![FdIndex(0); 9], "taps");
        check(|network| network.vhost = vec![FdIndex(1); 2], "vhost");
        let nine = vec![network(); 9];
        assert_eq!(check_values(&nine).unwrap_err().field, "networks");
    }

    #[test]
    fn a_descriptor_that_is_no_tap_is_refused() {
        for path in ["/dev/null", "/proc/self/stat"] {
            let file = File::open(path).unwrap();
            let mut intake = Intake::new(vec![file.into()]).unwrap();
            let refusal = take(&mut intake, 2, &network()).unwrap_err();
            assert_eq!(refusal.field, "networks[2].taps[0]");
        }
        let mut intake = Intake::new(Vec::new()).unwrap();
        let refusal = take(&mut intake, 0, &network()).unwrap_err();
        assert_eq!(refusal.field, "networks[0].taps[0]");
    }
}
