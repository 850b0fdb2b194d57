//! The processes that are struck.

use std::path::{Path, PathBuf};
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
}

impl Replicas {
    pub(super) fn start(binary: &Path, world: &World, count: usize) -> Result<Self> {
        let mut replicas = Self {
            binary: binary.to_owned(),
            dir: tempfile::Builder::new().prefix("chaos").tempdir()?,
            running: (0..count).map(|_| None).collect(),
            started: 0,
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
        if let Some(child) = &mut self.running[n]
            && child.try_wait()?.is_none()
        {
            return Ok(());
        }
        self.started += 1;
        let name = format!("replica-{n}-start-{}.log", self.started);
        let mut call = agent::start(&self.binary, &world.prefect_url(), &world.kubeconfig());
        call.args(["--log-level", "debug", "--lease-duration", "2s"])
            // Some images come at the second attempt.
            .args(["--image-pull-grace", "6s"])
            .env("PREFECT__CLOUD__REQUEST_TIMEOUT", "3")
            .env("HOME", self.dir.path());
        let child = agent::spawn(&mut call, &self.dir.path().join(name))?;
        self.running[n] = Some(child);
        Ok(())
    }

    /// Sends a signal to a replica, if it runs.
    pub(super) fn signal(&self, n: usize, signal: Signal) -> Result<()> {
        let id = self.running[n].as_ref().and_then(Child::id);
        if let Some(id) = id {
            kill(Pid::from_raw(id.try_into()?), signal)?;
        }
        Ok(())
    }

    /// Waits for the end of a replica that was told to end.
    pub(super) async fn ended(&mut self, n: usize) -> Result<()> {
        if let Some(mut child) = self.running[n].take() {
            tokio::time::timeout(END, child.wait())
                .await
                .context("a replica did not end")??;
        }
        Ok(())
    }

    /// Ends all; the directory with what they wrote.
    pub(super) async fn stop(mut self) -> PathBuf {
        for n in 0..self.running.len() {
            let _ = self.signal(n, Signal::SIGTERM);
        }
        for n in 0..self.running.len() {
            let _ = self.ended(n).await;
        }
        self.dir.keep()
    }
}
