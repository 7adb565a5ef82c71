//! The socket between the agent and one VMM process.
//!
//! A `SOCK_SEQPACKET` pair: one end becomes the VMM's standard input, the other stays with the agent.
//! `Start` and all descriptors are put into the pair *before* the process exists, so there is no
//! moment in which a VMM runs that was told nothing. What a VMM sends is a hostile process's word:
//! bounded, and undecodable messages end the conversation. What the words mean is not decided here.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_api::vmm::{Event, MAX_DESCRIPTORS, MAX_MESSAGE_BYTES, Request, Start};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recv, send, sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

/// The two ends of a conversation that has begun with `Start`.
#[derive(Debug)]
pub struct LaunchSockets {
    /// The agent's end.
    pub agent: OwnedFd,
    /// The VMM's standard input.
    pub vmm: OwnedFd,
}

/// Why the socket pair was not made.
#[derive(Debug, thiserror::Error)]
pub enum PrepareLaunchError {
    /// The message or its descriptors exceed the contract.
    #[error("the start message has {bytes} bytes and {descriptors} descriptors, too many")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// Its descriptors.
        descriptors: usize,
    },
    /// It did not become JSON.
    #[error("could not write the start message")]
    Encode(#[source] serde_json::Error),
    /// The kernel refused.
    #[error("could not put the start message into a socket pair")]
    Socket(#[source] io::Error),
}

/// Why nothing more is heard from or said to a VMM.
#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    /// The socket failed, or the VMM does not read.
    #[error("the control socket failed")]
    Socket(#[source] io::Error),
    /// A message longer than the contract allows.
    #[error("the VMM sent a message of {bytes} bytes")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A message that is not in the contract.
    #[error("the VMM sent something that is not an event")]
    Decode(#[source] serde_json::Error),
    /// The request did not become JSON.
    #[error("could not write the request")]
    Encode(#[source] serde_json::Error),
}

/// Make the pair and put `Start` with its descriptors into it.
pub fn prepare_launch(
    start: &Start,
    descriptors: &[BorrowedFd<'_>],
) -> Result<LaunchSockets, PrepareLaunchError> {
    let message = serde_json::to_vec(start).map_err(PrepareLaunchError::Encode)?;
    if message.len() > MAX_MESSAGE_BYTES || descriptors.len() > MAX_DESCRIPTORS {
        return Err(PrepareLaunchError::TooLong {
            bytes: message.len(),
            descriptors: descriptors.len(),
        });
    }
    let failed = |errno: Errno| PrepareLaunchError::Socket(errno.into());
    let (agent, vmm) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(failed)?;
    rustix::io::ioctl_fionbio(&agent, true).map_err(failed)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    // The space is made for MAX_DESCRIPTORS, and there are no more: this cannot be refused.
    ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    sendmsg(
        &agent,
        &[IoSlice::new(&message)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .map_err(failed)?;
    Ok(LaunchSockets { agent, vmm })
}

/// The agent's end of a running conversation.
#[derive(Debug)]
pub struct VmmSocket {
    /// A connected `SOCK_SEQPACKET` socket: reading and writing it is as with datagrams, and tokio
    /// has no type of its own for it.
    socket: UnixDatagram,
}

impl VmmSocket {
    /// Take up a conversation: a new one, or one that an earlier agent began.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixDatagram::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: UnixDatagram::from_std(socket)?,
        })
    }

    /// The VMM's next word; `None` when it has closed its end. Loses nothing when cancelled.
    pub async fn receive(&self) -> Result<Option<Event>, TalkError> {
        let message = self
            .socket
            .async_io(Interest::READABLE, || receive_message(&self.socket))
            .await
            .map_err(TalkError::Socket)?;
        if message.is_empty() {
            return Ok(None);
        }
        if message.len() > MAX_MESSAGE_BYTES {
            return Err(TalkError::TooLong {
                bytes: message.len(),
            });
        }
        serde_json::from_slice(&message)
            .map(Some)
            .map_err(TalkError::Decode)
    }

    /// Whether [`VmmSocket::receive`] would return at once.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        let mut nothing = [0_u8; 0];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        !matches!(
            recv(&self.socket, &mut nothing[..], flags),
            Err(Errno::AGAIN)
        )
    }

    /// Ask the VMM for something. Does not wait: a VMM that does not read is an error.
    pub fn send(&self, request: &Request) -> Result<(), TalkError> {
        let message = serde_json::to_vec(request).map_err(TalkError::Encode)?;
        send(&self.socket, &message, SendFlags::NOSIGNAL)
            .map(drop)
            .map_err(|errno| TalkError::Socket(errno.into()))
    }
}

impl AsFd for VmmSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One message; empty at the end. Space is taken for the message alone, so that a thousand idle
/// sockets cost nothing. A message that is too long is cut one byte past the limit.
fn receive_message(socket: &UnixDatagram) -> io::Result<Vec<u8>> {
    let mut nothing = [0_u8; 0];
    let (_, length) = recv(socket, &mut nothing[..], RecvFlags::PEEK | RecvFlags::TRUNC)?;
    let mut message = vec![0; length.min(MAX_MESSAGE_BYTES + 1)];
    let (received, _) = recv(socket, &mut message[..], RecvFlags::empty())?;
    message.truncate(received);
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_api::vmm::{Exit, FdIndex};

    fn start() -> Start {
        Start::new("vm", FdIndex(0), FdIndex(1))
    }

    fn say(vmm: &OwnedFd, message: &[u8]) {
        send(vmm, message, SendFlags::NOSIGNAL).unwrap();
    }

    #[tokio::test]
    async fn start_waits_in_the_socket_for_a_process_that_does_not_exist_yet() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let sockets = prepare_launch(&start(), &[null.as_fd(), null.as_fd()]).unwrap();
        drop(sockets.agent);
        let heard = crate::fakes::receive_start(&sockets.vmm).unwrap();
        assert_eq!((heard.start, heard.descriptors.len()), (start(), 2));
    }

    #[tokio::test]
    async fn events_and_requests_pass_and_the_end_is_seen() {
        let sockets = prepare_launch(&start(), &[]).unwrap();
        let socket = VmmSocket::new(sockets.agent).unwrap();
        say(&sockets.vmm, br#"{"event":"exited","exit":"reset"}"#);
        assert_eq!(
            socket.receive().await.unwrap(),
            Some(Event::Exited {
                exit: Exit::Reset,
                cause: None
            })
        );
        socket.send(&Request::PowerButton).unwrap();
        drop(sockets.vmm);
        // Linux reports unread data of ours as a reset of the connection, which is an end as well.
        assert!(!matches!(socket.receive().await, Ok(Some(_))));
    }

    #[tokio::test]
    async fn a_vmm_that_talks_nonsense_is_not_listened_to() {
        let sockets = prepare_launch(&start(), &[]).unwrap();
        let socket = VmmSocket::new(sockets.agent).unwrap();
        say(&sockets.vmm, b"{}");
        assert!(matches!(socket.receive().await, Err(TalkError::Decode(_))));
        say(&sockets.vmm, &vec![b'x'; MAX_MESSAGE_BYTES + 5]);
        assert!(matches!(
            socket.receive().await,
            Err(TalkError::TooLong { .. })
        ));
    }

    #[tokio::test]
    async fn a_vmm_that_does_not_read_cannot_hold_the_agent_up() {
        let sockets = prepare_launch(&start(), &[]).unwrap();
        let socket = VmmSocket::new(sockets.agent).unwrap();
        let refused = (0..100_000).find_map(|_| socket.send(&Request::PowerButton).err());
        assert!(matches!(refused, Some(TalkError::Socket(_))));
    }
}
