//! `slot-devices`: the agent's steps on a slot's devices, each on real ones of a node. The suite that the
//! fake passes runs over a drive, a display adapter and memory below a switch; drives that the host
//! uses are refused; the files behind the devices show from outside what was wiped.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::vfio_nvme::make_backing;
use crate::command;
use crate::lab::devices::Device;
use crate::lab::host::Host as _;
use crate::lab::node::{Node, NodeSpec};
use crate::lab::scenario::Context;

const DRIVE_BYTES: u64 = 256 << 20;
const MEMORY_MIB: u32 = 4;
/// What a tenant left everywhere.
const SECRET: &[u8; 16] = b"tenant A's words";
/// Where on the drive; each time 1 MiB of it.
const SECRET_AT: [u64; 4] = [0, 1 << 20, 100 << 20, 255 << 20];
/// A small file system, as a file on the node.
const EXT4: &str = "/run/used.img";
const LIMIT: Duration = Duration::from_secs(60);
const SUITE: &str = "slot-devices-suite";

/// Finds a drive by its serial number while the host still has it.
const FIND_DRIVE: &str = r#"for drive in /sys/class/nvme/nvme*; do
    [ "$(tr -d ' ' <"$drive/serial")" = SERIAL ] || continue
    basename "$(readlink -f "$drive/device")"
done"#;

/// Finds a device by what its first word of config space says.
const FIND_DEVICE: &str = r#"for device in /sys/bus/pci/devices/*; do
    [ "$(cat "$device/vendor" "$device/device" | tr '\n' ' ')" = "IDS " ] && basename "$device"
done || true"#;

/// What the agent's unit lets it do, as far as it matters here.
const UNIT: &str = include_str!("../../../../systemd/berth-agent.service");
/// Settings of the unit that a step by hand cannot have.
const NOT_FOR_A_STEP: [&str; 13] = [
    "Type",
    "NotifyAccess",
    "ExecStart",
    "Restart",
    "RestartSec",
    "RestartPreventExitStatus",
    "WatchdogSec",
    "TimeoutStartSec",
    "TimeoutStopSec",
    "FileDescriptorStoreMax",
    "KillMode",
    "StateDirectory",
    "StateDirectoryMode",
];

/// Runs the scenario.
///
/// # Errors
/// The first thing that is not as it should be.
pub(crate) fn run(context: &Context) -> Result<()> {
    let drive = make_backing("slot-devices", "drive", DRIVE_BYTES)?;
    for at in SECRET_AT {
        write_secret(&drive, at, 1 << 20)?;
    }
    let used = make_backing("slot-devices", "used", 16 << 20)?;
    command::capture(
        Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4"])
            .arg(&used),
    )?;
    let memory = make_backing("slot-devices", "memory", u64::from(MEMORY_MIB) << 20)?;
    write_secret(&memory, 0, u64::from(MEMORY_MIB) << 20)?;
    let nvme = |image: &Path, serial: &str| Device::NvmeSlot {
        image: image.to_owned(),
        serial: serial.to_owned(),
    };
    let spec = NodeSpec {
        devices: vec![
            nvme(&drive, "slot1"),
            nvme(&used, "used1"),
            Device::DisplaySlot,
            Device::SwitchedMemorySlot {
                file: memory.clone(),
                mib: MEMORY_MIB,
            },
        ],
        ..NodeSpec::default()
    };
    let node = Node::boot("slot-devices", &context.node, &spec)?;
    let result = node
        .copy_in(&used, EXT4, "0600")
        .and_then(|()| work(context, &node, &drive, &memory));
    if result.is_err() {
        node.collect();
    }
    result
}

fn work(context: &Context, node: &Node, drive: &Path, memory: &Path) -> Result<()> {
    let suite = context.programs.join(SUITE);
    node.copy_in(&suite, &format!("/usr/local/bin/{SUITE}"), "0755")?;
    node.check("modprobe vfio-pci && modprobe vfio_iommu_type1")?;
    let find = |script: String| -> Result<String> {
        let found = node.check(&script)?.trim().to_owned();
        ensure!(!found.is_empty(), "`{script}` found nothing");
        Ok(found)
    };
    let drive_at = find(FIND_DRIVE.replace("SERIAL", "slot1"))?;
    let used_at = find(FIND_DRIVE.replace("SERIAL", "used1"))?;
    let display_at = find(FIND_DEVICE.replace("IDS", "0x1af4 0x1050"))?;
    let memory_at = find(FIND_DEVICE.replace("IDS", "0x1af4 0x1110"))?;
    let bare = |arguments: &str| format!("{SUITE} {arguments}");
    refuse_what_the_host_uses(context, node, &used_at, &bare)?;

    let cast = format!("nvme={drive_at} gpu={display_at} gpu={memory_at}");
    tell(context, &step(node, &format!("harmless {cast}"))?);
    ensure!(
        has_secret(drive)? && has_secret(memory)?,
        "a case that should leave the contents alone did not"
    );
    refuse_what_somebody_has(context, node, &drive_at)?;
    climb_the_ladder(context, node, &drive_at, &memory_at)?;
    tell(context, &step(node, &format!("wiping {cast}"))?);
    for (name, file) in [("drive", drive), ("memory", memory)] {
        ensure!(
            !has_secret(file)?,
            "the {name}'s file still has the tenant's words"
        );
        (context.say)(&format!(
            "  the {name}'s file has none of the tenant's words"
        ));
    }
    host_never_saw_it(context, node)?;
    as_the_agent(context, node, &cast, &used_at)
}

