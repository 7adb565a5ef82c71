//! The kernel's driver core as binding needs it, and its files in sysfs.
//!
//! Owns the paths and spellings. What is written in which order is `bind`'s business.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_api::pci::PciAddress;

use super::disposable::{self, TransferError};

/// What sysfs says where there is no override.
const NO_OVERRIDE: &str = "(null)";
/// How long an attribute that nothing waits for may take.
const SHORT: Duration = Duration::from_secs(10);

/// What binding needs of a kernel.
pub(super) trait DriverCore {
    /// The driver that has a device; `NotFound` if the device is not there.
    fn driver(&self, device: PciAddress) -> io::Result<Option<String>>;

    /// Whether a driver of that name is loaded.
    fn has_driver(&self, driver: &str) -> bool;

    /// The override, if there is one.
    fn driver_override(&self, device: PciAddress) -> Result<Option<String>, TransferError>;

    /// Set the override, or clear it.
    fn set_override(&self, device: PciAddress, driver: Option<&str>) -> Result<(), TransferError>;

    /// Take a device from `driver`.
    fn unbind(&self, device: PciAddress, driver: &str) -> Result<(), TransferError>;

    /// Let the drivers look at a device that has none.
    fn probe(&self, device: PciAddress) -> Result<(), TransferError>;

    /// How many virtual functions are on; `None` if it can have none.
    fn virtual_functions(&self, device: PciAddress) -> io::Result<Option<u32>>;

    /// Keep host drivers from virtual functions that are turned on later.
    fn keep_drivers_from_virtual_functions(&self, device: PciAddress) -> Result<(), TransferError>;
}

/// The kernel behind a sysfs.
#[derive(Debug, Clone)]
pub(super) struct Sysfs {
    bus: PathBuf,
    limit: Duration,
}

impl Sysfs {
    /// `root` is that of the host's file system; a driver may take `limit` to let a device go or take it.
    pub(super) fn new(root: &Path, limit: Duration) -> Self {
        Self {
            bus: root.join("sys/bus/pci"),
            limit,
        }
    }

    fn device(&self, device: PciAddress, file: &str) -> PathBuf {
        self.bus.join("devices").join(device.to_string()).join(file)
    }

    /// Writes that are read back exactly, because some kernels take them in silence and do nothing.
    fn write_and_read(
        &self,
        device: PciAddress,
        file: &str,
        value: &str,
        wanted: &str,
    ) -> Result<(), TransferError> {
        let path = self.device(device, file);
        disposable::write(&path, value, SHORT)?;
        let now = disposable::read(&path, SHORT)?;
        if now.trim() == wanted {
            return Ok(());
        }
        let file = path.display();
        Err(TransferError::Refused(format!(
            "{file} reads `{}` after `{}` was written",
            now.trim(),
            value.trim()
        )))
    }
}

