//! What the agent is told by flags, environment and files, made whole.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use agent_api_client::{ApiSettings, Backend};
use agent_k8s::install::API_KEY;
use agent_k8s::{Graces, JobPatch, JobResources, KeySecret, ManifestSettings, yaml};
use agent_templates::{Scheme, TemplateSettings};
use anyhow::{Context, Result, anyhow, bail, ensure};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde_json::Value;

use crate::args::{Level, LogFormat, StartArgs};
use crate::config::{Config, Environment, Origin, Setting};
use crate::python;

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

/// One setting as it takes effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// Prefect's name of the setting, or the flag's.
    pub name: &'static str,
    /// Its value; secrets are masked.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// A value and where it came from.
type Given<T> = (T, Origin);

/// Settings as they are found, one by one.
struct Sources<'a> {
    config: &'a Config,
    effective: Vec<Effective>,
}

impl Sources<'_> {
    fn record(&mut self, name: &'static str, value: impl Into<String>, origin: Origin) {
        self.effective.push(Effective {
            name,
            value: value.into(),
            origin,
        });
    }

    /// A flag that is not empty, else a setting of the configuration.
    fn pick(&self, flag: &'static str, given: &Option<String>, key: &str) -> Option<Given<String>> {
        flag_given(flag, given).or_else(|| Some((self.config.text(key)?, self.config.origin(key))))
    }

    /// A flag that is not empty, else a variable that is not.
    fn pick_variable(
        &self,
        flag: &'static str,
        given: &Option<String>,
        variable: &str,
    ) -> Option<Given<String>> {
        flag_given(flag, given).or_else(|| {
            let text = self.config.variable(variable)?;
            (!text.is_empty()).then(|| (text.to_owned(), Origin::Variable(variable.to_owned())))
        })
    }

    /// Records what was found, or a default.
    fn settle(
        &mut self,
        name: &'static str,
        found: Option<Given<String>>,
        default: &str,
    ) -> Given<String> {
        let (value, origin) = found.unwrap_or_else(|| (default.to_owned(), Origin::Default));
        self.record(name, &value, origin.clone());
        (value, origin)
    }

    fn show(&mut self, name: &'static str, found: Option<&Given<String>>, otherwise: &str) {
        match found {
            Some((value, origin)) => self.record(name, value, origin.clone()),
            None => self.record(name, otherwise, Origin::Default),
        }
    }
}

fn flag_given(flag: &'static str, given: &Option<String>) -> Option<Given<String>> {
    let text = given.as_ref().filter(|text| !text.is_empty())?;
    Some((text.clone(), Origin::Flag(flag)))
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
        let delete_finished_jobs = deletion(&mut from, args);
        let address = from.pick(
            "--agent-address",
            &args.agent_address,
            "cloud.agent.agent_address",
        );
        from.show("cloud.agent.agent_address", address.as_ref(), "none");
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
            keep_jobs: (args.keep_succeeded_jobs, args.keep_failed_jobs),
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
            output_lines: args.output_lines,
            log_level,
            log_format: args.log_format,
            warnings: unread(&config),
            effective: from.effective,
        })
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

/// Key and tenant: each from a flag, the configuration or the auth file.
fn credentials(
    from: &mut Sources<'_>,
    args: &StartArgs,
    url: &str,
) -> Result<(Option<SecretString>, Option<String>)> {
    let given = args.key.as_ref().map(|key| key.expose_secret().to_owned());
    let mut key = from.pick("--key", &given, "cloud.api_key");
    let mut tenant = from.pick("--tenant-id", &args.tenant_id, "cloud.tenant_id");
    if key.is_none() || tenant.is_none() {
        let (file_key, file_tenant, file) = from.config.auth(url)?;
        key = key.or_else(|| Some((file_key?, file.clone())));
        tenant = tenant.or_else(|| Some((file_tenant?, file)));
    }
    let shown = key
        .as_ref()
        .map(|(key, origin)| (mask(key), origin.clone()));
    from.show("cloud.api_key", shown.as_ref(), "none");
    let tenant = tenant
        .map(|(id, origin)| anyhow::Ok((normalized(&id, &origin)?, origin)))
        .transpose()?;
    match &tenant {
        Some((id, origin)) => from.record("cloud.tenant_id", id, origin.clone()),
        None => from.record("cloud.tenant_id", "", Origin::Api),
    }
    Ok((
        key.map(|(key, _)| SecretString::from(key)),
        tenant.map(|(id, _)| id),
    ))
}

