//! Chores of the project, in Rust: `cargo xtask --help` lists them.

mod demo;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

/// Chores of the project.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Runs the agent against a Prefect API and a Kubernetes API on loopback, and shows what it does
    Demo(demo::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Cli::parse().chore {
        Chore::Demo(options) => demo::run(options).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Builds `agent-cli` in the profile of this program; the path of the binary.
fn build_agent() -> Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "agent-cli"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let status = cargo.status().context("cannot run cargo")?;
    ensure!(status.success(), "agent-cli does not build");
    let here = std::env::current_exe().context("the place of this program cannot be told")?;
    let binary = here.with_file_name("agent-cli");
    ensure!(binary.exists(), "{} was not built", binary.display());
    Ok(binary)
}
