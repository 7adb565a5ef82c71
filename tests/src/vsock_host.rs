//! The host's side of a guest's socket device, for hands and for the lab: who calls the guest finds a
//! socket at a path, and the guest's own connections go on to sockets at paths with the port's number.
//!
//! Owns the parent's half of `api/src/vmm.rs` for connections. What is said on them is others' affair.

use std::ffi::OsString;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use berth_api::vmm::{MAX_MESSAGE_BYTES, Vsock, VsockConnection};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
    recvmsg, socketpair,
};

use crate::launch::Descriptors;

/// Where a guest's connections come from and go to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VsockPaths {
    /// The guest's context id.
    pub cid: u32,
    /// The socket to make for who calls the guest.
    pub listen: Option<PathBuf>,
    /// The guest's connection with port 80 of the host is connected with this path and `_80` behind.
    pub connect: Option<PathBuf>,
}

impl VsockPaths {
    /// Makes the sockets, and serves the guest's connections for as long as its VMM lives.
    ///
    /// # Errors
    /// If a socket cannot be made.
    pub fn open(&self, descriptors: &mut Descriptors) -> io::Result<Vsock> {
        let listener = match &self.listen {
            Some(path) => {
                remove_old(path)?;
                Some(descriptors.add(UnixListener::bind(path)?))
            }
            None => None,
        };
        let connector = match self.connect.clone() {
            Some(path) => {
                let (ours, theirs) = socketpair(
                    AddressFamily::UNIX,
                    SocketType::SEQPACKET,
                    SocketFlags::CLOEXEC,
                    None,
                )?;
                thread::Builder::new().spawn(move || serve(&ours, &path))?;
                Some(descriptors.add(theirs))
            }
            None => None,
        };
        Ok(Vsock {
            cid: self.cid,
            listener,
            connector,
        })
    }
}

/// The socket of a VMM that is gone.
fn remove_old(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Connects each of the guest's connections until its VMM is gone.
fn serve(connector: &OwnedFd, path: &Path) {
    while let Ok(Some((connection, guest))) = receive(connector) {
        let mut target = OsString::from(path);
        target.push(format!("_{}", connection.port));
        // Nobody there: the guest's end closes as ours is dropped.
        let Ok(host) = UnixStream::connect(PathBuf::from(target)) else {
            continue;
        };
        let (Ok(guest_too), Ok(host_too)) = (guest.try_clone(), host.try_clone()) else {
            continue;
        };
        thread::spawn(move || pass_on(&guest, &host));
        thread::spawn(move || pass_on(&host_too, &guest_too));
    }
}

/// The next connection of the guest; `None` at the end.
fn receive(connector: &OwnedFd) -> io::Result<Option<(VsockConnection, UnixStream)>> {
    let mut text = vec![0; MAX_MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut text)];
    let received = recvmsg(
        connector,
        &mut parts,
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let socket = ancillary.drain().find_map(|message| {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            descriptors.next()
        } else {
            None
        }
    });
    let socket = UnixStream::from(socket.ok_or(io::ErrorKind::InvalidData)?);
    socket.set_nonblocking(false)?;
    let connection = serde_json::from_slice(&text[..received.bytes])?;
    Ok(Some((connection, socket)))
}

/// Copies one direction to its end.
fn pass_on(mut from: &UnixStream, mut to: &UnixStream) {
    let _moved = io::copy(&mut from, &mut to);
    // Either is gone already, or learns it here.
    let _told = to.shutdown(Shutdown::Write);
    let _told = from.shutdown(Shutdown::Read);
}