/// A secret as it may be shown.
fn mask(secret: &str) -> String {
    format!("*** ({} characters)", secret.chars().count())
}

/// A tenant id in lower case with dashes.
pub(crate) fn normalized(id: &str, origin: &Origin) -> Result<String> {
    let plain = id.replace("urn:", "").replace("uuid:", "");
    let hex: String = plain
        .trim_matches(['{', '}'])
        .chars()
        .filter(|c| *c != '-')
        .collect::<String>()
        .to_ascii_lowercase();
    ensure!(
        hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "The `tenant_id` must be a valid UUID. Got '{id}'. (from {origin})"
    );
    Ok(format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    ))
}

fn labels(from: &mut Sources<'_>, args: &StartArgs) -> Result<Vec<String>> {
    let key = "cloud.agent.labels";
    let (labels, origin) = if args.labels.is_empty() {
        let Some(setting) = from.config.get(key) else {
            from.record(key, "[]", Origin::Default);
            return Ok(Vec::new());
        };
        let labels = listed(setting).with_context(|| {
            format!(
                "{} is no list of labels; use a list such as ['a', 'b']",
                setting.origin.of(key)
            )
        })?;
        (labels, setting.origin.clone())
    } else {
        (sorted(&args.labels), Origin::Flag("--label"))
    };
    from.record(key, python::list(&labels), origin);
    Ok(labels)
}

/// Labels in the order in which they are told, each once.
pub(crate) fn sorted(labels: &[String]) -> Vec<String> {
    let mut labels = labels.to_vec();
    labels.sort();
    labels.dedup();
    labels
}

/// The texts of a list; a text that is no list is split at its commas.
fn listed(setting: &Setting) -> Option<Vec<String>> {
    match &setting.value {
        Value::Null => Some(Vec::new()),
        Value::String(text) => Some(
            text.split(',')
                .map(|item| item.trim().to_owned())
                .filter(|item| !item.is_empty())
                .collect(),
        ),
        Value::Array(items) => items.iter().map(scalar).collect(),
        _ => None,
    }
}

/// A text, number or boolean as text.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    }
}

/// Who may vouch for the API. The variables are those of the Python agent's HTTP library.
fn ca(from: &mut Sources<'_>, args: &StartArgs, cwd: &Path) -> Result<Option<Vec<u8>>> {
    let mut found = from.pick("--api-ca", &args.api_ca, "cloud.tls.ca");
    for variable in ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"] {
        found = found.or_else(|| from.pick_variable("", &None, variable));
    }
    from.show("cloud.tls.ca", found.as_ref(), "the system's");
    found.map(|found| pem(&found, cwd)).transpose()
}

/// The content of a file that a setting names.
fn pem((file, origin): &Given<String>, cwd: &Path) -> Result<Vec<u8>> {
    let path = cwd.join(file);
    std::fs::read(&path).with_context(|| format!("cannot read {} ({origin})", path.display()))
}

fn request_timeout(from: &mut Sources<'_>) -> Result<Duration> {
    let key = "cloud.request_timeout";
    let found = from.pick("", &None, key);
    let (text, origin) = from.settle(key, found, "15");
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|timeout| !timeout.is_zero())
        .with_context(|| format!("{} is {text:?}; use a number of seconds", origin.of(key)))
}

/// What goes into every Job, but for what describes the API.
fn manifest(from: &mut Sources<'_>, args: &StartArgs, cwd: &Path) -> Result<ManifestSettings> {
    let job_template = flag_given("--job-template", &args.job_template);
    from.show("--job-template", job_template.as_ref(), "built in");
    let (resources, image_pull_policy) = resources(from, args);
    Ok(ManifestSettings {
        job_template: job_template.map(|(path, _)| path),
        service_account_name: service_account(from, args),
        image_pull_secrets: pull_secrets(from, args),
        resources,
        image_pull_policy,
        env: flow_env(from, args)?,
        volumes: items(from, "--volume", &args.volumes, "JOB_VOLUMES", "name")?,
        volume_mounts: items(
            from,
            "--volume-mount",
            &args.volume_mounts,
            "JOB_VOLUME_MOUNTS",
            "mountPath",
        )?,
        key_secret: key_secret(from, args)?,
        logging_level: flow_level(from)?,
        send_flow_run_logs: logs(from, args),
        patch: patch(from, args, cwd)?,
        ..ManifestSettings::default()
    })
}

