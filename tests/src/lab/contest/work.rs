//! What contenders do: the guests' scripts, and the figures that come out.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::contender::{Contender, Guest};
use super::profile::Profiles;
use crate::lab::host::Host as _;
use crate::lab::node::Node;
use crate::processor_time::Stretch;

/// Makes the interface and finds the drive that is passed through: the one that is not the root.
pub(super) const PREPARE_NODE: &str = "
modprobe tun; modprobe vhost_net; modprobe vfio-pci
mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug
ip tuntap add dev tap0 mode tap vnet_hdr
ip addr add 10.9.0.1/24 dev tap0
ip link set tap0 up
systemd-run --quiet --collect --unit=iperf iperf3 --server
for drive in /sys/class/nvme/*; do
    [ \"$(tr -d ' ' <$drive/serial)\" = contest ] || continue
    basename $(readlink -f $drive/device) >/run/contest-drive
    basename $(ls -d $drive/nvme*n1 | head -n 1) >/run/contest-disk
done
mkdir -p /root/contest
";

/// Hands the drive to vfio-pci, or back to the host's own driver.
const TO_VFIO: &str = "cd /sys/bus/pci/devices/$(cat /run/contest-drive) && \
    { [ ! -e driver ] || echo $(cat /run/contest-drive) >driver/unbind; } && \
    echo vfio-pci >driver_override && echo $(cat /run/contest-drive) >/sys/bus/pci/drivers_probe";
const TO_HOST: &str = "cd /sys/bus/pci/devices/$(cat /run/contest-drive) && \
    { [ ! -e driver ] || echo $(cat /run/contest-drive) >driver/unbind; } && \
    echo >driver_override && echo $(cat /run/contest-drive) >/sys/bus/pci/drivers_probe && \
    udevadm settle --timeout=30 && test -b /dev/$(cat /run/contest-disk)";

/// What a guest says before the name and the value of a figure.
const MARK: &str = "BERTH-OUT fio ";

/// One random-access measurement by fio, as `fio NAME IOPS`.
fn fio(name: &str, device: &str, mode: &str) -> String {
    format!(
        "fio --name={name} --filename={device} --rw={mode} --bs=4k --ioengine=libaio --iodepth=32 \
         --direct=1 --time_based --ramp_time=1 --runtime=6 --output-format=terse --output=/run/fio \
         && echo fio {name} $(awk -F';' 'END {{ print $8 + $49 }}' /run/fio)\n"
    )
}

/// fio takes the size of a cache line from sysfs and fails on one that is none: a guest whose VMM tells
/// nothing sensible of caches gets it here.
const TELL_CACHE_LINE: &str = r"
cpu=/sys/devices/system/cpu/cpu0
line=$(cat $cpu/cache/index0/coherency_line_size || echo none)
echo cache line $line
[ $line = 64 ] || {
    mount -t tmpfs tmpfs $cpu
    mkdir -p $cpu/cache/index0
    echo 64 >$cpu/cache/index0/coherency_line_size
}
";

/// One kind of work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// From starting the VMM to the guest's init, 1 vCPU and 256 MiB.
    Boot,
    /// Random reads and writes of a virtio disk.
    Block,
    /// iperf3 over virtio-net, both directions.
    Network,
    /// Random reads and writes of a drive that is passed through, and by the node itself.
    Passthrough,
}

impl Work {
    /// All, in the order in which they are done.
    pub const ALL: [Self; 4] = [Self::Boot, Self::Block, Self::Network, Self::Passthrough];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Block => "block",
            Self::Network => "network",
            Self::Passthrough => "passthrough",
        }
    }

    fn guest(self) -> Guest {
        let is_boot = self == Self::Boot;
        Guest {
            vcpus: 1,
            memory_mib: if is_boot { 256 } else { 512 },
            network: self == Self::Network,
            data_disk: self == Self::Block,
            drive: self == Self::Passthrough,
        }
    }

    fn script(self) -> String {
        match self {
            Self::Boot => String::new(),
            Self::Block => {
                TELL_CACHE_LINE.to_owned()
                    + &fio("random_read_iops", "/dev/vdc", "randread")
                    + &fio("random_write_iops", "/dev/vdc", "randwrite")
            }
            Self::Network => NETWORK.to_owned(),
            Self::Passthrough => {
                "until [ -b /dev/nvme0n1 ]; do sleep 0.1; done\n".to_owned()
                    + &fio("nvme_read_iops", "/dev/nvme0n1", "randread")
                    + &fio("nvme_write_iops", "/dev/nvme0n1", "randwrite")
            }
        }
    }

    /// The words in the guest's output at whose coming the clock is read; the guest is ended at the
    /// second one.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Boot => ("BERTH-INIT", "BERTH-OUT began"),
            Self::Block | Self::Network | Self::Passthrough => {
                ("BERTH-OUT began", "BERTH-END status=0")
            }
        }
    }

    /// Has one contender do this work once.
    pub(super) fn run(self, node: &Node, contender: Contender) -> Result<Measured> {
        let mut measured = Measured::default();
        if self == Self::Passthrough {
            if contender == Contender::Berth {
                node.check(TO_HOST)?;
                let own = fio(
                    "host_nvme_read_iops",
                    "/dev/$(cat /run/contest-disk)",
                    "randread",
                ) + &fio(
                    "host_nvme_write_iops",
                    "/dev/$(cat /run/contest-disk)",
                    "randwrite",
                );
                measured.add_script_output(&node.check(&own)?)?;
            }
            node.check(TO_VFIO)?;
        }
        let script = format!("#!/bin/sh\nset -eu\necho began\n{}", self.script());
        node.channel()?
            .write(&mut script.as_bytes(), "/root/contest/script", "0644")?;
        let command = contender.command(self.guest());
        let (first_word, last_word) = self.words();
        // Files of their own for each: a block that an earlier guest has written is there already.
        let line = node.check(&format!(
            "cd /root/contest && truncate -s %512 script && rm -f data.raw root.raw && \
             head -c 256M /dev/zero >data.raw && \
             cp --sparse=always /srv/guest/disk.raw root.raw && sync && \
             cat /srv/guest/vmlinux /srv/guest/initrd >/dev/null && \
             contest-run --first '{first_word}' --last '{last_word}' --mark '{MARK}' --log log \
             --timeout 300 -- {command}"
        ))?;
        let log = node.check("cat /root/contest/log")?;
        let times: Value = serde_json::from_str(line.trim()).context("reading the times")?;
        let number = |name: &str| times[name].as_f64();
        let (Some(first), Some(last)) = (number("first_s"), number("last_s")) else {
            let lines: Vec<&str> = log.lines().collect();
            anyhow::bail!(
                "its guest did not finish; the log ends:\n{}",
                lines[lines.len().saturating_sub(25)..].join("\n")
            );
        };
        if self == Self::Boot {
            measured.add("boot_s", first);
            measured.add("boot_to_script_s", last);
            measured.add("boot_cpu_s", number("cpu_first_s").context("no CPU time")?);
        }
        measured.add_script_output(&log)?;
        measured.stretches =
            Vec::deserialize(&times["stretches"]).context("reading the profile")?;
        Ok(measured)
    }
}

impl FromStr for Work {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|work| work.name() == text);
        found.with_context(|| {
            format!("no work is called `{text}`; there are boot, block, network and passthrough")
        })
    }
}

/// Both directions with the guest as the client, as `fio NAME VALUE` lines have it.
const NETWORK: &str = r#"
nic=$(for nic in /sys/class/net/*; do
    [ "$(cat "$nic/address")" != 52:54:00:00:00:00 ] || echo "${nic##*/}"
