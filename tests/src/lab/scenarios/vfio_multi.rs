//! `vfio-multi`: two NVMe drives and a display adapter in one guest, which may reach each other.
//! Both drives work at once, and no device is taken for another.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::vfio_nvme::{hash_of, make_backing, on_node};
use crate::lab::devices::Device;
use crate::lab::host_slots::HostSlot;
use crate::lab::node::NodeSpec;
use crate::lab::scenario::Context;
use crate::lab::scripted_guest::{GuestSpec, ScriptedGuest};

const LIMIT: Duration = Duration::from_secs(600);
/// The drives' lengths, by which the guest tells them apart, too.
const DRIVES: [(&str, u64); 2] = [("slot1", 128 << 20), ("slot2", 96 << 20)];
const PATTERN_BYTES: u64 = 1 << 20;

/// Works on both drives at once, and leaves each a pattern of its own.
const SCRIPT: &str = r"
for tries in $(seq 100); do
    [ -b /dev/nvme0n1 ] && [ -b /dev/nvme1n1 ] && break
    sleep 0.2
done
lspci -nn | sed 's/^/lspci /'
lspci -d ::0380 | grep -q . && echo display found
for drive in nvme0 nvme1; do
    serial=$(tr -d ' ' </sys/class/nvme/$drive/serial)
    echo $serial bytes $(blockdev --getsize64 /dev/${drive}n1)
    fio --name=$drive --filename=/dev/${drive}n1 --rw=randwrite --bs=4k --size=12m \
        --offset=16m --ioengine=libaio --iodepth=16 --direct=1 --verify=crc32c --do_verify=1 \
        --verify_fatal=1 --end_fsync=1 --output=/run/fio-$drive &
done
wait
for drive in nvme0 nvme1; do
    serial=$(tr -d ' ' </sys/class/nvme/$drive/serial)
    grep -q 'err= 0' /run/fio-$drive && echo $serial-fio verified
    dd if=/dev/urandom of=/run/pattern bs=64k count=16 status=none
    dd if=/run/pattern of=/dev/${drive}n1 bs=64k oflag=direct conv=fsync status=none
    echo $serial-pattern $(sha256sum </run/pattern | cut -d' ' -f1)
done
";

/// Runs the scenario.
///
/// # Errors
/// The first thing that is not as it should be.
pub(crate) fn run(context: &Context) -> Result<()> {
    let mut devices = vec![Device::SharedDisk {
        image: context.guest.artefacts.clone(),
    }];
    let mut files = Vec::new();
    for (serial, bytes) in DRIVES {
        let image = make_backing("vfio-multi", serial, bytes)?;
        files.push(image.clone());
        devices.push(Device::NvmeSlot {
            image,
            serial: serial.to_owned(),
        });
    }
    devices.push(Device::DisplaySlot);
    let spec = NodeSpec {
        devices,
        ..NodeSpec::default()
    };
    on_node("vfio-multi", context, &spec, |node| {
        let mut slots = Vec::new();
        for (serial, _) in DRIVES {
            slots.push(HostSlot::nvme(node, serial)?);
        }
        slots.push(HostSlot::device(node, "0x1af4", "0x1050")?);
        let options: Vec<String> = slots.iter().map(HostSlot::option).collect();
        let end = ScriptedGuest::run(
            node,
            &GuestSpec {
                name: "multi",
                vcpus: 2,
                memory_mib: 512,
                options: &format!("{} --p2p", options.join(" ")),
                script: SCRIPT,
            },
            LIMIT,
        )?;
        end.fact("display")?;
        for ((serial, bytes), file) in DRIVES.into_iter().zip(&files) {
            ensure!(
                end.fact(serial)? == format!("bytes {bytes}"),
                "{serial} is another drive"
            );
            end.fact(&format!("{serial}-fio"))?;
            ensure!(
                hash_of(file, 0, PATTERN_BYTES)? == end.fact(&format!("{serial}-pattern"))?,
                "{serial}'s file has another drive's data"
            );
        }
        let warned = end.events.iter().any(|event| event["event"] == "warning");
        ensure!(
            !warned,
            "the devices cannot reach each other: {:?}",
            end.events
        );
        for slot in &slots {
            slot.must_be_sane(node)?;
        }
        (context.say)("  two drives and a display adapter in one guest, each its own");
        Ok(())
    })
}
