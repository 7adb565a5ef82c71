//! What is in the .rpms: the same as in the .debs, described for another package manager.

use super::*;

fn query(name: &str, arguments: &[&str]) -> String {
    let mut command = Command::new("rpm");
    command
        .args(["--query", "--package"])
        .args(arguments)
        .arg(package(name, "rpm"));
    capture(&mut command).unwrap()
}

fn listing(name: &str) -> Vec<Listed> {
    let format = "[%{FILENAMES} %{FILEMODES:perms} %{FILEUSERNAME}/%{FILEGROUPNAME}\n]";
    let text = query(name, &["--queryformat", format]);
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [path, mode, owner] = words.as_slice() else {
            panic!("not a plain entry: {line}")
        };
        Listed {
            path: (*path).into(),
            mode: (*mode).into(),
            owner: (*owner).into(),
        }
    };
    text.lines().map(line).collect()
}

#[test]
fn the_digests_are_right() {
    for name in NAMES {
        let mut command = Command::new("rpm");
        command
            .args(["--checksig", "--nosignature", "--verbose"])
            .arg(package(name, "rpm"));
        let answer = capture(&mut command).unwrap();
        assert!(answer.contains("Payload SHA256 digest: OK"), "{answer}");
        assert!(!answer.contains("BAD"), "{answer}");
    }
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
        for licence in ["LICENSE", "THIRD-PARTY"] {
            let path = format!("/usr/share/licenses/{name}/{licence}");
            assert!(
                listed.iter().any(|file| file.path == path),
                "{name} lacks {path}"
            );
        }
    }
    let cli = listing("berth-cli");
    let zsh = "/usr/share/zsh/site-functions/_berthctl";
    assert!(
        cli.iter().any(|file| file.path == zsh),
        "where zsh looks on these distributions"
    );
}

#[test]
fn the_files_are_those_of_the_debs() {
    for (name, places) in PLACES {
        let root = unpacked(name);
        let digests = query(name, &["--queryformat", "[%{FILENAMES} %{FILEDIGESTS}\n]"]);
        for place in places {
            let path = root.path().join(place.trim_start_matches('/'));
            let sum = capture(Command::new("sha256sum").arg(path)).unwrap();
            let digest = sum.split_whitespace().next().unwrap();
            let line = format!("{place} {digest}\n");
            assert!(
                digests.contains(&line),
                "{place} differs between the formats"
            );
        }
    }
}

#[test]
fn an_administrators_changes_are_kept() {
    for name in NAMES {
        let flags = query(
            name,
            &["--queryformat", "[%{FILENAMES} %{FILEFLAGS:fflags}\n]"],
        );
        for line in flags.lines() {
            let (path, flags) = line.split_once(' ').unwrap();
            let is_file_below_etc = path.starts_with("/etc/") && path.contains('.');
            // c: configuration, n: noreplace.
            assert_eq!(flags.contains("cn"), is_file_below_etc, "{line}");
        }
    }
}

#[test]
fn the_libraries_and_systemd_are_required() {
    for name in NAMES {
        let requires = query(name, &["--requires"]);
        assert!(
            requires.contains("libc.so.6(GLIBC_2."),
            "{name}: {requires}"
        );
        if name != "berth-cli" {
            assert!(requires.contains("systemd >= 252"), "{name}: {requires}");
        }
    }
}

#[test]
fn scripts_are_readable_ask_nothing_and_leave_vms_alone() {
    for name in DAEMONS {
        for tag in ["%{POSTIN}", "%{PREUN}", "%{POSTUN}"] {
            let script = query(name, &["--queryformat", tag]);
            assert!(script.contains("set -eu"), "{name} lacks {tag}");
            check_script(&script);
        }
    }
}

#[test]
fn the_header_tells_of_no_build_machine() {
    for name in NAMES {
        let header = query(name, &["--info", "--changelog", "--scripts", "--provides"]);
        assert!(header.contains("Build Host  : reproducible"), "{header}");
        for place in build_places() {
            assert!(!header.contains(&place), "{name} tells of {place}");
        }
    }
}
