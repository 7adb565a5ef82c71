//! The initial RAM disk of tenants' guests: busybox, the virtio modules, and a hand-over to the
//! root disk. Written as a `newc` archive in fixed order, so that equal inputs give equal bytes.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

/// Modules by name: to see the root disk, for entropy, and to hear the power button. The guest's
/// own disk has no modules.
const BASE_MODULES: [&str; 5] = ["virtio_pci", "virtio_blk", "virtio-rng", "button", "evdev"];

/// Modules for devices that only some guests have: loaded where the command line names a script.
const SCRIPT_MODULES: [&str; 5] = [
    "virtio_net",
    "virtio_console",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    "pvpanic-mmio",
];

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
case $(/bin/busybox cat /proc/cmdline) in *berth.script*) echo "<1>BERTH-INIT" >/dev/kmsg ;; esac
load() { while read -r module; do /bin/busybox insmod "/modules/$module"; done <"$1"; }
load /modules/order
root=/dev/vda
for word in $(/bin/busybox cat /proc/cmdline); do
    case $word in
        root=*) root=${word#root=} ;;
        berth.script) load /modules/script-order ;;
    esac
done
tries=0
while [ ! -b "$root" ]; do
    tries=$((tries + 1))
    if [ $tries -gt 200 ]; then
        echo "<1>the root disk $root did not appear" >/dev/kmsg
        /bin/busybox poweroff -f
    fi
    /bin/busybox usleep 50000
done
/bin/busybox mount -o rw,noatime "$root" /root
/bin/busybox umount /proc /sys
exec /bin/busybox switch_root /root /sbin/init
"#;

/// Builds the archive from a Debian tree that has a kernel's modules and `busybox-static`.
///
/// # Errors
/// If the tree lacks a module or busybox.
pub fn build(tree: &Path, kernel_release: &str) -> Result<Vec<u8>> {
    let busybox = read(&tree.join("bin/busybox"))?;
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules", "proc", "root", "sys"] {
        archive.add(folder, DIRECTORY, &[]);
    }
    archive.add("bin/busybox", PROGRAM, &busybox);
    archive.add("init", PROGRAM, INIT.as_bytes());
    let library = tree.join("lib/modules").join(kernel_release);
    let dependencies = std::fs::read_to_string(library.join("modules.dep"))
        .with_context(|| format!("reading modules.dep of {kernel_release}"))?;
    let builtin = std::fs::read_to_string(library.join("modules.builtin")).unwrap_or_default();
    let mut seen = BTreeSet::new();
    for (list, modules) in [
        ("modules/order", BASE_MODULES.as_slice()),
        ("modules/script-order", SCRIPT_MODULES.as_slice()),
    ] {
        let mut order = String::new();
        for path in load_order(&dependencies, &builtin, modules, &mut seen)? {
            let name = path.rsplit('/').next().unwrap_or(&path);
            let content = read(&library.join(&path))?;
            archive.add(&format!("modules/{name}"), FILE, &content);
            writeln!(order, "{name}").context("listing the modules")?;
        }
        archive.add(list, FILE, order.as_bytes());
    }
    Ok(archive.finish())
}

/// Paths of the named modules and of all that they need, in loading order, but for those that were
/// `seen` before.
fn load_order(
    dependencies: &str,
    builtin: &str,
    names: &[&str],
    seen: &mut BTreeSet<String>,
) -> Result<Vec<String>> {
    let mut order = Vec::new();
    for name in names {
        let file = format!("/{name}.ko");
        let line = dependencies.lines().find(|line| {
            line.split_once(':')
                .is_some_and(|(path, _)| path.ends_with(&file))
        });
        let Some((path, needs)) = line.and_then(|line| line.split_once(':')) else {
            if builtin.lines().any(|path| path.ends_with(&file)) {
                continue;
            }
            bail!("the kernel has no module {name}");
        };
        // `modules.dep` lists what a module needs with the deepest need last.
        let needs = needs.split_whitespace().rev();
        for path in needs.chain(std::iter::once(path)) {
            if seen.insert(path.to_owned()) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// A `newc` cpio archive in the making.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(content.len()).expect("nothing in an initrd reaches 4 GiB"),
            0,
            0,
            0,
            0,
            u32::try_from(name.len() + 1).expect("names are short"),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_loaded_before_it_and_once() {
        let dependencies = "kernel/a/virtio_pci.ko: kernel/a/modern.ko kernel/a/virtio.ko kernel/a/ring.ko\n\
            kernel/b/virtio_blk.ko: kernel/a/virtio.ko kernel/a/ring.ko\n";
        let order = load_order(
            dependencies,
            "kernel/c/ext4.ko\n",
            &["virtio_pci", "virtio_blk", "ext4"],
            &mut BTreeSet::new(),
        );
        assert_eq!(
            order.unwrap(),
            [
                "kernel/a/ring.ko",
                "kernel/a/virtio.ko",
                "kernel/a/modern.ko",
                "kernel/a/virtio_pci.ko",
                "kernel/b/virtio_blk.ko"
            ]
        );
        load_order(dependencies, "", &["nothing"], &mut BTreeSet::new()).unwrap_err();
        let mut seen = ["kernel/a/virtio.ko", "kernel/a/ring.ko"]
            .map(str::to_owned)
            .into();
        let rest = load_order(dependencies, "", &["virtio_blk"], &mut seen).unwrap();
        assert_eq!(rest, ["kernel/b/virtio_blk.ko"], "what is loaded stays so");
    }

    #[test]
    fn the_archive_is_read_by_others() {
        let mut archive = Archive::default();
        archive.add("folder", DIRECTORY, &[]);
        archive.add("folder/file", FILE, b"hello");
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(bytes.len() % 4, 0);
        let end = bytes
            .windows(10)
            .rposition(|window| window == b"TRAILER!!!");
        assert!(end.is_some_and(|at| at > 200));
    }
}
