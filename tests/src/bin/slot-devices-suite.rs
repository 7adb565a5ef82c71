//! Does with real devices what the agent does, one step at a time, and runs the suite that every
//! implementation of them must pass. For lab nodes and for hands.
//!
//! Devices are approved as they are found. One line on standard output for each thing that was found;
//! a failed step is `refused CODE: MESSAGE` and exit status 1.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use berth_agent_core::slot::approval::ApprovedDevice;
use berth_agent_core::slot::wipe::WipePolicy;
use berth_agent_host::slot_devices::{DRIVER_LIMIT, DeviceError, LinuxSlotDevices, SlotDevices};
use berth_api::pci::PciAddress;
use berth_api::slot::{DeviceKind, serial_kind};
use berth_tests::slot_devices::{Cast, HARMLESS, Journal, WIPING};

const USAGE: &str = "usage: slot-devices-suite [--limit SECONDS] COMMAND [KIND=ADDRESS]...\n\
                     COMMAND: bind | none | to:DRIVER | identify | reset | users | wipe | harmless | wiping\n\
                     KIND: nvme | gpu | network | other; gpu:BAR names its memory";
/// Exit status for a wrong command line.
const EXIT_USAGE: u8 = 64;
/// An address that no lab node has.
const ABSENT: &str = "0000:fe:1f.7";

struct Arguments {
    limit: Duration,
    command: String,
    devices: Vec<(DeviceKind, Option<String>, PciAddress)>,
}

fn parse(words: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut words = words.peekable();
    let mut limit = DRIVER_LIMIT;
    if words.next_if_eq("--limit").is_some() {
        let seconds = words.next().context("--limit needs seconds")?;
        limit = Duration::from_secs(seconds.parse()?);
    }
    let command = words.next().context("there is no command")?;
    let devices = words.map(|word| device(&word)).collect::<Result<_>>()?;
    Ok(Arguments {
        limit,
        command,
        devices,
    })
}

fn device(word: &str) -> Result<(DeviceKind, Option<String>, PciAddress)> {
    let (kind, address) = word.split_once('=').context("a device is KIND=ADDRESS")?;
    let (kind, bar) = match kind.split_once(':') {
        Some((kind, bar)) => (kind, Some(bar.to_owned())),
        None => (kind, None),
    };
    let kind = match kind {
        "nvme" => DeviceKind::Nvme,
        "gpu" => DeviceKind::Gpu,
        "network" => DeviceKind::Network,
        "other" => DeviceKind::Other,
        _ => bail!("`{kind}` is no kind"),
    };
    Ok((kind, bar, address.parse()?))
}

/// The devices as their host's owner would approve them now.
fn cast(devices: &LinuxSlotDevices, arguments: &Arguments) -> Result<Cast> {
    let snapshot = devices.snapshot()?;
    let mut approved = Vec::new();
    for (kind, bar, address) in &arguments.devices {
        let function = snapshot.functions.get(address);
        let function = function.with_context(|| format!("{address} is not there"))?;
        let settings = bar.iter().map(|bar| ("memory_bar".to_owned(), bar.clone()));
        approved.push(ApprovedDevice {
            kind: *kind,
            address: *address,
            identity: function.identity.clone(),
            settings: settings.collect(),
        });
    }
    Ok(Cast {
        devices: approved,
        absent: ABSENT.parse()?,
    })
}

/// Adds what drives say of themselves, which needs them to be bound.
fn ask_drives(devices: &LinuxSlotDevices, cast: &mut Cast) -> Result<()> {
    for device in &mut cast.devices {
        if device.kind == DeviceKind::Nvme {
            devices.ensure_bound(device.address)?;
            let said = devices.identify(device, device.address)?;
            for name in [serial_kind::NVME_SERIAL, serial_kind::NVME_MODEL] {
                let value = said
                    .get(name)
                    .with_context(|| format!("it has no {name}"))?;
                device
                    .identity
                    .serials
                    .insert(name.to_owned(), value.clone());
            }
        }
    }
    Ok(())
}

fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("writing to standard output")
}

fn each(cast: &Cast, step: impl Fn(&ApprovedDevice) -> Result<String, DeviceError>) -> Result<()> {
    for device in &cast.devices {
        let begun = Instant::now();
        let found = step(device)?;
        let took = begun.elapsed().as_millis();
        say(&format!("{} {found} ({took} ms)", device.address))?;
    }
    Ok(())
}

fn run(arguments: &Arguments) -> Result<()> {
    let devices = LinuxSlotDevices::new(Path::new("/"), arguments.limit);
    let mut cast = cast(&devices, arguments)?;
    match arguments.command.as_str() {
        "bind" => each(&cast, |device| devices.ensure_bound(device.address)),
        "none" => each(&cast, |device| devices.ensure_unbound(device.address, None)),
        "identify" => each(&cast, |device| {
            let said = devices.identify(device, device.address)?;
            Ok(format!("{said:?}"))
        }),
        "users" => each(&cast, |device| {
            Ok(format!("{:?}", devices.users(device.address)?))
        }),
        "reset" => {
            let addresses: Vec<_> = cast.devices.iter().map(|device| device.address).collect();
            say(&devices.reset(&addresses)?)
        }
        "wipe" => {
            ask_drives(&devices, &mut cast)?;
            each(&cast, |device| {
                let policy = WipePolicy::default();
                let mut journal = Journal::default();
                let wiped = devices.wipe(device, device.address, &policy, None, &mut journal)?;
                Ok(format!("{wiped:?} noted {:?}", journal.notes))
            })
        }
        "harmless" | "wiping" => {
            ensure!(!cast.devices.is_empty(), "no device takes part");
            ask_drives(&devices, &mut cast)?;
            let cases = if arguments.command == "wiping" {
                WIPING
            } else {
                HARMLESS
            };
            for case in cases {
                let begun = Instant::now();
                let found = case.run(&devices, &cast)?;
                let took = begun.elapsed().as_millis();
                say(&format!("ok {} ({took} ms)\n  {found}", case.name))?;
            }
            Ok(())
        }
        other => {
            let driver = other.strip_prefix("to:");
            let driver = driver.with_context(|| format!("`{other}` is no command"))?;
            each(&cast, |device| {
                devices.ensure_unbound(device.address, Some(driver))
            })
        }
    }
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "{error:#}\n{USAGE}"));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let line = match error.downcast_ref::<DeviceError>() {
                Some(refused) => format!(
                    "refused {:?}{}: {refused}",
                    refused.code,
                    if refused.is_device_suspect {
                        " suspect"
                    } else {
                        ""
                    }
                ),
                None => format!("failed: {error:#}"),
            };
            drop(say(&line));
            ExitCode::FAILURE
        }
    }
}
