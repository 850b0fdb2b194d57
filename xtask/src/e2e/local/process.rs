//! A program of the cluster that runs beside this one and writes its log into a file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// How much of a log is shown: lines, and characters of each.
const LINES: usize = 15;
const WIDTH: usize = 300;

/// A program that is killed when this is dropped.
pub(super) struct Process {
    name: &'static str,
    child: tokio::process::Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program; its log goes to `NAME.log` among the others, behind what is there.
    pub(super) fn start(name: &'static str, command: Command, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = tokio::process::Command::from(command);
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name, child, log })
    }

    /// An error, with the end of the log, when the program has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(
            ended.is_none(),
            "{} has ended by itself; the end of its log:\n{}",
            self.name,
            self.last_words()
        );
        Ok(())
    }

    /// Kills the program and waits until it is gone.
    pub(super) async fn kill(&mut self) -> Result<()> {
        let killed = self.child.kill().await;
        killed.with_context(|| format!("cannot kill {}", self.name))
    }

    /// The last lines of the log.
    pub(super) fn last_words(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.chars().take(WIDTH).collect())
            .collect();
        let start = lines.len().saturating_sub(LINES);
        lines.get(start..).unwrap_or_default().join("\n")
    }
}
