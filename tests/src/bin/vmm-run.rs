//! Runs one guest under a given `berth-vmm` from the command line, without an agent.
//!
//! For lab nodes and for hands: opens the files, sends the start message, prints every event as one
//! JSON line on standard error, and ends with the VMM's own exit status. With `--follow-resets` it
//! starts the VMM again when the guest asked for a reset, as the agent does.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use berth_api::vmm::{
    Balloon, Console, Disk, Event, Exit, FdIndex, HostPages, MemoryBacking, Request, Start,
    VirtioConsole,
};
use berth_tests::host_devices;
use berth_tests::launch::{Descriptors, Heard, LaunchedVmm, Talk};
use berth_tests::tap_host::TapOptions;
use berth_tests::unit_launch::UnitVmm;
use berth_tests::vsock_host::VsockPaths;

const USAGE: &str = "usage: vmm-run --vmm PATH --kernel FILE [--initrd FILE] [--disk FILE[:ro]]... \
                     [--cmdline TEXT] [--vcpus N] [--memory-mib M] [--entropy] \
                     [--console FILE|-|none] [--hvc FILE[,input=PATH]] \
                     [--tap NAME[,queues=N][,vhost][,mac=ADDRESS]]... \
                     [--vsock CID[,listen=PATH][,connect=PATH]] \
                     [--vfio ADDRESS]... [--p2p] [--balloon[=oom,reporting]] [--panic-device] \
                     [--pages transparent|small|2m|1g] [--numa NODE,...] [--prefault] \
                     [--control PATH] [--unit] [--follow-resets] [--timeout SECONDS]";
/// How long a VMM that was told to stop may take before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Exit status for a wrong command line.
const EXIT_USAGE: u8 = 64;
/// Exit status for a failure of this program.
const EXIT_FAILURE: u8 = 70;
/// How a process ends that was killed.
const SIGKILL: i32 = 9;
/// What a shell adds to a signal's number.
const SIGNAL_BASE: i32 = 128;

