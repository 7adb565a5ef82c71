//! The RPM format: a spec file that takes the staged files as they are, `rpmbuild`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use berth_tests::command::{run_logged, shown};

use super::manifest::{Manifest, Package};
use super::stage::{Staged, StagedFile};
use super::{Release, scripts};

/// Makes one .rpm from what was laid out; `work` is a folder for what `rpmbuild` leaves behind.
///
/// # Errors
/// If `rpmbuild` fails; the message quotes its log.
pub(super) fn build(
    mut staged: Staged,
    package: &Package,
    manifest: &Manifest,
    release: &Release,
    work: &Path,
    fresh: &Path,
) -> Result<()> {
    staged.seal(release.epoch)?;
    let spec = work.join("package.spec");
    let text = spec_text(&staged, package, manifest, release)?;
    std::fs::write(&spec, text).context("writing the spec file")?;
    let mut command = Command::new("rpmbuild");
    command.env("SOURCE_DATE_EPOCH", release.epoch.to_string());
    // What a build needs is checked by dpkg's database here, which rpm does not know.
    command.args(["-bb", "--quiet", "--nodeps"]);
    command.arg(format!("--target={}-linux", release.architecture));
    let top = work.join("top").display().to_string();
    let output = fresh.display().to_string();
    for (name, value) in [
        ("_topdir", top.as_str()),
        ("_rpmdir", &output),
        ("_rpmfilename", "%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm"),
        ("_buildhost", "reproducible"),
        ("_binary_payload", "w6.xzdio"),
        ("_dbpath", &format!("{top}/db")),
        ("use_source_date_epoch_as_buildtime", "1"),
        ("clamp_mtime_to_source_date_epoch", "1"),
        // The programs are stripped by the compiler; there is nothing to split off or to compile.
        ("debug_package", "%{nil}"),
        ("__os_install_post", "%{nil}"),
        ("_build_id_links", "none"),
    ] {
        command.arg("--define").arg(format!("{name} {value}"));
    }
    run_logged(command.arg(&spec), &work.join("rpmbuild.log"))?;
    let name = format!(
        "{}-{}-{}.{}.rpm",
        package.name, release.version, manifest.revision, release.architecture
    );
    ensure!(
        fresh.join(&name).exists(),
        "`{}` made no {name}",
        shown(&command)
    );
    Ok(())
}

fn spec_text(
    staged: &Staged,
    package: &Package,
    manifest: &Manifest,
    release: &Release,
) -> Result<String> {
    let mut text = String::new();
    let mut line = |value: &str| {
        // In a spec file a percent sign is the beginning of a macro.
        writeln!(text, "{value}").expect("a String takes all that is written");
    };
    for (name, value) in [
        ("Name", package.name.as_str()),
        ("Version", &release.version),
        ("Release", &manifest.revision.to_string()),
        ("Summary", &literal(&package.summary)),
        ("License", &manifest.license),
        ("Packager", &manifest.maintainer),
        ("BuildArch", release.architecture),
    ] {
        line(&format!("{name}: {value}"));
    }
    for required in &package.rpm_requires {
        line(&format!("Requires: {required}"));
    }
    if !package.enable.is_empty() {
        line("Requires(post): systemd\nRequires(preun): systemd\nRequires(postun): systemd");
    }
    for recommended in &package.recommends {
        line(&format!("Recommends: {recommended}"));
    }
    line(&format!(
        "\n%description\n{}",
        literal(package.description.trim())
    ));
    line(&format!(
        "\n%install\ncp -a '{}/.' %{{buildroot}}/",
        staged.root.display()
    ));
    line("\n%files");
    for folder in own_folders(&staged.files) {
        line(&format!("%dir %attr(0755, root, root) {folder}"));
    }
    for file in &staged.files {
        line(&format!(
            "%attr(0{:o}, root, root) {}{}",
            file.mode,
            kind(file),
            file.target
        ));
    }
    for name in scripts::RPM {
        if let Some(script) = scripts::script(package, &release.sources.root, name)? {
            line(&format!("\n%{name}\n{}", literal(&script)));
        }
    }
    Ok(text)
}

/// Text without macros in it.
fn literal(text: &str) -> String {
    text.replace('%', "%%")
}

fn kind(file: &StagedFile) -> &'static str {
    if file.is_configuration() {
        "%config(noreplace) "
    } else if file.target.starts_with("/usr/share/licenses/") {
        "%license "
    } else if file.target.starts_with("/usr/share/doc/")
        || file.target.starts_with("/usr/share/man/")
    {
        "%doc "
    } else {
        ""
    }
}

/// Folders that exist for berth alone, which the package takes away when it goes.
fn own_folders(files: &[StagedFile]) -> BTreeSet<&str> {
    let mut folders = BTreeSet::new();
    for file in files {
        let parents = Path::new(&file.target).ancestors().skip(1);
        folders.extend(parents.filter_map(Path::to_str).filter(|folder| {
            folder
                .rsplit('/')
                .next()
                .is_some_and(|name| name.starts_with("berth"))
        }));
    }
    folders
}
