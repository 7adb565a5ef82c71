//! What device and driver may leave to each other: feature bits, offloads, and which packets a
//! driver may send with what it accepted.
//!
//! Pure: numbers in, numbers out. The host's own names for offloads are the back end's business.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP, VIRTIO_NET_HDR_GSO_UDP_L4,
};

/// Bytes of the header before each packet: `struct virtio_net_hdr_v1`.
pub const HEADER_BYTES: usize = 12;
/// Longest packet, with its header: 64 KiB of IP, an Ethernet header with a VLAN tag (virtio 1.2,
/// 5.1.6.3.1).
pub const MAX_PACKET_BYTES: usize = 65_550 + HEADER_BYTES;
/// Where the header counts the buffers of a packet.
pub(super) const HEADER_BUFFERS: usize = 10;

/// Whether `features` has the bit `feature`.
pub(super) fn has(features: u64, feature: u32) -> bool {
    features & bit(feature) != 0
}

const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// Work that the host may leave to the guest: checksums to finish and segments to keep together.
/// The bits are those of the guest's features.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offloads(u64);

impl Offloads {
    /// None: every packet is complete and no longer than the link takes.
    pub const NONE: Self = Self(0);
    /// Everything but UDP segmentation.
    pub const TCP: Self = Self(
        bit(VIRTIO_NET_F_GUEST_CSUM)
            | bit(VIRTIO_NET_F_GUEST_TSO4)
            | bit(VIRTIO_NET_F_GUEST_TSO6)
            | bit(VIRTIO_NET_F_GUEST_ECN),
    );
    /// UDP fragmentation, of old.
    pub const UFO: Self = Self(bit(VIRTIO_NET_F_GUEST_UFO));
    /// UDP segmentation.
    pub const USO: Self = Self(bit(VIRTIO_NET_F_GUEST_USO4) | bit(VIRTIO_NET_F_GUEST_USO6));

    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether it has the feature bit `feature`, one of `VIRTIO_NET_F_GUEST_*`.
    #[must_use]
    pub fn has(self, feature: u32) -> bool {
        has(self.0, feature)
    }

    /// What a driver that accepted `features` takes. What lacks the feature that it builds upon
    /// (virtio 1.2, 5.1.3.1) is left out.
    #[must_use]
    pub fn accepted(features: u64) -> Self {
        let all = Self::TCP.and(Self::UFO).and(Self::USO).0;
        let tso = bit(VIRTIO_NET_F_GUEST_TSO4) | bit(VIRTIO_NET_F_GUEST_TSO6);
        let mut accepted = features & all;
        if !has(accepted, VIRTIO_NET_F_GUEST_CSUM) {
            accepted = 0;
        }
        if accepted & tso == 0 {
            accepted &= !bit(VIRTIO_NET_F_GUEST_ECN);
        }
        // The host does both kinds or none.
        if accepted & Self::USO.0 != Self::USO.0 {
            accepted &= !Self::USO.0;
        }
        Self(accepted)
    }

    /// Whether its bits are `bits`, no more and no less.
    pub(super) fn is_exactly(self, bits: u64) -> bool {
        self.0 == bits
    }
}

/// Feature bits of an interface with `pairs` queue pairs over a host that has `offloads`.
pub(super) fn offered(offloads: Offloads, pairs: u16, has_mtu: bool) -> u64 {
    let when = |condition: bool, features: u64| if condition { features } else { 0 };
    bit(VIRTIO_NET_F_MAC)
        | bit(VIRTIO_NET_F_STATUS)
        | bit(VIRTIO_NET_F_MRG_RXBUF)
        | bit(VIRTIO_NET_F_CTRL_VQ)
        | bit(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)
        | offloads.0 & !Offloads::UFO.0
        | when(
            offloads.contains(Offloads::TCP),
            bit(VIRTIO_NET_F_CSUM)
                | bit(VIRTIO_NET_F_HOST_TSO4)
                | bit(VIRTIO_NET_F_HOST_TSO6)
                | bit(VIRTIO_NET_F_HOST_ECN),
        )
        | when(offloads.contains(Offloads::UFO), bit(VIRTIO_NET_F_HOST_UFO))
        | when(offloads.contains(Offloads::USO), bit(VIRTIO_NET_F_HOST_USO))
        | when(pairs > 1, bit(VIRTIO_NET_F_MQ))
        | when(has_mtu, bit(VIRTIO_NET_F_MTU))
}

