//! `vfio-narrow-iommu`: a host whose IOMMU translates 39 bits only. Memory, a drive and one BAR of half
//! of that fit; a second such BAR does not, and costs the guest nothing but peer-to-peer traffic.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::vfio_nvme::{FIND_DRIVE, make_backing, on_node};
use crate::lab::devices::Device;
use crate::lab::host_slots::HostSlot;
use crate::lab::node::{Iommu, NodeSpec};
use crate::lab::scenario::Context;
use crate::lab::scripted_guest::{GuestSpec, ScriptedGuest};

const LIMIT: Duration = Duration::from_secs(600);
/// Half of what 39 bits reach: beside memory there is a place for one. The host has no place for one
/// that is longer, as firmware keeps the end of its 40 bits to itself.
const BAR_GIB: u32 = 256;

const SCRIPT: &str = r"
fio --name=verify --filename=/dev/nvme0n1 --rw=randwrite --bs=4k --size=8m --ioengine=libaio \
    --iodepth=16 --direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1 --output=/run/fio
grep -q 'err= 0' /run/fio && echo fio verified
setpci -d 1b36:0005 COMMAND=0002:0002
echo bars $(lspci -v -d 1b36:0005 | grep -c 'size=256G')
";

/// Runs the scenario.
///
/// # Errors
/// The first thing that is not as it should be.
pub(crate) fn run(context: &Context) -> Result<()> {
    let spec = NodeSpec {
        iommu: Iommu::Present {
            bits: 39,
            remaps_interrupts: true,
        },
        devices: vec![
            Device::SharedDisk {
                image: context.guest.artefacts.clone(),
            },
            Device::NvmeSlot {
                image: make_backing("vfio-narrow-iommu", "drive", 64 << 20)?,
                serial: "slot1".to_owned(),
            },
            Device::MemorySlot { gib: BAR_GIB },
            Device::MemorySlot { gib: BAR_GIB },
        ],
        ..NodeSpec::default()
    };
    on_node("vfio-narrow-iommu", context, &spec, |node| {
        let drive = HostSlot::nvme(node, "slot1")?;
        let memories = HostSlot::devices(node, "0x1b36", "0x0005")?;
        let options = std::iter::once(&drive).chain(&memories);
        let options: Vec<_> = options.map(HostSlot::option).collect();
        let end = ScriptedGuest::run(
            node,
            &GuestSpec {
                name: "narrow",
                vcpus: 1,
                memory_mib: 512,
                options: &format!("{} --p2p", options.join(" ")),
                script: &format!("{FIND_DRIVE}{SCRIPT}"),
            },
            LIMIT,
        )?;
        end.fact("fio")?;
        ensure!(end.fact("bars")? == "2", "the guest lacks a BAR");
        let warnings: Vec<_> = end
            .events
            .iter()
            .map(|event| &event["about"])
            .filter(|about| about["warning"] == "peer_to_peer")
            .collect();
        let [warning] = warnings[..] else {
            bail!("not just one warning among {:?}", end.events);
        };
        let is_about = |memory: &HostSlot| warning["device"] == memory.address.as_str();
        ensure!(
            memories.iter().any(is_about),
            "the warning is about another device: {warning}"
        );
        (context.say)(&format!(
            "  the guest has its devices; {}",
            warning["problem"]
        ));
        Ok(())
    })
}
