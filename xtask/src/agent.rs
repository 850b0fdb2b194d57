//! The agent as a process of its own, between the servers of a chore.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};
use tokio::process::{Child, Command};

/// A call of the agent that deploys from the Prefect API at this address.
pub(crate) fn start(binary: &Path, api: &str, kubeconfig: &Path) -> Command {
    let mut command = Command::new(binary);
    command
        .args(["start", "--api", api])
        .env("PREFECT__BACKEND", "server")
        .env("KUBECONFIG", kubeconfig);
    command
}

/// Spawns a call whose output goes into this file; the process is killed when dropped.
pub(crate) fn spawn(command: &mut Command, output: &Path) -> Result<Child> {
    let file =
        File::create(output).with_context(|| format!("cannot write {}", output.display()))?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {:?}", command.as_std().get_program()))
}
