//! Switching a drive on and off, and its queues (NVMe Base 2.0, 3.5 and 3.6).

use std::time::Duration;

use crate::command::{Command, Pointers, admin};
use crate::error::DriveError;
use crate::identify::controller::ControllerIdentity;
use crate::queue::{MAX_ENTRIES, Queue};
use crate::registers::{
    ACQ, AQA, ASQ, BPINFO, BootPartitions, CAP, CC, CC_EN, CC_ON, CC_SHN_NORMAL, CSTS, CSTS_CFS,
    CSTS_RDY, CSTS_SHST, CSTS_SHST_COMPLETE, Capabilities, VS,
};
use crate::transport::{DATA_PAGES, DMA_PAGES, PAGE_BYTES, Transport};

use super::{ADMIN_PAGES, Drive, IO_PAGES, Lane, SHORT, Wait, check_status};

const NUMBER_OF_QUEUES: u8 = 0x07;

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
}
