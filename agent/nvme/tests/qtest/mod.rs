//! A transport to QEMU's NVMe device: registers and memory by lines on QEMU's standard input and output.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use berth_nvme::transport::{DMA_PAGES, PAGE_BYTES, Transport, TransportError};
use tempfile::NamedTempFile;

const QEMU: &str = "qemu-system-x86_64";
/// Where the drive's BAR is put, below the machine's own devices.
const BAR: u64 = 0xe000_0000;
/// Where the shared pages are in the machine's memory, every other one.
const SHARED: u64 = 16 << 20;
/// The drive's place on the root bus.
const SLOT: u32 = 4;

/// QEMU with one NVMe drive and nothing that runs.
#[derive(Debug)]
pub(crate) struct QemuDrive {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    addresses: Vec<u64>,
    started: Instant,
    _firmware: NamedTempFile,
}

impl QemuDrive {
    /// A drive on this image; `None`, with a word about it, where there is no QEMU.
    pub(crate) fn start(image: &Path, options: &str) -> Option<Self> {
        let drive = format!("if=none,id=d0,format=raw,file={}", image.display());
        let namespace = format!("nvme-ns,drive=d0,bus=n0,nsid=1,{options}");
        let firmware = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(firmware.path(), sleeping_firmware()).expect("a temporary file");
        let spawned = Command::new(QEMU)
            .args([
                "-machine",
                "q35",
                "-accel",
                "tcg",
                "-m",
                "64",
                "-nodefaults",
            ])
            .args(["-display", "none", "-qtest", "stdio", "-qtest-log", "none"])
            .arg("-bios")
            .arg(firmware.path())
            .args(["-drive", &drive])
            .args(["-device", "nvme,id=n0,addr=4,serial=TEST-DRIVE-1,mdts=5"])
            .args(["-device", &namespace])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => {
                eprintln!("skipped: {QEMU}: {error}");
                return None;
            }
        };
        let input = child.stdin.take().expect("standard input is a pipe");
        let output = child.stdout.take().expect("standard output is a pipe");
        let mut drive = Self {
            child,
            input,
            output: BufReader::new(output),
            addresses: (0..DMA_PAGES)
                .zip(0..)
                .map(|(_, page)| SHARED + page * 8192)
                .collect(),
            started: Instant::now(),
            _firmware: firmware,
        };
        let config = |register: u32| 0x8000_0000 | SLOT << 11 | register;
        for (register, value) in [(0x10, BAR), (0x14, 0), (0x04, 0x6)] {
            drive
                .say(&format!("outl 0xcf8 {:#x}", config(register)))
                .unwrap();
            drive.say(&format!("outl 0xcfc {value:#x}")).unwrap();
        }
        Some(drive)
    }

    /// One command; what follows `OK`.
    fn say(&mut self, line: &str) -> io::Result<String> {
        self.input.write_all(line.as_bytes())?;
        self.input.write_all(b"\n")?;
        self.input.flush()?;
        let mut answer = String::new();
        loop {
            answer.clear();
            if self.output.read_line(&mut answer)? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            if let Some(found) = answer.strip_prefix("OK") {
                return Ok(found.trim().to_owned());
            }
            // Interrupts are told in between; the driver polls.
            if !answer.starts_with("IRQ") {
                return Err(io::Error::other(answer));
            }
        }
    }

    /// The pieces of a range of the shared memory, page by page, as addresses of the machine.
    fn pieces(&self, offset: usize, bytes: usize) -> Vec<(u64, std::ops::Range<usize>)> {
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < bytes {
            let place = offset + done;
            let within = place % PAGE_BYTES;
            let length = (PAGE_BYTES - within).min(bytes - done);
            let address = self.addresses[place / PAGE_BYTES] + u64::try_from(within).unwrap();
            pieces.push((address, done..done + length));
            done += length;
        }
        pieces
    }
}

impl Drop for QemuDrive {
    fn drop(&mut self) {
        // Its writes are in the image's file by then: it is told of none that is not.
        self.child.kill().expect("our own child can be ended");
        self.child.wait().expect("our own child can be waited for");
    }
}

/// Firmware that puts the processor to sleep for good, so that nobody but us speaks to the drive.
fn sleeping_firmware() -> Vec<u8> {
    let mut rom = vec![0; 1 << 16];
    let (cli, hlt, jump_back) = (0xfa, 0xf4, [0xeb, 0xfd]);
    rom[0xfff0..0xfff4].copy_from_slice(&[cli, hlt, jump_back[0], jump_back[1]]);
    rom
}

fn failed(offset: u32) -> impl Fn(io::Error) -> TransportError {
    move |source| TransportError::Register { offset, source }
}

impl Transport for QemuDrive {
    fn read_register(&mut self, offset: u32) -> Result<u32, TransportError> {
        let address = BAR + u64::from(offset);
        let found = self
            .say(&format!("readl {address:#x}"))
            .map_err(failed(offset))?;
        let digits = found.trim_start_matches("0x");
        let value = u64::from_str_radix(digits, 16).expect("QEMU answers in hex");
        Ok(u32::try_from(value).expect("32 bits were read"))
    }

    fn write_register(&mut self, offset: u32, value: u32) -> Result<(), TransportError> {
        let address = BAR + u64::from(offset);
        self.say(&format!("writel {address:#x} {value:#x}"))
            .map_err(failed(offset))?;
        Ok(())
    }

    fn page_addresses(&self) -> &[u64] {
        &self.addresses
    }

    fn read_memory(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), TransportError> {
        for (address, range) in self.pieces(offset, bytes.len()) {
            let line = format!("read {address:#x} {:#x}", range.len());
            let found = self.say(&line).map_err(failed(0))?;
            let digits = found.trim_start_matches("0x").as_bytes();
            for (place, pair) in bytes[range].iter_mut().zip(digits.chunks(2)) {
                let pair = std::str::from_utf8(pair).expect("hex digits");
                *place = u8::from_str_radix(pair, 16).expect("hex digits");
            }
        }
        Ok(())
    }

    fn write_memory(&mut self, offset: usize, bytes: &[u8]) -> Result<(), TransportError> {
        for (address, range) in self.pieces(offset, bytes.len()) {
            let digits: String = bytes[range.clone()]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            let line = format!("write {address:#x} {:#x} 0x{digits}", range.len());
            self.say(&line).map_err(failed(0))?;
        }
        Ok(())
    }

    fn now(&mut self) -> Duration {
        self.started.elapsed()
    }

    fn sleep(&mut self, duration: Duration) {
        std::thread::sleep(duration);
    }
}