/// What the command line says.
struct Arguments {
    vmm: PathBuf,
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    disks: Vec<(PathBuf, bool)>,
    cmdline: String,
    vcpus: u32,
    memory_mib: u64,
    entropy: bool,
    /// PCI addresses of host devices that are bound to vfio-pci.
    vfio: Vec<String>,
    peer_to_peer: bool,
    console: Option<PathBuf>,
    taps: Vec<TapOptions>,
    vsock: Option<VsockPaths>,
    hvc: Option<Hvc>,
    /// Whether the VMM runs in a unit as the agent makes them, and not as our child.
    unit: bool,
    balloon: Option<Balloon>,
    panic_device: bool,
    memory: MemoryBacking,
    /// Where requests are taken: a Unix socket, one JSON document in each line.
    control: Option<PathBuf>,
    follow_resets: bool,
    deadline: Option<Instant>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = OsString>) -> Result<Self> {
        let (mut vmm, mut kernel) = (None, None);
        let mut found = Self {
            vmm: PathBuf::new(),
            kernel: PathBuf::new(),
            initrd: None,
            disks: Vec::new(),
            cmdline: String::new(),
            vcpus: 1,
            memory_mib: 256,
            entropy: false,
            vfio: Vec::new(),
            peer_to_peer: false,
            console: Some(PathBuf::from("-")),
            taps: Vec::new(),
            vsock: None,
            hvc: None,
            unit: false,
            balloon: None,
            panic_device: false,
            memory: MemoryBacking::default(),
            control: None,
            follow_resets: false,
            deadline: None,
        };
        while let Some(word) = words.next() {
            let option = word.to_string_lossy().into_owned();
            let mut value = || {
                words
                    .next()
                    .with_context(|| format!("{option} needs a value"))
            };
            match option.as_str() {
                "--vmm" => vmm = Some(PathBuf::from(value()?)),
                "--kernel" => kernel = Some(PathBuf::from(value()?)),
                "--initrd" => found.initrd = Some(PathBuf::from(value()?)),
                "--disk" => found.disks.push(disk(text(value()?)?)),
                "--cmdline" => found.cmdline = text(value()?)?,
                "--vcpus" => found.vcpus = number(&option, value()?)?,
                "--memory-mib" => found.memory_mib = number(&option, value()?)?,
                "--entropy" => found.entropy = true,
                "--vfio" => found.vfio.push(text(value()?)?),
                "--p2p" => found.peer_to_peer = true,
                "--console" => {
                    found.console =
                        Some(PathBuf::from(value()?)).filter(|path| *path != Path::new("none"));
                }
                "--hvc" => found.hvc = Some(Hvc::parse(text(value()?)?)),
                "--tap" => found.taps.push(tap(&text(value()?)?)?),
                "--vsock" => found.vsock = Some(vsock(&text(value()?)?)?),
                "--balloon" => found.balloon = Some(balloon("")?),
                _ if option.starts_with("--balloon=") => {
                    found.balloon = Some(balloon(&option["--balloon=".len()..])?);
                }
                "--panic-device" => found.panic_device = true,
                "--pages" => found.memory.pages = pages(&text(value()?)?)?,
                "--numa" => found.memory.numa_nodes = nodes(&text(value()?)?)?,
                "--prefault" => found.memory.prefault = true,
                "--control" => found.control = Some(PathBuf::from(value()?)),
                "--unit" => found.unit = true,
                "--follow-resets" => found.follow_resets = true,
                "--timeout" => {
                    let limit = Duration::from_secs(number(&option, value()?)?);
                    found.deadline = Some(Instant::now() + limit);
                }
                _ => bail!("unknown option `{option}`"),
            }
        }
        found.vmm = vmm.context("--vmm is missing")?;
        found.kernel = kernel.context("--kernel is missing")?;
        Ok(found)
    }

    fn machine(&self) -> Result<(Start, Descriptors)> {
        let mut descriptors = Descriptors::new();
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        let kvm = descriptors.add(kvm.context("opening /dev/kvm")?);
        let kernel = descriptors.add(open(&self.kernel)?);
        let initrd = match &self.initrd {
            Some(path) => Some(descriptors.add(open(path)?)),
            None => None,
        };
        let mut disks = Vec::new();
        for (position, (path, read_only)) in self.disks.iter().enumerate() {
            disks.push(add_disk(&mut descriptors, position, path, *read_only)?);
        }
        let console = match &self.console {
            Some(path) => Some(Console::Stream {
                fd: add_console(&mut descriptors, path)?,
            }),
            None => None,
        };
        let vfio = host_devices::open(&self.vfio, self.peer_to_peer, &mut descriptors)?;
        let networks = self.taps.iter();
        let networks = networks
            .map(|tap| tap.open(&mut descriptors))
            .collect::<Result<_>>()?;
        let vsock = match &self.vsock {
            Some(paths) => Some(paths.open(&mut descriptors).context("making sockets")?),
            None => None,
        };
        let virtio_console = match &self.hvc {
            Some(hvc) => Some(hvc.open(&mut descriptors)?),
            None => None,
        };
        let start = Start {
            vfio,
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            initrd,
            cmdline: self.cmdline.clone(),
            disks,
            console,
            entropy: self.entropy,
            networks,
            vsock,
            virtio_console,
            balloon: self.balloon,
            panic_device: self.panic_device,
            memory_backing: self.memory.clone(),
            ..Start::new("vmm-run", kvm, kernel)
        };
        Ok((start, descriptors))
    }
}

fn text(value: OsString) -> Result<String> {
    value.into_string().ok().context("a value is not UTF-8")
}

fn number<T: std::str::FromStr>(option: &str, value: OsString) -> Result<T> {
    let value = text(value)?;
    value
        .parse()
        .ok()
        .with_context(|| format!("{option}: `{value}` is not a number that fits"))
}

fn disk(value: String) -> (PathBuf, bool) {
    match value.strip_suffix(":ro") {
        Some(path) => (PathBuf::from(path), true),
        None => (PathBuf::from(value), false),
    }
}

fn tap(value: &str) -> Result<TapOptions> {
    TapOptions::parse(value).with_context(|| format!("--tap: `{value}`"))
}

fn vsock(value: &str) -> Result<VsockPaths> {
    let mut parts = value.split(',');
    let cid = parts.next().unwrap_or_default();
    let mut found = VsockPaths {
        cid: number("--vsock", cid.into())?,
        listen: None,
        connect: None,
    };
    for part in parts {
        match part.split_once('=') {
            Some(("listen", path)) => found.listen = Some(path.into()),
            Some(("connect", path)) => found.connect = Some(path.into()),
            _ => bail!("--vsock: `{part}` is neither listen=PATH nor connect=PATH"),
        }
    }
    Ok(found)
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("opening {}", path.display()))
}

