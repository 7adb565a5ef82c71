//! `berth-vmm`: one process, one guest.
//!
//! Without arguments it takes its machine from the socket at its standard input; the other modes
//! are `check-kernel`, `host-facts` and `probe`. Owns the choice of the mode and the exit status, nothing else.
#![forbid(unsafe_code)]

mod check_kernel;
mod control_socket;
mod exit_code;
mod guest;
mod host_facts;
mod lifecycle;
mod log;
mod preparation;
mod probe;

use std::ffi::OsString;
use std::io::Write;

use exit_code::ExitCode;
use guest::Unjailed;

const USAGE: &str = "usage: berth-vmm [--allow-unjailed]
                                (a machine; standard input is its control socket)
       berth-vmm check-kernel   (standard input: a kernel; standard output: the image to start)
       berth-vmm host-facts     (standard output: what starts need to know of this host's KVM)
       berth-vmm probe          (what this host's /dev/kvm can run, as JSON)
       berth-vmm --version
";

fn main() {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = arguments
        .iter()
        .map(|argument| argument.to_str().unwrap_or("?"))
        .collect();
    let code = match words[..] {
        [] => guest::run(Unjailed::Refused),
        ["--allow-unjailed"] => guest::run(Unjailed::Allowed),
        ["check-kernel"] => check_kernel::run(),
        ["host-facts"] => host_facts::run(),
        ["probe"] => probe::run(),
        ["--version"] => print(
            &mut std::io::stdout(),
            &format!("berth-vmm {}\n", env!("CARGO_PKG_VERSION")),
        ),
        ["--help" | "-h"] => print(&mut std::io::stdout(), USAGE),
        _ => {
            print(&mut std::io::stderr(), USAGE);
            ExitCode::USAGE
        }
    };
    code.exit()
}

/// Writes a text for people; who closed the stream does not want it.
fn print(stream: &mut dyn Write, text: &str) -> ExitCode {
    stream.write_all(text.as_bytes()).unwrap_or(());
    ExitCode::SUCCESS
}
