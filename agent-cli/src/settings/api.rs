//! What is told about the Prefect API: key, tenant, labels, TLS.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::sources::{Given, Sources};
use crate::args::StartArgs;
use crate::config::{Origin, Setting};
use crate::python;

/// Key and tenant: each from a flag, the configuration or the auth file.
pub(super) fn credentials(
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

pub(super) fn labels(from: &mut Sources<'_>, args: &StartArgs) -> Result<Vec<String>> {
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
pub(super) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    }
}

/// Who may vouch for the API. The variables are those of the Python agent's HTTP library.
pub(super) fn ca(from: &mut Sources<'_>, args: &StartArgs, cwd: &Path) -> Result<Option<Vec<u8>>> {
    let mut found = from.pick("--api-ca", &args.api_ca, "cloud.tls.ca");
    for variable in ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"] {
        found = found.or_else(|| from.pick_variable("", &None, variable));
    }
    from.show("cloud.tls.ca", found.as_ref(), "the system's");
    found.map(|found| pem(&found, cwd)).transpose()
}

/// The content of a file that a setting names.
pub(super) fn pem((file, origin): &Given<String>, cwd: &Path) -> Result<Vec<u8>> {
    let path = cwd.join(file);
    std::fs::read(&path).with_context(|| format!("cannot read {} ({origin})", path.display()))
}

pub(super) fn request_timeout(from: &mut Sources<'_>) -> Result<Duration> {
    let key = "cloud.request_timeout";
    let found = from.pick("", &None, key);
    let (text, origin) = from.settle(key, found, "15");
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|timeout| !timeout.is_zero())
        .with_context(|| format!("{} is {text:?}; use a number of seconds", origin.of(key)))
}
