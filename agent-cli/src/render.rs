//! `agent-cli render`: prints the Job that `start` would create, without touching API or cluster.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use agent_api_client::{Backend, FlowRunRow};
use agent_core::TemplateLocation;
use agent_k8s::{Manifests, manifest, yaml};
use agent_templates::{Scheme, Templates};
use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};

use crate::args::{OutputFormat, RenderArgs};
use crate::settings::Settings;

/// Prints the manifest.
///
/// # Errors
/// What the flow run would be failed with, or what is wrong with the input.
pub fn run(args: &RenderArgs, mut settings: Settings, cwd: &Path) -> Result<()> {
    let row = input(args, cwd)?;
    allow_own_files(args, &mut settings, &row);
    let manifest = build(settings, row, args.api_tenant.as_deref())?;
    if let Err(what) = manifest::check(&manifest) {
        eprintln!("warning: Kubernetes will refuse this Job: {what}");
    }
    let text = match args.output {
        OutputFormat::Yaml => yaml::write(&manifest),
        OutputFormat::Json => format!("{manifest:#}\n"),
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot write the manifest")
}

/// Whoever renders names the files of this machine himself; `start` lets no flow do that unless it
/// was allowed.
fn allow_own_files(args: &RenderArgs, settings: &mut Settings, row: &FlowRunRow) {
    let start = &args.start;
    if !start.allow_flow_template_scheme.is_empty() || start.flow_template_dir.is_some() {
        return;
    }
    let path = row.run_config["job_template_path"].as_str();
    if path.is_some_and(|path| TemplateLocation::parse(path).is_local()) {
        eprintln!(
            "warning: `start` refuses this template, since flows may not name its files; allow it with --flow-template-dir or --allow-flow-template-scheme"
        );
    }
    let files = [Scheme::File, Scheme::Local];
    settings.templates.flow_schemes.extend(files);
}

/// Builds the manifest of a flow run as `start` would.
///
/// # Errors
/// What the flow run would be failed with; that the tenant is not known.
pub fn build(settings: Settings, row: FlowRunRow, api_tenant: Option<&str>) -> Result<Value> {
    let mut manifest_settings = settings.manifest.clone();
    manifest_settings.tenant_id = tenant(&settings, api_tenant)?;
    let store = Templates::new(settings.templates);
    let manifests = Manifests::new(manifest_settings, Arc::new(store));
    let run = row.into_flow_run();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let identifier = manifest::identifier(&run.attempt, 0);
    Ok(runtime
        .block_on(manifests.build(&run, &identifier))?
        .into_value())
}

/// The tenant that flows are told, if they are told one.
fn tenant(settings: &Settings, api_tenant: Option<&str>) -> Result<String> {
    if let Some(tenant) = &settings.tenant_id {
        return Ok(tenant.clone());
    }
    if settings.key.is_none() && settings.manifest.key_secret.is_none() {
        return Ok(String::new());
    }
    let backend = settings.backend()?;
    api_tenant.map(str::to_owned).with_context(|| {
        let asked = match backend {
            Backend::Cloud => "which tenant the key belongs to",
            Backend::Server => "for its first tenant",
        };
        format!("the tenant is not known: `start` would ask the API {asked}; say it with --tenant-id, or stand in for the API with --api-tenant")
    })
}

fn input(args: &RenderArgs, cwd: &Path) -> Result<FlowRunRow> {
    let mut row = match &args.flow_run {
        Some(path) => only_row(document(path, cwd)?).with_context(|| named(path))?,
        None => json!({
            "id": "00000000-0000-4000-8000-000000000001",
            "name": "rendered",
            "flow": {
                "id": "00000000-0000-4000-8000-000000000002",
                "name": "rendered",
                "core_version": "1.4.1",
                "storage": {"type": "Local"},
            },
        }),
    };
    if let Some(path) = &args.run_config {
        row["run_config"] = document(path, cwd)?;
    }
    FlowRunRow::from_json(&row)
        .map_err(|error| anyhow!(error))
        .with_context(|| args.flow_run.as_deref().map_or_else(String::new, named))
}

fn named(path: &str) -> String {
    format!("{path} is no flow run as the API's flow_run query returns it")
}

/// The flow run, also out of a whole answer of the API that holds just one.
fn only_row(document: Value) -> Result<Value> {
    let rows = match document.pointer("/data/flow_run") {
        Some(rows) => rows.clone(),
        None => document,
    };
    match rows {
        Value::Object(_) => Ok(rows),
        Value::Array(mut rows) if rows.len() == 1 => Ok(rows.remove(0)),
        Value::Array(rows) => bail!("expected one flow run, found {}", rows.len()),
        _ => bail!("expected an object"),
    }
}

/// A JSON or YAML document in a file, or on standard input for `-`.
fn document(path: &str, cwd: &Path) -> Result<Value> {
    let mut text = Vec::new();
    if path == "-" {
        std::io::stdin()
            .read_to_end(&mut text)
            .context("cannot read standard input")?;
    } else {
        text = std::fs::read(cwd.join(path)).with_context(|| format!("cannot read {path}"))?;
    }
    match serde_json::from_slice(&text) {
        Ok(value) => Ok(value),
        Err(json) => yaml::parse(&text)
            .ok()
            .filter(|value| value.is_object() || value.is_array())
            .ok_or(json)
            .with_context(|| format!("{path} is neither JSON nor YAML")),
    }
}