fn tell(context: &Context, text: &str) {
    for line in text.lines() {
        (context.say)(&format!("  {line}"));
    }
}

fn step(node: &Node, arguments: &str) -> Result<String> {
    node.check(&format!("{SUITE} {arguments}"))
}

/// Runs a command that has to be refused with that code, for a reason that names `why`.
fn refused(context: &Context, node: &Node, command: &str, code: &str, why: &str) -> Result<()> {
    let output = node.run(command)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.trim();
    ensure!(
        !output.status.success()
            && line.starts_with(&format!("refused {code}"))
            && line.contains(why),
        "`{command}` was to be refused as {code} for `{why}`; it said: {line}"
    );
    (context.say)(&format!("  {line}"));
    Ok(())
}

/// Mounted, as a whole and in part, swap, and opened exclusively: none of them is touched.
fn refuse_what_the_host_uses(
    context: &Context,
    node: &Node,
    at: &str,
    command: &dyn Fn(&str) -> String,
) -> Result<()> {
    let block = node.check(&format!(
        "basename /sys/bus/pci/devices/{at}/nvme/nvme*/nvme*n1"
    ))?;
    let block = format!("/dev/{}", block.trim());
    let bind = command(&format!("bind nvme={at}"));
    let begin_and_end = [
        (
            format!("dd if={EXT4} of={block} bs=1M conv=fsync status=none && mount {block} /mnt"),
            "umount /mnt".to_owned(),
            "mounted on /mnt",
        ),
        (
            format!(
                "dd if=/dev/zero of={block} bs=1M count=4 status=none && mkswap -q {block} && swapon {block}"
            ),
            format!("swapoff {block}"),
            "swap",
        ),
        (
            format!("addpart {block} 1 2048 16384 && mkswap -q {block}p1 && swapon {block}p1"),
            format!("swapoff {block}p1 && udevadm settle --timeout=60 && delpart {block} 1"),
            "p1",
        ),
        (
            format!(
                "(perl -e 'sysopen(my $f, \"{block}\", 0200) or die; print \"open\\n\"; close STDOUT; sleep 600' \
                 >/run/opener 2>&1 & echo $! >/run/opener.pid) && until grep -q open /run/opener; do sleep 0.1; done"
            ),
            "kill $(cat /run/opener.pid)".to_owned(),
            "exclusively",
        ),
    ];
    for (begin, end, why) in &begin_and_end {
        node.check(begin)?;
        refused(context, node, &bind, "DeviceInUse", why)?;
        let driver = node.check(&format!(
            "basename $(readlink /sys/bus/pci/devices/{at}/driver); cat /sys/bus/pci/devices/{at}/driver_override"
        ))?;
        ensure!(
            driver == "nvme\n(null)\n",
            "after `{begin}` the driver and its override are {driver:?}"
        );
        node.check(end)?;
    }
    tell(context, &node.check(&bind)?);
    Ok(())
}

/// A process that has the group keeps everybody out, and is named.
fn refuse_what_somebody_has(context: &Context, node: &Node, at: &str) -> Result<()> {
    node.check(&format!(
        "group=/dev/vfio/$(basename $(readlink /sys/bus/pci/devices/{at}/iommu_group)); \
         (sleep 600 3<>$group >/dev/null 2>&1 & echo $! >/run/holder.pid)"
    ))?;
    let pid = node.check("cat /run/holder.pid")?;
    let why = format!("process {} ", pid.trim());
    for command in ["reset", "wipe", "identify"] {
        refused(
            context,
            node,
            &format!("{SUITE} {command} nvme={at}"),
            "ForeignUser",
            &why,
        )?;
    }
    let why = format!("process {}", pid.trim());
    refused(
        context,
        node,
        &format!("{SUITE} none nvme={at}"),
        "ForeignUser",
        &why,
    )?;
    let users = step(node, &format!("users nvme={at}"))?;
    ensure!(
        users.contains(&format!("[{}]", pid.trim())),
        "its users are {users}"
    );
    node.check("kill $(cat /run/holder.pid)")?;
    Ok(())
}