fn add_disk(
    descriptors: &mut Descriptors,
    position: usize,
    path: &Path,
    read_only: bool,
) -> Result<Disk> {
    let file = OpenOptions::new().read(true).write(!read_only).open(path);
    let mut file = file.with_context(|| format!("opening {}", path.display()))?;
    // Seeking tells the size of block devices as well, which their metadata does not.
    let expected_bytes = file
        .seek(SeekFrom::End(0))
        .context("finding the size of a disk")?;
    let fd = descriptors.add(file);
    Ok(Disk {
        read_only,
        serial: format!("disk{position}"),
        ..Disk::new(fd, expected_bytes)
    })
}

fn add_console(descriptors: &mut Descriptors, path: &Path) -> Result<FdIndex> {
    let append = |path| {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map(OwnedFd::from)
    };
    let opened = if path == Path::new("-") {
        // Opened anew, for the VMM makes its console non-blocking, and with a copy that would be our
        // terminal's own setting. A file is copied, so that its one position serves both; what
        // cannot be opened, such as a socket, is copied for want of anything better.
        let own = Path::new("/proc/self/fd/1");
        let is_file = own.metadata().is_ok_and(|metadata| metadata.is_file());
        let anew = if is_file { None } else { append(own).ok() };
        anew.map_or_else(|| std::io::stdout().as_fd().try_clone_to_owned(), Ok)
    } else {
        // Appending, so that the output from before a reset stays.
        append(path)
    };
    Ok(descriptors.add(opened.with_context(|| format!("opening {}", path.display()))?))
}

fn balloon(options: &str) -> Result<Balloon> {
    let mut found = Balloon {
        deflate_on_oom: false,
        free_page_reporting: false,
    };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "oom" => found.deflate_on_oom = true,
            "reporting" => found.free_page_reporting = true,
            _ => bail!("--balloon: `{option}` is neither oom nor reporting"),
        }
    }
    Ok(found)
}

fn pages(value: &str) -> Result<HostPages> {
    match value {
        "transparent" => Ok(HostPages::Transparent),
        "small" => Ok(HostPages::Small),
        "2m" => Ok(HostPages::Huge2M),
        "1g" => Ok(HostPages::Huge1G),
        _ => bail!("--pages: `{value}` is none of transparent, small, 2m and 1g"),
    }
}

fn nodes(value: &str) -> Result<Vec<u32>> {
    let node = |word: &str| {
        word.parse()
            .with_context(|| format!("--numa: `{word}` is no number"))
    };
    value.split(',').map(node).collect()
}

/// Hands every line that comes over a Unix socket at `path` to the VMM.
fn take_requests(path: &Path, talk: Talk) -> Result<()> {
    // What an earlier run has left there is nobody's.
    let _removed = std::fs::remove_file(path);
    let listener =
        UnixListener::bind(path).with_context(|| format!("binding {}", path.display()))?;
    std::thread::spawn(move || {
        for caller in listener.incoming().flatten() {
            let mut lines = BufReader::new(caller).lines();
            while let Some(Ok(line)) = lines.next() {
                if talk.send_bytes(line.as_bytes()).is_err() {
                    return;
                }
            }
        }
    });
    Ok(())
}

/// A virtio console's output, and where its input comes from: a pipe or a terminal.
struct Hvc {
    output: PathBuf,
    input: Option<PathBuf>,
}

impl Hvc {
    fn parse(value: String) -> Self {
        match value.split_once(",input=") {
            Some((output, input)) => Self {
                output: output.into(),
                input: Some(input.into()),
            },
            None => Self {
                output: value.into(),
                input: None,
            },
        }
    }

    fn open(&self, descriptors: &mut Descriptors) -> Result<VirtioConsole> {
        let fd = add_console(descriptors, &self.output)?;
        let input = match &self.input {
            Some(path) => {
                // Writing, too: a pipe then opens without a writer and has no end.
                let opened = OpenOptions::new().read(true).write(true).open(path);
                let opened = opened.with_context(|| format!("opening {}", path.display()))?;
                Some(descriptors.add(opened))
            }
            None => None,
        };
        Ok(VirtioConsole {
            output: Console::Stream { fd },
            input,
        })
    }
}

