//! Deploys Prefect 1 flow runs as Kubernetes Jobs.

use std::process::ExitCode;

use agent_cli::args::{self, Cli, Command, StartArgs};
use agent_cli::config::{self, Environment};
use agent_cli::install::Purpose;
use agent_cli::settings::Settings;
use agent_cli::{check, install, logging, manual, render, show, start};
use agent_core::{LONGEST_MESSAGE, clip, shown};
use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => args::without_values(error).exit(),
    };
    match run(cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let text = format!("{error:#}");
            // Lines of its own are for people: they cannot be taken for another error.
            let lines: Vec<_> = text.split('\n').map(shown::one_line).collect();
            let text = lines.join("\n       ");
            eprintln!("error: {}", clip(&shown::scrub(&text), LONGEST_MESSAGE));
            ExitCode::FAILURE
        }
    }
}

/// Does what it is told; `false` when that has found something wrong and said so.
fn run(cli: Cli) -> Result<bool> {
    let cwd = std::env::current_dir().context("the working directory cannot be told")?;
    let resolve = |args: &StartArgs| Settings::resolve(args, &environment()?, &cwd);
    match cli.command {
        Command::Start(args) => {
            let settings = resolve(&args)?;
            logging::start(settings.log_level, settings.log_format);
            crypto()?;
            on_runtime(start::run(settings))??;
        }
        Command::Render(args) => {
            logging::warnings();
            crypto()?;
            render::run(&args, resolve(&args.start)?, &cwd)?;
        }
        Command::Config(args) => show::run(&resolve(&args.start)?, args.output)?,
        Command::Check(args) => {
            logging::errors();
            crypto()?;
            return on_runtime(check::run(resolve(&args.start), args.output))?;
        }
        Command::Install(args) => install::run(&args, Purpose::Install, &environment()?, &cwd)?,
        Command::Uninstall(args) => install::run(&args, Purpose::Uninstall, &environment()?, &cwd)?,
        Command::Completions { shell } => manual::completions(shell)?,
        Command::Man { command } => manual::page(command.as_deref())?,
    }
    Ok(true)
}

/// Runs to the end, and waits for nothing else: what blocks may do so for ever.
fn on_runtime<T>(task: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    let done = runtime.block_on(task);
    runtime.shutdown_background();
    Ok(done)
}

/// The one crypto provider of all TLS.
fn crypto() -> Result<()> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow!("a crypto provider was installed before"))
}

/// The process environment; what is not text cannot be a setting, so that a variable that is one
/// has to be text.
fn environment() -> Result<Environment> {
    let mut environment = Environment::new();
    for (name, value) in std::env::vars_os() {
        match (name.to_str(), value.to_str()) {
            (Some(name), Some(value)) => {
                environment.insert(name.to_owned(), value.to_owned());
            }
            _ => {
                let name = name.to_string_lossy();
                if config::is_read(&name) {
                    bail!(
                        "the variable {} is not valid UTF-8; set it to text, or unset it",
                        shown::printable(&name)
                    );
                }
            }
        }
    }
    Ok(environment)
}
