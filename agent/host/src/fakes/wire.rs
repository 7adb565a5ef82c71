//! The other side of the agent's sockets: what a VMM and a service manager hear.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use berth_api::vmm::{MAX_DESCRIPTORS, MAX_MESSAGE_BYTES, Start};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// The first message of an agent to its VMM.
#[derive(Debug)]
pub struct HeardStart {
    /// The message.
    pub start: Start,
    /// What came with it.
    pub descriptors: Vec<OwnedFd>,
}

/// Hear `Start` as a VMM does. Blocks.
pub fn receive_start(stdin: &OwnedFd) -> io::Result<HeardStart> {
    let (message, descriptors) = receive(stdin)?;
    Ok(HeardStart {
        start: serde_json::from_slice(&message)?,
        descriptors,
    })
}

/// Hear a notification as a service manager does. Blocks.
pub fn receive_datagram(socket: &UnixDatagram) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    receive(socket)
}

fn receive(socket: impl AsFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut message = vec![0; MAX_MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut message)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    message.truncate(received.bytes);
    let mut descriptors = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = part {
            descriptors.extend(fds);
        }
    }
    Ok((message, descriptors))
}
