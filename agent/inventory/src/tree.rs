//! A host laid out in a folder, for tests.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use berth_agent_core::slot::snapshot::Function;
use berth_api::pci::PciAddress;

use crate::config_space::tests::Bytes;
use crate::function;

/// The folder; removed with this value.
pub(crate) struct Tree(tempfile::TempDir);

impl Tree {
    pub(crate) fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        tree.folder("sys");
        tree
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    fn prepared(&self, path: &str) -> PathBuf {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    pub(crate) fn folder(&self, path: &str) {
        fs::create_dir_all(self.root().join(path)).unwrap();
    }

    pub(crate) fn file(&self, path: &str, content: &str) {
        self.bytes(path, content.as_bytes());
    }

    pub(crate) fn bytes(&self, path: &str, content: &[u8]) {
        fs::write(self.prepared(path), content).unwrap();
    }

    /// A link to another place in this tree.
    pub(crate) fn link(&self, path: &str, target: &str) {
        symlink(self.root().join(target), self.prepared(path)).unwrap();
    }

    /// A link with exactly this target.
    pub(crate) fn link_to(&self, path: &str, target: &str) {
        symlink(target, self.prepared(path)).unwrap();
    }

    /// A block device at a path below the root.
    pub(crate) fn block(&self, path: &str, number: &str) {
        self.file(&format!("{path}/dev"), &format!("{number}\n"));
        let name = Path::new(path).file_name().unwrap().to_str().unwrap();
        self.link(&format!("sys/class/block/{name}"), path);
    }

    /// An NVMe drive without a driver at a path below `sys/devices`; returns its folder.
    pub(crate) fn pci(&self, path: &str) -> String {
        let folder = format!("sys/devices/{path}");
        for (name, content) in [
            ("vendor", "0x1b36\n"),
            ("device", "0x0010\n"),
            ("subsystem_vendor", "0x1af4\n"),
            ("subsystem_device", "0x1100\n"),
            ("class", "0x010802\n"),
            ("numa_node", "-1\n"),
            ("reset_method", "flr bus\n"),
            ("driver_override", "(null)\n"),
        ] {
            self.file(&format!("{folder}/{name}"), content);
        }
        let config = Bytes::new(4096).with(&[&[0x10, 0x02, 0x00], &[0x11, 0, 0]]);
        self.bytes(&format!("{folder}/config"), &config.0);
        let address = Path::new(path).file_name().unwrap().to_str().unwrap();
        self.link(&format!("sys/bus/pci/devices/{address}"), &folder);
        folder
    }

    /// The functions that this tree shows.
    pub(crate) fn functions(&self) -> BTreeMap<PciAddress, Function> {
        let folder = self.root().join("sys/bus/pci/devices");
        crate::files::names(&folder)
            .into_iter()
            .map(|name| {
                let address = name.parse().unwrap();
                let function = function::read(&folder.join(&name), address).unwrap();
                (address, function)
            })
            .collect()
    }
}
