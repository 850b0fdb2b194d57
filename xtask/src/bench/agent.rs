//! The agents that are measured, each in a process of its own.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::{Child, Command};

use super::Options;
use super::process::Usage;
use super::world::World;

/// What is measured: the program and how it is called.
pub(super) struct Agent {
    /// As tables call it.
    pub(super) name: &'static str,
    program: PathBuf,
    arguments: &'static [&'static str],
    /// Whether it understands this project's own flags.
    ours: bool,
}

impl Agent {
    /// The binary of this project.
    pub(super) fn ours(program: PathBuf) -> Self {
        Self {
            name: "agent-cli",
            program,
            arguments: &["start"],
            ours: true,
        }
    }

    /// The agent of Prefect 1, in this virtual environment.
    pub(super) fn python(environment: PathBuf) -> Self {
        Self {
            name: "python",
            program: environment.join("bin/prefect"),
            arguments: &["agent", "kubernetes", "start"],
            ours: false,
        }
    }

    pub(super) fn program(&self) -> &std::path::Path {
        &self.program
    }

    /// Starts it between the servers, with nothing else in its environment.
    pub(super) fn start(&self, world: &World, options: &Options) -> Result<Running> {
        let mut command = Command::new(&self.program);
        command
            .args(self.arguments)
            .args(["--api", &world.prefect.url()])
            .args(["--namespace", &world.namespace])
            .env_clear()
            .env("HOME", world.path())
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("PREFECT__BACKEND", "server")
            .env("PREFECT__CLOUD__AGENT__LEVEL", "WARNING")
            .env("KUBECONFIG", &world.kubeconfig);
        if self.ours {
            command.args(["--concurrency", &options.concurrency.to_string()]);
        }
        if let Some(template) = &world.template {
            command.arg("--job-template").arg(template);
        }
        let process = command
            .current_dir(world.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        Ok(Running { process })
    }
}

/// An agent's process; killed when dropped.
pub(super) struct Running {
    process: Child,
}

impl Running {
    /// Its CPU time and memory until now.
    pub(super) fn usage(&mut self) -> Result<Usage> {
        if let Some(status) = self.process.try_wait()? {
            bail!("the agent has ended by itself: {status}");
        }
        let pid = self.process.id().context("the agent has ended by itself")?;
        Usage::of(pid)
    }

    /// Tells it to end, and waits; kills it when it takes its time.
    pub(super) async fn stop(mut self) -> Result<()> {
        if let Some(pid) = self.process.id() {
            Command::new("kill").arg(pid.to_string()).status().await?;
        }
        let patience = Duration::from_secs(30);
        if tokio::time::timeout(patience, self.process.wait())
            .await
            .is_err()
        {
            self.process.kill().await?;
        }
        Ok(())
    }
}
