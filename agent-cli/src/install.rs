//! `agent-cli install` and `uninstall`: the agent's own objects as YAML; contacts nothing.

use std::io::Write;
use std::path::Path;

use agent_k8s::install::{
    API_KEY, ConfigMapKey, Install, Key, NAME, PORT, TEMPLATE_DIR, check_name,
};
use agent_k8s::{KeySecret, yaml};
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};
use url::Url;

use crate::args::{Cli, Command, InstallArgs, StartArgs};
use crate::config::{Config, Environment, Origin};
use crate::python;
use crate::settings::{lease_of, name_and_key, normalized, pair_of, sorted};

/// The image without its tag. Nobody publishes one: it is what the project's own builds call it.
const IMAGE: &str = "localhost/prefect-kubernetes-agent";
/// The key of a ConfigMap that holds the job template when nobody names another.
const TEMPLATE_KEY: &str = "job.yaml";
/// The address of Prefect Cloud's API.
const CLOUD: &str = "https://api.prefect.io";

/// What becomes of the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// They are to be made: everything is told.
    Install,
    /// They are to be deleted: what names them is told.
    Uninstall,
}

/// Prints the objects.
///
/// # Errors
/// Names the flag that cannot be, and what it should be.
pub fn run(
    args: &InstallArgs,
    purpose: Purpose,
    environment: &Environment,
    cwd: &Path,
) -> Result<()> {
    let objects = objects(args, purpose, environment, cwd)?;
    if purpose == Purpose::Install && is_within_reach(args) {
        eprintln!(
            "warning: the agent's Secret and service account are in {0}, where every flow's Job may name them; if several teams share {0}, give the agent a namespace of its own, with --agent-namespace",
            args.namespace
        );
    }
    let documents = objects
        .iter()
        .map(|object| format!("---\n{}", yaml::write(object)));
    std::io::stdout()
        .write_all(documents.collect::<String>().as_bytes())
        .context("cannot write the objects")
}

/// Whether Jobs run where the agent's key and rights are.
fn is_within_reach(args: &InstallArgs) -> bool {
    let apart = given(&args.agent_namespace).is_some_and(|own| own != args.namespace);
    let has_key = args
        .key
        .as_ref()
        .is_some_and(|key| !key.expose_secret().is_empty());
    !apart && (has_key || args.secret_name.is_some())
}

/// The objects that these flags ask for.
///
/// # Errors
/// As [`run`].
pub fn objects(
    args: &InstallArgs,
    purpose: Purpose,
    environment: &Environment,
    cwd: &Path,
) -> Result<Vec<Value>> {
    let mut install = install(args, purpose, environment, cwd)?;
    if purpose == Purpose::Uninstall && install.key.is_none() {
        // Whoever deletes an agent need not know its key.
        install.key = Some(Key::Own(SecretString::from("")));
    }
    let objects = install.objects().map_err(|error| anyhow!(error))?;
    Ok(match purpose {
        Purpose::Install => objects,
        Purpose::Uninstall => objects.iter().rev().map(named).collect(),
    })
}

/// Only what names an object.
fn named(object: &Value) -> Value {
    let metadata = &object["metadata"];
    json!({
        "apiVersion": object["apiVersion"],
        "kind": object["kind"],
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
    })
}