done)
ip addr add 10.9.0.2/24 dev "$nic"
ip link set "$nic" up
ping -c 2 -W 10 10.9.0.1 >/dev/null
speed() { awk '/sum_received/ { found = 1 } found && /bits_per_second/ { print $2 / 1000000; exit }'; }
iperf3 --client 10.9.0.1 --omit 1 --time 5 --json >/run/iperf
echo "fio guest_to_host_mbits $(speed </run/iperf)"
iperf3 --client 10.9.0.1 --omit 1 --time 5 --json --reverse >/run/iperf
echo "fio host_to_guest_mbits $(speed </run/iperf)"
iperf3 --client 10.9.0.1 --omit 1 --time 5 --json --udp --length 64 --bitrate 0 >/run/iperf
echo "fio guest_to_host_small_packets $(awk '/"packets":/ { value = $2 } END { print value / 5 }' /run/iperf)"
"#;

/// Figures of one run by name, and what was done for them.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Measured {
    values: BTreeMap<String, f64>,
    stretches: Vec<MarkedStretch>,
}

/// What a VMM did up to a mark: the figure of this name.
#[derive(Clone, PartialEq, Debug, Deserialize)]
struct MarkedStretch {
    mark: String,
    stretch: Stretch,
}

impl Measured {
    fn add(&mut self, name: &str, value: f64) {
        self.values.insert(name.to_owned(), value);
    }

