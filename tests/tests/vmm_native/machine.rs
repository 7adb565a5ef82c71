//! One machine under test: its start message with descriptors, and the running process with the
//! reading end of its console.

use std::fs::{File, OpenOptions};
use std::io::{PipeReader, Read};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use berth_api::vmm::{Console, Disk, Event, Exit, FdIndex, MIN_MEMORY_MIB, ResetCause, Start};
use berth_tests::launch::{ALLOW_UNJAILED, Descriptors, Heard, LaunchedVmm};
use berth_tests::tiny_guest::Code;
use berth_tests::workspace::program_beside_test;

/// The longest that any single step may take on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// `/dev/kvm`, or `None` after saying why there is none.
pub(crate) fn require_kvm() -> Option<File> {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => Some(kvm),
        Err(error) => {
            println!("SKIPPED: /dev/kvm cannot be opened: {error}");
            None
        }
    }
}

/// The program under test, which cargo does not build for another package's tests.
pub(crate) fn vmm_program() -> PathBuf {
    program_beside_test("berth-vmm").expect("the run builds the programs first")
}

/// A start message and its descriptors, both open to changes.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) start: Start,
    pub(crate) descriptors: Descriptors,
}

impl Setup {
    /// A machine with 1 vCPU and the least memory, without disks and console.
    pub(crate) fn new(kvm: File, guest: &Code) -> Self {
        Self::with_kernel(kvm, guest.to_kernel().unwrap())
    }

    /// The same with any file as its kernel.
    pub(crate) fn with_kernel(kvm: File, kernel: File) -> Self {
        let mut descriptors = Descriptors::new();
        let (kvm, kernel) = (descriptors.add(kvm), descriptors.add(kernel));
        let start = Start {
            memory_mib: MIN_MEMORY_MIB,
            cmdline: "console=ttyS0".to_owned(),
            ..Start::new("native-test", kvm, kernel)
        };
        Self { start, descriptors }
    }

    /// Adds a disk of `bytes` zeroes.
    pub(crate) fn add_disk(&mut self, bytes: u64) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        let fd = self.descriptors.add(file);
        self.start.disks.push(Disk {
            serial: "test-disk".to_owned(),
            ..Disk::new(fd, bytes)
        });
    }

    /// Launches it with its console as a pipe.
    pub(crate) fn launch_with_console(mut self) -> Machine {
        let (reader, writer) = std::io::pipe().unwrap();
        let fd: FdIndex = self.descriptors.add(writer);
        self.start.console = Some(Console::Stream { fd });
        let mut machine = self.launch();
        machine.output = Some(Output::new(reader));
        machine
    }

    /// Launches it with its console and its log as pipes.
    pub(crate) fn launch_with_console_and_log(mut self) -> (Machine, PipeReader) {
        let (reader, writer) = std::io::pipe().unwrap();
        let fd = self.descriptors.add(writer);
        self.start.console = Some(Console::Stream { fd });
        let (log, log_writer) = std::io::pipe().unwrap();
        let message = serde_json::to_vec(&self.start).unwrap();
        let mut command = Command::new(vmm_program());
        command.arg(ALLOW_UNJAILED).stderr(log_writer);
        let vmm = LaunchedVmm::launch_with(&mut command, &message, &self.descriptors).unwrap();
        let mut machine = Machine::of(vmm);
        machine.output = Some(Output::new(reader));
        (machine, log)
    }

    /// Launches it as it is.
    pub(crate) fn launch(self) -> Machine {
        let vmm = LaunchedVmm::launch(&vmm_program(), &self.start, &self.descriptors).unwrap();
        Machine::of(vmm)
    }
}

/// A running machine. No descriptor of the start message is left open on this side.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) vmm: LaunchedVmm,
    output: Option<Output>,
}

impl Machine {
    /// A machine that was launched in a way of its own, without a console.
    pub(crate) fn of(vmm: LaunchedVmm) -> Self {
        Self { vmm, output: None }
    }

    /// The next event, which has to come.
    #[track_caller]
    pub(crate) fn event(&self) -> Event {
        match self.vmm.next_event(PATIENCE).unwrap() {
            Heard::Event(event) => event,
            Heard::Closed => panic!("the VMM closed its socket instead of telling an event"),
            Heard::Nothing => panic!("the VMM tells nothing"),
        }
    }

    /// Reads the event that comes first.
    #[track_caller]
    pub(crate) fn expect_running(&self) {
        assert_eq!(
            self.event(),
            Event::Running {
                pid: self.vmm.pid()
            }
        );
    }

    /// Reads the last event, the end of the socket and the exit status, which have to agree.
    #[track_caller]
    pub(crate) fn expect_end(&mut self, exit: Exit) {
        self.expect_end_with(exit, None);
    }

    /// The same for a reset, with what caused it.
    #[track_caller]
    pub(crate) fn expect_reset(&mut self, cause: ResetCause) {
        self.expect_end_with(Exit::Reset, Some(cause));
    }

    #[track_caller]
    fn expect_end_with(&mut self, exit: Exit, cause: Option<ResetCause>) {
        assert_eq!(self.event(), Event::Exited { exit, cause });
        assert_eq!(self.vmm.next_event(PATIENCE).unwrap(), Heard::Closed);
        assert_eq!(self.status().code(), Some(i32::from(exit.code())));
    }

    /// The exit status, which has to come.
    #[track_caller]
    pub(crate) fn status(&mut self) -> ExitStatus {
        self.vmm
            .wait(PATIENCE)
            .unwrap()
            .expect("the VMM does not end")
    }

    /// The next `count` bytes of serial output, which have to come.
    #[track_caller]
    pub(crate) fn read_output(&mut self, count: usize) -> Vec<u8> {
        self.output
            .as_mut()
            .expect("launched with a console")
            .take(count)
    }

    /// What is left of the serial output until nobody holds its writing end any more.
    #[track_caller]
    pub(crate) fn output_to_end(&mut self) -> Vec<u8> {
        self.output
            .as_mut()
            .expect("launched with a console")
            .take_all()
    }
}

/// A console pipe that is always read, so that no output is dropped.
#[derive(Debug)]
struct Output {
    chunks: Receiver<Vec<u8>>,
    pending: Vec<u8>,
}

impl Output {
    fn new(mut reader: PipeReader) -> Self {
        let (sender, chunks) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            chunks,
            pending: Vec::new(),
        }
    }

    #[track_caller]
    fn take(&mut self, count: usize) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        while self.pending.len() < count {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.chunks.recv_timeout(left) {
                Ok(chunk) => self.pending.extend(chunk),
                Err(error) => panic!("{error} after {:02x?} of {count} bytes", self.pending),
            }
        }
        self.pending.drain(..count).collect()
    }

    #[track_caller]
    fn take_all(&mut self) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.chunks.recv_timeout(left) {
                Ok(chunk) => self.pending.extend(chunk),
                Err(RecvTimeoutError::Disconnected) => return std::mem::take(&mut self.pending),
                Err(RecvTimeoutError::Timeout) => panic!("somebody still holds the console"),
            }
        }
    }
}
