//! One drive under this driver: switched off and on, commands with deadlines, data through the shared
//! buffer (NVMe Base 2.0, 3.5.1).
//!
//! Any failure but a plain refusal leaves the drive unusable until [`Drive::reset`], as a command may
//! still be in flight that writes into the shared memory.

mod pointers;
mod power;

use std::time::Duration;

use crate::command::{Command, Pointers, admin};
use crate::error::DriveError;
use crate::queue::{Completion, Queue};
use crate::registers::{BootPartitions, CSTS, CSTS_CFS, Capabilities};
use crate::transport::{PAGE_BYTES, Transport};

/// How long a command may take that only looks something up or moves one buffer.
pub(crate) const SHORT: Duration = Duration::from_secs(30);

const ADMIN_PAGES: [usize; 2] = [0, 1];
const IO_PAGES: [usize; 2] = [2, 3];
const LIST_PAGE: usize = 4;
const METADATA_PAGE: usize = 5;
const FIRST_DATA_PAGE: usize = 6;

/// First and longest pause between two looks at a completion queue.
const PAUSE: Duration = Duration::from_micros(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// Pauses from this length on look at CSTS as well.
const LOOK_AT_STATUS: Duration = Duration::from_millis(1);

/// Data of a command, besides its words.
#[derive(Debug)]
pub(crate) enum Transfer<'a> {
    None,
    /// From the drive.
    In(&'a mut [u8]),
    /// To the drive.
    Out(&'a [u8]),
}

/// Metadata beside the data, at most [`PAGE_BYTES`].
#[derive(Debug)]
pub(crate) enum Metadata<'a> {
    None,
    In(&'a mut [u8]),
    Out(&'a [u8]),
}

/// Which of the two pairs of queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Admin,
    Io,
}

/// How long a command may take, and who may end the wait.
pub(crate) struct Wait<'a> {
    pub(crate) limit: Duration,
    /// Called at each pause with the time that went by; `false` gives up.
    pub(crate) go_on: &'a mut dyn FnMut(Duration) -> bool,
}

/// One drive, switched on, with one command in flight at a time.
pub struct Drive<'t> {
    transport: &'t mut dyn Transport,
    capabilities: Capabilities,
    version: u32,
    boot_partitions: Option<BootPartitions>,
    admin: Queue,
    io: Option<Queue>,
    max_transfer: usize,
    is_usable: bool,
}

impl std::fmt::Debug for Drive<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Drive")
            .field("capabilities", &self.capabilities)
            .field("is_usable", &self.is_usable)
            .finish_non_exhaustive()
    }
}

