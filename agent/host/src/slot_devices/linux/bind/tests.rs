//! Binding with a kernel in memory: order, read-back, undoing.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::*;

/// A kernel with one device, which obeys its files as Linux does.
#[derive(Default)]
struct Kernel {
    driver: RefCell<Option<String>>,
    driver_override: RefCell<Option<String>>,
    native: Option<String>,
    without_vfio: bool,
    is_gone: bool,
    virtual_functions: Option<u32>,
    unbind_hangs: bool,
    unbind_does_nothing: bool,
    vfio_refuses: bool,
    nobody_takes_it: bool,
    log: Rc<RefCell<Vec<String>>>,
}

impl Kernel {
    fn with_nvme() -> Self {
        Self {
            driver: RefCell::new(Some("nvme".to_owned())),
            native: Some("nvme".to_owned()),
            ..Self::default()
        }
    }

    fn note(&self, what: impl Into<String>) {
        self.log.borrow_mut().push(what.into());
    }

    fn log(&self) -> Vec<String> {
        self.log.borrow().clone()
    }
}

impl DriverCore for Kernel {
    fn driver(&self, _: PciAddress) -> io::Result<Option<String>> {
        if self.is_gone {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(self.driver.borrow().clone())
    }

    fn has_driver(&self, driver: &str) -> bool {
        driver != VFIO_PCI || !self.without_vfio
    }

    fn driver_override(&self, _: PciAddress) -> Result<Option<String>, TransferError> {
        Ok(self.driver_override.borrow().clone())
    }

    fn set_override(&self, _: PciAddress, driver: Option<&str>) -> Result<(), TransferError> {
        self.note(format!("override {}", driver.unwrap_or("none")));
        *self.driver_override.borrow_mut() = driver.map(str::to_owned);
        Ok(())
    }

    fn unbind(&self, _: PciAddress, driver: &str) -> Result<(), TransferError> {
        self.note(format!("unbind {driver}"));
        if self.unbind_hangs {
            return Err(TransferError::TimedOut(Duration::from_secs(30)));
        }
        if !self.unbind_does_nothing {
            *self.driver.borrow_mut() = None;
        }
        Ok(())
    }

    fn probe(&self, _: PciAddress) -> Result<(), TransferError> {
        self.note("probe");
        let wanted = self.driver_override.borrow().clone();
        let taker = wanted.or_else(|| self.native.clone());
        let refused =
            self.nobody_takes_it || (self.vfio_refuses && taker.as_deref() == Some(VFIO_PCI));
        // Linux returns success here, whatever the driver says.
        if !refused && self.driver.borrow().is_none() {
            *self.driver.borrow_mut() = taker;
        }
        Ok(())
    }

    fn virtual_functions(&self, _: PciAddress) -> io::Result<Option<u32>> {
        Ok(self.virtual_functions)
    }

    fn keep_drivers_from_virtual_functions(&self, _: PciAddress) -> Result<(), TransferError> {
        self.note("no probing of virtual functions");
        Ok(())
    }
}

/// Says when it is dropped.
struct Held(Rc<RefCell<Vec<String>>>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.borrow_mut().push("let go".to_owned());
    }
}

fn device() -> PciAddress {
    "0000:01:00.0".parse().unwrap()
}

fn bind(kernel: &Kernel) -> Result<Found, DeviceError> {
    ensure_bound(kernel, device(), || {
        kernel.note("claim");
        Ok(Held(Rc::clone(&kernel.log)))
    })
}

#[track_caller]
fn assert_as_before(kernel: &Kernel, error: &DeviceError) {
    assert_eq!(error.code, SlotProblemCode::BindFailed);
    assert!(!error.is_device_suspect, "{error}");
    assert_eq!(*kernel.driver.borrow(), kernel.native);
    assert_eq!(*kernel.driver_override.borrow(), None);
}

#[test]
fn claims_are_held_until_the_driver_is_off() {
    let kernel = Kernel::with_nvme();
    assert_eq!(bind(&kernel).unwrap(), "nvme -> vfio-pci");
    assert_eq!(
        kernel.log(),
        [
            "claim",
            "override vfio-pci",
            "unbind nvme",
            "let go",
            "probe"
        ]
    );
    assert_eq!(kernel.driver.borrow().as_deref(), Some(VFIO_PCI));
}