/// Runs the VMM once, until its process has ended.
fn run_once(arguments: &Arguments) -> Result<ExitStatus> {
    let (start, descriptors) = arguments.machine()?;
    let mut vmm = Vmm::launch(arguments, &start, &descriptors)
        .with_context(|| format!("starting {}", arguments.vmm.display()))?;
    drop(descriptors);
    if let Some(path) = &arguments.control {
        take_requests(path, vmm.talk().another()?)?;
    }
    loop {
        match vmm.next_event(time_left(arguments.deadline))? {
            Heard::Event(event) => {
                let mut line = serde_json::to_vec(&event)?;
                line.push(b'\n');
                std::io::stderr().write_all(&line)?;
                // Not only when the socket closes: systemd keeps the other end of a unit's open.
                if let Event::Exited { .. } | Event::Refused { .. } = event {
                    break;
                }
            }
            Heard::Closed => break,
            Heard::Nothing if time_left(arguments.deadline).is_zero() => return stop(vmm),
            Heard::Nothing => {}
        }
    }
    match vmm.wait(STOP_GRACE)? {
        Some(status) => Ok(status),
        None => vmm.kill(),
    }
}

/// The VMM, however it was started.
enum Vmm {
    Child(LaunchedVmm),
    Unit(UnitVmm),
}

impl Vmm {
    fn launch(arguments: &Arguments, start: &Start, descriptors: &Descriptors) -> Result<Self> {
        if arguments.unit {
            return Ok(Self::Unit(UnitVmm::launch(
                &arguments.vmm,
                start,
                descriptors,
            )?));
        }
        let child = LaunchedVmm::launch(&arguments.vmm, start, descriptors)?;
        Ok(Self::Child(child))
    }

    fn talk(&self) -> &Talk {
        match self {
            Self::Child(vmm) => vmm.talk(),
            Self::Unit(vmm) => vmm.talk(),
        }
    }

    fn next_event(&self, timeout: Duration) -> Result<Heard> {
        Ok(match self {
            Self::Child(vmm) => vmm.next_event(timeout)?,
            Self::Unit(vmm) => vmm.next_event(timeout)?,
        })
    }

    fn send(&self, request: &Request) -> Result<()> {
        match self {
            Self::Child(vmm) => vmm.send(request)?,
            Self::Unit(vmm) => vmm.send(request)?,
        }
        Ok(())
    }

    fn wait(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        match self {
            Self::Child(vmm) => Ok(vmm.wait(timeout)?),
            Self::Unit(vmm) => vmm.wait(timeout),
        }
    }

    fn kill(&mut self) -> Result<ExitStatus> {
        match self {
            Self::Child(vmm) => Ok(vmm.kill()?),
            Self::Unit(vmm) => {
                vmm.end()?;
                Ok(ExitStatus::from_raw(SIGKILL))
            }
        }
    }
}

fn stop(mut vmm: Vmm) -> Result<ExitStatus> {
    writeln!(
        std::io::stderr(),
        "vmm-run: the time is over, stopping the guest"
    )?;
    // A VMM that cannot be asked is killed below.
    let asked = vmm.send(&Request::Stop);
    let ended = if asked.is_ok() {
        vmm.wait(STOP_GRACE)?
    } else {
        None
    };
    match ended {
        Some(status) => Ok(status),
        None => vmm.kill(),
    }
}

/// An hour without a deadline: only a bound for one wait.
fn time_left(deadline: Option<Instant>) -> Duration {
    let hour = Duration::from_secs(3600);
    deadline.map_or(hour, |deadline| {
        deadline.saturating_duration_since(Instant::now())
    })
}

fn run(arguments: &Arguments) -> Result<u8> {
    loop {
        let status = run_once(arguments)?;
        let code = status
            .code()
            .or_else(|| status.signal().map(|number| SIGNAL_BASE + number));
        let code = code.context("the VMM ended in no known way")?;
        if arguments.follow_resets && Exit::from_code(code) == Some(Exit::Reset) {
            continue;
        }
        return Ok(u8::try_from(code)?);
    }
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse(std::env::args_os().skip(1)) {
        Ok(arguments) => run(&arguments).map_err(|error| (EXIT_FAILURE, format!("{error:#}"))),
        Err(error) => Err((EXIT_USAGE, format!("{error:#}\n{USAGE}"))),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err((code, message)) => {
            // Nobody is left to tell if standard error is gone.
            let _told = writeln!(std::io::stderr(), "vmm-run: {message}");
            ExitCode::from(code)
        }
    }
}
