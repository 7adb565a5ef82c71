//! What is in the .debs.

use super::*;

fn listing(name: &str) -> Vec<Listed> {
    let text = capture(
        Command::new("dpkg-deb")
            .arg("--contents")
            .arg(package(name, "deb")),
    )
    .unwrap();
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [mode, owner, _size, _date, _time, path] = words.as_slice() else {
            panic!("not a plain entry: {line}");
        };
        Listed {
            path: path.trim_start_matches('.').to_owned(),
            mode: (*mode).to_owned(),
            owner: (*owner).to_owned(),
        }
    };
    text.lines().map(line).collect()
}

fn field(name: &str, field: &str) -> String {
    let mut command = Command::new("dpkg-deb");
    command.arg("--field").arg(package(name, "deb")).arg(field);
    capture(&mut command).unwrap().trim().to_owned()
}

/// A file of the control archive.
fn control_file(name: &str, file: &str) -> Option<String> {
    let mut command = Command::new("dpkg-deb");
    command.arg("--info").arg(package(name, "deb")).arg(file);
    capture(&mut command).ok()
}

#[test]
fn everything_belongs_to_root_and_has_a_plain_mode() {
    for name in NAMES {
        for file in listing(name) {
            check_owner_and_mode(&file);
        }
    }
}

#[test]
fn every_file_is_where_the_others_look_for_it() {
    for (name, places) in PLACES {
        let listed = listing(name);
        for place in places {
            assert!(
                listed.iter().any(|file| file.path == *place),
                "{name} lacks {place}"
            );
        }
        for document in [
            "copyright",
            "changelog.gz",
            "changelog.Debian.gz",
            "THIRD-PARTY.gz",
        ] {
            let path = format!("/usr/share/doc/{name}/{document}");
            assert!(
                listed.iter().any(|file| file.path == path),
                "{name} lacks {path}"
            );
        }
    }
}

#[test]
fn nothing_is_in_two_packages() {
    let mut seen = std::collections::BTreeMap::new();
    for name in NAMES {
        for file in listing(name)
            .into_iter()
            .filter(|file| !file.mode.starts_with('d'))
        {
            let other = seen.insert(file.path.clone(), name);
            assert_eq!(other, None, "{} is in {name} too", file.path);
        }
    }
}

#[test]
fn what_is_below_etc_is_configuration_and_nothing_else_is() {
    for name in NAMES {
        let mut expected: Vec<String> = listing(name)
            .into_iter()
            .filter(|file| file.path.starts_with("/etc/") && !file.mode.starts_with('d'))
            .map(|file| file.path)
            .collect();
        expected.sort();
        let mut named: Vec<String> = control_file(name, "conffiles")
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect();
        named.sort();
        assert_eq!(named, expected, "{name}");
    }
}

#[test]
fn the_digests_are_those_of_the_files() {
    for name in NAMES {
        let root = unpacked(name);
        let digests = control_file(name, "md5sums").unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &digests).unwrap();
        let mut command = Command::new("md5sum");
        command
            .current_dir(root.path())
            .args(["--check", "--strict", "--quiet"])
            .arg(file.path());
        capture(&mut command).unwrap();
        let plain = listing(name)
            .into_iter()
            .filter(|file| !file.mode.starts_with('d'));
        let covered = plain.filter(|file| !file.path.starts_with("/etc/")).count();
        assert_eq!(digests.lines().count(), covered, "{name}");
    }
}

#[test]
fn no_file_tells_where_it_was_built() {
    for name in NAMES {
        let root = unpacked(name);
        for path in files_below(root.path()) {
            let content = std::fs::read(&path).unwrap();
            for place in build_places() {
                let found = content
                    .windows(place.len())
                    .any(|bytes| bytes == place.as_bytes());
                assert!(!found, "{} tells of {place}", path.display());
            }
        }
    }
}

/// The newest version of the C library that a program asks for, by its dynamic symbols.
fn needed_glibc(program: &Path) -> Option<Vec<u32>> {
    let symbols = capture(Command::new("objdump").arg("--dynamic-syms").arg(program)).ok()?;
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|rest| {
        let end = rest
            .find(|c: char| c != '.' && !c.is_ascii_digit())
            .unwrap_or(rest.len());
        rest[..end]
            .split('.')
            .map(|part| part.parse().ok())
            .collect::<Option<Vec<u32>>>()
    });
    versions.max()
}