#[test]
fn a_bound_device_is_left_alone_but_keeps_its_override() {
    let kernel = Kernel::with_nvme();
    bind(&kernel).unwrap();
    kernel.log.borrow_mut().clear();
    assert_eq!(bind(&kernel).unwrap(), VFIO_PCI);
    assert_eq!(kernel.log(), Vec::<String>::new());
    *kernel.driver_override.borrow_mut() = None;
    bind(&kernel).unwrap();
    assert_eq!(kernel.log(), ["override vfio-pci"]);
}

#[test]
fn what_the_host_uses_is_not_touched() {
    let kernel = Kernel::with_nvme();
    let used = || DeviceError::new(SlotProblemCode::DeviceInUse, "nvme0n1 is mounted on /");
    let error = ensure_bound(&kernel, device(), || Err::<(), _>(used())).unwrap_err();
    assert_eq!(error.code, SlotProblemCode::DeviceInUse);
    assert_eq!(kernel.log(), Vec::<String>::new());
}

#[test]
fn a_driver_that_does_not_come_leaves_everything_as_it_was() {
    let kernel = Kernel {
        vfio_refuses: true,
        ..Kernel::with_nvme()
    };
    assert_as_before(&kernel, &bind(&kernel).unwrap_err());
    let kernel = Kernel {
        unbind_does_nothing: true,
        ..Kernel::with_nvme()
    };
    assert_as_before(&kernel, &bind(&kernel).unwrap_err());
    let kernel = Kernel {
        without_vfio: true,
        ..Kernel::with_nvme()
    };
    assert_as_before(&kernel, &bind(&kernel).unwrap_err());
    assert_eq!(kernel.log(), Vec::<String>::new());
}

#[test]
fn a_device_without_a_driver_stays_without_when_binding_fails() {
    let kernel = Kernel {
        vfio_refuses: true,
        native: None,
        ..Kernel::default()
    };
    assert_as_before(&kernel, &bind(&kernel).unwrap_err());
}

#[test]
fn a_device_that_nobody_takes_back_is_suspect() {
    let kernel = Kernel {
        nobody_takes_it: true,
        ..Kernel::with_nvme()
    };
    let error = bind(&kernel).unwrap_err();
    assert!(error.is_device_suspect, "{error}");
    assert_eq!(*kernel.driver_override.borrow(), None);
}

#[test]
fn a_driver_that_hangs_makes_the_device_suspect_and_finds_it_reserved() {
    let kernel = Kernel {
        unbind_hangs: true,
        ..Kernel::with_nvme()
    };
    let error = bind(&kernel).unwrap_err();
    assert_eq!(error.code, SlotProblemCode::BindFailed);
    assert!(error.is_device_suspect, "{error}");
    assert_eq!(kernel.driver_override.borrow().as_deref(), Some(VFIO_PCI));
}

#[test]
fn a_function_with_virtual_functions_is_refused() {
    let mut kernel = Kernel::with_nvme();
    kernel.virtual_functions = Some(2);
    let error = bind(&kernel).unwrap_err();
    assert_eq!(error.code, SlotProblemCode::DeviceInUse);
    assert_eq!(kernel.log(), Vec::<String>::new());
    kernel.virtual_functions = Some(0);
    bind(&kernel).unwrap();
    assert_eq!(kernel.log()[0], "no probing of virtual functions");
}

#[test]
fn a_device_goes_back_to_the_driver_that_was_asked_for_and_no_other() {
    let kernel = Kernel {
        native: Some("other".to_owned()),
        ..Kernel::with_nvme()
    };
    bind(&kernel).unwrap();
    let found = ensure_unbound(&kernel, device(), Some("nvme")).unwrap();
    assert_eq!(found, "vfio-pci -> nvme");
    assert_eq!(kernel.driver.borrow().as_deref(), Some("nvme"));
    assert_eq!(*kernel.driver_override.borrow(), None);
    let found = ensure_unbound(&kernel, device(), None).unwrap();
    assert_eq!(found, "nvme -> none");
    assert_eq!(*kernel.driver.borrow(), None);
}

#[test]
fn a_device_that_is_gone_says_so() {
    let kernel = Kernel {
        is_gone: true,
        ..Kernel::with_nvme()
    };
    for error in [
        bind(&kernel).unwrap_err(),
        ensure_unbound(&kernel, device(), None).unwrap_err(),
    ] {
        assert_eq!(error.code, SlotProblemCode::DeviceMissing);
    }
}