fn install(
    args: &InstallArgs,
    purpose: Purpose,
    environment: &Environment,
    cwd: &Path,
) -> Result<Install> {
    let backend = match &args.backend {
        Some(backend) => backend.clone(),
        None => configured_backend(environment, cwd)?,
    };
    let api = match (&args.api, backend.as_str()) {
        (Some(api), _) => address(api)?,
        (None, "server") if purpose == Purpose::Install => {
            bail!("the address of the server's API is not known; say it with --api")
        }
        (None, _) => CLOUD.to_owned(),
    };
    let (arguments, start) = start_flags(args)?;
    // Beside the flags of `start`: other commands are run in the pod, too.
    let mut lease_env = None;
    let lease = match (&start.lease_name, given(&args.tenant_id)) {
        (Some(name), _) => {
            lease_env = Some(name.clone());
            name.clone()
        }
        (None, Some(tenant)) => lease_of(&normalized(&tenant, &Origin::Flag("--tenant-id"))?),
        (None, None) => {
            // Which tenant it is turns out later, and the Role has to name the Lease now.
            let lease = lease_of(&server_of(&api));
            lease_env = Some(lease.clone());
            lease
        }
    };
    let mut env = variables(args, &backend, &api)?;
    env.extend(lease_env.map(|name| ("PREFECT_AGENT_LEASE_NAME".to_owned(), name)));
    Ok(Install {
        name: args.name.clone(),
        agent_namespace: args
            .agent_namespace
            .clone()
            .unwrap_or_else(|| args.namespace.clone()),
        namespace: args.namespace.clone(),
        image: image(args)?,
        args: arguments,
        env,
        key: key(args)?,
        image_pull_secrets: pull_secrets(args),
        service_account: given(&args.agent_service_account),
        rbac: args.rbac,
        lease,
        replicas: args.replicas,
        job_template: template(args)?,
        pod_disruption_budget: args.pod_disruption_budget,
        network_policy: args.network_policy.then(|| ports(&api, &start, args)),
        service_monitor: args.service_monitor,
    })
}

