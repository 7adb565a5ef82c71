//! The RPM format: a spec file with the staged files, `rpmbuild`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use berth_tests::command::run_logged;
use berth_tests::workspace;

use super::Release;
use super::manifest::Package;
use super::stage::{Staged, stage};

/// Makes one .rpm and returns its path.
///
/// # Errors
/// If a file is missing or `rpmbuild` fails; the message quotes its log.
pub(super) fn build(package: &Package, release: &Release) -> Result<PathBuf> {
    let work = release.work.join("rpm").join(&package.name);
    let staged = stage(package, &work.join("staged"), release.epoch)?;
    let spec = work.join("package.spec");
    std::fs::write(&spec, spec_text(package, release, &staged)).context("writing the spec file")?;
    let top = work.join("top");
    let mut command = Command::new("rpmbuild");
    command.env("SOURCE_DATE_EPOCH", release.epoch.to_string());
    command.args(["-bb", "--quiet", "--nodeps", "--target", "x86_64-linux"]);
    for (name, value) in [
        ("_topdir", top.display().to_string()),
        ("_rpmdir", release.output.display().to_string()),
        ("_rpmfilename", "%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm".to_owned()),
        ("_buildhost", "reproducible".to_owned()),
        ("_binary_payload", "w6.gzdio".to_owned()),
        ("use_source_date_epoch_as_buildtime", "1".to_owned()),
        ("clamp_mtime_to_source_date_epoch", "1".to_owned()),
        // The programs are stripped by cargo; there is nothing to split off and nothing to compile.
        ("debug_package", "%{nil}".to_owned()),
        ("__os_install_post", "%{nil}".to_owned()),
        ("_build_id_links", "none".to_owned()),
    ] {
        command.arg("--define").arg(format!("{name} {value}"));
    }
    let log = workspace::build_dir().join("logs/rpmbuild.log");
    run_logged(command.arg(&spec), &log)?;
    let path = release.output.join(format!("{}-{}-1.x86_64.rpm", package.name, release.version));
    ensure!(path.exists(), "rpmbuild made no {}", path.display());
    Ok(path)
}

fn spec_text(package: &Package, release: &Release, staged: &Staged) -> String {
    let mut text = String::new();
    let mut line = |value: &str| writeln!(text, "{value}").expect("a String takes all");
    line(&format!("Name: {}", package.name));
    line(&format!("Version: {}", release.version));
    line("Release: 1");
    line(&format!("Summary: {}", package.summary));
    line(&format!("License: {}", release.license));
    line(&format!("Packager: {}", release.maintainer));
    line("BuildArch: x86_64");
    for required in &package.rpm_requires {
        line(&format!("Requires: {required}"));
    }
    if !package.enable.is_empty() {
        line("Requires(post): systemd\nRequires(preun): systemd\nRequires(postun): systemd");
    }
    line(&format!("\n%description\n{}", package.description.trim()));
    line(&format!("\n%install\ncp -a {}/. %{{buildroot}}/", staged.root.display()));
    line("\n%files");
    for file in &staged.files {
        let kind = if file.starts_with("/etc/") {
            "%config(noreplace) "
        } else if file.ends_with("/copyright") {
            "%license "
        } else if file.starts_with("/usr/share/man/") {
            "%doc "
        } else {
            ""
        };
        line(&format!("%attr(-, root, root) {kind}{file}"));
    }
    line(&scriptlets(package));
    text
}

fn scriptlets(package: &Package) -> String {
    let units = package.enable.join(" ");
    let mut post = String::new();
    let mut line = |value: &str| writeln!(post, "{value}").expect("a String takes all");
    if let Some(file) = &package.sysusers {
        line(&format!("systemd-sysusers {file} || :"));
    }
    if let Some(file) = &package.tmpfiles {
        line(&format!("systemd-tmpfiles --create {file} || :"));
    }
    if package.udev {
        line("if [ -d /run/udev ]; then udevadm control --reload || :; fi");
    }
    if units.is_empty() {
        return if post.is_empty() { String::new() } else { format!("\n%post\n{post}") };
    }
    post.push_str(&POST.replace("UNITS", &units));
    let preun = PREUN.replace("UNITS", &units);
    let postun = POSTUN.replace("UNITS", &units);
    format!("\n%post\n{post}\n%preun\n{preun}\n%postun\n{postun}")
}

/// `$1` is the number of versions that will be installed afterwards.
const POST: &str = "if [ $1 -eq 1 ]; then
    systemctl --no-reload enable UNITS >/dev/null 2>&1 || :
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload || :
        systemctl start UNITS || :
    fi
fi
";

/// VMs are units of their own: they go on without the program that started them.
const PREUN: &str = "if [ $1 -eq 0 ]; then
    systemctl --no-reload disable UNITS >/dev/null 2>&1 || :
    if [ -d /run/systemd/system ]; then systemctl stop UNITS || :; fi
fi
";

const POSTUN: &str = "if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
    if [ $1 -ge 1 ]; then systemctl try-restart UNITS || :; fi
fi
";
