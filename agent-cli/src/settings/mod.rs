//! What the agent is told by flags, environment and files, made whole.

mod api;
mod jobs;
mod sources;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use agent_api_client::{ApiSettings, Backend};
use agent_k8s::{Graces, ManifestSettings};
use agent_templates::TemplateSettings;
use anyhow::{Context, Error, Result, bail};
use secrecy::{SecretSlice, SecretString};

use self::api::{ca, credentials, labels, pem, request_timeout};
use self::jobs::{manifest, templates};
use self::sources::{Sources, flag_given};
use crate::args::{Level, LogFormat, StartArgs};
use crate::config::{Config, Environment, Origin};
use crate::python;

pub(crate) use self::api::{normalized, sorted};
pub(crate) use self::jobs::{name_and_key, pair_of};
pub use self::sources::Effective;

/// What the Python agent's `install` sets and no agent reads; the flags that do what is meant.
const UNREAD: [(&str, &str); 5] = [
    ("JOB_MEM_REQUEST", "--mem-request"),
    ("JOB_MEM_LIMIT", "--mem-limit"),
    ("JOB_CPU_REQUEST", "--cpu-request"),
    ("JOB_CPU_LIMIT", "--cpu-limit"),
    ("IMAGE_PULL_POLICY", "--image-pull-policy"),
];

/// The effective settings of `start`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The API's address.
    pub url: String,
    /// The API key, if there is one.
    pub key: Option<SecretString>,
    /// The tenant's id, if it need not be asked from the API.
    pub tenant_id: Option<String>,
    /// The agent's name.
    pub name: String,
    /// The agent's labels.
    pub labels: Vec<String>,
    /// The agent config to register with.
    pub agent_config_id: Option<String>,
    /// Who may vouch for the API, in PEM; `None` is whom the system trusts.
    pub ca: Option<Vec<u8>>,
    /// With what the agent shows the API who it is, in PEM.
    pub identity: Option<SecretSlice<u8>>,
    /// How long one request to the API may take.
    pub request_timeout: Duration,
    /// What goes into every Job; the tenant is filled in when it is known.
    pub manifest: ManifestSettings,
    /// Where templates may be read from.
    pub templates: TemplateSettings,
    /// The namespace of the Jobs.
    pub namespace: String,
    /// Finished Jobs are deleted.
    pub delete_finished_jobs: bool,
    /// How long ended Jobs are kept: those that succeeded, those that failed.
    pub keep_jobs: (Duration, Duration),
    /// How patient the agent is with Jobs that do not get on.
    pub graces: Graces,
    /// How long a Job may go on after its run has ended.
    pub cancel_grace: Duration,
    /// Stop after so many polls.
    pub max_polls: Option<u64>,
    /// Where health is served.
    pub agent_address: Option<SocketAddr>,
    /// Deployments at the same time.
    pub concurrency: usize,
    /// Unfinished Jobs at the same time.
    pub max_in_flight: Option<usize>,
    /// How long a Job that is refused for now is tried again.
    pub submit_retry_budget: Duration,
    /// How long the Lease of the replica that supervises holds without being renewed.
    pub lease_duration: Duration,
    /// The name of that Lease, if it is not the tenant's.
    pub lease_name: Option<String>,
    /// Lines of a failed container's output in the flow run's log.
    pub output_lines: u16,
    /// Level of the agent's own log.
    pub log_level: Level,
    /// Form of the agent's own log.
    pub log_format: LogFormat,
    /// Each setting with its origin, for people.
    pub effective: Vec<Effective>,
    /// What the owner may want to know before the agent starts.
    pub warnings: Vec<String>,
}

