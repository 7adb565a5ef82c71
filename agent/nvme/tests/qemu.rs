//! The suite against QEMU's NVMe drive, driven through QEMU's test protocol: no guest, no KVM. Shows that
//! the driver agrees with an implementation that is not ours, and what is left in the backing file.
#![forbid(unsafe_code)]

#[cfg(test)]
mod qtest;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use berth_agent_core::slot::wipe::WipePolicy;
    use berth_api::slot::{WipeMethod, serial_kind};
    use berth_nvme::drive::Drive;
    use berth_nvme::identify::{identify, setting};
    use berth_nvme::suite::{self, Expectations, Notes};
    use berth_nvme::wipe::{WipeOrder, wipe};

    use super::qtest::QemuDrive;

    const PATTERN: &[u8] = b"what the tenant before wrote: ";
    const LACKS: [WipeMethod; 4] = [
        WipeMethod::NvmeSanitizeCrypto,
        WipeMethod::NvmeSanitizeBlock,
        WipeMethod::NvmeSanitizeOverwrite,
        WipeMethod::NvmeFormatCrypto,
    ];

    fn policy(methods: &[WipeMethod]) -> WipePolicy {
        WipePolicy {
            methods: methods.to_vec(),
            sample_blocks: 64,
            deadline_s: 120,
        }
    }

    fn filled_image(folder: &tempfile::TempDir, bytes: usize) -> std::path::PathBuf {
        let path = folder.path().join("drive.raw");
        let content: Vec<u8> = PATTERN.iter().copied().cycle().take(bytes).collect();
        fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn the_suite_passes_on_qemus_drive_with_every_format_of_blocks() {
        for options in [
            "logical_block_size=512",
            "physical_block_size=4096,logical_block_size=4096",
            "physical_block_size=4096,logical_block_size=4096,ms=8",
            "physical_block_size=4096,logical_block_size=4096,ms=8,mset=1",
        ] {
            let folder = tempfile::tempdir().unwrap();
            let image = filled_image(&folder, 4 << 20);
            let Some(mut drive) = QemuDrive::start(&image, options) else {
                return;
            };
            let expected = Expectations {
                has: vec![WipeMethod::NvmeFormatUserData, WipeMethod::NvmeOverwrite],
                lacks: LACKS.to_vec(),
                policy: policy(&[]),
            };
            suite::run(&mut drive, &expected).unwrap_or_else(|error| panic!("{options}: {error}"));
        }
    }

    #[test]
    fn nothing_of_a_tenant_is_left_in_the_backing_file() {
        for method in [WipeMethod::NvmeFormatUserData, WipeMethod::NvmeOverwrite] {
            let folder = tempfile::tempdir().unwrap();
            let image = filled_image(&folder, 4 << 20);
            let Some(mut transport) = QemuDrive::start(&image, "logical_block_size=512") else {
                return;
            };
            let mut drive = Drive::open(&mut transport).unwrap();
            let policy = policy(&[method]);
            let order = WipeOrder {
                policy: &policy,
                approved: &BTreeMap::new(),
                earlier: None,
                seed: 7,
                started_at_ms: 0,
            };
            let done = wipe(&mut drive, &order, &mut Notes::default()).unwrap();
            drive.close().unwrap();
            assert_eq!(done.method, method);
            assert!(!done.completion.is_empty(), "{done:?}");
            drop(transport);
            let left = fs::read(&image).unwrap();
            let has_pattern = left.windows(PATTERN.len()).any(|window| window == PATTERN);
            assert!(!has_pattern, "{method:?}");
        }
    }

    #[test]
    fn qemus_drive_says_who_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let image = filled_image(&folder, 1 << 20);
        let Some(mut transport) = QemuDrive::start(&image, "logical_block_size=512") else {
            return;
        };
        let mut drive = Drive::open(&mut transport).unwrap();
        let found = identify(&mut drive).unwrap();
        assert_eq!(found[serial_kind::NVME_SERIAL], "TEST-DRIVE-1");
        assert_eq!(found[serial_kind::NVME_MODEL], "QEMU NVMe Ctrl");
        assert_eq!(found[setting::NAMESPACES], "1:2048x512+0/0");
        assert_eq!(found[setting::BOOT_PARTITIONS], "none");
    }
}