#[test]
fn the_c_library_is_at_least_what_the_programs_ask_for() {
    for (name, places) in PLACES {
        let root = unpacked(name);
        let programs = places
            .iter()
            .filter(|place| place.contains("bin") || place.contains("exec"));
        let needed = programs
            .filter_map(|place| needed_glibc(&root.path().join(place.trim_start_matches('/'))))
            .max()
            .expect("at least one program is dynamic");
        let text: Vec<String> = needed.iter().map(u32::to_string).collect();
        let depends = field(name, "Depends");
        let wanted = format!("libc6 (>= {})", text.join("."));
        assert!(
            depends.contains(&wanted),
            "{name}: {wanted} is not in {depends}"
        );
    }
}

#[test]
fn scripts_are_readable_ask_nothing_and_leave_vms_alone() {
    for name in DAEMONS {
        for script in ["postinst", "prerm", "postrm"] {
            check_script(&control_file(name, script).expect("daemons have all three scripts"));
        }
    }
    assert_eq!(
        control_file("berth-cli", "postinst"),
        None,
        "a command line needs no script"
    );
}

#[test]
fn what_is_of_others_is_named_with_its_notices() {
    for (name, known) in [
        ("berth-agent", ["kvm-ioctls", "zbus"]),
        ("berth-cli", ["clap", "serde_json"]),
        ("berth-controller", ["axum", "rusqlite"]),
        ("berth-publish", ["object_store", "reqwest"]),
        ("berth-witness", ["axum", "ring"]),
    ] {
        let root = unpacked(name);
        let folder = root.path().join("usr/share/doc").join(name);
        let mut gzip = Command::new("gzip");
        let text = capture(gzip.arg("-dc").arg(folder.join("THIRD-PARTY.gz"))).unwrap();
        for crate_name in known {
            assert!(text.contains(&format!("\n{crate_name} ")), "{crate_name}");
        }
        assert!(text.contains("The Rust standard library"), "{name}");
        let own = text.lines().any(|line| line.starts_with("berth-"));
        assert!(!own, "{name} counts what is ours among the others");
        assert!(text.contains("Permission is hereby granted"), "{name}");
    }
}

#[test]
fn no_program_but_the_publisher_has_a_client_of_object_stores() {
    for (name, places) in PLACES {
        let root = unpacked(name);
        for place in places.iter().filter(|place| place.contains("bin/")) {
            let program = std::fs::read(root.path().join(place.trim_start_matches('/'))).unwrap();
            // The name of a header without which nothing can be asked of S3.
            let header = b"x-amz-content-sha256";
            let found = program.windows(header.len()).any(|bytes| bytes == header);
            assert_eq!(found, name == "berth-publish", "{place}");
        }
    }
}

#[test]
fn the_description_is_fit_for_a_package_list() {
    for name in NAMES {
        let description = field(name, "Description");
        let (summary, rest) = description.split_once('\n').expect("summary and text");
        assert!(summary.len() < 80 && !summary.ends_with('.'), "{summary}");
        assert!(rest.lines().all(|line| line.len() <= 80), "{rest}");
        assert_eq!(field(name, "Source"), "berth");
        assert!(field(name, "Maintainer").ends_with('>'));
    }
}

#[test]
fn the_vmm_loads_nothing_when_it_starts() {
    let root = unpacked("berth-agent");
    let headers = |place: &str| {
        let path = root.path().join(place);
        let mut command = Command::new("objdump");
        capture(command.arg("--private-headers").arg(path)).unwrap()
    };
    // What a dynamic program looks like to this test.
    let agent = headers("usr/sbin/berth-agent");
    assert!(agent.contains(" INTERP ") && agent.contains(" NEEDED "));
    let vmm = headers("usr/libexec/berth/berth-vmm");
    assert!(
        vmm.contains(" LOAD ") && !vmm.contains(" INTERP ") && !vmm.contains(" NEEDED "),
        "{vmm}"
    );
}

#[test]
fn programs_carry_no_symbol_tables() {
    for (name, places) in PLACES {
        let root = unpacked(name);
        for place in places
            .iter()
            .filter(|place| place.contains("bin/") || place.contains("exec"))
        {
            let path = root.path().join(place.trim_start_matches('/'));
            let sections =
                capture(Command::new("objdump").arg("--section-headers").arg(path)).unwrap();
            assert!(
                !sections.contains(".symtab") && !sections.contains(".debug_info"),
                "{place}"
            );
        }
    }
}