fn templates(args: &StartArgs, cwd: &Path) -> TemplateSettings {
    let schemes = |given: &[Scheme], default| {
        if given.is_empty() {
            default
        } else {
            given.iter().copied().collect()
        }
    };
    TemplateSettings {
        base: cwd.to_owned(),
        agent_schemes: schemes(&args.allow_template_scheme, Scheme::all()),
        flow_schemes: schemes(&args.allow_flow_template_scheme, Scheme::for_flows()),
        flow_dir: args.flow_template_dir.as_ref().map(|dir| cwd.join(dir)),
        flow_private_http: args.allow_private_flow_templates,
        stale_ok: args.template_stale_ok,
        ..TemplateSettings::default()
    }
}

fn service_account(from: &mut Sources<'_>, args: &StartArgs) -> Option<String> {
    let (flag, variable) = ("--service-account-name", "SERVICE_ACCOUNT_NAME");
    let found = flag_given(flag, &args.service_account_name).or_else(|| {
        // Here an empty variable counts as given.
        let text = from.config.variable(variable)?;
        Some((text.to_owned(), Origin::Variable(variable.to_owned())))
    });
    from.show(flag, found.as_ref(), "none");
    found.map(|(name, _)| name)
}

fn pull_secrets(from: &mut Sources<'_>, args: &StartArgs) -> Option<Vec<String>> {
    let flag = "--image-pull-secrets";
    let given = args.image_pull_secrets.clone();
    let found = given
        .map(|names| (names, Origin::Flag(flag)))
        .or_else(|| from.pick_variable(flag, &None, "IMAGE_PULL_SECRETS"));
    from.show(flag, found.as_ref(), "none");
    let (names, _) = found?;
    Some(
        names
            .split(',')
            .map(|name| name.trim().to_owned())
            .collect(),
    )
}

/// What flows may use that say nothing, and when their image is pulled.
fn resources(from: &mut Sources<'_>, args: &StartArgs) -> (JobResources, Option<String>) {
    let [memory_request, memory_limit, cpu_request, cpu_limit, policy] =
        args.resources.flags().map(|(flag, value)| {
            let found = flag_given(flag, &value);
            from.show(flag, found.as_ref(), "none");
            value
        });
    let resources = JobResources {
        memory_request,
        memory_limit,
        cpu_request,
        cpu_limit,
    };
    (resources, policy)
}

fn flow_env(from: &mut Sources<'_>, args: &StartArgs) -> Result<Vec<(String, String)>> {
    let key = "cloud.agent.env_vars";
    let (env, origin) = if args.env.is_empty() {
        configured_env(from.config, key)?
    } else {
        let pairs = args.env.iter().map(|pair| pair_of(pair));
        (pairs.collect::<Result<_>>()?, Origin::Flag("--env"))
    };
    let names: Vec<String> = env.iter().map(|(name, _)| format!("{name}=***")).collect();
    from.record(key, names.join(" "), origin);
    Ok(env)
}

