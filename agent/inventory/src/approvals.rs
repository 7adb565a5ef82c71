//! Reads the folder of approvals. What is in them is judged by `berth_agent_core::slot::approval`.

use std::io::{self, Read as _};
use std::path::Path;

use berth_agent_core::slot::approval::{
    ApprovalFile, Approvals, FILE_SUFFIX, RefusedApproval, settle,
};
use ring::digest::{SHA256, digest};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};

use crate::files::names;

/// Longest file that is read; one of 64 devices has some 40 KiB.
const MAX_BYTES: u64 = 256 * 1024;
/// Mode bits that let somebody else than the owner write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// What the folder approves, and which files of it are refused and why. `trusted_uid` is who may own
/// folder and files: root, or the user that a test runs as. No folder approves nothing; a folder
/// that cannot be read, or that others can write, is refused as a whole under its own name.
#[must_use]
pub fn read_approvals(folder: &Path, trusted_uid: u32) -> Approvals {
    let refuse_all = |reason: String| Approvals {
        approved: Vec::new(),
        refused: vec![RefusedApproval {
            file: folder.display().to_string(),
            reason,
        }],
    };
    match folder_problem(folder, trusted_uid) {
        Ok(None) => {}
        Ok(Some(reason)) => return refuse_all(reason),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Approvals::default(),
        Err(cause) => return refuse_all(format!("it cannot be read: {cause}")),
    }
    let mut files = Vec::new();
    let mut refused = Vec::new();
    for file in names(folder)
        .into_iter()
        .filter(|name| name.ends_with(FILE_SUFFIX))
    {
        match read(folder, &file) {
            Ok(file) => files.push(file),
            Err(cause) => refused.push(RefusedApproval {
                file,
                reason: format!("it cannot be read: {cause}"),
            }),
        }
    }
    let mut approvals = settle(&files, trusted_uid);
    approvals.refused.extend(refused);
    approvals.refused.sort_by(|a, b| a.file.cmp(&b.file));
    approvals
}

fn folder_problem(folder: &Path, trusted_uid: u32) -> io::Result<Option<String>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let status = fstat(open(folder, flags, Mode::empty())?)?;
    // It must also be possible to list it, or approvals would silently be none.
    std::fs::read_dir(folder)?;
    let is_safe = status.st_uid == trusted_uid && status.st_mode & WRITABLE_BY_OTHERS == 0;
    Ok((!is_safe).then(|| {
        format!(
            "it belongs to user {} and has mode {:o}: only its owner, who must be root, may be able to \
             write it (`chown root`, `chmod 0755`)",
            status.st_uid,
            status.st_mode & 0o7777
        )
    }))
}

/// Owner, mode and text are of one open file, so that nobody can put another one in its place between.
fn read(folder: &Path, name: &str) -> io::Result<ApprovalFile> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = open(folder.join(name), flags, Mode::empty())?;
    let status = fstat(&opened)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::from(opened)
        .take(MAX_BYTES.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > MAX_BYTES) {
        return Err(io::Error::other(format!(
            "it is longer than {MAX_BYTES} bytes"
        )));
    }
    let sha256 = hex::encode(digest(&SHA256, &bytes));
    Ok(ApprovalFile {
        file: name.to_owned(),
        text: String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8"))?,
        sha256,
        uid: status.st_uid,
        mode: status.st_mode,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use berth_agent_core::slot::approval::{Wish, propose};
    use berth_api::ids::SlotId;

    use super::*;
    use crate::tree::Tree;

    fn uid() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn allow(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// A tree whose `slots.d` approves its one drive.
    fn approved() -> Tree {
        let tree = Tree::new();
        tree.file("proc/self/mountinfo", "");
        tree.pci("pci0000:00/0000:00:02.0");
        let snapshot = crate::read(tree.root()).unwrap();
        let wish = Wish {
            slot_id: SlotId::generate(),
            name: "disk".to_owned(),
            class: "nvme".to_owned(),
            approved_at: "2026-01-02T03:04:05Z".to_owned(),
        };
        let approval = propose(&snapshot, &["0000:00:02.0".parse().unwrap()], wish).unwrap();
        tree.file("slots.d/disk.toml", &approval.render().unwrap());
        allow(&tree.root().join("slots.d/disk.toml"), 0o644);
        allow(&tree.root().join("slots.d"), 0o755);
        tree
    }

    fn read_all(tree: &Tree) -> Approvals {
        read_approvals(&tree.root().join("slots.d"), uid())
    }

    #[track_caller]
    fn refused(tree: &Tree, file: &str, word: &str) {
        let approvals = read_all(tree);
        let refused = approvals
            .refused
            .iter()
            .find(|refused| refused.file.ends_with(file))
            .unwrap();
        assert!(refused.reason.contains(word), "{refused:?}");
    }

    #[test]
    fn an_approval_comes_with_the_digest_of_its_file() {
        let approvals = read_all(&approved());
        assert_eq!(approvals.refused, []);
        assert_eq!(approvals.approved[0].approval.name, "disk");
        assert_eq!(approvals.approved[0].sha256.len(), 64);
    }

    #[test]
    fn no_folder_approves_nothing() {
        assert_eq!(read_all(&Tree::new()), Approvals::default());
    }

    #[test]
    fn a_folder_that_others_can_write_approves_nothing() {
        let tree = approved();
        allow(&tree.root().join("slots.d"), 0o777);
        assert_eq!(read_all(&tree).approved, []);
        refused(&tree, "slots.d", "777");
    }

    #[test]
    fn a_file_that_others_can_write_approves_nothing() {
        let tree = approved();
        allow(&tree.root().join("slots.d/disk.toml"), 0o666);
        assert_eq!(read_all(&tree).approved, []);
        refused(&tree, "disk.toml", "666");
    }

    #[test]
    fn links_long_files_and_other_things_approve_nothing() {
        let tree = approved();
        let folder = tree.root().join("slots.d");
        symlink("disk.toml", folder.join("link.toml")).unwrap();
        fs::create_dir(folder.join("folder.toml")).unwrap();
        tree.bytes("slots.d/long.toml", &vec![b'#'; 300 * 1024]);
        tree.bytes("slots.d/binary.toml", &[0xff, 0xfe]);
        tree.file("slots.d/disk.toml~", "an editor's copy");
        for (file, word) in [
            ("link.toml", "cannot be read"),
            ("folder.toml", "not a regular file"),
            ("long.toml", "longer"),
            ("binary.toml", "UTF-8"),
        ] {
            refused(&tree, file, word);
        }
        let approvals = read_all(&tree);
        assert_eq!((approvals.approved.len(), approvals.refused.len()), (1, 4));
    }
}
