//! What the kernel says about a process.

use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time, memory and threads of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// In user and kernel mode, of all threads, those that have ended included.
    pub(crate) cpu: Duration,
    /// Resident memory, now and at most, in MiB.
    pub(crate) resident: f64,
    pub(crate) peak: f64,
    /// The part of the resident memory that is the process's own; the rest is pages of files, for the
    /// most part of the binary, which the kernel can drop and share.
    pub(crate) own: f64,
    pub(crate) threads: u32,
}

impl Usage {
    /// Of the process of this id.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let status = read("status")?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.map(|line| line.trim().trim_end_matches(" kB"));
            let number = number.and_then(|number| number.parse::<u32>().ok());
            number.with_context(|| format!("/proc/PID/status has no {name}"))
        };
        let mib = |name: &str| number(name).map(|kib| f64::from(kib) / 1024.0);
        Ok(Self {
            cpu: cpu_time(pid)?,
            resident: mib("VmRSS:")?,
            peak: mib("VmHWM:")?,
            own: mib("RssAnon:")?,
            threads: number("Threads:")?,
        })
    }
}

/// How many files, sockets and the like a process has open.
pub(crate) fn descriptors(pid: u32) -> Result<usize> {
    let path = format!("/proc/{pid}/fd");
    let files = std::fs::read_dir(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(files.count())
}

/// The process's CPU-time clock. It counts nanoseconds, unlike `/proc/PID/stat`, and keeps what ended
/// threads have used, unlike a sum over `/proc/PID/task`.
#[cfg(target_os = "linux")]
fn cpu_time(pid: u32) -> Result<Duration> {
    let pid = nix::unistd::Pid::from_raw(pid.try_into()?);
    let clock = nix::time::ClockId::pid_cpu_clock_id(pid);
    let time = clock.and_then(nix::time::ClockId::now);
    Ok(Duration::from(time.with_context(|| {
        format!("the process {pid} has no CPU-time clock")
    })?))
}

#[cfg(not(target_os = "linux"))]
fn cpu_time(_pid: u32) -> Result<Duration> {
    anyhow::bail!("the CPU time of a process can only be read on Linux")
}

/// Processor, number of cores, memory and kernel of this machine, in a line.
pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':'));
        value.map(|(_, value)| value.trim().to_owned())
    };
    let cpu = after(&read("/proc/cpuinfo"), "model name");
    let kib = after(&read("/proc/meminfo"), "MemTotal");
    let kib = kib.and_then(|kib| kib.trim_end_matches(" kB").parse::<f64>().ok());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{cores} cores of {}, {:.0} GiB, Linux {}",
        cpu.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        kib.unwrap_or_default() / 1024.0 / 1024.0,
        read("/proc/sys/kernel/osrelease").trim()
    )
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_has_used_counts_when_it_has_ended() -> Result<()> {
        let usage = || Usage::of(std::process::id());
        let before = usage()?.cpu;
        let work = || while usage().is_ok_and(|now| now.cpu - before < Duration::from_millis(5)) {};
        std::thread::scope(|scope| scope.spawn(work).join()).expect("no panic");
        assert!(usage()?.cpu - before >= Duration::from_millis(5));
        Ok(())
    }

    #[test]
    fn own_memory_is_a_part_of_what_is_resident() -> Result<()> {
        let usage = Usage::of(std::process::id())?;
        assert!(usage.own > 0.0 && usage.own < usage.resident && usage.resident <= usage.peak);
        Ok(())
    }
}
