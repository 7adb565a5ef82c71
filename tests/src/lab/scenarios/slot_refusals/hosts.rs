//! Whole hosts on which no device may be given away, whatever device it is.

use anyhow::{Context as _, Result};

use super::{judge, reason};
use crate::lab::devices::Device;
use crate::lab::host::Host as _;
use crate::lab::node::{Iommu, Node, NodeSpec};
use crate::lab::scenario::Context;
use crate::lab::scenarios::vfio_nvme::make_backing;
use crate::lab::slots::address_of_drive;

const DRIVE_BYTES: u64 = 16 << 20;
const CODE: &str = "iommu_group_unsafe";
/// Has VFIO do without interrupt remapping.
const ALLOW_UNSAFE: &str = "modprobe vfio_iommu_type1 && \
    echo 1 >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";

/// A host, and what has to be said of its drive there.
struct Case {
    about: &'static str,
    iommu: Iommu,
    kernel_words: &'static str,
    before: &'static str,
    reasons: &'static [&'static str],
}

const NO_REMAPPING: Iommu = Iommu::Present {
    bits: 48,
    remaps_interrupts: false,
};

const CASES: [Case; 2] = [
    Case {
        about: "no IOMMU",
        iommu: Iommu::Absent,
        kernel_words: "",
        before: "true",
        reasons: &["has no IOMMU", "has no IOMMU group"],
    },
    Case {
        about: "interrupts that are not remapped, a switch that hides it, and isolation made up",
        iommu: NO_REMAPPING,
        kernel_words: "pcie_acs_override=downstream",
        before: ALLOW_UNSAFE,
        reasons: &[
            "remapped",
            "allow_unsafe_interrupts",
            "pcie_acs_override=downstream",
        ],
    },
];

pub(super) fn run(context: &Context) -> Result<()> {
    for case in CASES {
        let image = make_backing("slot-refusals", "lone", DRIVE_BYTES)?;
        let serial = "lone".to_owned();
        let spec = NodeSpec {
            iommu: case.iommu,
            kernel_words: case.kernel_words.to_owned(),
            devices: vec![Device::NvmeSlot { image, serial }],
            ..NodeSpec::default()
        };
        let node = Node::boot("slot-refusals", &context.node, &spec)?;
        let result = look(&node, &case, context.say);
        if result.is_err() {
            node.collect();
        }
        result.context(case.about)?;
    }
    Ok(())
}

fn look(node: &Node, case: &Case, say: fn(&str)) -> Result<()> {
    node.check(case.before)?;
    let drive = address_of_drive(node, "lone")?;
    let found = judge(node, &format!("slot check {drive}"))?;
    for words in case.reasons {
        let message = reason(&found, CODE, &[words])?;
        say(&format!("  {}: {CODE}: {message}", case.about));
    }
    Ok(())
}
