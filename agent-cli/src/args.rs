//! The command line.

mod install;
mod resources;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use agent_core::shown::{address, scrub};
use agent_templates::Scheme;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use secrecy::SecretString;

pub use self::install::InstallArgs;
pub use self::resources::ResourceArgs;
pub use self::values::PullPolicy;
use self::values::{duration, net, secret, whole_seconds};

/// The version, and the commit where it is known.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), env!("AGENT_COMMIT_SUFFIX"));

/// Deploys Prefect 1 flow runs as Kubernetes Jobs.
#[derive(Debug, Parser)]
#[command(
    name = "agent-cli",
    version = VERSION,
    about,
    propagate_version = true,
    after_help = "\
Examples:
  agent-cli check --backend server --api http://localhost:4200
  agent-cli start --backend server --api http://localhost:4200 --label prod --namespace flows
  agent-cli install --backend server --api http://apollo:4200 --rbac | kubectl apply -f -
  agent-cli render --run-config run-config.yaml --job-template job.yaml"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// An error of the command line without what may be a secret: words that belong to no flag, such
/// as the rest of a value that was not quoted, and credentials in addresses.
pub fn without_values(mut error: clap::Error) -> clap::Error {
    let is_stray = matches!(
        error.kind(),
        ErrorKind::UnknownArgument | ErrorKind::TooManyValues | ErrorKind::InvalidSubcommand
    );
    // What looks like a command is more useful with its suggestion than without.
    let is_word = |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    for kind in [
        ContextKind::InvalidArg,
        ContextKind::InvalidValue,
        ContextKind::InvalidSubcommand,
    ] {
        let Some(ContextValue::String(text)) = error.get(kind) else {
            continue;
        };
        let shown = match text.strip_prefix('-') {
            // The value of a flag that is one is told by its name.
            Some(_) => text.split('=').next().unwrap_or_default().to_owned(),
            None if kind == ContextKind::InvalidSubcommand && is_word(text) => continue,
            None if is_stray => "…".to_owned(),
            // It need not be an address to hold what one may hold.
            None if text.contains(['@', '?']) => address(text),
            None => scrub(text).into_owned(),
        };
        if *text != shown {
            error.insert(kind, ContextValue::String(shown));
            error.remove(ContextKind::Suggested);
        }
    }
    error
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Polls the Prefect API and deploys flow runs until it is stopped.
    Start(Box<StartArgs>),
    /// Prints the Job that `start` would create for a flow run; touches neither API nor cluster.
    Render(Box<RenderArgs>),
    /// Prints each effective setting of `start` and where it came from; secrets are masked.
    Config(Box<ConfigArgs>),
    /// Looks whether both APIs, the permissions and the job template are as `start` needs them.
    Check(Box<CheckArgs>),
    /// Prints the Kubernetes objects that run an agent, for `kubectl apply -f -`.
    Install(Box<InstallArgs>),
    /// Prints the objects of the same `install`, for `kubectl delete -f -`.
    Uninstall(Box<InstallArgs>),
    /// Prints the completions of a shell.
    #[command(
        after_help = "Example:\n  agent-cli completions bash > /etc/bash_completion.d/agent-cli"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Prints a page of the manual.
    #[command(after_help = "Example:\n  agent-cli man start | man -l -")]
    Man {
        /// The command that it is about; without one, the whole program
        command: Option<String>,
    },
}

/// The flags of `render`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  agent-cli render --flow-run run.json --job-template job.yaml\n  agent-cli render --run-config run-config.json -o json"
)]
#[group(id = "input", required = true, multiple = true, args = ["flow_run", "run_config"])]
pub struct RenderArgs {
    /// A flow run as the API's `flow_run` query returns it, in JSON; `-` is standard input
    #[arg(long, value_name = "FILE", help_heading = "Render")]
    pub flow_run: Option<String>,
    /// A run config, in JSON or YAML, in place of the flow run's, or for a flow run made up
    #[arg(long, value_name = "FILE", help_heading = "Render")]
    pub run_config: Option<String>,
    /// The form of the manifest
    #[arg(
        short,
        long,
        value_enum,
        default_value = "yaml",
        help_heading = "Render"
    )]
    pub output: OutputFormat,
    /// The tenant id that the API would answer
    #[arg(long, value_name = "ID", help_heading = "Render")]
    pub api_tenant: Option<String>,
    #[command(flatten)]
    pub start: StartArgs,
}

