//! A chore that somebody stops leaves no process behind.

#![cfg(unix)]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn the_agent_ends_with_a_chore_that_is_terminated() -> Result<()> {
    the_agent_ends_with(Signal::SIGTERM)
}

#[test]
fn the_agent_ends_with_a_chore_that_is_interrupted() -> Result<()> {
    the_agent_ends_with(Signal::SIGINT)
}

/// Soaks an agent that does nothing but tell its process id, and stops the soak.
fn the_agent_ends_with(signal: Signal) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (agent, told) = (folder.path().join("agent"), folder.path().join("pid"));
    let script = format!(
        "#!/bin/sh\necho $$ > '{0}.unfinished'\nmv '{0}.unfinished' '{0}'\nexec sleep 600\n",
        told.display()
    );
    std::fs::write(&agent, script)?;
    std::fs::set_permissions(&agent, Permissions::from_mode(0o755))?;
    let mut chore = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["soak", "--for", "10s", "--binary"])
        .arg(&agent)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    until("the agent has started", || told.exists())?;
    let agent = std::fs::read_to_string(&told)?;
    let agent = Pid::from_raw(agent.trim().parse().context("no process id")?);

    stop(&chore, signal)?;

    let mut ended = None;
    until("the chore has ended", || {
        ended = chore.try_wait().ok().flatten();
        ended.is_some()
    })?;
    assert_eq!(ended.and_then(|status| status.code()), Some(1));
    until("the agent has ended", || {
        kill(agent, None) == Err(Errno::ESRCH)
    })
}

fn stop(chore: &Child, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(chore.id().try_into()?), signal).context("the chore is gone")
}

fn until(what: &str, mut ask: impl FnMut() -> bool) -> Result<()> {
    let began = Instant::now();
    while !ask() {
        anyhow::ensure!(
            began.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
