//! What the agent is told by flags and environment, made whole.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};

use agent_api_client::{ApiSettings, Backend};
use agent_k8s::ManifestSettings;
use anyhow::{Context, Result, bail, ensure};
use secrecy::SecretString;

use crate::args::{Level, LogFormat, StartArgs};

/// The effective settings of `start`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How to reach the Prefect API.
    pub api: ApiSettings,
    /// What goes into every Job; the tenant is filled in when it is known.
    pub manifest: ManifestSettings,
    /// The namespace of the Jobs.
    pub namespace: String,
    /// Stop after so many polls.
    pub max_polls: Option<u64>,
    /// Where health is served.
    pub agent_address: Option<SocketAddr>,
    /// Deployments at the same time.
    pub concurrency: usize,
    /// Level of the agent's own log.
    pub log_level: Level,
    /// Form of the agent's own log.
    pub log_format: LogFormat,
}

/// The process environment, as text.
pub type Environment = HashMap<String, String>;

impl Settings {
    /// Settings from flags and environment.
    ///
    /// # Errors
    /// Names the flag or variable that cannot be read, and what it should be.
    pub fn resolve(args: &StartArgs, env: &Environment) -> Result<Self> {
        let variable = |name: &str| env.get(name).filter(|text| !text.is_empty()).cloned();
        let text = |flag: &Option<String>, name: &str| {
            flag.clone()
                .filter(|text| !text.is_empty())
                .or_else(|| variable(name))
        };
        let backend_name = variable("PREFECT__BACKEND").unwrap_or_else(|| "cloud".to_owned());
        let backend = match backend_name.as_str() {
            "cloud" => Backend::Cloud,
            "server" => Backend::Server,
            other => bail!("PREFECT__BACKEND is {other:?}; use \"cloud\" or \"server\""),
        };
        let default_api = match backend {
            Backend::Cloud => "https://api.prefect.io",
            Backend::Server => "http://localhost:4200",
        };
        let url = text(&args.api, "PREFECT__CLOUD__API").unwrap_or_else(|| default_api.to_owned());
        let labels = labels(args, env)?;
        let key = text(&args.key, "PREFECT__CLOUD__API_KEY").map(SecretString::from);
        let tenant_id = text(&args.tenant_id, "PREFECT__CLOUD__TENANT_ID")
            .map(|id| tenant(&id))
            .transpose()?;
        let logs = !args.no_cloud_logs
            && variable("PREFECT__CLOUD__SEND_FLOW_RUN_LOGS")
                .is_none_or(|on| !on.eq_ignore_ascii_case("false"));
        let manifest = ManifestSettings {
            job_template: args.job_template.clone().filter(|path| !path.is_empty()),
            service_account_name: text(&args.service_account_name, "SERVICE_ACCOUNT_NAME"),
            image_pull_secrets: text(&args.image_pull_secrets, "IMAGE_PULL_SECRETS").map(|names| {
                names
                    .split(',')
                    .map(|name| name.trim().to_owned())
                    .collect()
            }),
            env: flow_env(args, env)?,
            labels: python_list(&labels),
            backend: backend_name,
            api: url.clone(),
            key: key.clone(),
            tenant_id: tenant_id.clone().unwrap_or_default(),
            logging_level: variable("PREFECT__LOGGING__LEVEL").unwrap_or_else(|| "INFO".to_owned()),
            send_flow_run_logs: logs,
        };
        let mut api = ApiSettings::new(url, backend);
        api.key = key;
        api.tenant_id = tenant_id;
        api.name =
            text(&args.name, "PREFECT__CLOUD__AGENT__NAME").unwrap_or_else(|| "agent".to_owned());
        api.labels = labels;
        api.agent_config_id = args.agent_config_id.clone().filter(|id| !id.is_empty());
        if let Some(seconds) = variable("PREFECT__CLOUD__REQUEST_TIMEOUT") {
            api.request_timeout = seconds
                .parse()
                .ok()
                .and_then(|seconds| std::time::Duration::try_from_secs_f64(seconds).ok())
                .filter(|timeout| !timeout.is_zero())
                .with_context(|| {
                    format!(
                        "PREFECT__CLOUD__REQUEST_TIMEOUT is {seconds:?}; use a number of seconds"
                    )
                })?;
        }
        Ok(Self {
            api,
            manifest,
            namespace: text(&args.namespace, "NAMESPACE").unwrap_or_else(|| "default".to_owned()),
            max_polls: args.max_polls,
            agent_address: text(&args.agent_address, "PREFECT__CLOUD__AGENT__AGENT_ADDRESS")
                .map(|address| listen_address(&address))
                .transpose()?,
            concurrency: args.concurrency.into(),
            log_level: match args.log_level {
                Some(level) => level,
                None => level(variable("PREFECT__CLOUD__AGENT__LEVEL"))?,
            },
            log_format: args.log_format,
        })
    }
}

