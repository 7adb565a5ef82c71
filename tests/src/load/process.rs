//! What a process has used, as the kernel counts it.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// Processor time of all threads of a process, in user and kernel mode.
///
/// # Errors
/// If there is no such process.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid)?);
    let clock = nix::time::clock_getcpuclockid(pid).context("finding a process's CPU clock")?;
    let time = nix::time::clock_gettime(clock).context("reading a process's CPU clock")?;
    Ok(time.into())
}

/// Most memory of a process that was resident at once, in MiB.
///
/// # Errors
/// If there is no such process.
pub fn peak_memory_mib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: Option<u32> = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    let kib = kib.with_context(|| format!("{path} tells no peak of resident memory"))?;
    Ok(f64::from(kib) / 1024.0)
}

/// Count the peak anew from here on, where the kernel lets us.
///
/// # Errors
/// If it does not.
pub fn forget_peak(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    std::fs::write(&path, "5").with_context(|| format!("writing {path}"))
}

/// As many open files as the system allows this process and those that it starts: each agent and
/// each caller has a connection.
///
/// # Errors
/// If the limit cannot be set.
pub fn allow_open_files() -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("raising the limit of open files")
}