impl Settings {
    /// Settings from flags, environment and files, for a process in the directory `cwd`.
    ///
    /// # Errors
    /// Names the flag, variable or file that cannot be read, and what it should be.
    pub fn resolve(args: &StartArgs, environment: &Environment, cwd: &Path) -> Result<Self> {
        let config = Config::load_for(args.backend.as_deref(), environment, cwd)?;
        let mut from = Sources {
            config: &config,
            effective: Vec::new(),
        };
        let (backend, _) = from.settle("backend", from.pick("", &None, "backend"), "cloud");
        let found = from.pick("--api", &args.api, "cloud.api");
        let (url, _) = from.settle("cloud.api", found, "");
        let (key, tenant_id) = credentials(&mut from, args, &url)?;
        let labels = labels(&mut from, args)?;
        let found = from.pick("--name", &args.name, "cloud.agent.name");
        let (name, _) = from.settle("cloud.agent.name", found, "agent");
        let agent_config_id = flag_given("--agent-config-id", &args.agent_config_id);
        from.show("--agent-config-id", agent_config_id.as_ref(), "none");
        let ca = ca(&mut from, args, cwd)?;
        let found = from.pick(
            "--api-client-cert",
            &args.api_client_cert,
            "cloud.tls.client_cert",
        );
        from.show("cloud.tls.client_cert", found.as_ref(), "none");
        let identity = found.map(|found| pem(&found, cwd)).transpose()?;
        let request_timeout = request_timeout(&mut from)?;
        let delete_finished_jobs = deletion(&mut from, args);
        let keep_jobs = (args.keep_succeeded_jobs, args.keep_failed_jobs);
        let manifest = ManifestSettings {
            backend,
            api: url.clone(),
            key: key.clone(),
            tenant_id: tenant_id.clone().unwrap_or_default(),
            labels: python::list(&labels),
            ..manifest(&mut from, args, cwd)?
        };
        let found = from.pick_variable("--namespace", &args.namespace, "NAMESPACE");
        let (namespace, _) = from.settle("namespace", found, "default");
        let address = from.pick(
            "--agent-address",
            &args.agent_address,
            "cloud.agent.agent_address",
        );
        from.show("cloud.agent.agent_address", address.as_ref(), "none");
        let lease_name =
            from.pick_variable("--lease-name", &args.lease_name, "PREFECT_AGENT_LEASE_NAME");
        if let Some((name, _)) = &lease_name {
            agent_k8s::install::check_name("--lease-name", name).map_err(Error::msg)?;
        }
        let log_level = log_level(&mut from, args)?;
        Ok(Self {
            url,
            key,
            tenant_id,
            name,
            labels,
            agent_config_id: agent_config_id.map(|(id, _)| id),
            ca,
            identity: identity.map(Into::into),
            request_timeout,
            manifest,
            templates: templates(args, cwd),
            namespace,
            delete_finished_jobs,
            keep_jobs,
            graces: Graces {
                image_pull: args.image_pull_grace,
                start_error: args.start_error_grace,
                create_failure: args.create_failure_grace,
                pending: args.pending_timeout,
            },
            cancel_grace: args.cancel_grace,
            max_polls: args.max_polls,
            agent_address: address
                .map(|(address, _)| listen_address(&address))
                .transpose()?,
            concurrency: args.concurrency.into(),
            max_in_flight: args.max_in_flight.map(|jobs| jobs as usize),
            submit_retry_budget: args.submit_retry_budget,
            lease_duration: args.lease_duration,
            lease_name: lease_name.map(|(name, _)| name),
            output_lines: args.output_lines,
            log_level,
            log_format: args.log_format,
            warnings: unread(&config),
            effective: from.effective,
        })
    }

    /// The Lease that is held by the replica which supervises the Jobs of a tenant.
    pub fn lease_of(&self, tenant: &str) -> String {
        match &self.lease_name {
            Some(name) => name.clone(),
            None => lease_of(tenant),
        }
    }

    /// Which kind of API it is.
    ///
    /// # Errors
    /// When Prefect has no such backend.
    pub fn backend(&self) -> Result<Backend> {
        match self.manifest.backend.as_str() {
            "cloud" => Ok(Backend::Cloud),
            "server" => Ok(Backend::Server),
            other => bail!("Unknown backend setting '{other}'; use \"cloud\" or \"server\""),
        }
    }

    /// How to reach the API, and as whom.
    ///
    /// # Errors
    /// When the backend is not known.
    pub fn api(&self) -> Result<ApiSettings> {
        let mut api = ApiSettings::new(&self.url, self.backend()?);
        api.key = self.key.clone();
        api.tenant_id = self.tenant_id.clone();
        api.name = self.name.clone();
        api.labels = self.labels.clone();
        api.agent_config_id = self.agent_config_id.clone();
        api.ca = self.ca.clone();
        api.identity = self.identity.clone();
        api.request_timeout = self.request_timeout;
        Ok(api)
    }
}

/// The usual name of a tenant's Lease.
pub(crate) fn lease_of(tenant: &str) -> String {
    format!("{}-{tenant}", agent_k8s::install::NAME)
}

/// Variables that are set and that nothing reads, as ever.
fn unread(config: &Config) -> Vec<String> {
    let set = UNREAD.iter().filter(|(variable, _)| {
        config
            .variable(variable)
            .is_some_and(|text| !text.is_empty())
    });
    set.map(|(variable, flag)| {
        format!("{variable} has no effect, as with the Python agent; use {flag}")
    })
    .collect()
}

