//! The control socket at standard input: the start message, requests, events.
//!
//! Owns encoding and the passing of descriptors. It keeps no state of the machine. A peer that goes
//! away is no error: the guest goes on without an agent.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_api::vmm::{Event, MAX_DESCRIPTORS, MAX_MESSAGE_BYTES, Request, Start};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendFlags, recvmsg, sendmsg,
};

use crate::lifecycle::Denied;

/// One socket to the agent.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    socket: OwnedFd,
    /// What the message at hand is received into: one for all of them.
    message: Vec<u8>,
}

/// Why there is no start message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveStartError {
    /// Standard input is not a socket with packets.
    #[error("standard input is no sequential-packet socket")]
    Socket(#[source] io::Error),
    /// The peer went away first.
    #[error("the control socket was closed before the start message came")]
    Closed,
    /// The message is not one of the contract.
    #[error("the start message cannot be understood")]
    Malformed(#[source] serde_json::Error),
    /// The message or its descriptors did not fit.
    #[error(
        "the start message is longer than {MAX_MESSAGE_BYTES} bytes or has too many descriptors"
    )]
    TooLong,
}

/// What a readable socket had.
#[derive(Debug)]
pub(crate) enum Received {
    /// A request.
    Request(Request),
    /// A message that is no request.
    Malformed(serde_json::Error),
    /// Nothing, after all.
    Nothing,
    /// The peer is gone.
    Closed,
}

impl ControlSocket {
    /// Takes over the descriptor.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            message: vec![0; MAX_MESSAGE_BYTES],
        }
    }

    /// Waits for the first message and its descriptors.
    ///
    /// # Errors
    /// If it does not come or is not a [`Start`].
    pub(crate) fn receive_start(&mut self) -> Result<(Start, Vec<OwnedFd>), ReceiveStartError> {
        // One more than allowed, so that too many are seen and not cut off.
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS + 1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut self.message)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
        .map_err(|error| ReceiveStartError::Socket(error.into()))?;
        let mut descriptors = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                descriptors.extend(rights);
            }
        }
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(ReceiveStartError::TooLong);
        }
        if received.bytes == 0 {
            return Err(ReceiveStartError::Closed);
        }
        let start = serde_json::from_slice(&self.message[..received.bytes])
            .map_err(ReceiveStartError::Malformed)?;
        Ok((start, descriptors))
    }

    /// Takes one message without waiting. Descriptors that come with it are closed.
    pub(crate) fn receive(&mut self) -> Received {
        let mut control = RecvAncillaryBuffer::default();
        let result = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut self.message)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
        );
        match result {
            Ok(received) if received.bytes > 0 => {
                match serde_json::from_slice(&self.message[..received.bytes]) {
                    Ok(request) => Received::Request(request),
                    Err(error) => Received::Malformed(error),
                }
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Received::Nothing,
            Ok(_) | Err(_) => Received::Closed,
        }
    }

    /// Tells the agent that the request of this name is not done.
    pub(crate) fn deny(&self, request: &str, denied: Denied) {
        self.send(&Event::Denied {
            request: request.to_owned(),
            reason: denied.reason,
            remedy: denied.remedy,
        });
    }

    /// Tells the agent. An agent that is gone or does not read misses it.
    pub(crate) fn send(&self, event: &Event) {
        let Ok(message) = serde_json::to_vec(event) else {
            return;
        };
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let mut control = SendAncillaryBuffer::default();
        let sent = sendmsg(&self.socket, &[IoSlice::new(&message)], &mut control, flags);
        // The guest's life does not depend on being watched.
        sent.map(drop).unwrap_or(());
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
