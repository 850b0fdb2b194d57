//! The flags of `install` and `uninstall`: those of the Python agent with their meanings, and ours.

use secrecy::SecretString;

use super::ResourceArgs;
use super::values::secret;

/// The flags of `install` and `uninstall`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Whatever else the agent is to be started with follows `--`.

Examples:
  agent-cli install --key KEY --api https://prefect.example.com --backend server --rbac | kubectl apply -f -
  agent-cli install --secret-name prefect --namespace flows --agent-namespace prefect --rbac
  agent-cli install --backend server --api http://apollo:4200 --rbac --replicas 2 -- --keep-failed-jobs 1d
  agent-cli uninstall --rbac | kubectl delete --ignore-not-found -f -")]
pub struct InstallArgs {
    /// The API key; it goes into a Secret
    #[arg(short, long, value_parser = secret, help_heading = "Prefect", conflicts_with = "secret_name")]
    pub key: Option<SecretString>,
    /// A Secret in the agent's namespace that holds the API key [default key: PREFECT__CLOUD__API_KEY]
    #[arg(long, value_name = "NAME[/KEY]", help_heading = "Prefect")]
    pub secret_name: Option<String>,
    /// The tenant's id
    #[arg(long, value_name = "ID", help_heading = "Prefect")]
    pub tenant_id: Option<String>,
    /// The API's address [default: Prefect Cloud's]
    #[arg(short, long, value_name = "URL", help_heading = "Prefect")]
    pub api: Option<String>,
    /// Which kind of API it is [default: as configured for `start`]
    #[arg(short, long, value_name = "cloud|server", value_parser = ["cloud", "server"], help_heading = "Prefect")]
    pub backend: Option<String>,
    /// A label whose flow runs the agent deploys; may be repeated
    #[arg(short, long = "label", value_name = "LABEL", help_heading = "Prefect")]
    pub labels: Vec<String>,
    /// The agent config to register with
    #[arg(long, value_name = "ID", help_heading = "Prefect")]
    pub agent_config_id: Option<String>,

    /// The namespace of the Jobs
    #[arg(short, long, default_value = "default", help_heading = "Jobs")]
    pub namespace: String,
    /// An environment variable for every flow; may be repeated
    #[arg(short, long = "env", value_name = "NAME=VALUE", help_heading = "Jobs")]
    pub env: Vec<String>,
    /// Image pull secrets, of the Jobs' pods and of the agent's
    #[arg(short, long, value_name = "A,B", help_heading = "Jobs")]
    pub image_pull_secrets: Option<String>,
    /// The service account of the Jobs' pods
    #[arg(long, value_name = "NAME", help_heading = "Jobs")]
    pub service_account_name: Option<String>,
    #[command(flatten)]
    pub resources: ResourceArgs,
    /// A ConfigMap in the agent's namespace that holds the job template [default key: job.yaml]
    #[arg(long, value_name = "NAME[/KEY]", help_heading = "Jobs")]
    pub job_template_configmap: Option<String>,

    /// The name of the agent's objects, for a second agent in one namespace
    #[arg(long, default_value = agent_k8s::install::NAME, help_heading = "Agent")]
    pub name: String,
    /// The namespace of the agent itself [default: that of the Jobs]
    #[arg(long, value_name = "NAMESPACE", help_heading = "Agent")]
    pub agent_namespace: Option<String>,
    /// The agent's image; without a tag, that of this version [default: localhost/prefect-kubernetes-agent]
    #[arg(long, help_heading = "Agent")]
    pub image: Option<String>,
    /// The image's tag is `latest`
    #[arg(long, help_heading = "Agent")]
    pub latest: bool,
    /// How many agents; they share the work
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i32).range(0..=100), help_heading = "Agent")]
    pub replicas: i32,
    /// Give the agent the permissions that it needs in the Jobs' namespace, and no others
    #[arg(long, help_heading = "Agent")]
    pub rbac: bool,
    /// A service account for the agent that exists already
    #[arg(long, value_name = "NAME", help_heading = "Agent")]
    pub agent_service_account: Option<String>,
    /// Let evictions take one replica at a time
    #[arg(long, help_heading = "Agent")]
    pub pod_disruption_budget: bool,
    /// Limit the agent's traffic to what it needs
    #[arg(long, help_heading = "Agent")]
    pub network_policy: bool,
    /// A TCP port that the limited traffic may go to besides, such as 8443, where some API servers listen; may be repeated
    #[arg(long, value_name = "PORT", requires = "network_policy", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Agent")]
    pub network_policy_port: Vec<u16>,
    /// Tell the Prometheus operator where the metrics are
    #[arg(long, help_heading = "Agent")]
    pub service_monitor: bool,

    /// More flags of `start`
    #[arg(last = true, value_name = "START FLAGS")]
    pub start: Vec<String>,
}