/// Deletion is on unless somebody turns it off; only `True` is on.
fn deletion(from: &mut Sources<'_>, args: &StartArgs) -> bool {
    let name = "delete finished jobs";
    let variable = "DELETE_FINISHED_JOBS";
    let (on, origin) = match from.config.variable(variable) {
        _ if args.disable_job_deletion => (false, Origin::Flag("--disable-job-deletion")),
        Some(text) => (text == "True", Origin::Variable(variable.to_owned())),
        None => (true, Origin::Default),
    };
    from.record(name, on.to_string(), origin);
    on
}

fn log_level(from: &mut Sources<'_>, args: &StartArgs) -> Result<Level> {
    let key = "cloud.agent.level";
    if let Some(level) = args.log_level {
        from.record(
            key,
            format!("{level:?}").to_uppercase(),
            Origin::Flag("--log-level"),
        );
        return Ok(level);
    }
    let found = from.pick("", &None, key);
    let (text, origin) = from.settle(key, found, "INFO");
    match text.to_ascii_uppercase().as_str() {
        "DEBUG" | "NOTSET" => Ok(Level::Debug),
        "INFO" => Ok(Level::Info),
        "WARNING" | "WARN" => Ok(Level::Warning),
        "ERROR" | "CRITICAL" | "FATAL" => Ok(Level::Error),
        _ => bail!(
            "{} is {text:?}; use DEBUG, INFO, WARNING or ERROR",
            origin.of(key)
        ),
    }
}

