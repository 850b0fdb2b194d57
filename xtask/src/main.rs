//! Chores of the project, in Rust: `cargo xtask --help` lists them.

mod agent;
mod bench;
mod chaos;
mod demo;
mod e2e;
mod image;
mod interrupt;
mod soak;

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use serde_json::Value;

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
    /// Kills, freezes and restarts replicas of the agent while both servers misbehave, and checks that
    /// nothing was lost or done twice
    Chaos(chaos::Options),
    /// Deploys and ends runs at a steady rate for as long as told, and fails when the agent grows
    Soak(soak::Options),
    /// Measures the release build of the agent on the same servers
    Bench(bench::Options),
    /// What `bench` measures the agent against: nothing but the calls themselves
    #[command(hide = true)]
    BenchRaw(bench::RawOptions),
    /// Runs the agent on a real Kubernetes
    E2e(e2e::Options),
    /// Assembles the agent's image as an archive, without a container engine
    Image(image::Options),
}

/// In which profile a binary is built.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Profile {
    /// Quick to build.
    Debug,
    /// Optimized.
    Release,
}

#[tokio::main]
async fn main() -> ExitCode {
    // The one crypto provider of all TLS; an error would mean that there is one already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let done = match Cli::parse().chore {
        Chore::Demo(options) => demo::run(options).await,
        Chore::Chaos(options) => chaos::run(options).await,
        Chore::Soak(options) => soak::run(options).await,
        Chore::Bench(options) => bench::run(options).await,
        Chore::BenchRaw(options) => bench::raw(options).await,
        Chore::E2e(options) => e2e::run(options).await,
        Chore::Image(options) => image::run(options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Builds an integration test, with the features that `cargo test --workspace` builds it with; the
/// path of the binary.
fn build_test(test: &str) -> Result<PathBuf> {
    let output = cargo()
        .args(["test", "--quiet", "--no-run", "--message-format=json"])
        .args(["--workspace", "--test", test])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "the test {test} does not build");
    let messages = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
    messages
        .filter_map(Result::ok)
        .filter(|message| message["target"]["name"] == test)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo did not say where the test {test} is"))
}

/// Builds `agent-cli`; the path of the binary.
fn build_agent(profile: Profile) -> Result<PathBuf> {
    let mut cargo = cargo();
    cargo.args(["build", "--quiet"]);
    cargo.args(match profile {
        // As a part of the workspace: with the features that its tests are built with.
        Profile::Debug => ["--bin", "agent-cli"].as_slice(),
        // With no features but its own.
        Profile::Release => &["--release", "--package", "agent-cli"],
    });
    let status = cargo.status().context("cannot run cargo")?;
    ensure!(status.success(), "agent-cli does not build");
    // This program is at TARGET/PROFILE/xtask.
    let here = std::env::current_exe().context("the place of this program cannot be told")?;
    let target = here
        .ancestors()
        .nth(2)
        .context("this program is not in a target directory")?;
    let folder = match profile {
        Profile::Debug => "debug",
        Profile::Release => "release",
    };
    let binary = target.join(folder).join("agent-cli");
    ensure!(binary.exists(), "{} was not built", binary.display());
    Ok(binary)
}
