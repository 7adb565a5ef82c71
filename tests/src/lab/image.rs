//! Disks of the lab: the node, installed from our packages, and a Debian guest for tenants.
//!
//! Two layers each. A tree of Debian packages is made once by mmdebstrap; what is ours (packages,
//! units, keys) goes over it in seconds. Both are kept by content. Trees belong to root.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::cache::{self, Key};
use super::{apt, initrd};
use crate::command::{as_root, capture, run_logged};
use crate::workspace;

/// Changes when the way images are made changes and the inputs do not show it.
const RECIPE: &str = "1";

const NODE_PACKAGES: &str = "busybox-static,ca-certificates,curl,dbus,dmsetup,fio,iperf3,iproute2,kmod,\
    linux-image-cloud-amd64,openssh-server,pciutils,procps,socat,systemd,systemd-sysv,udev";
const GUEST_PACKAGES: &str = "dbus,fio,iperf3,iproute2,iputils-ping,login,nvme-cli,passwd,\
    pciutils,procps,socat,systemd,systemd-sysv,udev";
/// Documentation and translations are of no use on a machine that nobody reads them on.
const LEFT_OUT: [&str; 5] = [
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/usr/share/zoneinfo/*",
];
const NODE_DISK: &str = "12G";
const GUEST_DISK: &str = "960M";

/// Folder of everything that the lab keeps.
#[must_use]
pub fn lab_dir() -> PathBuf {
    workspace::build_dir().join("lab")
}

/// What a node boots from.
#[derive(Debug, Clone)]
pub struct NodeImage {
    /// The kernel, as Debian ships it.
    pub kernel: PathBuf,
    /// The root disk, raw ext4; never written to.
    pub disk: PathBuf,
}

impl NodeImage {
    /// Makes a copy of the root disk that a node may write to, in the place of what is there.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn copy_disk(&self, to: &Path) -> Result<()> {
        if to.exists() {
            std::fs::remove_file(to).context("removing an old root disk")?;
        }
        let mut copy = Command::new("cp");
        copy.args(["--sparse=always", "--reflink=auto"]);
        capture(copy.arg(&self.disk).arg(to))?;
        Ok(())
    }
}

/// A Debian guest for tenants.
#[derive(Debug, Clone)]
pub struct GuestImage {
    /// One ext4 disk that holds `vmlinuz`, `vmlinux`, `initrd` and `disk.raw`.
    pub artefacts: PathBuf,
}

/// Keys for the channel into nodes, made once per work tree.
#[derive(Debug, Clone)]
pub struct ChannelKeys {
    folder: PathBuf,
}

impl ChannelKeys {
    /// Makes the keys if there are none.
    ///
    /// # Errors
    /// If `ssh-keygen` fails.
    pub fn ensure() -> Result<Self> {
        let folder = cache::entry(&lab_dir(), "keys", Key::new().with(RECIPE), |place| {
            for name in ["client", "host"] {
                let mut command = Command::new("ssh-keygen");
                command.args(["-q", "-t", "ed25519", "-N", "", "-C", "berth-lab", "-f"]);
                capture(command.arg(place.join(name)))?;
            }
            let host = std::fs::read_to_string(place.join("host.pub"))?;
            std::fs::write(place.join("known_hosts"), format!("berth-lab {host}"))?;
            Ok(())
        })?;
        Ok(Self { folder })
    }

    /// The client's private key.
    #[must_use]
    pub fn client(&self) -> PathBuf {
        self.folder.join("client")
    }

    /// A `known_hosts` file that knows every node by the alias `berth-lab`.
    #[must_use]
    pub fn known_hosts(&self) -> PathBuf {
        self.folder.join("known_hosts")
    }
}

/// The node's Debian tree, from the cache or by mmdebstrap.
///
/// # Errors
/// If mmdebstrap fails; the message quotes its log.
pub fn node_tree() -> Result<PathBuf> {
    debian_tree("node-tree", NODE_PACKAGES, "apt")
}

/// The guest's Debian tree, from the cache or by mmdebstrap.
///
/// # Errors
/// If mmdebstrap fails; the message quotes its log.
pub fn guest_tree() -> Result<PathBuf> {
    debian_tree("guest-tree", GUEST_PACKAGES, "essential")
}

/// The node's disk with the given packages installed.
///
/// # Errors
/// If a package does not install, or the image cannot be made; the message quotes the log.
pub fn node_image(packages: &[PathBuf]) -> Result<NodeImage> {
    let tree = node_tree()?;
    let keys = ChannelKeys::ensure()?;
    let mut key = recipe_key(&tree, "node", NODE_DISK)?;
    key = key.with_file(&keys.client())?;
    for package in packages {
        key = key.with_file(package)?;
    }
    let folder = cache::entry(&lab_dir(), "node-image", key, |place| {
        let staging = place.join("staging");
        copy_tree(&scenario_files().join("node"), &staging)?;
        stage_keys(&keys, &staging)?;
        let folder = place.join("packages");
        std::fs::create_dir(&folder).context("making the packages folder")?;
        for package in packages {
            let name = package.file_name().context("a package without a name")?;
            std::fs::copy(package, folder.join(name)).context("copying a package")?;
        }
        make_layer(&tree, place, "node", NODE_DISK)?;
        let (kernel, _) = kernel_of(&tree)?;
        std::fs::copy(kernel, place.join("vmlinuz")).context("copying the kernel")?;
        Ok(())
    })?;
    Ok(NodeImage {
        kernel: folder.join("vmlinuz"),
        disk: folder.join("disk.raw"),
    })
}

/// The guest for tenants: the node tree's kernel, an initrd and a root disk.
///
/// # Errors
/// If one of the parts cannot be made; the message quotes the log.
pub fn guest_image() -> Result<GuestImage> {
    let kernel_tree = node_tree()?;
    let tree = guest_tree()?;
    let key = recipe_key(&tree, "guest", GUEST_DISK)?
        .with(kernel_tree.as_os_str().as_encoded_bytes())
        .with(initrd::build(&kernel_tree, &kernel_of(&kernel_tree)?.1)?);
    let folder = cache::entry(&lab_dir(), "guest-image", key, |place| {
        copy_tree(&scenario_files().join("guest"), &place.join("staging"))?;
        std::fs::create_dir(place.join("packages")).context("making the packages folder")?;
        make_layer(&tree, place, "guest", GUEST_DISK)?;
        let (kernel, release) = kernel_of(&kernel_tree)?;
        let content = place.join("content");
        std::fs::create_dir(&content).context("making the content folder")?;
        let image = std::fs::read(kernel).context("reading the kernel")?;
        std::fs::write(content.join("vmlinux"), unpack_kernel(&image, place)?)
            .context("writing vmlinux")?;
        std::fs::write(content.join("vmlinuz"), image).context("writing vmlinuz")?;
        let initrd = initrd::build(&kernel_tree, &release)?;
        std::fs::write(content.join("initrd"), initrd).context("writing the initrd")?;
        std::fs::rename(place.join("disk.raw"), content.join("disk.raw"))
            .context("moving the guest's disk")?;
        make_artefact_disk(&content, &place.join("artefacts.raw"))?;
        cache::remove_tree(&content)
    })?;
    Ok(GuestImage {
        artefacts: folder.join("artefacts.raw"),
    })
}

fn scenario_files() -> PathBuf {
    workspace::root().join("tests/scenarios")
}

fn log_file(name: &str) -> PathBuf {
    workspace::build_dir()
        .join("logs")
        .join(format!("{name}.log"))
}

fn debian_tree(name: &str, packages: &str, variant: &str) -> Result<PathBuf> {
    let sources = apt::machine_sources()?.join("\n");
    let key = Key::new()
        .with(RECIPE)
        .with(packages)
        .with(variant)
        .with(&sources);
    let folder = cache::entry(&lab_dir(), name, key, |place| {
        let list = place.join("sources.list");
        std::fs::write(&list, format!("{sources}\n")).context("writing the package sources")?;
        let mut command = as_root("mmdebstrap");
        command
            .arg(format!("--variant={variant}"))
            .arg(format!("--include={packages}"));
        command.args(["--mode=root", "--aptopt=APT::Install-Recommends \"false\""]);
        for option in apt::machine_options()? {
            command.arg(format!("--aptopt={option}"));
        }
        for path in LEFT_OUT {
            command.arg(format!("--dpkgopt=path-exclude={path}"));
        }
        command.arg(apt::SUITE).arg(place.join("tree")).arg(&list);
        run_logged(&mut command, &log_file(name))
    })?;
    Ok(folder.join("tree"))
}

fn recipe_key(tree: &Path, files: &str, size: &str) -> Result<Key> {
    let mut key = Key::new()
        .with(RECIPE)
        .with(tree.as_os_str().as_encoded_bytes())
        .with(size);
    let own = scenario_files();
    key = key
        .with_file(&own.join("layer.sh"))?
        .with_file(&own.join(format!("{files}.masked")))?;
    for (path, content) in files_below(&own.join(files))? {
        key = key
            .with(path.as_os_str().as_encoded_bytes())
            .with_file(&content)?;
    }
    Ok(key)
}

/// Runs `layer.sh` for an entry that has `staging/` and `packages/`; leaves `disk.raw`.
fn make_layer(tree: &Path, place: &Path, name: &str, size: &str) -> Result<()> {
    let own = scenario_files();
    let mut command = as_root("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh"])
        .arg(own.join("layer.sh"));
    command
        .arg(tree)
        .arg(place.join("staging"))
        .arg(own.join(format!("{name}.masked")));
    command
        .arg(place.join("packages"))
        .arg(place.join("disk.raw"));
    command.args([size, name]);
    run_logged(&mut command, &log_file(&format!("{name}-image")))?;
    cache::remove_tree(&place.join("staging"))?;
    cache::remove_tree(&place.join("packages"))
}

fn make_artefact_disk(content: &Path, disk: &Path) -> Result<()> {
    capture(Command::new("truncate").args(["-s", "1300M"]).arg(disk))?;
    let mut command = as_root("mke2fs");
    command.args([
        "-q",
        "-t",
        "ext4",
        "-L",
        "berth-guest",
        "-O",
        "^has_journal",
        "-d",
    ]);
    run_logged(command.arg(content).arg(disk), &log_file("guest-artefacts"))
}

fn stage_keys(keys: &ChannelKeys, staging: &Path) -> Result<()> {
    let ssh = staging.join("root/.ssh");
    let etc = staging.join("etc/ssh");
    std::fs::create_dir_all(&ssh).context("making root's .ssh")?;
    std::fs::create_dir_all(&etc).context("making etc/ssh")?;
    std::fs::copy(keys.folder.join("client.pub"), ssh.join("authorized_keys"))?;
    std::fs::copy(keys.folder.join("host"), etc.join("ssh_host_ed25519_key"))?;
    let modes = [(staging.join("root"), 0o700), (ssh, 0o700)];
    for (path, mode) in modes {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
            .with_context(|| format!("setting the mode of {}", path.display()))?;
    }
    Ok(())
}

/// The newest kernel of a tree and its release.
fn kernel_of(tree: &Path) -> Result<(PathBuf, String)> {
    let boot = tree.join("boot");
    let entries =
        std::fs::read_dir(&boot).with_context(|| format!("listing {}", boot.display()))?;
    let mut releases: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            Some(
                entry
                    .file_name()
                    .to_str()?
                    .strip_prefix("vmlinuz-")?
                    .to_owned(),
            )
        })
        .collect();
    releases.sort();
    let release = releases
        .pop()
        .with_context(|| format!("no kernel in {}", boot.display()))?;
    Ok((boot.join(format!("vmlinuz-{release}")), release))
}

/// The ELF image inside a bzImage, at the place that its setup header names
/// (`Documentation/arch/x86/boot.rst`, `payload_offset` and `payload_length`).
fn unpack_kernel(image: &[u8], work: &Path) -> Result<Vec<u8>> {
    let field = |at: usize| -> Result<usize> {
        let bytes = image
            .get(at..at + 4)
            .context("the kernel ends inside its setup header")?;
        Ok(usize::try_from(u32::from_le_bytes(bytes.try_into()?))?)
    };
    ensure!(
        image.get(0x202..0x206) == Some(b"HdrS"),
        "the kernel is not a bzImage"
    );
    let sectors = usize::from(image[0x1f1]).max(4);
    let start = (sectors + 1) * 512 + field(0x248)?;
    // The last four bytes of the payload are the unpacked size, which lz4 takes for garbage.
    let payload = image
        .get(start..start + field(0x24c)? - 4)
        .context("the payload is cut short")?;
    ensure!(
        payload.starts_with(&[0x02, 0x21, 0x4c, 0x18]),
        "the kernel is not packed with lz4"
    );
    let packed = work.join("payload.lz4");
    std::fs::write(&packed, payload).context("writing the payload")?;
    let output = crate::command::output(Command::new("lz4").args(["-dc"]).arg(&packed))?;
    std::fs::remove_file(&packed).context("removing the payload")?;
    ensure!(
        output.status.success() && output.stdout.starts_with(b"\x7fELF"),
        "lz4 could not unpack the kernel: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output.stdout)
}

/// Files of a folder: path below it, and path to read; in a fixed order.
fn files_below(folder: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(next) = open.pop() {
        let entries =
            std::fs::read_dir(&next).with_context(|| format!("listing {}", next.display()))?;
        for entry in entries {
            let path = entry.context("listing scenario files")?.path();
            if path.is_dir() {
                open.push(path);
            } else {
                let below = path
                    .strip_prefix(folder)
                    .context("a path outside its folder")?;
                found.push((below.to_path_buf(), path));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    for (below, source) in files_below(from)? {
        let target = to.join(below);
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder).context("making a staging folder")?;
        }
        std::fs::copy(&source, &target).with_context(|| format!("copying {}", source.display()))?;
    }
    Ok(())
}
