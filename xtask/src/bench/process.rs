//! What the kernel says about a process.

use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time and memory of a process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    /// In user and kernel mode, of all threads. Linux counts in hundredths of a second.
    pub(super) cpu: Duration,
    /// Resident memory, now and at most, in MiB.
    pub(super) resident: f64,
    pub(super) peak: f64,
}

impl Usage {
    /// Of the process of this id.
    pub(super) fn of(pid: u32) -> Result<Self> {
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
        let mib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
            let kib = kib.and_then(|kib| kib.trim().parse::<f64>().ok());
            kib.map(|kib| kib / 1024.0)
                .with_context(|| format!("/proc/PID/status has no {name}"))
        };
        Ok(Self {
            cpu: Duration::from_millis((user + system) * 10),
            resident: mib("VmRSS:")?,
            peak: mib("VmHWM:")?,
        })
    }
}

/// Processor, number of cores, memory and kernel of this machine, in a line.
pub(super) fn machine() -> String {
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
