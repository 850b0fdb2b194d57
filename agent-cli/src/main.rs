//! Deploys Prefect 1 flow runs as Kubernetes Jobs.

use std::process::ExitCode;

use agent_cli::args::{Cli, Command};
use agent_cli::settings::{Environment, Settings};
use agent_cli::{logging, start};
use anyhow::{Result, anyhow};
use clap::Parser;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Start(args) => {
            let settings = Settings::resolve(&args, &environment())?;
            logging::start(settings.log_level, settings.log_format);
            rustls::crypto::aws_lc_rs::default_provider()
                .install_default()
                .map_err(|_| anyhow!("a crypto provider was installed before"))?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?;
            runtime.block_on(start::run(settings))
        }
    }
}

/// The process environment; what is not text cannot be a setting.
fn environment() -> Environment {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}
