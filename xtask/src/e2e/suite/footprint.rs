//! What the agent costs where it is deployed: from the start of its container to the first answered
//! poll, and the memory of the container when it idles. With `--release`, these are figures to show.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::api::{ListParams, LogParams};
use serde_json::Value;

use super::inside::Inside;
use super::world::World;

/// The kernel's clock ticks in a second, as programs see them.
const TICKS: f64 = 100.0;
/// How long the agent idles before its memory is read.
const IDLE: Duration = Duration::from_secs(20);
/// What nobody would call small and quick any more, of a debug build on a busy machine.
const AT_MOST: (SignedDuration, u64) = (SignedDuration::from_secs(20), 128 << 20);

pub(super) async fn the_agent_in_its_container_polls_at_once_and_is_small(
    world: Arc<World>,
) -> Result<()> {
    let flags = ["--rbac", "--", "--log-format=json", "--log-level=debug"];
    let inside = Inside::install(&world, &flags).await?;
    inside.is_ready().await?;
    let pods = inside.pods().list(&ListParams::default()).await?;
    let pod = pods.items.first().context("no pod")?;
    let process = Process::of_pod(&pod.uid().context("no uid")?)?;
    let log = inside
        .pods()
        .logs(&pod.name_any(), &LogParams::default())
        .await?;
    let polled = logged(&log, "The first poll was answered")?;
    let took = polled.duration_since(process.started()?);
    // It idles: nothing is awaited but time.
    tokio::time::sleep(IDLE).await;
    let held = process.memory()?;
    println!(
        "       polled {:.0} ms after its container's start; {}",
        took.as_secs_f64() * 1e3,
        held.describe()
    );
    ensure!(
        took < AT_MOST.0,
        "the first poll was answered after {took:#}"
    );
    ensure!(held.resident < AT_MOST.1, "{}", held.describe());
    ensure!(
        held.resident > held.own + (1 << 20),
        "nothing of the binary is in memory, which cannot be: {}",
        held.describe()
    );
    Ok(())
}

/// When a line of the log in JSON was written.
fn logged(log: &str, message: &str) -> Result<Timestamp> {
    let lines = log.lines();
    let mut lines = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let line = lines.find(|line| line["message"] == message);
    let line = line.with_context(|| format!("nobody logged {message:?} in:\n{log}"))?;
    let written = line["timestamp"]
        .as_str()
        .context("a line without a time")?;
    Ok(written.parse()?)
}

/// The agent's process in a container of this machine.
struct Process {
    folder: PathBuf,
    /// The file that tells what its container is charged for.
    charged: PathBuf,
}

/// Memory in bytes.
struct Memory {
    /// What is charged to the container. Pages of the image's files are charged to whoever touched them
    /// first, which is often the runtime that unpacked them.
    container: u64,
    /// What the process has in memory, wherever it is charged.
    resident: u64,
    /// That part of it which is the process's own.
    own: u64,
}

impl Process {
    /// The one whose control group is named after a pod.
    fn of_pod(uid: &str) -> Result<Self> {
        let names = [uid.to_owned(), uid.replace('-', "_")];
        for entry in std::fs::read_dir("/proc")? {
            let folder = entry?.path();
            // Processes end while they are looked at.
            let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
            let cgroup = read("cgroup");
            let of_pod = names.iter().any(|name| cgroup.contains(name));
            if of_pod && read("comm").trim() == "agent-cli" {
                let charged = charged(&cgroup).context("no control group counts its memory")?;
                return Ok(Self { folder, charged });
            }
        }
        bail!("no process of the pod {uid} is seen from here")
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.folder.join(name);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// When it was started, to a hundredth of a second.
    fn started(&self) -> Result<Timestamp> {
        let stat = self.read("stat")?;
        // The name, in brackets, may hold anything.
        let (_, fields) = stat.rsplit_once(") ").context("no name in stat")?;
        let ticks = fields.split(' ').nth(19).context("no start in stat")?;
        let ticks: f64 = ticks.parse()?;
        let uptime = std::fs::read_to_string("/proc/uptime")?;
        let uptime = uptime.split(' ').next().context("no uptime")?;
        let age = uptime.parse::<f64>()? - ticks / TICKS;
        Ok(Timestamp::now() - SignedDuration::try_from_secs_f64(age)?)
    }

    fn memory(&self) -> Result<Memory> {
        let status = self.read("status")?;
        let kib = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let amount = line.and_then(|line| line.split_whitespace().next());
            Ok(amount
                .with_context(|| format!("no {name} in status"))?
                .parse::<u64>()?
                * 1024)
        };
        let charged = &self.charged;
        let container =
            std::fs::read_to_string(charged).with_context(|| charged.display().to_string())?;
        Ok(Memory {
            container: container.trim().parse()?,
            // Not the sum of its own and RssFile: images may lie on a tmpfs, whose pages are RssShmem.
            resident: kib("VmRSS:")?,
            own: kib("RssAnon:")?,
        })
    }
}

/// The file in which the kernel tells the memory of a control group, of either version.
fn charged(cgroup: &str) -> Option<PathBuf> {
    let groups = cgroup.lines().map(|line| line.splitn(3, ':'));
    let groups = groups.filter_map(|mut parts| Some((parts.nth(1)?, parts.next()?)));
    let groups: Vec<(&str, &str)> = groups.collect();
    let group = |of: &str| groups.iter().find(|(controllers, _)| *controllers == of);
    if let Some((_, path)) = group("memory") {
        let path = format!("/sys/fs/cgroup/memory{path}/memory.usage_in_bytes");
        return Some(path.into());
    }
    let (_, path) = group("")?;
    Some(format!("/sys/fs/cgroup{path}/memory.current").into())
}

impl Memory {
    fn describe(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        format!(
            "idle, {:.1} MiB are resident, {:.1} MiB of them its own; the container is charged {:.1} MiB",
            mib(self.resident),
            mib(self.own),
            mib(self.container)
        )
    }
}
