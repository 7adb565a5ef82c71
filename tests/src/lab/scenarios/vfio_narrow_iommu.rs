//! `vfio-narrow-iommu`: a host whose IOMMU translates 39 bits only. Memory and a drive fit; a BAR as
//! long as all that the IOMMU reaches does not, and costs the guest nothing but peer-to-peer traffic.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::vfio_nvme::{FIND_DRIVE, make_backing, on_node};
use crate::lab::devices::Device;
use crate::lab::host_slots::HostSlot;
use crate::lab::node::{Iommu, NodeSpec};
use crate::lab::scenario::Context;
use crate::lab::scripted_guest::{GuestSpec, ScriptedGuest};

const LIMIT: Duration = Duration::from_secs(600);
/// As much as 39 bits reach: beside memory there is no place for it.
const BAR_GIB: u32 = 512;

const SCRIPT: &str = r"
fio --name=verify --filename=/dev/nvme0n1 --rw=randwrite --bs=4k --size=8m --ioengine=libaio \
    --iodepth=16 --direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1 --output=/run/fio
grep -q 'err= 0' /run/fio && echo fio verified
setpci -d 1b36:0005 COMMAND=0002:0002
lspci -v -d 1b36:0005 | grep -m1 'size=512G' | sed 's/^/bar /'
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
        ],
        ..NodeSpec::default()
    };
    on_node("vfio-narrow-iommu", context, &spec, |node| {
        let drive = HostSlot::nvme(node, "slot1")?;
        let memory = HostSlot::device(node, "0x1b36", "0x0005")?;
        let end = ScriptedGuest::run(
            node,
            &GuestSpec {
                name: "narrow",
                vcpus: 1,
                memory_mib: 512,
                options: &format!("{} {} --p2p", drive.option(), memory.option()),
                script: &format!("{FIND_DRIVE}{SCRIPT}"),
            },
            LIMIT,
        )?;
        end.fact("fio")?;
        end.fact("bar")?;
        let warning = end
            .events
            .iter()
            .map(|event| &event["about"])
            .find(|about| about["warning"] == "peer_to_peer")
            .with_context(|| format!("no warning among {:?}", end.events))?;
        ensure!(
            warning["device"] == memory.address.as_str(),
            "the warning is about another device: {warning}"
        );
        (context.say)(&format!(
            "  the guest has its devices; {}",
            warning["problem"]
        ));
        Ok(())
    })
}
