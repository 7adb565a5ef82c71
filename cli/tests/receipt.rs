//! `berthctl receipt` on files, without any controller.

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output};

    use berth_api::ids::{ClaimId, ReceiptId, SlotId, VmId};
    use berth_api::pci::PciClass;
    use berth_api::slot::{
        Claim, DeviceIdentity, DeviceKind, DeviceWipe, ReadBack, Receipt, SlotDevice, SlotHolder,
        Statement, StepRecord, WipeMethod,
    };
    use berth_ledger::keys::SigningKey;
    use berth_ledger::receipt::seal_receipt;

    fn key() -> SigningKey {
        SigningKey::from_seed(&[5; 32]).unwrap()
    }

    fn device() -> SlotDevice {
        SlotDevice {
            kind: DeviceKind::Nvme,
            address: Some("0000:01:00.0".parse().unwrap()),
            identity: DeviceIdentity {
                vendor: "1b36".parse().unwrap(),
                device: "0010".parse().unwrap(),
                subsystem_vendor: "1af4".parse().unwrap(),
                subsystem: "1100".parse().unwrap(),
                class: PciClass::NVME,
                path: "pci0000:00/01.0/00.0".to_owned(),
                serials: BTreeMap::new(),
            },
            iommu_group: Some(1),
            numa_node: None,
        }
    }

    fn receipt(slot_id: SlotId, generation: u64, statement: Statement) -> Receipt {
        Receipt {
            receipt_id: ReceiptId::generate(),
            node_id: "node_00000000000000000000000001".parse().unwrap(),
            slot_id,
            slot_name: "bay-3".to_owned(),
            generation,
            at: 1_700_000_000,
            holder: Some(SlotHolder {
                claim: Claim {
                    slot_id,
                    claim_id: ClaimId::generate(),
                    fencing_epoch: generation,
                },
                vm_id: VmId::generate(),
                tenant_id: "acme".parse().unwrap(),
            }),
            devices: vec![device()],
            statement,
        }
    }

    fn wipe(slot_id: SlotId, generation: u64, bytes_wrong: u64) -> Receipt {
        let wiped = DeviceWipe {
            address: "0000:01:00.0".parse().unwrap(),
            identity: device().identity,
            method: WipeMethod::NvmeSanitizeBlock,
            started_at_ms: 1,
            ended_at_ms: 2,
            completion: BTreeMap::from([("sstat".to_owned(), "1".to_owned())]),
            restored: Vec::new(),
            read_back: ReadBack {
                sample: "edges and 1024 random blocks".to_owned(),
                bytes_total: 4096,
                bytes_read: 4096,
                bytes_wrong,
                expected: "zeroes".to_owned(),
                sha256: "0".repeat(64),
            },
            not_proved: vec!["what the drive keeps beside its blocks".to_owned()],
        };
        let devices = vec![wiped];
        receipt(slot_id, generation, Statement::Wipe { devices })
    }

    fn claim(slot_id: SlotId, generation: u64) -> Receipt {
        let step = |name: &str| StepRecord {
            step: name.to_owned(),
            address: device().address,
            ended_at_ms: 1,
            took_ms: 3,
            found: "fit".to_owned(),
        };
        let steps = ["look", "bind", "reset"].map(step).into();
        receipt(slot_id, generation, Statement::Claim { steps })
    }

    fn file(folder: &Path, receipt: &Receipt) -> PathBuf {
        let path = folder.join(format!("{}.json", receipt.receipt_id));
        let sealed = seal_receipt(&key(), receipt).unwrap();
        std::fs::write(&path, serde_json::to_vec(&sealed).unwrap()).unwrap();
        path
    }

    fn berthctl(arguments: &[&str], files: &[PathBuf]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_berthctl"))
            .arg("receipt")
            .args(arguments)
            .args(files)
            .env("BERTH_URL", "http://127.0.0.1:1")
            .output()
            .unwrap()
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    #[test]
    fn a_receipt_is_verified_offline_with_the_hosts_key() {
        let folder = tempfile::tempdir().unwrap();
        let slot_id = SlotId::generate();
        let path = file(folder.path(), &wipe(slot_id, 3, 0));
        let public = key().public().to_base64();
        let known = berthctl(&["verify", "--key", &public], std::slice::from_ref(&path));
        assert!(known.status.success(), "{}", text(&known.stderr));
        assert!(text(&known.stdout).contains("bay-3"));
        assert_eq!(text(&known.stderr), "");

        let key_file = folder.path().join("node.pub");
        std::fs::write(&key_file, public + "\n").unwrap();
        let named = ["verify", "--json", "--node-key", key_file.to_str().unwrap()];
        let known = berthctl(&named, std::slice::from_ref(&path));
        let shown: serde_json::Value = serde_json::from_slice(&known.stdout).unwrap();
        assert_eq!(shown[0]["key_is_known"], true);
        assert_eq!(shown[0]["receipt"]["statement"]["kind"], "wipe");

        let unknown = berthctl(&["verify"], &[path]);
        assert!(unknown.status.success());
        assert!(text(&unknown.stderr).contains("nothing here tells whose key"));
    }

    #[test]
    fn a_receipt_of_another_key_or_with_a_changed_byte_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), &wipe(SlotId::generate(), 3, 0));
        let other = SigningKey::from_seed(&[6; 32])
            .unwrap()
            .public()
            .to_base64();
        let foreign = berthctl(&["verify", "--key", &other], std::slice::from_ref(&path));
        assert_eq!(foreign.status.code(), Some(1));
        assert!(text(&foreign.stderr).contains("key is not trusted"));

        let sealed = std::fs::read_to_string(&path).unwrap();
        let (head, tail) = sealed.split_once("\"payload\":\"ey").unwrap();
        std::fs::write(&path, format!("{head}\"payload\":\"fy{tail}")).unwrap();
        let forged = berthctl(&["verify"], &[path]);
        assert_eq!(forged.status.code(), Some(1));
        assert!(text(&forged.stderr).contains("signature is wrong"));
    }

    #[test]
    fn a_signed_wipe_that_found_something_shows_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), &wipe(SlotId::generate(), 3, 512));
        let found = berthctl(&["verify"], &[path]);
        assert_eq!(found.status.code(), Some(1));
        assert!(text(&found.stderr).contains("512 bytes at 0000:01:00.0"));
    }

    #[test]
    fn a_claim_without_a_wipe_before_it_breaks_the_chain() {
        let folder = tempfile::tempdir().unwrap();
        let slot_id = SlotId::generate();
        let receipts = [wipe(slot_id, 3, 0), claim(slot_id, 4), claim(slot_id, 6)];
        let files: Vec<_> = receipts.iter().map(|r| file(folder.path(), r)).collect();
        assert!(berthctl(&["verify"], &files[..2]).status.success());
        let handed_on = berthctl(&["verify"], &files);
        assert_eq!(handed_on.status.code(), Some(1));
        let said = text(&handed_on.stderr);
        assert!(said.contains("generation 6 without a wipe"), "{said}");
    }

    #[test]
    fn what_a_wipe_did_and_did_not_prove_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), &wipe(SlotId::generate(), 3, 0));
        let shown = text(&berthctl(&["show"], &[path]).stdout);
        for words in [
            "NvmeSanitizeBlock",
            "4096 of 4096 bytes",
            "sstat=1",
            "not proved",
            "2023-11-14T22:13:20Z",
        ] {
            assert!(shown.contains(words), "{words} is not in\n{shown}");
        }
    }
}
