//! One drive under this driver: switched off and on, commands with deadlines, data through the shared
//! buffer (NVMe Base 2.0, 3.5.1).
//!
//! Any failure but a plain refusal leaves the drive unusable until [`Drive::reset`], as a command may
//! still be in flight that writes into the shared memory.

use std::time::Duration;

use crate::command::{Command, Pointers, admin};
use crate::error::DriveError;
use crate::fields::Fields;
use crate::identify::controller::ControllerIdentity;
use crate::queue::{Completion, MAX_ENTRIES, Queue};
use crate::registers::{
    ACQ, AQA, ASQ, BPINFO, BootPartitions, CAP, CC, CC_EN, CC_ON, CC_SHN_NORMAL, CSTS, CSTS_CFS,
    CSTS_RDY, CSTS_SHST, CSTS_SHST_COMPLETE, Capabilities, VS,
};
use crate::transport::{DATA_PAGES, DMA_PAGES, PAGE_BYTES, Transport};

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

const NUMBER_OF_QUEUES: u8 = 0x07;

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

impl<'t> Drive<'t> {
    /// Switch the drive off and on again, with our queues.
    ///
    /// # Errors
    /// If it does not follow within its own limit, or cannot work with 4 KiB pages.
    pub fn open(transport: &'t mut dyn Transport) -> Result<Self, DriveError> {
        if transport.page_addresses().len() < DMA_PAGES {
            return Err(DriveError::Unsupported {
                found: "less shared memory than the driver needs",
            });
        }
        let admin = Queue::new(transport, 0, MAX_ENTRIES, ADMIN_PAGES)?;
        let mut drive = Self {
            transport,
            capabilities: Capabilities::new(0),
            version: 0,
            boot_partitions: None,
            admin,
            io: None,
            max_transfer: PAGE_BYTES,
            is_usable: false,
        };
        drive.reset()?;
        Ok(drive)
    }

    /// Switch it off and on again, whatever it was doing. A sanitize goes on meanwhile.
    ///
    /// # Errors
    /// As [`Drive::open`].
    pub fn reset(&mut self) -> Result<(), DriveError> {
        self.is_usable = false;
        self.io = None;
        self.capabilities = Capabilities::new(self.register64(CAP)?);
        self.version = self.register(VS)?;
        let unsupported = |found| Err(DriveError::Unsupported { found });
        if self.register(CSTS)? == u32::MAX {
            return Err(DriveError::Gone);
        }
        if !self.capabilities.has_nvm_command_set() {
            return unsupported("no NVM command set");
        }
        if self.capabilities.min_page_bytes() > 4096 {
            return unsupported("a smallest page of more than 4 KiB");
        }
        if self.capabilities.max_entries() < 2 {
            return unsupported("queues of fewer than two entries");
        }
        self.boot_partitions = None;
        if self.capabilities.has_boot_partitions() {
            self.boot_partitions = Some(BootPartitions::new(self.register(BPINFO)?));
        }
        self.switch_off()?;
        self.switch_on()?;
        self.is_usable = true;
        let controller = ControllerIdentity::read(self)?;
        self.max_transfer = controller
            .max_transfer()
            .unwrap_or(usize::MAX)
            .min(DATA_PAGES * PAGE_BYTES);
        self.create_io_queues()
    }

    /// Shut it down in order, and switch it off, so that it touches the shared memory no more.
    ///
    /// # Errors
    /// If it does not follow in time.
    pub fn close(mut self) -> Result<(), DriveError> {
        self.transport.write_register(CC, CC_ON | CC_SHN_NORMAL)?;
        let limit = self.capabilities.ready_limit();
        self.wait_for("shut down", limit, |status| {
            status & CSTS_SHST == CSTS_SHST_COMPLETE
        })?;
        self.switch_off()
    }

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

    /// Put outgoing data into the shared memory, clear it for incoming data, and say where it is.
    fn lay_out(
        &mut self,
        transfer: &mut Transfer<'_>,
        metadata: &mut Metadata<'_>,
    ) -> Result<Pointers, DriveError> {
        let mut pointers = Pointers::default();
        let place = METADATA_PAGE * PAGE_BYTES;
        let bytes = match metadata {
            Metadata::None => 0,
            Metadata::In(bytes) => {
                bytes.fill(0);
                self.transport.write_memory(place, bytes)?;
                bytes.len()
            }
            Metadata::Out(bytes) => {
                self.transport.write_memory(place, bytes)?;
                bytes.len()
            }
        };
        if bytes > PAGE_BYTES {
            return Err(DriveError::Unsupported {
                found: "more metadata in a transfer than fits a page",
            });
        }
        if bytes > 0 {
            pointers.metadata = self.address(METADATA_PAGE);
        }
        let place = FIRST_DATA_PAGE * PAGE_BYTES;
        let bytes = match transfer {
            Transfer::None => return Ok(pointers),
            Transfer::In(bytes) => {
                // What a drive does not write must not be what it wrote before.
                bytes.fill(0);
                self.transport.write_memory(place, bytes)?;
                bytes.len()
            }
            Transfer::Out(bytes) => {
                self.transport.write_memory(place, bytes)?;
                bytes.len()
            }
        };
        pointers.prp = self.lists(bytes)?;
        Ok(pointers)
    }

