//! What is told about Jobs: their templates, resources, environment and patch.

use std::path::Path;

use agent_k8s::install::API_KEY;
use agent_k8s::{JobPatch, JobResources, KeySecret, ManifestSettings, yaml};
use agent_templates::{Scheme, TemplateSettings};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use super::api::scalar;
use super::sources::{Given, Sources, flag_given};
use crate::args::StartArgs;
use crate::config::{Config, Origin};

/// What goes into every Job, but for what describes the API.
pub(super) fn manifest(
    from: &mut Sources<'_>,
    args: &StartArgs,
    cwd: &Path,
) -> Result<ManifestSettings> {
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

pub(super) fn templates(args: &StartArgs, cwd: &Path) -> TemplateSettings {
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
        flow_nets: args.allow_flow_template_net.clone(),
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
        .with_context(|| match plausible_name(pair) {
            Some(name) => format!("--env {name} has no `=` behind the name; use --env NAME=VALUE"),
            None => "an --env has no `=`; use --env NAME=VALUE".to_owned(),
        })?;
    Ok((name.to_owned(), value.to_owned()))
}

/// What stands first, if it looks like a variable's name; what does not may be a value.
fn plausible_name(pair: &str) -> Option<&str> {
    /// Longer ones are rather keys.
    const LONGEST: usize = 40;
    let is_inner = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let end = pair.find(|c: char| !is_inner(c)).unwrap_or(pair.len());
    let (name, rest) = pair.split_at(end);
    let is_name = name.starts_with(|c: char| c.is_ascii_uppercase() || c == '_');
    let is_whole = rest.is_empty() || rest.starts_with([' ', '\t', ':']);
    (is_name && is_whole && name.len() <= LONGEST).then_some(name)
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