fn level(text: Option<String>) -> Result<Level> {
    let Some(text) = text else {
        return Ok(Level::Info);
    };
    match text.to_ascii_uppercase().as_str() {
        "DEBUG" => Ok(Level::Debug),
        "INFO" => Ok(Level::Info),
        "WARNING" | "WARN" => Ok(Level::Warning),
        "ERROR" | "CRITICAL" => Ok(Level::Error),
        _ => bail!("PREFECT__CLOUD__AGENT__LEVEL is {text:?}; use DEBUG, INFO, WARNING or ERROR"),
    }
}

fn labels(args: &StartArgs, env: &Environment) -> Result<Vec<String>> {
    if !args.labels.is_empty() {
        let mut labels = args.labels.clone();
        labels.sort();
        labels.dedup();
        return Ok(labels);
    }
    let name = "PREFECT__CLOUD__AGENT__LABELS";
    let Some(text) = env.get(name).filter(|text| !text.is_empty()) else {
        return Ok(Vec::new());
    };
    serde_yaml::from_str(text)
        .with_context(|| format!("{name} is {text:?}; use a list such as ['a', 'b']"))
}

fn flow_env(args: &StartArgs, env: &Environment) -> Result<BTreeMap<String, String>> {
    if args.env.is_empty() {
        let name = "PREFECT__CLOUD__AGENT__ENV_VARS";
        return match env.get(name).filter(|text| !text.is_empty()) {
            None => Ok(BTreeMap::new()),
            Some(text) => serde_yaml::from_str(text).ok().with_context(|| {
                format!("{name} is no mapping of names to texts; use {{\"NAME\": \"value\"}}")
            }),
        };
    }
    args.env
        .iter()
        .map(|pair| {
            let (name, value) = pair
                .split_once('=')
                .with_context(|| format!("--env {pair:?} has no `=`; use --env NAME=VALUE"))?;
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect()
}

fn tenant(id: &str) -> Result<String> {
    let message = || format!("The `tenant_id` must be a valid UUID. Got '{id}'.");
    let hex: String = id
        .chars()
        .filter(|c| *c != '-')
        .collect::<String>()
        .to_ascii_lowercase();
    ensure!(
        hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()),
        message()
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

/// A list of texts in Python's notation.
fn python_list(items: &[String]) -> String {
    let items: Vec<String> = items
        .iter()
        .map(|item| {
            let escaped = item.replace('\\', "\\\\");
            if item.contains('\'') && !item.contains('"') {
                format!("\"{escaped}\"")
            } else {
                format!("'{}'", escaped.replace('\'', "\\'"))
            }
        })
        .collect();
    format!("[{}]", items.join(", "))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn resolve(args: &[&str], env: &[(&str, &str)]) -> Result<Settings> {
        let Command::Start(args) =
            Cli::parse_from(["agent-cli", "start"].iter().chain(args)).command;
        let env = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Settings::resolve(&args, &env.collect())
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
        assert_eq!(settings.api.labels, ["a", "b"]);
        assert_eq!(settings.api.url, "http://localhost:4200");
        let settings = resolve(&["--namespace", "mine"], &env).expect("fine");
        assert_eq!(
            (settings.namespace.as_str(), settings.api.labels.as_slice()),
            ("mine", &["x".to_owned(), "y".to_owned()][..])
        );
        assert_eq!(settings.manifest.labels, "['x', 'y']");
    }

    #[test]
    fn errors_name_the_input_and_the_fix() {
        for (args, env, part) in [
            (
                &["--tenant-id", "acme"][..],
                ("", ""),
                "must be a valid UUID. Got 'acme'",
            ),
            (&["-e", "novalue"], ("", ""), "NAME=VALUE"),
            (&[], ("PREFECT__BACKEND", "mars"), "mars"),
            (&["--agent-address", ":8080"], ("", ""), "http://HOST:PORT"),
            (
                &[],
                ("PREFECT__CLOUD__REQUEST_TIMEOUT", "soon"),
                "PREFECT__CLOUD__REQUEST_TIMEOUT",
            ),
        ] {
            let error = resolve(args, &[env]).expect_err("refused").to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
