//! `vfio-bigbar`: BARs of many GiB. One as long as a GPU's memory finds a place that the guest's
//! kernel keeps; through another the guest reaches memory to its last byte, as the host sees.

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::vfio_nvme::{make_backing, on_node};
use crate::lab::devices::Device;
use crate::lab::host_slots::HostSlot;
use crate::lab::node::NodeSpec;
use crate::lab::scenario::Context;
use crate::lab::scripted_guest::{GuestSpec, ScriptedGuest};

const LIMIT: Duration = Duration::from_secs(900);
const LONG_GIB: u32 = 128;
const SHARED_GIB: u32 = 4;
/// What the guest writes at the last 8 bytes.
const MARK: &[u8; 8] = b"BIGBAR!!";

/// Says where the BARs are, and writes the end of the shared one through a mapping of its file.
const SCRIPT: &str = r#"
lspci -v -d 1b36:0005 | grep -m1 'size=128G' | sed 's/^/long /'
dmesg | grep -i "can't assign\|no space for\|failed to assign" && exit 1
slot=$(lspci -D -d 1af4:1110 | cut -d' ' -f1)
setpci -s $slot COMMAND=0002:0002
perl -e '
    my ($file, $bytes) = @ARGV;
    open(my $bar, "+<", $file) or die "open: $!";
    my $place = syscall(9, 0, 4096, 3, 1, fileno($bar), $bytes - 4096);
    die "mmap: $!" if $place == -1;
    my $mark = "BIGBAR!!";
    # A read into the mapping is the one way of perl to write at an address.
    pipe(my $out, my $in) or die "pipe: $!";
    syswrite($in, $mark) == 8 or die "write: $!";
    syscall(0, fileno($out), $place + 4088, 8) == 8 or die "read: $!";
    my $back = unpack("P8", pack("Q", $place + 4088));
    die "it reads $back" if $back ne $mark;
' /sys/bus/pci/devices/$slot/resource2 4294967296
echo shared written
"#;

/// Runs the scenario.
///
/// # Errors
/// The first thing that is not as it should be.
pub(crate) fn run(context: &Context) -> Result<()> {
    let shared_bytes = u64::from(SHARED_GIB) << 30;
    let shared = make_backing("vfio-bigbar", "shared", shared_bytes)?;
    let spec = NodeSpec {
        devices: vec![
            Device::SharedDisk {
                image: context.guest.artefacts.clone(),
            },
            Device::MemorySlot { gib: LONG_GIB },
            Device::SharedMemorySlot {
                file: shared.clone(),
                gib: SHARED_GIB,
            },
        ],
        ..NodeSpec::default()
    };
    on_node("vfio-bigbar", context, &spec, |node| {
        let long = HostSlot::device(node, "0x1b36", "0x0005")?;
        let memory = HostSlot::device(node, "0x1af4", "0x1110")?;
        let end = ScriptedGuest::run(
            node,
            &GuestSpec {
                name: "bigbar",
                vcpus: 1,
                memory_mib: 512,
                options: &format!("{} {}", long.option(), memory.option()),
                script: SCRIPT,
            },
            LIMIT,
        )?;
        (context.say)(&format!("  the guest sees {}", end.fact("long")?));
        end.fact("shared")?;
        let mut last = [0; MARK.len()];
        std::fs::File::open(&shared)
            .and_then(|file| file.read_exact_at(&mut last, shared_bytes - 8))
            .context("reading the shared memory's file")?;
        ensure!(
            last == *MARK,
            "the host sees {last:?} at the end of the BAR"
        );
        (context.say)("  the guest wrote the last bytes of a BAR of 4 GiB, and the host sees them");
        Ok(())
    })
}
