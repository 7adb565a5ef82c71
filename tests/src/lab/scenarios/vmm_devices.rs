//! `vmm-devices`: every virtio device of `berth-vmm` under an unmodified Debian guest, from inside
//! the guest and from the host, with the VMM in the agent's unit and in its jail.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::lab::devices::Device;
use crate::lab::host::Host as _;
use crate::lab::node::{Node, NodeSpec};
use crate::lab::scenario::Context;
use crate::lab::scripted_guest::{GuestSpec, ScriptedGuest};

/// How long one step inside a guest may take. All is emulated twice.
const STEP: Duration = Duration::from_secs(300);
/// Memory of the node: the largest guest, and the host's own.
const NODE_MEMORY_MIB: u32 = 4096;
/// What the balloon is asked to hold.
const BALLOON_MIB: u64 = 256;

/// The interfaces, the echo server for the guest's own connections, and iperf3.
const PREPARE_NODE: &str = "
modprobe tun
modprobe vhost_net
for number in 0 1; do
    ip tuntap add dev tap$number mode tap multi_queue vnet_hdr
    ip addr add 10.9.$number.1/24 dev tap$number
    ip link set tap$number up
done
systemd-run --quiet --collect --unit=iperf iperf3 --server
head -c 64M /dev/urandom >/root/pattern
";

/// Finds the interfaces by their addresses, which the scenario chose.
const NETWORK: &str = r#"
for number in 0 1; do
    for nic in /sys/class/net/*; do
        [ "$(cat "$nic/address")" = "52:54:00:00:00:0$number" ] || continue
        ip addr add "10.9.$number.2/24" dev "${nic##*/}"
        ip link set "${nic##*/}" up
        echo "nic$number ${nic##*/} queues=$(ls "$nic/queues" | grep -c rx)"
    done
done
speed() { awk '/sum_received/ { found = 1 } found && /bits_per_second/ { print int($2 / 1000000); exit }'; }
for number in 0 1; do
    ping -c 3 -W 10 "10.9.$number.1" >/dev/null && echo "ping$number ok"
    iperf3 --client "10.9.$number.1" --time 4 --json >/run/iperf
    echo "net$number guest-to-host $(speed </run/iperf) Mbit/s"
    iperf3 --client "10.9.$number.1" --time 4 --json --reverse >/run/iperf
    echo "net$number host-to-guest $(speed </run/iperf) Mbit/s"
done
"#;

/// Writes and verifies the third disk, once through one queue and once through all.
const BLOCK: &str = r"
echo serial $(cat /sys/block/vdc/serial)
echo hardware-queues $(ls /sys/block/vdc/mq | wc -l)
fio --name=verify --filename=/dev/vdc --rw=randwrite --bs=4k --size=48m --ioengine=libaio \
    --iodepth=32 --direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1 --end_fsync=1 \
    --output=/run/fio
grep -q 'err= 0' /run/fio && echo fio verified
blkdiscard -o 50331648 -l 4194304 /dev/vdc && echo discard ok
blkdiscard -z -o 54525952 -l 4194304 /dev/vdc && echo write-zeroes ok
";

/// Echoes 64 MiB for the host, then has the host echo as much.
const VSOCK: &str = r"
socat VSOCK-LISTEN:5000,reuseaddr EXEC:cat &
echo vsock started
wait $!
echo vsock served
head -c 64M /dev/urandom >/run/pattern
socat -t 120 - VSOCK-CONNECT:2:6000 </run/pattern >/run/echo
cmp /run/pattern /run/echo && echo vsock echoed
rm /run/pattern /run/echo
";

/// Waits for the balloon to take memory and to give it back, then for the power button.
const BALLOON_AND_BUTTON: &str = r#"
free() { awk '/^MemFree:/ { print int($2 / 1024) }' /proc/meminfo; }
sync
echo 3 >/proc/sys/vm/drop_caches
before=$(free)
echo "balloon empty $before"
while [ "$(free)" -gt $((before - 200)) ]; do sleep 1; done
echo "balloon full $(free)"
while [ "$(free)" -lt $((before - 60)) ]; do sleep 1; done
echo "balloon drained $(free)"
echo hello from the console >/dev/hvc0
echo stay
echo "button awaited"
"#;

