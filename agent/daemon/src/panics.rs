//! A panic ends the agent.
//!
//! A task of the runtime that panicked would leave its VM without anybody who looks after it. The
//! next agent takes up every VM where its record says that it stands; the VMs go on in the meantime.

use std::panic::{set_hook, take_hook};

/// From here on a panic, of whichever thread or task, ends the process.
pub(crate) fn install_hook() {
    let told = take_hook();
    set_hook(Box::new(move |panic| {
        told(panic);
        tracing::error!("a panic; this process ends, its VMs go on");
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    use super::*;

    /// Set in the process that is to panic.
    const PANICS: &str = "BERTH_TEST_PANICS";
    const SIGABRT: i32 = 6;

    #[test]
    fn a_panic_in_a_task_of_the_runtime_ends_the_process() {
        if std::env::var_os(PANICS).is_some() {
            install_hook();
            let task = async { tokio::spawn(async { panic!("told to") }).await };
            let joined = crate::runtime().unwrap().block_on(task);
            unreachable!("{joined:?} came from a process that has ended");
        }
        let name = "panics::tests::a_panic_in_a_task_of_the_runtime_ends_the_process";
        let ended = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(PANICS, "1")
            .output()
            .unwrap();
        assert_eq!(ended.status.signal(), Some(SIGABRT), "{ended:?}");
        let words = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(words.contains("told to"), "{words}");
    }
}
