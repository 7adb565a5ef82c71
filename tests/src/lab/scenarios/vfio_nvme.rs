//! `vfio-nvme`: a whole NVMe drive for a Debian guest, which writes and verifies it through its own
//! driver; the host finds the data in the drive's file, and a second guest finds the drive as good.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::lab::devices::Device;
use crate::lab::host_slots::HostSlot;
use crate::lab::node::{Node, NodeSpec, run_folder};
use crate::lab::scenario::Context;
use crate::lab::scripted_guest::{GuestEnd, GuestSpec, ScriptedGuest};

/// How long a guest may take. All is emulated twice.
const LIMIT: Duration = Duration::from_secs(600);
/// Length of the drive.
const DRIVE_BYTES: u64 = 128 << 20;
/// Where the guest leaves a pattern, and its length.
const PATTERN_AT: u64 = 64 << 20;
const PATTERN_BYTES: u64 = 1 << 20;

/// Finds the drive and says what it is.
pub(super) const FIND_DRIVE: &str = r"
udevadm settle --timeout=60 || true
[ -b /dev/nvme0n1 ] || { lspci -nn; dmesg | grep -i nvme; exit 1; }
echo drive $(cat /sys/class/nvme/nvme0/serial) $(blockdev --getsize64 /dev/nvme0n1)
interrupts() { awk '/nvme0q/ { for (i = 2; i <= NF && $i ~ /^[0-9]+$/; i++) sum += $i } END { print sum + 0 }' /proc/interrupts; }
";

/// Writes and verifies, then leaves a pattern whose hash it says.
const USE_DRIVE: &str = r"
before=$(interrupts)
fio --name=verify --filename=/dev/nvme0n1 --rw=randwrite --bs=4k --size=24m --ioengine=libaio \
    --iodepth=16 --direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1 --end_fsync=1 \
    --output=/run/fio
grep -q 'err= 0' /run/fio && echo fio verified
dd if=/dev/urandom of=/run/pattern bs=64k count=16 status=none
dd if=/run/pattern of=/dev/nvme0n1 bs=64k seek=1024 oflag=direct conv=fsync status=none
echo pattern $(sha256sum </run/pattern | cut -d' ' -f1)
after=$(interrupts)
echo interrupts $((after - before)) vectors $(grep -c nvme0q /proc/interrupts)
lspci -vv -d ::0108 | grep -m1 'MSI-X: Enable+' && echo msix enabled
";

/// Runs the scenario.
///
/// # Errors
/// The first thing that is not as it should be.
pub(crate) fn run(context: &Context) -> Result<()> {
    let backing = make_backing("vfio-nvme", "drive", DRIVE_BYTES)?;
    let spec = NodeSpec {
        devices: vec![
            Device::SharedDisk {
                image: context.guest.artefacts.clone(),
            },
            Device::NvmeSlot {
                image: backing.clone(),
                serial: "slot1".to_owned(),
            },
        ],
        ..NodeSpec::default()
    };
    on_node("vfio-nvme", context, &spec, |node| {
        let slot = HostSlot::nvme(node, "slot1")?;
        (context.say)(&format!("  the drive is {} on the node", slot.address));
        let first = guest(node, "first", &slot, USE_DRIVE)?;
        judge(&first)?;
        (context.say)(&format!(
            "  the guest verified its drive: {} interrupts, vectors and all",
            first.fact("interrupts")?
        ));
        let pattern = first.fact("pattern")?;
        ensure!(
            hash_of(&backing, PATTERN_AT, PATTERN_BYTES)? == pattern,
            "the drive's file does not have what the guest flushed"
        );
        (context.say)("  the data is in the drive's file");
        slot.must_be_sane(node)?;
        let look = "echo pattern $(dd if=/dev/nvme0n1 bs=64k skip=1024 count=16 iflag=direct \
                    status=none | sha256sum | cut -d' ' -f1)\n";
        let second = guest(node, "second", &slot, &format!("{look}{USE_DRIVE}"))?;
        judge(&second)?;
        ensure!(
            second.fact("pattern")? == pattern,
            "the second guest read something else than the first one wrote"
        );
        slot.must_be_sane(node)?;
        (context.say)("  a second guest has the drive as good as new");
        Ok(())
    })
}

fn guest(node: &Node, name: &str, slot: &HostSlot, script: &str) -> Result<GuestEnd> {
    let spec = GuestSpec {
        name,
        vcpus: 2,
        memory_mib: 512,
        options: &slot.option(),
        script: &format!("{FIND_DRIVE}{script}"),
    };
    ScriptedGuest::run(node, &spec, LIMIT)
}

fn judge(end: &GuestEnd) -> Result<()> {
    let drive = end.fact("drive")?;
    ensure!(
        drive == format!("slot1 {DRIVE_BYTES}"),
        "the guest's drive is {drive}"
    );
    end.fact("fio")?;
    end.fact("msix")?;
    let count: u64 = first_number(end.fact("interrupts")?)?;
    // 24 MiB in blocks of 4 KiB, written and read, in batches of up to 16.
    ensure!(count >= 500, "the drive interrupted only {count} times");
    Ok(())
}

/// The number that a fact begins with.
pub(super) fn first_number(fact: &str) -> Result<u64> {
    let word = fact.split_whitespace().next().context("an empty fact")?;
    word.parse().with_context(|| format!("`{word}`"))
}

/// Makes an empty file for a drive. Not in the run's folder, which the node empties first.
pub(super) fn make_backing(scenario: &str, name: &str, bytes: u64) -> Result<PathBuf> {
    let folder = run_folder(&format!("{scenario}-drives"));
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let path = folder.join(format!("{name}.raw"));
    let file = std::fs::File::create(&path).context("making a drive's file")?;
    file.set_len(bytes).context("sizing a drive's file")?;
    Ok(path)
}

/// Boots a bare node, does something on it, and keeps the evidence if that fails.
pub(super) fn on_node(
    name: &str,
    context: &Context,
    spec: &NodeSpec,
    work: impl FnOnce(&Node) -> Result<()>,
) -> Result<()> {
    use crate::lab::host::Host as _;

    let node = Node::boot(name, &context.node, spec)?;
    let result = node
        .mount_guest_image()
        .and_then(|()| node.bring_vmm(context))
        .and_then(|()| work(&node));
    if result.is_err() {
        node.collect();
    }
    result
}

/// SHA-256 of a part of a file, in hexadecimal digits.
pub(super) fn hash_of(path: &Path, offset: u64, bytes: u64) -> Result<String> {
    use std::os::unix::fs::FileExt as _;

    use sha2::{Digest as _, Sha256};

    let mut content = vec![0; usize::try_from(bytes)?];
    std::fs::File::open(path)
        .and_then(|file| file.read_exact_at(&mut content, offset))
        .with_context(|| format!("reading {}", path.display()))?;
    Ok(hex::encode(Sha256::digest(&content)))
}
