//! `vfio-hostile`: a guest that puts its drive to sleep, resets it and takes its memory away in a
//! loop, under I/O. The VMM and the guest's other devices go on, the drive works again once it is
//! let alone, and the host gets it back as good as new.

use std::time::Duration;

use anyhow::Result;

use super::vfio_nvme::{FIND_DRIVE, make_backing, on_node};
use crate::lab::devices::Device;
use crate::lab::host_slots::HostSlot;
use crate::lab::node::NodeSpec;
use crate::lab::scenario::Context;
use crate::lab::scripted_guest::{GuestSpec, ScriptedGuest};

const LIMIT: Duration = Duration::from_secs(900);

/// Everything is done to the drive that configuration space allows, while fio runs on it.
const HARASS: &str = r"
slot=$(basename $(readlink -f /sys/class/nvme/nvme0/device))
io() {
    while [ ! -e /run/enough ]; do
        fio --name=io --filename=/dev/nvme0n1 --rw=randrw --bs=4k --size=8m --ioengine=libaio \
            --iodepth=8 --direct=1 --time_based --runtime=5 >/dev/null 2>&1 || sleep 0.2
    done
}
io &
sleep 1
rounds=0
while [ $rounds -lt 12 ]; do
    # Asleep and awake again.
    setpci -s $slot CAP_PM+4.w=3:3 2>/dev/null || true
    setpci -s $slot CAP_PM+4.w=0:3 2>/dev/null || true
    # No memory, no bus mastering, and both again.
    setpci -s $slot COMMAND=0:6 2>/dev/null || true
    setpci -s $slot COMMAND=6:6 2>/dev/null || true
    # A function-level reset behind the driver's back.
    setpci -s $slot CAP_EXP+8.w=8000:8000 2>/dev/null || true
    setpci -s $slot COMMAND=6:6 2>/dev/null || true
    # Vectors off and on, BARs moved onto each other and out of the window.
    setpci -s $slot CAP_MSIX+2.w=0:8000 2>/dev/null || true
    setpci -s $slot CAP_MSIX+2.w=8000:8000 2>/dev/null || true
    bar=$(setpci -s $slot BASE_ADDRESS_0)
    setpci -s $slot BASE_ADDRESS_0=fee00000 2>/dev/null || true
    setpci -s $slot BASE_ADDRESS_0=$bar 2>/dev/null || true
    rounds=$((rounds + 1))
done
touch /run/enough
echo rounds $rounds
# The guest's own disk was never disturbed.
dd if=/dev/urandom of=/var/lib/proof bs=64k count=16 conv=fsync status=none
echo other disk works
";

/// The guest lets its drive alone and takes it anew.
const RECOVER: &str = r"
echo 1 >/sys/bus/pci/devices/$slot/remove
wait
echo 1 >/sys/bus/pci/rescan
for tries in $(seq 100); do [ -b /dev/nvme0n1 ] && break; sleep 0.2; done
fio --name=verify --filename=/dev/nvme0n1 --rw=randwrite --bs=4k --size=8m --ioengine=libaio \
    --iodepth=16 --direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1 --output=/run/fio
grep -q 'err= 0' /run/fio && echo fio verified
";

/// Runs the scenario.
///
/// # Errors
/// The first thing that is not as it should be.
pub(crate) fn run(context: &Context) -> Result<()> {
    let spec = NodeSpec {
        devices: vec![
            Device::SharedDisk {
                image: context.guest.artefacts.clone(),
            },
            Device::NvmeSlot {
                image: make_backing("vfio-hostile", "drive", 64 << 20)?,
                serial: "slot1".to_owned(),
            },
        ],
        ..NodeSpec::default()
    };
    on_node("vfio-hostile", context, &spec, |node| {
        let slot = HostSlot::nvme(node, "slot1")?;
        let guest = |name, script: &str| {
            let spec = GuestSpec {
                name,
                vcpus: 2,
                memory_mib: 512,
                options: &slot.option(),
                script: &format!("{FIND_DRIVE}{script}"),
            };
            ScriptedGuest::run(node, &spec, LIMIT)
        };
        let end = guest("hostile", &format!("{HARASS}{RECOVER}"))?;
        let rounds = end.fact("rounds")?;
        end.fact("other")?;
        end.fact("fio")?;
        (context.say)(&format!(
            "  the drive was put to sleep, reset and moved {rounds} times, and works"
        ));
        slot.must_be_sane(node)?;
        let next = "fio --name=verify --filename=/dev/nvme0n1 --rw=randwrite --bs=4k --size=8m \
                    --ioengine=libaio --iodepth=16 --direct=1 --verify=crc32c --do_verify=1 \
                    --verify_fatal=1 --output=/run/fio\ngrep -q 'err= 0' /run/fio && echo fio verified\n";
        guest("next", next)?.fact("fio")?;
        slot.must_be_sane(node)?;
        (context.say)("  the next guest finds nothing of it");
        Ok(())
    })
}