/// Where to listen, from an address in URL form; without a host, on all interfaces.
fn listen_address(address: &str) -> Result<SocketAddr> {
    let shown = agent_core::shown::address(address);
    let wrong = || {
        format!("Must specify port in agent address: {shown:?} is not of the form http://HOST:PORT")
    };
    let (_, rest) = address.split_once("://").with_context(wrong)?;
    let (host, port) = rest
        .trim_end_matches('/')
        .rsplit_once(':')
        .with_context(wrong)?;
    let port: u16 = port.parse().ok().with_context(wrong)?;
    if host.is_empty() {
        return Ok((IpAddr::V4(Ipv4Addr::UNSPECIFIED), port).into());
    }
    (host.trim_matches(['[', ']']), port)
        .to_socket_addrs()
        .ok()
        .and_then(|mut found| found.next())
        .with_context(|| format!("the host in the agent address {shown:?} is not known"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn resolve(args: &[&str], env: &[(&str, &str)]) -> Result<Settings> {
        let dir = tempfile::tempdir()?;
        resolve_in(dir.path(), args, env)
    }

    fn resolve_in(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Result<Settings> {
        let cli = Cli::parse_from(["agent-cli", "start"].iter().chain(args));
        let Command::Start(args) = cli.command else {
            bail!("not start")
        };
        let env = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Settings::resolve(&args, &env.collect(), dir)
    }

    #[test]
    fn flags_win_over_variables_and_empty_ones_do_not_count() {
        let env = [
            ("NAMESPACE", "flows"),
            ("PREFECT__CLOUD__AGENT__LABELS", "['x', \"y\"]"),
            ("PREFECT__BACKEND", "server"),
        ];
        let settings =
            resolve(&["--namespace", "", "-l", "b", "-l", "a", "-l", "b"], &env).expect("fine");
        assert_eq!(settings.namespace, "flows");
        assert_eq!(settings.labels, ["a", "b"]);
        assert_eq!(settings.url, "http://localhost:4200");
        let settings = resolve(&["--namespace", "mine"], &env).expect("fine");
        assert_eq!(
            (settings.namespace.as_str(), settings.labels.as_slice()),
            ("mine", &["x".to_owned(), "y".to_owned()][..])
        );
        assert_eq!(settings.manifest.labels, "['x', 'y']");
    }

    #[test]
    fn variables_that_nothing_reads_are_told_with_the_flags_that_work() {
        let env = [("JOB_MEM_REQUEST", "1Gi"), ("IMAGE_PULL_POLICY", "")];
        let settings = resolve(&["--mem-limit", "2Gi"], &env).expect("fine");
        assert_eq!(settings.manifest.resources.memory_request, None);
        let limit = settings.manifest.resources.memory_limit;
        assert_eq!(limit.as_deref(), Some("2Gi"));
        let [warning] = settings.warnings.as_slice() else {
            panic!("{:?}", settings.warnings)
        };
        assert!(warning.contains("JOB_MEM_REQUEST") && warning.contains("--mem-request"));
    }

    #[test]
    fn labels_that_are_no_list_are_split_at_commas() {
        for (text, labels) in [
            ("prod", &["prod"][..]),
            ("a, b,", &["a", "b"]),
            ("[1, 2]", &["1", "2"]),
            ("", &[]),
        ] {
            let settings = resolve(&[], &[("PREFECT__CLOUD__AGENT__LABELS", text)]);
            assert_eq!(settings.expect("fine").labels, labels, "{text}");
        }
    }

    #[test]
    fn errors_name_the_input_and_the_fix() {
        for (args, env, part) in [
            (
                &["--tenant-id", "acme"][..],
                ("", ""),
                "must be a valid UUID. Got 'acme'. (from --tenant-id)",
            ),
            (&["-e", "novalue"], ("", ""), "NAME=VALUE"),
            (
                &[],
                ("PREFECT__LOGGING__LEVEL", "debug"),
                "Unknown level: 'debug'; set PREFECT__LOGGING__LEVEL",
            ),
            (
                &[],
                ("PREFECT__CLOUD__AGENT__LABELS", "5"),
                "PREFECT__CLOUD__AGENT__LABELS is no list",
            ),
            (
                &[],
                ("PREFECT__CLOUD__AGENT__ENV_VARS", "{'A': None}"),
                "the value of A is no text",
            ),
            (&["--agent-address", ":8080"], ("", ""), "http://HOST:PORT"),
            (
                &["--volume", "{emptyDir: {}}"],
                ("", ""),
                "--volume: expected a mapping with a name",
            ),
            (
                &[],
                ("JOB_VOLUMES", "[a"),
                "JOB_VOLUMES: line 2, column 1: while parsing a flow sequence",
            ),
            (&["--flow-run-key-secret", "a/b/c"], ("", ""), "NAME/KEY"),
            (&["--job-patch", "none.yaml"], ("", ""), "none.yaml"),
            (
                &[],
                ("PREFECT__CLOUD__REQUEST_TIMEOUT", "soon"),
                "PREFECT__CLOUD__REQUEST_TIMEOUT",
            ),
        ] {
            let error = format!("{:#}", resolve(args, &[env]).expect_err("refused"));
            assert!(error.contains(part), "{error}");
        }
        let settings = resolve(&[], &[("PREFECT__BACKEND", "mars")]).expect("told later");
        let error = settings.api().expect_err("refused").to_string();
        assert!(error.contains("Unknown backend setting 'mars'"), "{error}");
    }

    #[test]
    fn the_backend_of_a_flag_decides_the_address_and_the_key() {
        let env = [("PREFECT__BACKEND", "cloud")];
        let settings = resolve(&["--backend", "server"], &env).expect("fine");
        assert_eq!(settings.backend().expect("known"), Backend::Server);
        assert_eq!(settings.url, "http://localhost:4200");
        assert_eq!(settings.manifest.backend, "server");
        let backend = settings.effective.iter().find(|row| row.name == "backend");
        let origin = &backend.expect("shown").origin;
        assert_eq!(*origin, Origin::Flag("--backend"));
    }

    #[test]
    fn a_wrong_value_in_a_file_is_named_with_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("c.toml"), "[cloud.agent]\nlabels = 5\n").expect("written");
        let env = [("PREFECT__USER_CONFIG_PATH", "c.toml")];
        let error = resolve_in(dir.path(), &[], &env).expect_err("refused");
        let error = format!("{error:#}");
        assert!(
            error.contains("c.toml") && error.contains("cloud.agent.labels"),
            "{error}"
        );
    }

    #[test]
    fn effective_settings_know_their_origin_and_hide_secrets() {
        let env = [
            ("PREFECT__CLOUD__API_KEY", "hush-hush"),
            ("NAMESPACE", "flows"),
        ];
        let settings = resolve(&["-e", "PASSWORD=hush", "-l", "a"], &env).expect("fine");
        let found = |name: &str| {
            let effective = settings.effective.iter().find(|one| one.name == name);
            let effective = effective.expect(name);
            (effective.value.clone(), effective.origin.to_string())
        };
        assert_eq!(found("cloud.api_key").1, "PREFECT__CLOUD__API_KEY");
        assert_eq!(found("namespace"), ("flows".into(), "NAMESPACE".into()));
        assert_eq!(
            found("cloud.agent.labels"),
            ("['a']".into(), "--label".into())
        );
        assert_eq!(
            found("cloud.agent.name"),
            ("agent".into(), "default".into())
        );
        assert!(
            settings
                .effective
                .iter()
                .all(|one| !one.value.contains("hush"))
        );
    }
}