    /// PRP entries for the first `bytes` of the data buffer (NVMe Base 2.0, 4.1.1).
    fn lists(&mut self, bytes: usize) -> Result<[u64; 2], DriveError> {
        let pages = bytes.div_ceil(PAGE_BYTES);
        if pages > DATA_PAGES {
            return Err(DriveError::Unsupported {
                found: "a transfer longer than the buffer",
            });
        }
        let first = self.address(FIRST_DATA_PAGE);
        Ok(match pages {
            0 | 1 => [first, 0],
            2 => [first, self.address(FIRST_DATA_PAGE + 1)],
            _ => {
                let list: Vec<u8> = (1..pages)
                    .flat_map(|page| self.address(FIRST_DATA_PAGE + page).to_le_bytes())
                    .collect();
                self.transport.write_memory(LIST_PAGE * PAGE_BYTES, &list)?;
                [first, self.address(LIST_PAGE)]
            }
        })
    }

    fn address(&self, page: usize) -> u64 {
        let addresses = self.transport.page_addresses();
        *addresses
            .get(page)
            .expect("`open` has seen as many pages as the driver uses")
    }

    fn register(&mut self, offset: u32) -> Result<u32, DriveError> {
        Ok(self.transport.read_register(offset)?)
    }

    fn register64(&mut self, offset: u32) -> Result<u64, DriveError> {
        let low = self.register(offset)?;
        let high = self.register(offset + 4)?;
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    fn set_register64(&mut self, offset: u32, value: u64) -> Result<(), DriveError> {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        self.transport
            .write_register(offset, u32::from_le_bytes([a, b, c, d]))?;
        self.transport
            .write_register(offset + 4, u32::from_le_bytes([e, f, g, h]))?;
        Ok(())
    }

    fn wait_for(
        &mut self,
        wanted: &'static str,
        limit: Duration,
        is_there: impl Fn(u32) -> bool,
    ) -> Result<(), DriveError> {
        let started = self.transport.now();
        loop {
            let status = self.register(CSTS)?;
            if status == u32::MAX {
                return Err(DriveError::Gone);
            }
            if is_there(status) {
                return Ok(());
            }
            if self.transport.now().saturating_sub(started) >= limit {
                return Err(DriveError::NotReady { wanted, limit });
            }
            self.transport.sleep(Duration::from_millis(1));
        }
    }

    fn switch_off(&mut self) -> Result<(), DriveError> {
        let limit = self.capabilities.ready_limit();
        let control = self.register(CC)?;
        let status = self.register(CSTS)?;
        // A controller on its way up must be ready before it may be switched off (3.5.1); one with a
        // fatal error never will be.
        if control & CC_EN != 0 && status & (CSTS_RDY | CSTS_CFS) == 0 {
            self.wait_for("ready", limit, |status| status & (CSTS_RDY | CSTS_CFS) != 0)?;
        }
        self.transport
            .write_register(CC, control & !CC_EN & !(3 << 14))?;
        self.wait_for("not ready", limit, |status| status & CSTS_RDY == 0)
    }

    fn switch_on(&mut self) -> Result<(), DriveError> {
        self.admin = Queue::new(self.transport, 0, MAX_ENTRIES, ADMIN_PAGES)?;
        let [submissions, completions] = ADMIN_PAGES.map(|page| self.address(page));
        let size = u32::from(MAX_ENTRIES - 1);
        self.transport.write_register(AQA, size << 16 | size)?;
        self.set_register64(ASQ, submissions)?;
        self.set_register64(ACQ, completions)?;
        self.transport.write_register(CC, CC_ON)?;
        let limit = self.capabilities.ready_limit();
        self.wait_for("ready", limit, |status| status & (CSTS_RDY | CSTS_CFS) != 0)?;
        check_status(self.register(CSTS)?)
    }

    fn create_io_queues(&mut self) -> Result<(), DriveError> {
        let queues = Command::new(admin::SET_FEATURES, 0).with(NUMBER_OF_QUEUES.into(), 0);
        self.admin(&queues)?;
        let most = u16::try_from(self.capabilities.max_entries()).unwrap_or(u16::MAX);
        let entries = MAX_ENTRIES.min(most);
        let io = Queue::new(self.transport, 1, entries, IO_PAGES)?;
        let [submissions, completions] = IO_PAGES.map(|page| self.address(page));
        let size_and_id = u32::from(entries - 1) << 16 | 1;
        let contiguous = 1;
        let completion_queue = Command::new(admin::CREATE_CQ, 0).with(size_and_id, contiguous);
        self.create(&completion_queue, completions)?;
        let submission_queue =
            Command::new(admin::CREATE_SQ, 0).with(size_and_id, 1 << 16 | contiguous);
        self.create(&submission_queue, submissions)?;
        self.io = Some(io);
        Ok(())
    }

    fn create(&mut self, command: &Command, page: u64) -> Result<(), DriveError> {
        self.is_usable = false;
        let pointers = Pointers {
            metadata: 0,
            prp: [page, 0],
        };
        let wait = Wait {
            limit: SHORT,
            go_on: &mut |_| true,
        };
        let completion = self.submit_and_wait(Lane::Admin, command, pointers, wait)?;
        if !completion.status.is_success() {
            return Err(DriveError::Refused {
                opcode: command.opcode,
                status: completion.status,
            });
        }
        self.is_usable = true;
        Ok(())
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

/// One value of a page as text that sorts and compares.
pub(crate) fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a page has nothing in it.
pub(crate) fn is_blank(page: Fields<'_>) -> bool {
    page.0.iter().all(|byte| *byte == 0)
}