/// Without a function reset only the bus is left: below a switch that works, below QEMU's root port it
/// fails late, and is not taken for done.
fn climb_the_ladder(context: &Context, node: &Node, drive: &str, memory: &str) -> Result<()> {
    let methods = |at: &str, value: &str| {
        node.check(&format!(
            "echo {value} >/sys/bus/pci/devices/{at}/reset_method"
        ))
    };
    methods(memory, "")?;
    // The drive's group is open, too, and is not the memory's to reset.
    let found = step(node, &format!("reset nvme={drive} gpu={memory}"))?;
    let wanted = format!("{drive}: function reset; {memory}: hot reset; all answer");
    ensure!(
        found.trim() == wanted,
        "the drive and the memory were reset by {found}"
    );
    tell(context, &found);
    methods(memory, "default")?;
    methods(drive, "")?;
    let reset = format!("{SUITE} reset nvme={drive}");
    refused(
        context,
        node,
        &reset,
        "ResetFailed suspect",
        "no reset worked",
    )?;
    methods(drive, "default")?;
    tell(context, &node.check(&reset)?);
    Ok(())
}

/// The kernel saw each drive once, at its start.
fn host_never_saw_it(context: &Context, node: &Node) -> Result<()> {
    let seen = node.check("dmesg | grep -c 'nvme nvme.*pci function' || true; ls /dev/nvme*")?;
    let mut lines = seen.lines();
    let count = lines.next().context("no count")?;
    let files: Vec<_> = lines.collect();
    ensure!(
        count == "3",
        "the kernel met {count} drives, not the 3 of its start"
    );
    if let Some(other) = files.iter().find(|file| !file.starts_with("/dev/nvme0")) {
        bail!("{other} is there");
    }
    (context.say)("  the host's kernel never saw the drive again");
    Ok(())
}

/// The same with no more rights than the agent's unit has.
fn as_the_agent(context: &Context, node: &Node, cast: &str, used: &str) -> Result<()> {
    let properties: Vec<_> = UNIT
        .lines()
        .skip_while(|line| *line != "[Service]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.starts_with('#') && line.contains('='))
        .filter(|line| {
            let name = line.split('=').next().unwrap_or_default();
            !NOT_FOR_A_STEP.contains(&name)
        })
        .map(|line| format!("-p '{line}'"))
        .collect();
    let properties = properties.join(" ");
    let confined = |arguments: &str| {
        format!("systemd-run --quiet --wait --pipe {properties} /usr/local/bin/{SUITE} {arguments}")
    };
    (context.say)("  and within the limits of the agent's unit:");
    tell(
        context,
        &node.check(&confined(&format!("to:nvme nvme={used}")))?,
    );
    node.wait_until(
        "the drive's block device",
        LIMIT,
        &format!("ls -d /sys/bus/pci/devices/{used}/nvme/nvme*/nvme*n1"),
    )?;
    refuse_what_the_host_uses(context, node, used, &confined)?;
    for arguments in [format!("harmless {cast}"), format!("wiping {cast}")] {
        node.check(&confined(&arguments))?;
    }
    (context.say)("  all of it works");
    Ok(())
}

fn write_secret(file: &Path, at: u64, bytes: u64) -> Result<()> {
    let mut file = std::fs::File::options().write(true).open(file)?;
    file.seek(SeekFrom::Start(at))?;
    let times = usize::try_from(bytes)? / SECRET.len();
    file.write_all(&SECRET.repeat(times))?;
    Ok(())
}

fn has_secret(file: &Path) -> Result<bool> {
    let mut file = std::fs::File::open(file)?;
    // A piece overlaps the one before by what may be cut.
    let mut piece = vec![0; 1 << 20];
    let mut kept = 0;
    loop {
        let (_, free) = piece.split_at_mut(kept);
        let count = file.read(free)?;
        if count == 0 {
            return Ok(false);
        }
        let filled = kept + count;
        let seen = piece.get(..filled).unwrap_or_default();
        if seen.windows(SECRET.len()).any(|window| window == SECRET) {
            return Ok(true);
        }
        let rest = filled.min(SECRET.len() - 1);
        piece.copy_within(filled - rest..filled, 0);
        kept = rest;
    }
}
