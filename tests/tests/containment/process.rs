//! The real `berth-vmm`, started without the help of a unit.

use std::process::{Command, Stdio};
use std::time::Duration;

use berth_api::vmm::{Event, Start};
use berth_tests::launch::{Descriptors, Heard, LaunchedVmm};

use crate::harness::program;

/// The longest that any single step may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// The exit status for a refused start.
const REFUSED: i32 = 65;

#[test]
fn a_vmm_without_a_unit_refuses_to_run_and_says_what_is_missing() {
    let mut descriptors = Descriptors::new();
    let nothing = || std::fs::File::open("/dev/null").unwrap();
    let (kvm, kernel) = (descriptors.add(nothing()), descriptors.add(nothing()));
    let start = Start::new("containment", kvm, kernel);
    let mut command = Command::new(program("berth-vmm"));
    command.stderr(Stdio::null());
    let message = serde_json::to_vec(&start).unwrap();
    let mut vmm = LaunchedVmm::launch_with(&mut command, &message, &descriptors).unwrap();
    let Heard::Event(Event::Refused {
        field,
        problem,
        remedy,
    }) = vmm.next_event(PATIENCE).unwrap()
    else {
        panic!("the VMM does not refuse");
    };
    assert_eq!(field, "jail");
    assert!(problem.contains("can be reached"), "{problem}");
    assert!(remedy.contains("berth-agent"), "{remedy}");
    let status = vmm.wait(PATIENCE).unwrap();
    assert_eq!(status.and_then(|status| status.code()), Some(REFUSED));
}
