//! The socket device over a queue in arbitrary guest memory, and against scripts of packets and of
//! what the host's peers do.
#![no_main]

use berth_fuzz::input::Input;
use berth_fuzz::queue::serve_queue;
use berth_fuzz::vsock::{CID, Host, run};
use berth_vmm_devices::virtio::vsock::Vsock;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    match input.byte() % 4 {
        3 => run(&mut input),
        queue => {
            let device = Box::new(Vsock::new(CID, Box::new(Host::default())));
            serve_queue(device, queue.into(), &mut input, || {});
        }
    }
});