/// The host and port of an address, as a part of a name.
fn server_of(api: &str) -> String {
    let rest = api.split_once("://").map_or(api, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority
        .rsplit('@')
        .next()
        .unwrap_or_default()
        .to_lowercase();
    let words = host.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.join("-").chars().take(200).collect()
}

/// A flag that is not empty.
fn given(flag: &Option<String>) -> Option<String> {
    flag.clone().filter(|text| !text.is_empty())
}

/// The one thing that `install` takes from the configuration of whoever runs it.
fn configured_backend(environment: &Environment, cwd: &Path) -> Result<String> {
    let config = Config::load(environment, cwd)?;
    let backend = config.text("backend").unwrap_or_default();
    ensure!(
        matches!(backend.as_str(), "cloud" | "server"),
        "Unknown backend setting '{backend}' (from {}); use --backend cloud or --backend server",
        config.origin("backend").of("backend")
    );
    Ok(backend)
}

fn address(api: &str) -> Result<String> {
    let sound =
        Url::parse(api).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    ensure!(
        sound,
        "--api {:?} is not an http or https address, such as http://apollo:4200",
        agent_core::shown::address(api)
    );
    Ok(api.to_owned())
}

fn image(args: &InstallArgs) -> Result<String> {
    let version = env!("CARGO_PKG_VERSION");
    let tag = if args.latest { "latest" } else { version };
    let Some(image) = given(&args.image) else {
        return Ok(format!("{IMAGE}:{tag}"));
    };
    let last = image.rsplit('/').next().unwrap_or(&image);
    let sound = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    ensure!(
        image.chars().all(sound)
            && last.starts_with(|c: char| c.is_ascii_alphanumeric())
            && last.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_'),
        "--image {image:?} is no image, such as registry.example.com/agent:1"
    );
    if !last.contains([':', '@']) {
        return Ok(format!("{image}:{tag}"));
    }
    ensure!(
        !args.latest,
        "--image {image:?} has a tag already; leave --latest out"
    );
    Ok(image)
}

fn key(args: &InstallArgs) -> Result<Option<Key>> {
    if let Some(key) = &args.key
        && !key.expose_secret().is_empty()
    {
        return Ok(Some(Key::Own(key.clone())));
    }
    let Some(secret) = &args.secret_name else {
        return Ok(None);
    };
    let (name, key) = name_and_key(secret, API_KEY)
        .with_context(|| format!("--secret-name is {secret:?}; use NAME or NAME/KEY"))?;
    Ok(Some(Key::Existing(KeySecret { name, key })))
}

fn template(args: &InstallArgs) -> Result<Option<ConfigMapKey>> {
    let Some(map) = &args.job_template_configmap else {
        return Ok(None);
    };
    let (name, key) = name_and_key(map, TEMPLATE_KEY)
        .with_context(|| format!("--job-template-configmap is {map:?}; use NAME or NAME/KEY"))?;
    Ok(Some(ConfigMapKey { name, key }))
}

fn pull_secrets(args: &InstallArgs) -> Vec<String> {
    let names = args.image_pull_secrets.as_deref().unwrap_or_default();
    names
        .split(',')
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

/// The variables, in the Python agent's order; what nobody gave is not there.
fn variables(args: &InstallArgs, backend: &str, api: &str) -> Result<Vec<(String, String)>> {
    let mut variables = vec![
        ("PREFECT__CLOUD__API", api.to_owned()),
        ("NAMESPACE", args.namespace.clone()),
    ];
    if let Some(secrets) = given(&args.image_pull_secrets) {
        variables.push(("IMAGE_PULL_SECRETS", secrets));
    }
    let labels = python::list(&sorted(&args.labels));
    variables.push(("PREFECT__CLOUD__AGENT__LABELS", labels));
    if let Some(account) = given(&args.service_account_name) {
        check_name("the service account of the Jobs", &account).map_err(|error| anyhow!(error))?;
        variables.push(("SERVICE_ACCOUNT_NAME", account));
    }
    variables.push(("PREFECT__BACKEND", backend.to_owned()));
    let listen = format!("http://:{PORT}");
    variables.push(("PREFECT__CLOUD__AGENT__AGENT_ADDRESS", listen));
    if let Some(tenant) = given(&args.tenant_id) {
        let tenant = normalized(&tenant, &Origin::Flag("--tenant-id"))?;
        variables.push(("PREFECT__CLOUD__TENANT_ID", tenant));
    }
    if !args.env.is_empty() {
        let pairs = args.env.iter().map(|pair| {
            let (name, value) = pair_of(pair)?;
            anyhow::Ok((name, Value::String(value)))
        });
        let pairs: Map<String, Value> = pairs.collect::<Result<_>>()?;
        let pairs = Value::Object(pairs).to_string();
        variables.push(("PREFECT__CLOUD__AGENT__ENV_VARS", pairs));
    }
    if args.name != NAME {
        variables.push(("PREFECT__CLOUD__AGENT__NAME", args.name.clone()));
    }
    let owned = |(name, value): (&str, String)| (name.to_owned(), value);
    Ok(variables.into_iter().map(owned).collect())
}

/// What follows `start`, and what `start` will take it for.
fn start_flags(args: &InstallArgs) -> Result<(Vec<String>, StartArgs)> {
    let mut flags = Vec::new();
    let mut add = |flag: &str, value: Option<String>| {
        if let Some(value) = value {
            flags.push(format!("{flag}={value}"));
        }
    };
    add("--agent-config-id", given(&args.agent_config_id));
    for (flag, value) in args.resources.flags() {
        add(flag, value);
    }
    let template = template(args)?;
    let template = template.map(|map| format!("{TEMPLATE_DIR}/{}", map.key));
    add("--job-template", template);
    flags.extend(args.start.iter().cloned());
    let line = ["agent-cli", "start"].map(str::to_owned);
    let parsed = Cli::try_parse_from(line.into_iter().chain(flags.iter().cloned()));
    let command = parsed
        .map_err(|error| {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            anyhow!("`start` would refuse its flags: {}", text.trim_end())
        })?
        .command;
    let Command::Start(start) = command else {
        bail!("after `--`, only flags of `start` can follow");
    };
    let misplaced = [
        (start.key.is_some(), "--key"),
        (start.api.is_some(), "--api"),
        (start.backend.is_some(), "--backend"),
        (start.namespace.is_some(), "--namespace"),
        (start.agent_address.is_some(), "--agent-address"),
    ];
    if let Some((_, flag)) = misplaced.iter().find(|(given, _)| *given) {
        bail!("{flag} cannot follow `--`, because other objects than the Deployment depend on it");
    }
    Ok((flags, *start))
}

/// The ports that the agent needs: of the API, of a template on a web server, of HTTPS, the one that
/// most API servers listen at behind their Service, and those that were named.
fn ports(api: &str, start: &StartArgs, args: &InstallArgs) -> Vec<u16> {
    let port = |address: &str| Url::parse(address).ok()?.port_or_known_default();
    let template = start.job_template.as_deref().and_then(port);
    let mut ports: Vec<u16> = [Some(443), Some(6443), port(api), template]
        .into_iter()
        .flatten()
        .chain(args.network_policy_port.iter().copied())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}
