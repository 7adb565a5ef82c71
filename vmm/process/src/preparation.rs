//! The time in which a guest's memory is made present: who waits is told, and can end it.
//!
//! Owns the reports and the requests that come before the guest runs. The work itself is the
//! machine's.

use std::fmt::Display;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;

use berth_api::vmm::Event;
use berth_vmm_machine::Prefaulted;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::control_socket::{ControlSocket, Received};
use crate::lifecycle::{State, decide};
use crate::log::Log;

/// Requests that are answered with one report.
const MAX_REQUESTS: usize = 16;

/// Those who ask and are told.
pub(crate) struct Preparation<'a> {
    socket: &'a mut ControlSocket,
    signals: &'a OwnedFd,
    log: &'a Log,
}

impl<'a> Preparation<'a> {
    /// Reports go to `socket` and `log`; a signal ends it, as a request can.
    pub(crate) fn new(socket: &'a mut ControlSocket, signals: &'a OwnedFd, log: &'a Log) -> Self {
        Self {
            socket,
            signals,
            log,
        }
    }

    /// Tells how far it is and looks whether anybody wants it to end.
    pub(crate) fn report(&mut self, prefaulted: Prefaulted) -> ControlFlow<()> {
        let (done_mib, total_mib) = (prefaulted.done >> 20, prefaulted.total >> 20);
        let fields: [(&str, &dyn Display); 2] =
            [("done_mib", &done_mib), ("total_mib", &total_mib)];
        self.log.event("preparing", &fields);
        self.socket.send(&Event::Preparing {
            done_mib,
            total_mib,
        });
        if is_readable(self.signals) {
            self.log.event("signal", &[]);
            return ControlFlow::Break(());
        }
        for _ in 0..MAX_REQUESTS {
            let Received::Request(request) = self.socket.receive() else {
                break;
            };
            match decide(State::Preparing, &request, None) {
                Err(denied) => self.socket.deny(request.name(), denied),
                // Only a stop is not denied.
                Ok(_) => {
                    self.log.event(request.name(), &[]);
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    }
}

fn is_readable(descriptor: &OwnedFd) -> bool {
    let mut waiting = [PollFd::new(descriptor, PollFlags::IN)];
    poll(&mut waiting, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}
