//! The medium that carries a seed: a small FAT file system as cloud-init's NoCloud looks for it.
//!
//! Owns its layout and what its files say. Bytes only: which memory holds them is
//! `berth-agent-host`'s, and that a VMM gets them is the daemon's.

use std::io::{self, Cursor, Write as _};

use berth_api::agent::{Seed, Task};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use serde_json::json;

/// The drive's serial number; in a Linux guest `/dev/disk/by-id/virtio-berth-seed`.
pub const SERIAL: &str = "berth-seed";
/// Size of the medium in bytes. What is not used of it takes no memory.
pub const MEDIUM_BYTES: usize = 1024 * 1024;
/// The label by which NoCloud knows its medium.
const LABEL: [u8; 11] = *b"CIDATA     ";
/// Enough for the files and the entries of their long names.
const ROOT_ENTRIES: u16 = 32;
/// NoCloud takes no medium without user data, and this one says nothing.
const NO_USER_DATA: &str = "#cloud-config\n{}\n";

/// Why there is no medium.
#[derive(Debug, thiserror::Error)]
#[error("the seed does not fit on its medium of {MEDIUM_BYTES} bytes")]
pub struct MakeMediumError(#[source] io::Error);

/// Whether a seed is for the guest that a task starts.
#[must_use]
pub fn is_for(seed: &Seed, task: &Task) -> bool {
    seed.task_id == task.task_id
        && seed.node_id == task.node_id
        && seed.vm_id == task.vm_id
        && seed.generation == task.generation
}

/// The medium's bytes.
///
/// `meta-data` names instance, host and keys, because cloud-init reads keys from there whatever the user
/// data is; `user-data` is the tenant's, byte for byte; `berth.json` is with what the guest speaks to the
/// controller.
pub fn medium(seed: &Seed) -> Result<Vec<u8>, MakeMediumError> {
    // JSON is YAML, and needs no second way to quote.
    let meta_data = json!({
        "instance-id": seed.vm_id,
        "local-hostname": seed.name,
        "public-keys": seed.ssh_keys,
    });
    let user_data = seed.user_data.as_deref().unwrap_or(NO_USER_DATA);
    let mut files = vec![
        ("meta-data", meta_data.to_string()),
        ("user-data", user_data.to_owned()),
    ];
    if let Some(access) = &seed.guest_access {
        let access = json!({
            "controller_url": access.controller_url,
            "vm_id": seed.vm_id,
            "token": access.token,
        });
        files.push(("berth.json", access.to_string()));
    }
    write_medium(&files).map_err(MakeMediumError)
}

fn write_medium(files: &[(&str, String)]) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; MEDIUM_BYTES];
    let options = FormatVolumeOptions::new()
        .volume_label(LABEL)
        .max_root_dir_entries(ROOT_ENTRIES);
    format_volume(Cursor::new(bytes.as_mut_slice()), options)?;
    let volume = FileSystem::new(Cursor::new(bytes.as_mut_slice()), FsOptions::new())?;
    for (name, content) in files {
        let mut file = volume.root_dir().create_file(name)?;
        file.write_all(content.as_bytes())?;
        file.flush()?;
    }
    volume.unmount()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use berth_api::agent::{GuestAccess, TaskAction};
    use berth_api::ids::{NodeId, TaskId, VmId};

    use super::*;

    fn seed() -> Seed {
        Seed {
            task_id: TaskId::generate(),
            node_id: NodeId::generate(),
            vm_id: VmId::generate(),
            generation: 3,
            name: "web-1".to_owned(),
            ssh_keys: vec!["ssh-ed25519 AAAA ops: \"the \u{fc}ber desk\"".to_owned()],
            user_data: Some("#!/bin/sh\necho h\u{e4}llo\n".to_owned()),
            guest_access: Some(GuestAccess {
                controller_url: "https://berth.example:9221".to_owned(),
                token: "v4.public.secret".to_owned(),
            }),
        }
    }

    /// The label, and each file with its content.
    fn read(bytes: Vec<u8>) -> (String, Vec<(String, String)>) {
        let volume = FileSystem::new(Cursor::new(bytes), FsOptions::new()).unwrap();
        let label = volume.read_volume_label_from_root_dir().unwrap().unwrap();
        let files = volume
            .root_dir()
            .iter()
            .map(|entry| {
                let entry = entry.unwrap();
                let mut content = String::new();
                entry.to_file().read_to_string(&mut content).unwrap();
                (entry.file_name(), content)
            })
            .collect();
        (label, files)
    }

    #[test]
    fn a_medium_says_what_cloud_init_looks_for() {
        let seed = seed();
        let (label, files) = read(medium(&seed).unwrap());
        assert_eq!(label, "CIDATA");
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["meta-data", "user-data", "berth.json"]);
        let meta: serde_json::Value = serde_json::from_str(&files[0].1).unwrap();
        let expected = json!({
            "instance-id": seed.vm_id, "local-hostname": "web-1", "public-keys": seed.ssh_keys,
        });
        assert_eq!(meta, expected);
        assert_eq!(Some(&files[1].1), seed.user_data.as_ref());
        let access: serde_json::Value = serde_json::from_str(&files[2].1).unwrap();
        assert_eq!(access["controller_url"], "https://berth.example:9221");
        assert_eq!(access["token"], "v4.public.secret");
        assert_eq!(access["vm_id"], json!(seed.vm_id));
    }

    #[test]
    fn the_same_seed_is_the_same_medium_and_most_of_it_is_empty() {
        let seed = seed();
        let bytes = medium(&seed).unwrap();
        assert_eq!(bytes.len(), MEDIUM_BYTES);
        assert_eq!(bytes, medium(&seed).unwrap());
        let pages = bytes
            .chunks(4096)
            .filter(|page| page.iter().any(|b| *b != 0));
        assert!(pages.count() <= 8);
    }

    #[test]
    fn without_user_data_there_is_an_empty_one_and_without_a_token_no_file_for_it() {
        let mut seed = seed();
        seed.user_data = None;
        seed.guest_access = None;
        let (_, files) = read(medium(&seed).unwrap());
        assert_eq!(files.len(), 2);
        assert_eq!(files[1].1, NO_USER_DATA);
    }

    #[test]
    fn what_a_controller_may_give_fits_and_more_is_refused() {
        let mut seed = seed();
        seed.user_data = Some("#".repeat(64 * 1024));
        seed.ssh_keys = vec!["k".repeat(8192); 32];
        let (_, files) = read(medium(&seed).unwrap());
        assert_eq!(Some(&files[1].1), seed.user_data.as_ref());
        seed.user_data = Some("#".repeat(MEDIUM_BYTES));
        let refused = medium(&seed).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the seed does not fit on its medium of 1048576 bytes"
        );
    }

    #[test]
    fn a_seed_is_for_one_task_of_one_node_and_one_run() {
        let right = seed();
        let task = Task {
            task_id: right.task_id,
            node_id: right.node_id,
            node_epoch: 1,
            vm_id: right.vm_id,
            tenant_id: "acme-corp".parse().unwrap(),
            generation: right.generation,
            not_before: 0,
            expires_at: 1,
            ledger_index: 0,
            action: TaskAction::VmStart {},
        };
        assert!(is_for(&right, &task));
        let wrong = |change: fn(&mut Seed)| {
            let mut seed = right.clone();
            change(&mut seed);
            assert!(!is_for(&seed, &task), "{seed:?}");
        };
        wrong(|seed| seed.task_id = TaskId::generate());
        wrong(|seed| seed.node_id = NodeId::generate());
        wrong(|seed| seed.vm_id = VmId::generate());
        wrong(|seed| seed.generation += 1);
    }

    #[test]
    fn a_seed_is_not_written_out_for_logs() {
        let words = format!("{:?} {:?}", seed(), seed().guest_access);
        for secret in ["secret", "h\u{e4}llo"] {
            assert!(!words.contains(secret), "{words}");
        }
    }
}