impl DriverCore for Sysfs {
    fn driver(&self, device: PciAddress) -> io::Result<Option<String>> {
        std::fs::symlink_metadata(self.bus.join("devices").join(device.to_string()))?;
        match std::fs::read_link(self.device(device, "driver")) {
            Ok(link) => {
                let name = link.file_name().map(|name| name.to_string_lossy());
                Ok(name.map(std::borrow::Cow::into_owned))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn has_driver(&self, driver: &str) -> bool {
        self.bus.join("drivers").join(driver).is_dir()
    }

    fn driver_override(&self, device: PciAddress) -> Result<Option<String>, TransferError> {
        let text = disposable::read(&self.device(device, "driver_override"), SHORT)?;
        let text = text.trim();
        Ok(Some(text)
            .filter(|text| !text.is_empty() && *text != NO_OVERRIDE)
            .map(str::to_owned))
    }

    fn set_override(&self, device: PciAddress, driver: Option<&str>) -> Result<(), TransferError> {
        match driver {
            Some(driver) => self.write_and_read(device, "driver_override", driver, driver),
            None => self.write_and_read(device, "driver_override", "\n", NO_OVERRIDE),
        }
    }

    fn unbind(&self, device: PciAddress, driver: &str) -> Result<(), TransferError> {
        let path = self.bus.join("drivers").join(driver).join("unbind");
        disposable::write(&path, &device.to_string(), self.limit)
    }

    fn probe(&self, device: PciAddress) -> Result<(), TransferError> {
        let path = self.bus.join("drivers_probe");
        disposable::write(&path, &device.to_string(), self.limit)
    }

    fn virtual_functions(&self, device: PciAddress) -> io::Result<Option<u32>> {
        match std::fs::read_to_string(self.device(device, "sriov_numvfs")) {
            Ok(text) => {
                let count = text.trim().parse().map_err(io::Error::other)?;
                Ok(Some(count))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn keep_drivers_from_virtual_functions(&self, device: PciAddress) -> Result<(), TransferError> {
        self.write_and_read(device, "sriov_drivers_autoprobe", "0", "0")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> (tempfile::TempDir, Sysfs, PciAddress) {
        let root = tempfile::tempdir().unwrap();
        let bus = root.path().join("sys/bus/pci");
        let device = bus.join("devices/0000:01:00.0");
        std::fs::create_dir_all(bus.join("drivers/nvme")).unwrap();
        std::fs::create_dir_all(&device).unwrap();
        std::os::unix::fs::symlink("../../drivers/nvme", device.join("driver")).unwrap();
        std::fs::write(device.join("driver_override"), "(null)\n").unwrap();
        std::fs::write(bus.join("drivers/nvme/unbind"), "").unwrap();
        std::fs::write(bus.join("drivers_probe"), "").unwrap();
        let sysfs = Sysfs::new(root.path(), Duration::from_secs(20));
        (root, sysfs, "0000:01:00.0".parse().unwrap())
    }

    #[test]
    fn a_driver_is_what_the_link_says() {
        let (root, sysfs, device) = host();
        assert_eq!(sysfs.driver(device).unwrap().as_deref(), Some("nvme"));
        assert!(sysfs.has_driver("nvme") && !sysfs.has_driver("vfio-pci"));
        let link = root.path().join("sys/bus/pci/devices/0000:01:00.0/driver");
        std::fs::remove_file(link).unwrap();
        assert_eq!(sysfs.driver(device).unwrap(), None);
        let gone = sysfs.driver("0000:02:00.0".parse().unwrap()).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn an_override_is_written_and_read_back() {
        let (_root, sysfs, device) = host();
        assert_eq!(sysfs.driver_override(device).unwrap(), None);
        sysfs.set_override(device, Some("vfio-pci")).unwrap();
        assert_eq!(
            sysfs.driver_override(device).unwrap().as_deref(),
            Some("vfio-pci")
        );
        // A folder does not turn a bare newline into `(null)` as a kernel does.
        let error = sysfs.set_override(device, None).unwrap_err();
        assert!(error.to_string().contains("reads ``"), "{error}");
    }

    #[test]
    fn unbinding_and_probing_name_the_device() {
        let (root, sysfs, device) = host();
        sysfs.unbind(device, "nvme").unwrap();
        sysfs.probe(device).unwrap();
        for file in ["drivers/nvme/unbind", "drivers_probe"] {
            let path = root.path().join("sys/bus/pci").join(file);
            assert_eq!(std::fs::read_to_string(path).unwrap(), "0000:01:00.0");
        }
        sysfs.unbind(device, "absent").unwrap_err();
    }

    #[test]
    fn virtual_functions_are_counted() {
        let (root, sysfs, device) = host();
        assert_eq!(sysfs.virtual_functions(device).unwrap(), None);
        let folder = root.path().join("sys/bus/pci/devices/0000:01:00.0");
        std::fs::write(folder.join("sriov_numvfs"), "2\n").unwrap();
        std::fs::write(folder.join("sriov_drivers_autoprobe"), "1\n").unwrap();
        assert_eq!(sysfs.virtual_functions(device).unwrap(), Some(2));
        sysfs.keep_drivers_from_virtual_functions(device).unwrap();
        let text = std::fs::read_to_string(folder.join("sriov_drivers_autoprobe")).unwrap();
        assert_eq!(text, "0");
    }
}