/// A variable as `--env` takes it.
pub(crate) fn pair_of(pair: &str) -> Result<(String, String)> {
    let (name, value) = pair
        .split_once('=')
        .with_context(|| format!("--env {pair:?} has no `=`; use --env NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn configured_env(config: &Config, key: &str) -> Result<Given<Vec<(String, String)>>> {
    let table = config.table(key);
    let (members, origin) = match config.get(key) {
        None if table.is_empty() => return Ok((Vec::new(), Origin::Default)),
        None => {
            let origin = config.origin_of_table(key);
            (table, origin)
        }
        Some(setting) => match &setting.value {
            Value::Null => return Ok((Vec::new(), Origin::Default)),
            Value::String(text) if text.is_empty() => return Ok((Vec::new(), Origin::Default)),
            Value::Object(members) => (members.clone(), setting.origin.clone()),
            _ => bail!(
                "{} is no mapping of names to texts; use {{\"NAME\": \"value\"}}",
                setting.origin.of(key)
            ),
        },
    };
    let env = members.iter().map(|(name, value)| {
        let value = scalar(value)
            .with_context(|| format!("{}: the value of {name} is no text", origin.of(key)))?;
        Ok((name.clone(), value))
    });
    Ok((env.collect::<Result<_>>()?, origin))
}

/// Mappings given one by one as flags, or as a list in a variable.
fn items(
    from: &mut Sources<'_>,
    flag: &'static str,
    given: &[String],
    variable: &'static str,
    key: &str,
) -> Result<Vec<Value>> {
    let one = |text: &str, name: &str| {
        let value = yaml::parse(text.as_bytes()).map_err(|error| anyhow!("{name}: {error}"))?;
        ensure!(
            value[key].is_string(),
            "{name}: expected a mapping with a {key}, such as {{\"{key}\": …}}"
        );
        Ok(value)
    };
    let (items, origin) = if given.is_empty() {
        match from
            .config
            .variable(variable)
            .filter(|text| !text.is_empty())
        {
            None => (Vec::new(), Origin::Default),
            Some(text) => {
                let value =
                    yaml::parse(text.as_bytes()).map_err(|error| anyhow!("{variable}: {error}"))?;
                let items = match value {
                    Value::Array(items) => items,
                    other => vec![other],
                };
                ensure!(
                    items.iter().all(|item| item[key].is_string()),
                    "{variable}: expected a list of mappings, each with a {key}"
                );
                (items, Origin::Variable(variable.to_owned()))
            }
        }
    } else {
        let items = given.iter().map(|text| one(text, flag));
        (items.collect::<Result<_>>()?, Origin::Flag(flag))
    };
    let names: Vec<&str> = items.iter().filter_map(|item| item[key].as_str()).collect();
    let names = if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(" ")
    };
    from.record(flag, names, origin);
    Ok(items)
}

fn key_secret(from: &mut Sources<'_>, args: &StartArgs) -> Result<Option<KeySecret>> {
    let flag = "--flow-run-key-secret";
    let found = from.pick_variable(flag, &args.flow_run_key_secret, "FLOW_RUN_KEY_SECRET");
    from.show(flag, found.as_ref(), "none");
    let Some((text, origin)) = found else {
        return Ok(None);
    };
    let (name, key) = name_and_key(&text, API_KEY)
        .with_context(|| format!("{origin} is {text:?}; use NAME or NAME/KEY"))?;
    Ok(Some(KeySecret { name, key }))
}

/// The parts of `NAME/KEY`, or of `NAME` alone.
pub(crate) fn name_and_key(text: &str, default: &str) -> Option<(String, String)> {
    let (name, key) = text.split_once('/').unwrap_or((text, default));
    let sound = !name.is_empty() && !key.is_empty() && !key.contains('/');
    sound.then(|| (name.to_owned(), key.to_owned()))
}

/// The logging level of flows: a level's name in capitals, or a number.
fn flow_level(from: &mut Sources<'_>) -> Result<String> {
    const LEVELS: [&str; 8] = [
        "CRITICAL", "FATAL", "ERROR", "WARNING", "WARN", "INFO", "DEBUG", "NOTSET",
    ];
    let key = "logging.level";
    let found = from.pick("", &None, key);
    let (level, origin) = from.settle(key, found, "INFO");
    ensure!(
        LEVELS.contains(&level.as_str()) || level.parse::<i64>().is_ok(),
        "Unknown level: '{level}'; set {} to one of DEBUG, INFO, WARNING, ERROR, CRITICAL",
        origin.of(key)
    );
    Ok(level)
}

fn logs(from: &mut Sources<'_>, args: &StartArgs) -> String {
    let key = "cloud.send_flow_run_logs";
    if args.no_cloud_logs {
        from.record(key, "false", Origin::Flag("--no-cloud-logs"));
        return "false".to_owned();
    }
    let value = match from.config.get(key).map(|setting| &setting.value) {
        Some(Value::String(text)) => text.to_lowercase(),
        Some(other) => other.to_string(),
        None => "true".to_owned(),
    };
    from.record(key, &value, from.config.origin(key));
    value
}

fn patch(from: &mut Sources<'_>, args: &StartArgs, cwd: &Path) -> Result<Option<JobPatch>> {
    let flag = "--job-patch";
    let found = from.pick_variable(flag, &args.job_patch, "JOB_PATCH");
    from.show(flag, found.as_ref(), "none");
    let Some((path, origin)) = found else {
        return Ok(None);
    };
    let text = std::fs::read(cwd.join(&path))
        .with_context(|| format!("cannot read the job patch {path} (from {origin})"))?;
    JobPatch::parse(path, &text)
        .map(Some)
        .map_err(|error| anyhow!("{error} (from {origin})"))
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
    let wrong = || {
        format!(
            "Must specify port in agent address: {address:?} is not of the form http://HOST:PORT"
        )
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
        .with_context(|| format!("the host in the agent address {address:?} is not known"))
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
