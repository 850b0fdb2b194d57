//! The processes that are struck.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::process::Child;

use super::world::World;
use crate::agent;

/// How long a replica may take to end.
const END: Duration = Duration::from_secs(40);

/// All replicas.
pub(super) struct Replicas {
    binary: PathBuf,
    dir: TempDir,
    running: Vec<Option<Child>>,
    started: usize,
    /// The most memory that one of them had, in KiB.
    peak_kib: u64,
    /// Ends that nobody asked for.
    crashes: Vec<String>,
}

/// What the replicas left.
pub(super) struct Remains {
    /// What they wrote; removed when dropped.
    pub(super) dir: TempDir,
    /// Crashes and panics.
    pub(super) crashes: Vec<String>,
    /// The most memory that one of them had, in KiB.
    pub(super) peak_kib: u64,
}

/// How long a Job that concerns its run alone is tried to be created.
pub(super) const SUBMIT_BUDGET: Duration = Duration::from_secs(8);

impl Replicas {
    pub(super) fn start(binary: &Path, world: &World, count: usize) -> Result<Self> {
        let mut replicas = Self {
            binary: binary.to_owned(),
            dir: tempfile::Builder::new().prefix("chaos").tempdir()?,
            running: (0..count).map(|_| None).collect(),
            started: 0,
            peak_kib: 0,
            crashes: Vec::new(),
        };
        replicas.all_up(world)?;
        Ok(replicas)
    }

    /// Starts those that are not running.
    pub(super) fn all_up(&mut self, world: &World) -> Result<()> {
        for n in 0..self.running.len() {
            self.up(n, world)?;
        }
        Ok(())
    }

    /// Starts a replica that is not running.
    pub(super) fn up(&mut self, n: usize, world: &World) -> Result<()> {
        if let Some(child) = &mut self.running[n] {
            match child.try_wait()? {
                None => return Ok(()),
                // As in a start while one of the servers is away.
                Some(status) if status.code() == Some(1) => {}
                Some(status) => self.crashed(n, status),
            }
        }
        self.started += 1;
        let name = format!("replica-{n}-start-{}.log", self.started);
        let mut call = agent::start(&self.binary, &world.prefect_url(), &world.kubeconfig());
        call.args(["--log-level", "debug", "--lease-duration", "2s"])
            // Some images come at the second attempt.
            .args(["--image-pull-grace", "6s"])
            .args([
                "--submit-retry-budget",
                &format!("{}s", SUBMIT_BUDGET.as_secs()),
            ])
            .arg("--allow-private-flow-templates")
            .env("PREFECT__CLOUD__REQUEST_TIMEOUT", "3")
            .env("HOME", self.dir.path());
        let child = agent::spawn(&mut call, &self.dir.path().join(name))?;
        self.running[n] = Some(child);
        Ok(())
    }

    /// Sends a signal to a replica, if it runs.
    pub(super) fn signal(&mut self, n: usize, signal: Signal) -> Result<()> {
        let id = self.running[n].as_ref().and_then(Child::id);
        if let Some(id) = id {
            self.peak_kib = self.peak_kib.max(peak_kib(id).unwrap_or_default());
            kill(Pid::from_raw(id.try_into()?), signal)?;
        }
        Ok(())
    }

    /// Waits for the end of a replica that was told to end.
    pub(super) async fn ended(&mut self, n: usize) -> Result<()> {
        if let Some(mut child) = self.running[n].take() {
            let status = tokio::time::timeout(END, child.wait())
                .await
                .context("a replica did not end")??;
            // SIGTERM ends one that has just been started, before it waits for signals.
            let signals = [Signal::SIGKILL, Signal::SIGTERM].map(|signal| Some(signal as i32));
            if !signals.contains(&status.signal()) && !matches!(status.code(), Some(0 | 1)) {
                self.crashed(n, status);
            }
        }
        Ok(())
    }

    fn crashed(&mut self, n: usize, status: ExitStatus) {
        self.crashes.push(format!("replica {n} ended: {status}"));
    }

    /// Ends all.
    pub(super) async fn stop(mut self) -> Result<Remains> {
        for n in 0..self.running.len() {
            self.signal(n, Signal::SIGTERM)?;
        }
        for n in 0..self.running.len() {
            if let Err(error) = self.ended(n).await {
                self.crashes.push(format!("replica {n}: {error:#}"));
            }
        }
        for entry in std::fs::read_dir(self.dir.path())? {
            let file = entry?.path();
            if file.extension().is_some_and(|extension| extension == "log") {
                let written = String::from_utf8_lossy(&std::fs::read(&file)?).into_owned();
                let panic = written.lines().find(|line| line.contains("panicked at"));
                self.crashes.extend(panic.map(str::to_owned));
            }
        }
        Ok(Remains {
            dir: self.dir,
            crashes: self.crashes,
            peak_kib: self.peak_kib,
        })
    }
}

/// The most memory that a process has had so far, in KiB; `None` where that cannot be read.
fn peak_kib(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}