/// The flags of `config`.
#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    /// The form of the list
    #[arg(
        short,
        long,
        value_enum,
        default_value = "table",
        help_heading = "Config"
    )]
    pub output: ListFormat,
    #[command(flatten)]
    pub start: StartArgs,
}

/// The flags of `check`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  agent-cli check --backend server --api http://localhost:4200 --namespace flows\n  agent-cli check -o json\n  kubectl exec deploy/prefect-agent -- agent-cli check"
)]
pub struct CheckArgs {
    /// The form of the report
    #[arg(
        short,
        long,
        value_enum,
        default_value = "table",
        help_heading = "Check"
    )]
    pub output: ListFormat,
    #[command(flatten)]
    pub start: StartArgs,
}

/// Forms of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people and `kubectl`.
    Yaml,
    /// For programs.
    Json,
}

/// Forms of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
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
    after_help = "Example:\n  agent-cli start --backend server --api http://localhost:4200 --label prod --namespace flows"
)]
pub struct StartArgs {
    /// The API key [env: PREFECT__CLOUD__API_KEY]
    #[arg(short, long, value_parser = secret, help_heading = "Prefect")]
    pub key: Option<SecretString>,
    /// The tenant's id [env: PREFECT__CLOUD__TENANT_ID; default: asked from the API]
    #[arg(long, help_heading = "Prefect")]
    pub tenant_id: Option<String>,
    /// The API's address [env: PREFECT__CLOUD__API; default: by backend]
    #[arg(short, long, help_heading = "Prefect")]
    pub api: Option<String>,
    /// Which kind of API it is [env: PREFECT__BACKEND; default: as in ~/.prefect/backend.toml, else cloud]
    #[arg(short, long, value_name = "cloud|server", value_parser = ["cloud", "server"], help_heading = "Prefect")]
    pub backend: Option<String>,
    /// Certificates of those who may vouch for the API, in PEM [env: PREFECT__CLOUD__TLS__CA, REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE; default: the system's, or SSL_CERT_FILE]
    #[arg(long, value_name = "FILE", help_heading = "Prefect")]
    pub api_ca: Option<String>,
    /// A certificate and its private key with which the agent shows the API who it is, in PEM [env: PREFECT__CLOUD__TLS__CLIENT_CERT]
    #[arg(long, value_name = "FILE", help_heading = "Prefect")]
    pub api_client_cert: Option<String>,
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
    /// Schemes that the agent's job template may have [default: all]
    #[arg(
        long,
        value_name = "A,B",
        value_delimiter = ',',
        help_heading = "Templates"
    )]
    pub allow_template_scheme: Vec<Scheme>,
    /// Schemes that templates named by flows may have [default: s3,gs,gcs,agent,http,https]
    #[arg(
        long,
        value_name = "A,B",
        value_delimiter = ',',
        help_heading = "Templates"
    )]
    pub allow_flow_template_scheme: Vec<Scheme>,
    /// The only directory whose files flows may name as templates
    #[arg(long, value_name = "DIR", help_heading = "Templates")]
    pub flow_template_dir: Option<PathBuf>,
    /// A range of private addresses on which flows may name HTTP templates; may be repeated
    #[arg(long, value_name = "CIDR", value_parser = net, help_heading = "Templates")]
    pub allow_flow_template_net: Vec<IpNet>,
    /// Flows may name HTTP templates on all private addresses, loopback and link-local ones too
    #[arg(long, help_heading = "Templates")]
    pub allow_private_flow_templates: bool,
    /// How long the last copy of a template serves while its store is down
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration, help_heading = "Templates")]
    pub template_stale_ok: Duration,
    /// The service account of the Jobs' pods [env: SERVICE_ACCOUNT_NAME]
    #[arg(long, value_name = "NAME", help_heading = "Jobs")]
    pub service_account_name: Option<String>,
    /// The image pull secrets of the Jobs' pods [env: IMAGE_PULL_SECRETS]
    #[arg(long, value_name = "A,B", help_heading = "Jobs")]
    pub image_pull_secrets: Option<String>,
    #[command(flatten)]
    pub resources: ResourceArgs,
    /// Keep finished Jobs [env: DELETE_FINISHED_JOBS=False]
    #[arg(long, help_heading = "Jobs")]
    pub disable_job_deletion: bool,
    /// How long a Job that failed is kept, such as 1h or 7d
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration, help_heading = "Supervision")]
    pub keep_failed_jobs: Duration,
    /// How long a Job that succeeded is kept
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration, help_heading = "Supervision")]
    pub keep_succeeded_jobs: Duration,
    /// How long an image may fail to be pulled, once the kubelet backs off, before the run fails
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration, help_heading = "Supervision")]
    pub image_pull_grace: Duration,
    /// How long a container may fail to start (a missing Secret, a wrong command) before the run fails
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration, help_heading = "Supervision")]
    pub start_error_grace: Duration,
    /// How long a Job may be unable to create its pod (quota, service account) before the run fails
    #[arg(long, value_name = "DURATION", default_value = "120s", value_parser = duration, help_heading = "Supervision")]
    pub create_failure_grace: Duration,
    /// How long a pod may wait for a node before the run fails [default: for ever]
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "Supervision")]
    pub pending_timeout: Option<Duration>,
    /// How long a Job may go on after its run was cancelled or has ended otherwise
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration, help_heading = "Supervision")]
    pub cancel_grace: Duration,
    /// Flows do not send their logs to the API [env: PREFECT__CLOUD__SEND_FLOW_RUN_LOGS=false]
    #[arg(long, help_heading = "Jobs")]
    pub no_cloud_logs: bool,
    /// A volume for the Jobs' pods, as in a pod's `volumes`, in JSON or YAML; may be repeated [env: JOB_VOLUMES, a list]
    #[arg(long = "volume", value_name = "VOLUME", help_heading = "Jobs")]
    pub volumes: Vec<String>,
    /// A mount for the flow's container, as in a container's `volumeMounts`; may be repeated [env: JOB_VOLUME_MOUNTS, a list]
    #[arg(long = "volume-mount", value_name = "MOUNT", help_heading = "Jobs")]
    pub volume_mounts: Vec<String>,
    /// Jobs take the API key from this Secret instead of holding it [env: FLOW_RUN_KEY_SECRET; default key: PREFECT__CLOUD__API_KEY]
    #[arg(long, value_name = "NAME[/KEY]", help_heading = "Jobs")]
    pub flow_run_key_secret: Option<String>,
    /// A JSON Patch or JSON Merge Patch, in JSON or YAML, that is applied to every Job last [env: JOB_PATCH]
    #[arg(long, value_name = "FILE", help_heading = "Jobs")]
    pub job_patch: Option<String>,
    /// How many runs may be claimed and submitted at the same time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..), help_heading = "Jobs")]
    pub concurrency: u16,
    /// How many unfinished Jobs there may be, of agents with these labels; further runs wait in the queue [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Jobs")]
    pub max_in_flight: Option<u32>,
    /// How long a Job is tried again that cannot be created while others can (quota, webhook, template) before its run fails
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration, help_heading = "Jobs")]
    pub submit_retry_budget: Duration,
    /// After what time without a sign of life another replica takes over the supervision of Jobs
    #[arg(long, value_name = "DURATION", default_value = "12s", value_parser = whole_seconds, help_heading = "Supervision")]
    pub lease_duration: Duration,
    /// The Lease that the replicas share, to tell which of them supervises; agents of one tenant and namespace need the same [env: PREFECT_AGENT_LEASE_NAME] [default: prefect-agent-TENANT]
    #[arg(long, value_name = "NAME", help_heading = "Supervision")]
    pub lease_name: Option<String>,
    /// How many of the last lines that a failed container printed go into the flow run's log
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(..=1000), help_heading = "Supervision")]
    pub output_lines: u16,

    /// Where /api/health, /api/live, /api/poke and /metrics are served, such as http://:8080 [env: PREFECT__CLOUD__AGENT__AGENT_ADDRESS]
    #[arg(long, value_name = "URL", help_heading = "Agent")]
    pub agent_address: Option<String>,
    /// The level of the agent's own log [env: PREFECT__CLOUD__AGENT__LEVEL; default: INFO]
    #[arg(long, ignore_case = true, help_heading = "Agent")]
    pub log_level: Option<Level>,
    /// The form of the agent's own log
    #[arg(long, value_enum, default_value = "text", action = ArgAction::Set, help_heading = "Agent")]
    pub log_format: LogFormat,
}