/// Runs the scenario.
///
/// # Errors
/// The first device that is not as it should be.
pub(crate) fn run(context: &Context) -> Result<()> {
    let spec = NodeSpec {
        memory_mib: NODE_MEMORY_MIB,
        devices: vec![Device::SharedDisk {
            image: context.guest.artefacts.clone(),
        }],
        ..NodeSpec::default()
    };
    let node = Node::boot("vmm-devices", &context.node, &spec)?;
    let result = run_on(&node, context);
    if result.is_err() {
        node.collect();
    }
    result
}

fn run_on(node: &Node, context: &Context) -> Result<()> {
    node.mount_guest_image()?;
    node.bring_vmm(context)?;
    node.check(PREPARE_NODE)?;
    all_devices(node, context).context("the guest with all devices")?;
    eight_vcpus(node, context).context("the guest with 8 vCPUs")?;
    panicking(node, context).context("the guest that panics")
}

fn all_devices(node: &Node, context: &Context) -> Result<()> {
    node.check("rm -rf /root/side && mkdir /root/side && truncate -s 64M /root/side/data.raw")?;
    let script = format!("{BLOCK}{NETWORK}{VSOCK}{BALLOON_AND_BUTTON}");
    let guest = ScriptedGuest::start(
        node,
        &GuestSpec {
            name: "devices",
            vcpus: 2,
            memory_mib: 1024,
            options: "--disk /root/side/data.raw \
                      --tap tap0,queues=2,mac=52:54:00:00:00:00 \
                      --tap tap1,vhost,mac=52:54:00:00:00:01 \
                      --vsock 3,listen=/root/side/vsock,connect=/root/side/vsock \
                      --hvc /root/side/hvc --balloon=oom,reporting --panic-device",
            script: &script,
        },
    )?;
    for line in ["fio verified", "discard ok", "write-zeroes ok"] {
        (context.say)(&format!("  {}", guest.wait_for_line(line, STEP)?));
    }
    jailed(node)?;
    (context.say)("  the VMM is in its jail");
    for number in [0, 1] {
        guest.wait_for_line(&format!("ping{number} ok"), STEP)?;
        for direction in ["guest-to-host", "host-to-guest"] {
            let line = guest.wait_for_line(&format!("net{number} {direction}"), STEP)?;
            (context.say)(&format!("  {line}"));
        }
    }
    vsock(node, &guest).context("the socket device")?;
    (context.say)("  vsock: 64 MiB echoed in both directions");
    pause(node, &guest).context("pause and resume")?;
    balloon(&guest).context("the balloon")?;
    (context.say)("  balloon in and out");
    guest.wait_for_line("button awaited", STEP)?;
    let hello = node.check("cat /root/side/hvc")?;
    ensure!(
        hello.contains("hello from the console"),
        "the virtio console printed `{hello}`"
    );
    guest.request(r#"{"request":"power_button"}"#)?;
    let end = guest.wait(STEP)?;
    end.must_be_good()?;
    let queues = end.fact("hardware-queues")?;
    ensure!(queues == "2", "the disk has {queues} queues for 2 vCPUs");
    (context.say)("  power button, power-off");
    Ok(())
}

/// Looks at every thread of the VMM from outside.
fn jailed(node: &Node) -> Result<()> {
    let threads = node.check(
        "pid=$(pgrep -x berth-vmm) && for task in /proc/$pid/task/*; do \
         awk '/^(Uid|CapEff|CapPrm|CapBnd|NoNewPrivs|Seccomp):/ { printf \"%s%s \", $1, $2 } \
         END { print \"\" }' $task/status; done && ls -A /proc/$pid/root/ | tr '\\n' ' '",
    )?;
    let mut lines: Vec<&str> = threads.lines().collect();
    let root = lines.pop().unwrap_or_default();
    ensure!(
        lines.len() >= 3,
        "the VMM has too few threads:\n{threads}\n(root: {root})"
    );
    for line in lines {
        let wanted = [
            "CapEff:0000000000000000",
            "CapPrm:0000000000000000",
            "CapBnd:0000000000000000",
            "NoNewPrivs:1",
            "Seccomp:2",
        ];
        for word in wanted {
            ensure!(line.contains(word), "a thread without {word}: {line}");
        }
        ensure!(!line.contains("Uid:0 "), "a thread of root: {line}");
    }
    Ok(())
}

fn vsock(node: &Node, guest: &ScriptedGuest<'_>) -> Result<()> {
    guest.wait_for_line("vsock started", STEP)?;
    node.check(
        "systemd-run --quiet --collect --unit=echo \
         socat UNIX-LISTEN:/root/side/vsock_6000,fork EXEC:cat",
    )?;
    // Until the guest listens, a caller is turned away without an answer.
    node.wait_until(
        "the guest echoes for the host",
        STEP,
        "cd /root/side && { printf 'CONNECT 5000\\n'; cat /root/pattern; } | \
         timeout 280 socat -t 120 - UNIX-CONNECT:/root/side/vsock >echoed; \
         head -n 1 echoed | grep -aq '^OK '",
    )?;
    node.check(
        "cd /root/side && \
         tail -c +$(($(head -n 1 echoed | wc -c) + 1)) echoed | cmp - /root/pattern",
    )?;
    guest.wait_for_line("vsock served", STEP)?;
    guest.wait_for_line("vsock echoed", STEP)?;
    Ok(())
}

fn pause(node: &Node, guest: &ScriptedGuest<'_>) -> Result<()> {
    guest.wait_for_line("balloon empty", STEP)?;
    let cpu_time = "cut -d' ' -f14,15 /proc/$(pgrep -x berth-vmm)/stat";
    guest.request(r#"{"request":"pause"}"#)?;
    guest.wait_for_event("\"event\":\"paused\"", STEP)?;
    let before = node.check(cpu_time)?;
    node.check("sleep 2")?;
    let after = node.check(cpu_time)?;
    ensure!(
        before == after,
        "a paused guest used processor time: {before} became {after}"
    );
    guest.request(r#"{"request":"pause"}"#)?;
    guest.wait_for_event("already_paused", STEP)?;
    guest.request(r#"{"request":"resume"}"#)?;
    guest.wait_for_event("\"event\":\"resumed\"", STEP)?;
    Ok(())
}

fn balloon(guest: &ScriptedGuest<'_>) -> Result<()> {
    let target = |mib: u64| format!(r#"{{"request":"balloon","target_mib":{mib}}}"#);
    guest.request(&target(BALLOON_MIB))?;
    guest.wait_for_line("balloon full", STEP)?;
    guest.request(r#"{"request":"statistics"}"#)?;
    guest.wait_for_event("\"event\":\"statistics\"", STEP)?;
    guest.request(&target(0))?;
    guest.wait_for_line("balloon drained", STEP)?;
    Ok(())
}

fn eight_vcpus(node: &Node, context: &Context) -> Result<()> {
    let spec = GuestSpec {
        name: "eight",
        vcpus: 8,
        memory_mib: 512,
        options: "",
        script: "echo processors $(nproc --all)\n",
    };
    let end = ScriptedGuest::run(node, &spec, STEP)?;
    let processors = end.fact("processors")?;
    ensure!(processors == "8", "the guest counts {processors}");
    (context.say)("  8 vCPUs");
    Ok(())
}

fn panicking(node: &Node, context: &Context) -> Result<()> {
    let spec = GuestSpec {
        name: "panic",
        vcpus: 1,
        memory_mib: 256,
        options: "--panic-device",
        script: "echo stay\necho about to panic\nsleep 1\necho c >/proc/sysrq-trigger\n",
    };
    let guest = ScriptedGuest::start(node, &spec)?;
    guest.wait_for_event("guest_panicked", STEP)?;
    guest.request(r#"{"request":"stop"}"#)?;
    guest.wait(STEP)?;
    (context.say)("  a guest's panic is told");
    Ok(())
}