/// The header of a packet to send as the host gets it: flags that the driver may not set are
/// cleared. `None` if the packet asks for an offload that was not accepted with `features`. Offsets
/// and lengths are the host kernel's to check, against the packet itself.
pub(super) fn sent_header(
    mut header: [u8; HEADER_BYTES],
    features: u64,
) -> Option<[u8; HEADER_BYTES]> {
    let [flags, kind, ..] = &mut header;
    let checksum = if has(features, VIRTIO_NET_F_CSUM) {
        VIRTIO_NET_HDR_F_NEEDS_CSUM
    } else {
        0
    };
    let [allowed, ..] = checksum.to_le_bytes();
    *flags &= allowed;
    let has_ecn = u32::from(*kind) & VIRTIO_NET_HDR_GSO_ECN != 0;
    let accepted = match u32::from(*kind) & !VIRTIO_NET_HDR_GSO_ECN {
        VIRTIO_NET_HDR_GSO_NONE => !has_ecn,
        VIRTIO_NET_HDR_GSO_TCPV4 => has(features, VIRTIO_NET_F_HOST_TSO4),
        VIRTIO_NET_HDR_GSO_TCPV6 => has(features, VIRTIO_NET_F_HOST_TSO6),
        VIRTIO_NET_HDR_GSO_UDP => !has_ecn && has(features, VIRTIO_NET_F_HOST_UFO),
        VIRTIO_NET_HDR_GSO_UDP_L4 => !has_ecn && has(features, VIRTIO_NET_F_HOST_USO),
        _ => false,
    };
    (accepted && (!has_ecn || has(features, VIRTIO_NET_F_HOST_ECN))).then_some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offloads = Offloads::TCP.and(Offloads::UFO).and(Offloads::USO);

    #[test]
    fn nothing_is_offered_that_the_host_cannot_do() {
        let [none, tcp, all] =
            [Offloads::NONE, Offloads::TCP, ALL].map(|offloads| offered(offloads, 1, false));
        for feature in [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
        ] {
            assert!(!has(none, feature) && has(tcp, feature));
        }
        for feature in [
            VIRTIO_NET_F_HOST_USO,
            VIRTIO_NET_F_GUEST_USO4,
            VIRTIO_NET_F_HOST_UFO,
        ] {
            assert!(!has(tcp, feature) && has(all, feature));
        }
        assert!(!has(all, VIRTIO_NET_F_GUEST_UFO), "no host makes them");
        for feature in [VIRTIO_NET_F_MQ, VIRTIO_NET_F_MTU] {
            assert!(!has(all, feature) && has(offered(ALL, 2, true), feature));
        }
    }

    #[test]
    fn offloads_without_what_they_build_upon_are_left_out() {
        let accepted = |features: &[u32]| {
            Offloads::accepted(features.iter().fold(0, |all, feature| all | 1 << feature))
        };
        let csum = VIRTIO_NET_F_GUEST_CSUM;
        assert_eq!(accepted(&[VIRTIO_NET_F_GUEST_TSO4]), Offloads::NONE);
        assert_eq!(accepted(&[csum, VIRTIO_NET_F_GUEST_ECN]).0, 1 << csum);
        assert_eq!(accepted(&[csum, VIRTIO_NET_F_GUEST_USO4]).0, 1 << csum);
        let tso = accepted(&[csum, VIRTIO_NET_F_GUEST_TSO6]);
        assert!(tso.has(VIRTIO_NET_F_GUEST_TSO6) && tso.has(csum));
        assert_eq!(Offloads::accepted(u64::MAX), ALL);
    }

    #[track_caller]
    fn check(flags: u8, kind: u8, features: &[u32], expected: Option<u8>) {
        let mut header = [7; HEADER_BYTES];
        [header[0], header[1]] = [flags, kind];
        let features = features.iter().fold(0, |all, feature| all | 1 << feature);
        let sent = sent_header(header, features);
        assert_eq!(sent.map(|sent| sent[0]), expected);
        if let Some(sent) = sent {
            assert_eq!(sent[1..], header[1..]);
        }
    }

    #[test]
    fn a_packet_asks_only_for_what_was_accepted() {
        check(0xff, 0, &[], Some(0));
        check(0xff, 0, &[VIRTIO_NET_F_CSUM], Some(1));
        for (kind, feature) in [
            (1, VIRTIO_NET_F_HOST_TSO4),
            (4, VIRTIO_NET_F_HOST_TSO6),
            (3, VIRTIO_NET_F_HOST_UFO),
            (5, VIRTIO_NET_F_HOST_USO),
        ] {
            check(1, kind, &[VIRTIO_NET_F_CSUM, feature], Some(1));
            check(1, kind, &[VIRTIO_NET_F_CSUM], None);
            check(1, kind | 0x80, &[VIRTIO_NET_F_CSUM, feature], None);
            let is_tcp = kind == 1 || kind == 4;
            let with_ecn = [VIRTIO_NET_F_CSUM, feature, VIRTIO_NET_F_HOST_ECN];
            check(1, kind | 0x80, &with_ecn, is_tcp.then_some(1));
        }
        check(0, 0x80, &[VIRTIO_NET_F_HOST_ECN], None);
        for kind in [2, 6, 0x7f] {
            check(0, kind, &(0..63).collect::<Vec<_>>(), None);
        }
    }
}
