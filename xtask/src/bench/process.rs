//! What the kernel says about a process.

use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time, memory and threads of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// In user and kernel mode, of all threads. Linux counts in hundredths of a second.
    pub(crate) cpu: Duration,
    /// Resident memory, now and at most, in MiB.
    pub(crate) resident: f64,
    pub(crate) peak: f64,
    pub(crate) threads: u32,
}

impl Usage {
    /// Of the process of this id.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let stat = read("stat")?;
        // The fields after the name, which is in parentheses and may hold spaces.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map(|(_, fields)| fields.split_whitespace().collect())
            .unwrap_or_default();
        let ticks = |n: usize| fields.get(n).and_then(|field| field.parse::<u64>().ok());
        let (user, system) = ticks(11)
            .zip(ticks(12))
            .context("/proc/PID/stat has no times")?;
        let status = read("status")?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.map(|line| line.trim().trim_end_matches(" kB"));
            let number = number.and_then(|number| number.parse::<u32>().ok());
            number.with_context(|| format!("/proc/PID/status has no {name}"))
        };
        let mib = |name: &str| number(name).map(|kib| f64::from(kib) / 1024.0);
        Ok(Self {
            cpu: Duration::from_millis((user + system) * 10),
            resident: mib("VmRSS:")?,
            peak: mib("VmHWM:")?,
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
