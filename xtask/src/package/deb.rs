//! The Debian format: control file, maintainer scripts, `dpkg-deb`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use berth_tests::command::capture;

use super::Release;
use super::manifest::Package;
use super::stage::{put, set_times, stage};

/// Makes one .deb and returns its path.
///
/// # Errors
/// If a file is missing or `dpkg-deb` fails.
pub(super) fn build(package: &Package, release: &Release) -> Result<PathBuf> {
    let staged = stage(package, &release.work.join("deb").join(&package.name), release.epoch)?;
    let control = control(package, release, installed_kib(&staged.root)?);
    put(&staged.root, "DEBIAN/control", control.as_bytes(), 0o644)?;
    for (name, text) in scripts(package) {
        put(&staged.root, &format!("DEBIAN/{name}"), text.as_bytes(), 0o755)?;
    }
    let conffiles: String =
        staged.files.iter().filter(|path| path.starts_with("/etc/")).map(|path| format!("{path}\n")).collect();
    if !conffiles.is_empty() {
        put(&staged.root, "DEBIAN/conffiles", conffiles.as_bytes(), 0o644)?;
    }
    set_times(&staged.root, release.epoch)?;
    let path = release.output.join(format!("{}_{}_amd64.deb", package.name, release.version));
    let mut command = Command::new("dpkg-deb");
    command.env("SOURCE_DATE_EPOCH", release.epoch.to_string());
    command.args(["--root-owner-group", "-Zgzip", "-z6", "--build"]);
    capture(command.arg(&staged.root).arg(&path))?;
    Ok(path)
}

fn control(package: &Package, release: &Release, installed_kib: u64) -> String {
    let mut text = String::new();
    let fields = [
        ("Package", package.name.clone()),
        ("Version", release.version.clone()),
        ("Architecture", "amd64".to_owned()),
        ("Maintainer", release.maintainer.clone()),
        ("Installed-Size", installed_kib.to_string()),
        ("Depends", package.deb_depends.join(", ")),
        ("Section", "admin".to_owned()),
        ("Priority", "optional".to_owned()),
        ("Description", package.summary.clone()),
    ];
    for (name, value) in fields {
        writeln!(text, "{name}: {value}").expect("a String takes all that is written");
    }
    for line in package.description.trim().lines() {
        writeln!(text, " {line}").expect("a String takes all that is written");
    }
    text
}

/// Size as dpkg counts it: each file rounded up to whole KiB.
fn installed_kib(folder: &std::path::Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder).context("listing the staged files")? {
        let entry = entry.context("listing the staged files")?;
        let meta = entry.metadata().context("measuring the staged files")?;
        sum += if meta.is_dir() { 1 + installed_kib(&entry.path())? } else { meta.len().div_ceil(1024) };
    }
    Ok(sum)
}

/// The maintainer scripts of a package, by name.
fn scripts(package: &Package) -> Vec<(&'static str, String)> {
    let units = package.enable.join(" ");
    let mut configure = String::new();
    if let Some(file) = &package.sysusers {
        writeln!(configure, "    systemd-sysusers {file}").expect("a String takes all");
    }
    if let Some(file) = &package.tmpfiles {
        writeln!(configure, "    systemd-tmpfiles --create {file}").expect("a String takes all");
    }
    if !units.is_empty() {
        configure.push_str(&ENABLE.replace("UNITS", &units));
    }
    if package.udev {
        configure.push_str(UDEV);
    }
    let mut found = Vec::new();
    if !configure.is_empty() {
        found.push(("postinst", format!("{HEAD}if [ \"$1\" = configure ]; then\n{configure}fi\n")));
    }
    if !units.is_empty() {
        found.push(("prerm", format!("{HEAD}{}", PRERM.replace("UNITS", &units))));
        found.push(("postrm", format!("{HEAD}{}", POSTRM.replace("UNITS", &units))));
    }
    found
}

const HEAD: &str = "#!/bin/sh\nset -e\n";

/// In a chroot or an image build nothing runs and nothing is started; enabling works there too.
const ENABLE: &str = r#"    for unit in UNITS; do
        deb-systemd-helper unmask "$unit" >/dev/null || true
        if deb-systemd-helper --quiet was-enabled "$unit"; then
            deb-systemd-helper enable "$unit" >/dev/null || true
        else
            deb-systemd-helper update-state "$unit" >/dev/null || true
        fi
    done
    if [ -d /run/systemd/system ]; then
        systemctl --system daemon-reload >/dev/null || true
        if [ -n "$2" ]; then action=try-restart; else action=start; fi
        deb-systemd-invoke "$action" UNITS >/dev/null || true
    fi
"#;

const UDEV: &str = r#"    if [ -d /run/udev ]; then
        udevadm control --reload || true
        udevadm trigger --subsystem-match=misc --subsystem-match=vfio --action=change || true
    fi
"#;

/// VMs are units of their own: they go on without the program that started them.
const PRERM: &str = r#"if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    deb-systemd-invoke stop UNITS >/dev/null || true
fi
"#;

/// State is left where it is, even by a purge: it is other people's disks, keys and records.
const POSTRM: &str = r#"if [ "$1" = purge ]; then
    deb-systemd-helper purge UNITS >/dev/null || true
    deb-systemd-helper unmask UNITS >/dev/null || true
fi
if [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload >/dev/null || true
fi
"#;
