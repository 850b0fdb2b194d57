//! The command line.

use clap::{ArgAction, Parser, Subcommand, ValueEnum};

/// Deploys Prefect 1 flow runs as Kubernetes Jobs.
#[derive(Debug, Parser)]
#[command(name = "agent-cli", version, about, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Polls the Prefect API and deploys flow runs until it is stopped.
    Start(Box<StartArgs>),
}

/// Levels of the agent's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Everything.
    Debug,
    /// The normal course of things.
    Info,
    /// What a person may want to look at.
    Warning,
    /// What went wrong.
    Error,
}

/// Forms of the agent's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The flags of `start`. A flag wins over its variable.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  agent-cli start --api http://localhost:4200 --label prod --namespace flows"
)]
pub struct StartArgs {
    /// The API key [env: PREFECT__CLOUD__API_KEY]
    #[arg(short, long, help_heading = "Prefect")]
    pub key: Option<String>,
    /// The tenant's id [env: PREFECT__CLOUD__TENANT_ID; default: asked from the API]
    #[arg(long, help_heading = "Prefect")]
    pub tenant_id: Option<String>,
    /// The API's address [env: PREFECT__CLOUD__API; default: by backend]
    #[arg(short, long, help_heading = "Prefect")]
    pub api: Option<String>,
    /// The agent config to register with
    #[arg(long, help_heading = "Prefect")]
    pub agent_config_id: Option<String>,
    /// The agent's name [env: PREFECT__CLOUD__AGENT__NAME; default: agent]
    #[arg(short, long, help_heading = "Prefect")]
    pub name: Option<String>,
    /// A label whose flow runs this agent deploys; may be repeated [env: PREFECT__CLOUD__AGENT__LABELS, a list]
    #[arg(short, long = "label", value_name = "LABEL", help_heading = "Prefect")]
    pub labels: Vec<String>,
    /// Stop after so many polls
    #[arg(long, value_name = "N", help_heading = "Prefect")]
    pub max_polls: Option<u64>,

    /// An environment variable for every flow; may be repeated [env: PREFECT__CLOUD__AGENT__ENV_VARS, a mapping]
    #[arg(short, long = "env", value_name = "NAME=VALUE", help_heading = "Jobs")]
    pub env: Vec<String>,
    /// The namespace of the Jobs [env: NAMESPACE; default: default]
    #[arg(long, help_heading = "Jobs")]
    pub namespace: Option<String>,
    /// Where the job template is: a path or an address
    #[arg(long, value_name = "PATH", help_heading = "Jobs")]
    pub job_template: Option<String>,
    /// The service account of the Jobs' pods [env: SERVICE_ACCOUNT_NAME]
    #[arg(long, value_name = "NAME", help_heading = "Jobs")]
    pub service_account_name: Option<String>,
    /// The image pull secrets of the Jobs' pods [env: IMAGE_PULL_SECRETS]
    #[arg(long, value_name = "A,B", help_heading = "Jobs")]
    pub image_pull_secrets: Option<String>,
    /// Keep finished Jobs [env: DELETE_FINISHED_JOBS=False]
    #[arg(long, help_heading = "Jobs")]
    pub disable_job_deletion: bool,
    /// Flows do not send their logs to the API [env: PREFECT__CLOUD__SEND_FLOW_RUN_LOGS=false]
    #[arg(long, help_heading = "Jobs")]
    pub no_cloud_logs: bool,
    /// How many runs may be claimed and submitted at the same time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..), help_heading = "Jobs")]
    pub concurrency: u16,

    /// Where /api/health and /api/poke are served, such as http://:8080 [env: PREFECT__CLOUD__AGENT__AGENT_ADDRESS]
    #[arg(long, value_name = "URL", help_heading = "Agent")]
    pub agent_address: Option<String>,
    /// The level of the agent's own log [env: PREFECT__CLOUD__AGENT__LEVEL; default: INFO]
    #[arg(long, ignore_case = true, help_heading = "Agent")]
    pub log_level: Option<Level>,
    /// The form of the agent's own log
    #[arg(long, value_enum, default_value = "text", action = ArgAction::Set, help_heading = "Agent")]
    pub log_format: LogFormat,
}
