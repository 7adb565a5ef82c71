//! The header of a vsock packet (virtio 1.2, 5.10.6), as numbers that nobody has checked yet.
//!
//! Pure. What a header may say in which state is the table's business.

/// Length of a header in guest memory.
pub const HEADER_BYTES: u32 = 44;
/// The host's context id.
pub const HOST_CID: u64 = 2;
/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub const TYPE_STREAM: u16 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: the sender will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Most data of one packet, in either direction.
pub const MAX_DATA_BYTES: u32 = 64 * 1024;

/// The two ends of a connection between this guest and the host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ports {
    /// The guest's port.
    pub guest: u32,
    /// The host's port: below [`FIRST_HOST_PORT`] if the guest opened the connection.
    pub host: u32,
}

/// The first of the host's ports for connections that the host opens. A guest cannot connect to
/// these, so that no connection can be mistaken for one of the other direction.
pub const FIRST_HOST_PORT: u32 = 1 << 31;
/// `VMADDR_PORT_ANY`: no port of a connection.
pub const PORT_ANY: u32 = u32::MAX;

/// What a packet is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Operation {
    /// Open a connection.
    Request = 1,
    /// The connection is open.
    Response = 2,
    /// The connection is not there, or no longer.
    Reset = 3,
    /// One or both directions have ended.
    Shutdown = 4,
    /// Data.
    Data = 5,
    /// Nothing but the credit that every header carries.
    CreditUpdate = 6,
    /// Ask for a credit update.
    CreditRequest = 7,
}

impl Operation {
    const ALL: [Self; 7] = [
        Self::Request,
        Self::Response,
        Self::Reset,
        Self::Shutdown,
        Self::Data,
        Self::CreditUpdate,
        Self::CreditRequest,
    ];

    /// The operation with this number, if there is one.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|operation| operation.number() == number)
    }

    /// Its number in a header.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }
}

/// `struct virtio_vsock_hdr`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// Context id of the sender.
    pub source_cid: u64,
    /// Context id of the receiver.
    pub destination_cid: u64,
    /// The sender's port.
    pub source_port: u32,
    /// The receiver's port.
    pub destination_port: u32,
    /// Bytes of data after the header.
    pub length: u32,
    /// Kind of socket.
    pub kind: u16,
    /// Number of an [`Operation`].
    pub operation: u16,
    /// For [`Operation::Shutdown`]: which directions.
    pub flags: u32,
    /// Bytes that the sender keeps for data of this connection at most.
    pub buffer_bytes: u32,
    /// Bytes of this connection that the sender has passed on, modulo 2^32.
    pub forwarded: u32,
}

impl Header {
    /// The header in `bytes`.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES as usize]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            source_cid: u64::from_le_bytes(fields.take()),
            destination_cid: u64::from_le_bytes(fields.take()),
            source_port: u32::from_le_bytes(fields.take()),
            destination_port: u32::from_le_bytes(fields.take()),
            length: u32::from_le_bytes(fields.take()),
            kind: u16::from_le_bytes(fields.take()),
            operation: u16::from_le_bytes(fields.take()),
            flags: u32::from_le_bytes(fields.take()),
            buffer_bytes: u32::from_le_bytes(fields.take()),
            forwarded: u32::from_le_bytes(fields.take()),
        }
    }

    /// The header as it lies in memory.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES as usize] {
        let mut bytes = [0; HEADER_BYTES as usize];
        let fields: [&[u8]; 10] = [
            &self.source_cid.to_le_bytes(),
            &self.destination_cid.to_le_bytes(),
            &self.source_port.to_le_bytes(),
            &self.destination_port.to_le_bytes(),
            &self.length.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.operation.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buffer_bytes.to_le_bytes(),
            &self.forwarded.to_le_bytes(),
        ];
        for (byte, &value) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *byte = value;
        }
        bytes
    }
}

/// Fields of a header one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk() else {
            return [0; N];
        };
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_lies_in_memory_as_virtio_says() {
        let bytes: [u8; 44] = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.source_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.destination_port, 0x1716_1514);
        assert_eq!((header.kind, header.operation), (0x1d1c, 0x1f1e));
        assert_eq!(header.forwarded, 0x2b2a_2928);
        assert_eq!(header.to_bytes(), bytes);
    }

    #[test]
    fn operations_have_their_numbers_and_no_others_exist() {
        let known = (0..=u16::MAX).filter_map(Operation::from_number);
        let numbers: Vec<_> = known.map(Operation::number).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
    }
}
