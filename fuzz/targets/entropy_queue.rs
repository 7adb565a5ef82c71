//! The entropy device over a queue in arbitrary guest memory.
#![no_main]

use berth_fuzz::input::Input;
use berth_fuzz::queue::serve_device;
use berth_vmm_devices::virtio::entropy::Entropy;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    serve_device(Box::new(Entropy::new()), &mut Input::new(bytes), || {});
});