    /// Takes the lines `fio NAME VALUE`.
    fn add_script_output(&mut self, text: &str) -> Result<()> {
        for line in text.lines() {
            let line = line.split_once("BERTH-OUT ").map_or(line, |(_, rest)| rest);
            let Some((name, value)) = line
                .strip_prefix("fio ")
                .and_then(|rest| rest.split_once(' '))
            else {
                continue;
            };
            let value: f64 = value
                .trim()
                .trim_end_matches(',')
                .parse()
                .with_context(|| format!("`{line}` has no number"))?;
            ensure!(value > 0.0, "`{line}` is no figure");
            self.add(name, value);
        }
        Ok(())
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (name, value)) in self.values.iter().enumerate() {
            let separator = if position == 0 { "" } else { ", " };
            write!(f, "{separator}{name} {value:.2}")?;
        }
        Ok(())
    }
}

/// All figures: by name, then by contender. And in whose runs a guest or its host fell, how often.
#[derive(Debug, Default)]
pub(super) struct Figures {
    values: BTreeMap<String, BTreeMap<Contender, Vec<f64>>>,
    falls: BTreeMap<Contender, usize>,
    profiles: Profiles,
}

impl Figures {
    pub(super) fn add(&mut self, contender: Contender, measured: &Measured) {
        for (name, &value) in &measured.values {
            let of_name = self.values.entry(name.clone()).or_default();
            of_name.entry(contender).or_default().push(value);
        }
        for MarkedStretch { mark, stretch } in &measured.stretches {
            self.profiles.add(mark, contender, stretch.clone());
        }
    }

    pub(super) fn profiles(&self) -> &Profiles {
        &self.profiles
    }

    pub(super) fn count_fall(&mut self, contender: Contender) {
        *self.falls.entry(contender).or_default() += 1;
    }

    /// How many rounds ended in `contender`'s run and were done again.
    pub(super) fn falls(&self, contender: Contender) -> usize {
        self.falls.get(&contender).copied().unwrap_or(0)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    pub(super) fn of(&self, name: &str, contender: Contender) -> Option<&[f64]> {
        Some(self.values.get(name)?.get(&contender)?.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_what_scripts_print() {
        let mut measured = Measured::default();
        let log = "[ 1.0] BERTH-OUT fio a_iops 12.5\nnoise\nfio b 7,\n";
        measured.add_script_output(log).unwrap();
        assert_eq!(measured.to_string(), "a_iops 12.50, b 7.00");
        measured.add_script_output("fio a x").unwrap_err();
        measured.add_script_output("fio a 0").unwrap_err();
    }
}