impl Drive<'_> {
    pub(crate) fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    pub(crate) fn boot_partitions(&self) -> Option<BootPartitions> {
        self.boot_partitions
    }

    /// VS.
    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    /// Bytes that one command can move.
    pub(crate) fn max_transfer(&self) -> usize {
        self.max_transfer
    }

    pub(crate) fn now(&mut self) -> Duration {
        self.transport.now()
    }

    pub(crate) fn sleep(&mut self, duration: Duration) {
        self.transport.sleep(duration);
    }

    /// Run an admin command that moves no data.
    pub(crate) fn admin(&mut self, command: &Command) -> Result<u32, DriveError> {
        self.admin_with(command, Transfer::None)
    }

    /// Run an admin command that reads `bytes`.
    pub(crate) fn admin_read(
        &mut self,
        command: &Command,
        bytes: &mut [u8],
    ) -> Result<u32, DriveError> {
        self.admin_with(command, Transfer::In(bytes))
    }

    pub(crate) fn admin_with(
        &mut self,
        command: &Command,
        transfer: Transfer<'_>,
    ) -> Result<u32, DriveError> {
        self.run(Lane::Admin, command, transfer, Metadata::None, SHORT)
    }

    /// Run a command that may take `limit` at most. Returns DW0 of its completion.
    pub(crate) fn run(
        &mut self,
        lane: Lane,
        command: &Command,
        transfer: Transfer<'_>,
        metadata: Metadata<'_>,
        limit: Duration,
    ) -> Result<u32, DriveError> {
        let wait = Wait {
            limit,
            go_on: &mut |_| true,
        };
        self.run_watched(lane, command, transfer, metadata, wait)
    }

    /// Run a command whose wait somebody may end.
    pub(crate) fn run_watched(
        &mut self,
        lane: Lane,
        command: &Command,
        mut transfer: Transfer<'_>,
        mut metadata: Metadata<'_>,
        wait: Wait<'_>,
    ) -> Result<u32, DriveError> {
        if !self.is_usable {
            return Err(DriveError::NeedsReset);
        }
        self.is_usable = false;
        let pointers = self.lay_out(&mut transfer, &mut metadata)?;
        let completion = self.submit_and_wait(lane, command, pointers, wait)?;
        self.is_usable = true;
        if !completion.status.is_success() {
            return Err(DriveError::Refused {
                opcode: command.opcode,
                status: completion.status,
            });
        }
        if let Transfer::In(bytes) = transfer {
            self.transport
                .read_memory(FIRST_DATA_PAGE * PAGE_BYTES, bytes)?;
        }
        if let Metadata::In(bytes) = metadata {
            self.transport
                .read_memory(METADATA_PAGE * PAGE_BYTES, bytes)?;
        }
        Ok(completion.result)
    }

    fn submit_and_wait(
        &mut self,
        lane: Lane,
        command: &Command,
        pointers: Pointers,
        wait: Wait<'_>,
    ) -> Result<Completion, DriveError> {
        let queue = match lane {
            Lane::Admin => &mut self.admin,
            Lane::Io => self.io.as_mut().ok_or(DriveError::NeedsReset)?,
        };
        let entry = command.entry(queue.next_id(), pointers);
        queue.submit(self.transport, self.capabilities, &entry)?;
        let opcode = command.opcode;
        let started = self.transport.now();
        let mut pause = PAUSE;
        loop {
            if let Some(completion) = queue.poll(self.transport, self.capabilities)? {
                return Ok(completion);
            }
            if pause >= LOOK_AT_STATUS {
                check_status(self.transport.read_register(CSTS)?)?;
            }
            let passed = self.transport.now().saturating_sub(started);
            if passed >= wait.limit {
                let limit = wait.limit;
                return Err(DriveError::TimedOut { opcode, limit });
            }
            if !(wait.go_on)(passed) {
                return Err(DriveError::Abandoned { opcode });
            }
            self.transport.sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Read a log page of the whole drive.
    pub(crate) fn log_page(&mut self, page: u8, bytes: &mut [u8]) -> Result<(), DriveError> {
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        self.admin_read(&Command::get_log(page, length), bytes)?;
        Ok(())
    }

    /// Read a structure of the drive or of one namespace.
    pub(crate) fn identify_page(
        &mut self,
        structure: u8,
        nsid: u32,
    ) -> Result<[u8; PAGE_BYTES], DriveError> {
        let mut page = [0; PAGE_BYTES];
        self.admin_read(&Command::identify(structure, nsid), &mut page)?;
        Ok(page)
    }

    /// Receive `bytes` of a security protocol, with that protocol's specific value (5.25).
    pub(crate) fn security_receive(
        &mut self,
        protocol: u8,
        specific: u16,
        bytes: &mut [u8],
    ) -> Result<(), DriveError> {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let selector = u32::from(protocol) << 24 | u32::from(specific) << 8;
        let command = Command::new(admin::SECURITY_RECEIVE, 0).with(selector, length);
        self.admin_read(&command, bytes)?;
        Ok(())
    }
}

fn check_status(status: u32) -> Result<(), DriveError> {
    if status == u32::MAX {
        return Err(DriveError::Gone);
    }
    if status & CSTS_CFS != 0 {
        return Err(DriveError::Fatal);
    }
    Ok(())
}
