//! The manifests that the Python agent was recorded making, made again: each case gives flags,
//! environment, files and a flow run, and either the Job or the reason why there is none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use agent_api_client::FlowRunRow;
use agent_cli::args::{Cli, Command};
use agent_cli::config::Environment;
use agent_cli::render;
use agent_cli::settings::Settings;
use clap::Parser;
use serde::Deserialize;
use serde_json::Value;

const CASES: [&str; 7] = [
    include_str!("cases/agent.jsonl"),
    include_str!("cases/combinations.jsonl"),
    include_str!("cases/environment.jsonl"),
    include_str!("cases/images.jsonl"),
    include_str!("cases/pods.jsonl"),
    include_str!("cases/run-configs.jsonl"),
    include_str!("cases/templates.jsonl"),
];

/// Where this agent knowingly does something else; the reasons are beside the same names there.
const DIFFERENCES: &str = include_str!("../../docs/differences.md");

/// Texts that users of the Python agent know.
const KNOWN_TEXTS: [&str; 6] = [
    "`run_config` of type",
    "Unsupported value",
    "Unsupported file scheme",
    "Invalid image_pull_policy",
    "Docker storage is missing",
    "must be a valid UUID",
];

#[derive(Deserialize)]
struct Case {
    id: String,
    about: String,
    args: Vec<String>,
    env: Environment,
    tenant_id: Option<String>,
    #[serde(default)]
    files: BTreeMap<String, String>,
    flow_run: Value,
    job: Option<Value>,
    error: Option<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    message: String,
}

impl Case {
    /// The manifest, as `render` makes it, or the error, with the directory's name taken out.
    fn build(&self) -> Result<Value, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let workdir = dir.path().canonicalize().expect("a path");
        let outcome = self.build_in(&workdir);
        let shown = workdir.display().to_string();
        outcome.map_err(|error| format!("{error:#}").replace(&shown, "<workdir>"))
    }

    fn build_in(&self, workdir: &Path) -> anyhow::Result<Value> {
        for (name, text) in &self.files {
            let path = workdir.join(name);
            std::fs::create_dir_all(path.parent().expect("a folder"))?;
            std::fs::write(path, text)?;
        }
        let shown = workdir.display().to_string();
        let args = self.args.iter().map(|arg| arg.replace("<workdir>", &shown));
        // What the owner of an agent has to allow to flows now; see docs/differences.md.
        let allowed = "--allow-flow-template-scheme=file,local,agent";
        let line = ["agent-cli", "start", allowed].map(str::to_owned);
        let Command::Start(args) = Cli::try_parse_from(line.into_iter().chain(args))?.command
        else {
            anyhow::bail!("not start");
        };
        let settings = Settings::resolve(&args, &self.env, workdir)?;
        let row = self.flow_run.to_string().replace("<workdir>", &shown);
        let row = serde_json::from_str(&row)?;
        let row = FlowRunRow::from_json(&row).map_err(anyhow::Error::msg)?;
        render::build(settings, row, self.tenant_id.as_deref())
    }

    /// What is wrong with an outcome, if anything is.
    fn judge(&self, outcome: &Result<Value, String>) -> Option<String> {
        match (outcome, &self.job, &self.error) {
            (Ok(found), Some(expected), None) => difference(found.clone(), expected.clone()),
            (Err(found), None, Some(expected)) => {
                let known = KNOWN_TEXTS
                    .iter()
                    .any(|text| expected.message.contains(text));
                let kept = !known || found.contains(&expected.message);
                (!kept).then(|| format!("expected the text {:?}, got {found:?}", expected.message))
            }
            (Ok(_), ..) => Some("expected an error, got a manifest".to_owned()),
            (Err(found), ..) => Some(format!("expected a manifest, got {found:?}")),
        }
    }
}

/// How two manifests differ, once the identifier is masked and the environment made comparable.
fn difference(found: Value, expected: Value) -> Option<String> {
    let Some(found) = masked(&found) else {
        return Some(format!("no identifier in {found}"));
    };
    let (mut found, mut expected) = (found, expected);
    let (ours, theirs) = (take_env(&mut found), take_env(&mut expected));
    if found != expected {
        return Some(format!("found    {found}\n    expected {expected}"));
    }
    let names = |env: &[Value]| -> Vec<String> {
        env.iter().map(|entry| entry["name"].to_string()).collect()
    };
    let group = |env: &[Value]| {
        let mut groups: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for entry in env {
            let name = entry["name"].to_string();
            groups.entry(name).or_default().push(entry.clone());
        }
        groups
    };
    if group(&ours) != group(&theirs) {
        return Some(format!(
            "found env    {ours:?}\n    expected env {theirs:?}"
        ));
    }
    (names(&ours) != names(&theirs)).then(|| {
        format!(
            "the environment's order is {:?}, not {:?}",
            names(&ours),
            names(&theirs)
        )
    })
}

fn take_env(manifest: &mut Value) -> Vec<Value> {
    match manifest.pointer_mut("/spec/template/spec/containers/0/env") {
        Some(Value::Array(env)) => std::mem::take(env),
        _ => Vec::new(),
    }
}

/// The manifest with its identifier, eight hexadecimal digits, replaced.
fn masked(manifest: &Value) -> Option<Value> {
    let identifier = manifest["metadata"]["labels"]["prefect.io/identifier"].as_str()?;
    let digits = |c: char| matches!(c, '0'..='9' | 'a'..='f');
    if identifier.len() != 8 || !identifier.chars().all(digits) {
        return None;
    }
    serde_json::from_str(&manifest.to_string().replace(identifier, "<identifier>")).ok()
}

/// The cases that the table of differences names.
fn listed() -> BTreeSet<&'static str> {
    DIFFERENCES
        .lines()
        .filter(|line| line.starts_with('|'))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .collect()
}

#[test]
fn every_recorded_manifest_is_made_again_but_for_the_listed_differences() {
    let cases: Vec<Case> = CASES
        .iter()
        .flat_map(|file| file.lines())
        .map(|line| serde_json::from_str(line).expect("a case"))
        .collect();
    let listed = listed();
    let mut differing = BTreeSet::new();
    let mut report = String::new();
    for case in &cases {
        if let Some(what) = case.judge(&case.build()) {
            differing.insert(case.id.as_str());
            if !listed.contains(case.id.as_str()) {
                report.push_str(&format!("{} ({}):\n    {what}\n", case.id, case.about));
            }
        }
    }
    println!(
        "{} recorded cases, {} of them listed differences",
        cases.len(),
        differing.len()
    );
    assert!(report.is_empty(), "\n{report}");
    let ids: BTreeSet<&str> = cases.iter().map(|case| case.id.as_str()).collect();
    let stale: Vec<_> = listed
        .iter()
        .filter(|id| ids.contains(*id) && !differing.contains(*id))
        .collect();
    assert!(stale.is_empty(), "listed, but no difference: {stale:?}");
}
