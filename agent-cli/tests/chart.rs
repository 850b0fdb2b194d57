//! The Helm chart: it hangs together, and where there is a `helm`, it makes the objects that
//! `install` prints.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use agent_cli::args::{Cli, Command as Parsed};
use agent_cli::install::{Purpose, objects};
use clap::Parser;
use serde::Deserialize;
use serde_json::{Value, json};

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/prefect-agent")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(chart().join(name)).expect(name)
}

fn yaml(text: &str) -> Value {
    serde_yaml::from_str(text).expect("YAML")
}

/// The templates by name.
fn templates() -> Vec<(String, String)> {
    let mut found: Vec<_> = std::fs::read_dir(chart().join("templates"))
        .expect("templates")
        .map(|entry| {
            let path = entry.expect("a file").path();
            let name = path.file_name().expect("a name").to_string_lossy();
            (
                name.into_owned(),
                std::fs::read_to_string(&path).expect("text"),
            )
        })
        .collect();
    found.sort();
    found
}

/// What stands between `{{` and `}}`.
fn actions(template: &str) -> Vec<&str> {
    let opened = template.split("{{").skip(1);
    opened
        .map(|rest| {
            let (action, _) = rest.split_once("}}").expect("a closed action");
            action.trim_matches('-').trim()
        })
        .collect()
}

/// The paths of all values; what is free or a list is one value.
fn leaves(values: &Value, path: &str, into: &mut BTreeSet<String>) {
    match values {
        Value::Object(members) if !members.is_empty() && path != "resources" => {
            for (name, value) in members {
                leaves(
                    value,
                    format!("{path}.{name}").trim_start_matches('.'),
                    into,
                );
            }
        }
        _ => {
            into.insert(path.to_owned());
        }
    }
}

fn schema_leaves(schema: &Value, path: &str, into: &mut BTreeSet<String>) {
    match schema["properties"].as_object() {
        Some(members) => {
            assert_eq!(schema["additionalProperties"], false, "{path}");
            for (name, inner) in members {
                schema_leaves(
                    inner,
                    format!("{path}.{name}").trim_start_matches('.'),
                    into,
                );
            }
        }
        None => {
            into.insert(path.to_owned());
        }
    }
}

#[test]
fn every_action_of_a_template_is_closed() {
    for (name, template) in templates() {
        let opens = |action: &&str| {
            let word = action.split_whitespace().next().unwrap_or_default();
            matches!(word, "if" | "with" | "range" | "define")
        };
        let actions = actions(&template);
        let opened = actions.iter().filter(|action| opens(action)).count();
        let ended = actions.iter().filter(|action| **action == "end").count();
        assert_eq!(opened, ended, "{name}");
    }
}

#[test]
fn templates_values_and_schema_know_the_same_values() {
    let values = yaml(&read("values.yaml"));
    let mut given = BTreeSet::new();
    leaves(&values, "", &mut given);
    let schema = serde_json::from_str(&read("values.schema.json")).expect("JSON");
    let mut allowed = BTreeSet::new();
    schema_leaves(&schema, "", &mut allowed);
    assert_eq!(given, allowed);

    let mut used = BTreeSet::new();
    for (name, template) in templates() {
        let template = template
            .replace("$prefect.", ".Values.prefect.")
            .replace("$jobs.", ".Values.jobs.");
        for action in actions(&template) {
            for rest in action.split(".Values.").skip(1) {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '.');
                let path = &rest[..end.unwrap_or(rest.len())];
                let pointer = format!("/{}", path.replace('.', "/"));
                assert!(values.pointer(&pointer).is_some(), "{name}: {path}");
                used.insert(path.to_owned());
            }
        }
    }
    let unused: Vec<_> = given.difference(&used).collect();
    assert!(unused.is_empty(), "no template uses {unused:?}");
}

#[test]
fn the_charts_permissions_and_version_are_the_agents() {
    let rbac = read("templates/rbac.yaml");
    let (_, rest) = rbac.split_once("rules:\n").expect("rules");
    let (rules, _) = rest.split_once("---").expect("an end");
    let role = agent_k8s::access::role("", "", &agent_k8s::access::rules());
    let role = serde_json::to_value(&role).expect("JSON");
    assert_eq!(yaml(rules), role["rules"]);
    let version = yaml(&read("Chart.yaml"))["appVersion"].clone();
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
}

/// What `install` prints for these flags.
fn installed(flags: &[&str]) -> Vec<Value> {
    let line = ["agent-cli", "install"].iter().chain(flags);
    let Parsed::Install(args) = Cli::parse_from(line).command else {
        panic!("not install")
    };
    let objects = objects(&args, Purpose::Install, &Default::default(), Path::new("/"));
    objects.expect("fine")
}

/// What the chart makes of these values in namespace `agents`; `None` where there is no `helm`.
fn rendered(values: &Value) -> Option<Vec<Value>> {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("values.json");
    std::fs::write(&file, values.to_string()).expect("written");
    let output = Command::new("helm")
        .args([
            "template",
            "release",
            "--kube-version=1.33.0",
            "--namespace=agents",
            "--values",
        ])
        .arg(&file)
        .arg(chart())
        .env("HOME", dir.path())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => panic!("helm: {error}"),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{values:#}: {said}");
    let documents = serde_yaml::Deserializer::from_slice(&output.stdout)
        .map(|document| Value::deserialize(document).expect("YAML"));
    Some(documents.filter(|document| !document.is_null()).collect())
}

/// The objects in one order, and what has no order in one, too.
fn comparable(mut objects: Vec<Value>) -> Vec<Value> {
    objects.sort_by_key(|object| object["kind"].to_string());
    for object in &mut objects {
        if let Some(ports) = object.pointer_mut("/spec/egress/0/ports") {
            let ports = ports.as_array_mut().expect("a list");
            ports.sort_by_key(|port| (port["port"].to_string(), port["protocol"].to_string()));
        }
    }
    objects
}

#[test]
fn the_chart_makes_the_objects_that_install_prints() {
    let cases = [
        (&["--backend=cloud"][..], json!({})),
        (
            &[
                "--backend=server",
                "--api=http://apollo:4200",
                "--namespace=flows",
                "--rbac",
                "--key=pcu_$(hush)",
                "--label=b",
                "--label=a",
                "--env=A=1",
                "--env=B=$(x)<",
                "--tenant-id=3f0d6b0e-2c54-4b7c-9f0e-9d9f5a1c7e21",
                "--agent-config-id=c",
                "--image-pull-secrets=one,two",
                "--service-account-name=flow",
                "--mem-request=512Mi",
                "--mem-limit=1Gi",
                "--cpu-request=500m",
                "--cpu-limit=2",
                "--image-pull-policy=Always",
                "--job-template-configmap=templates/etl.yaml",
                "--name=gpu",
                "--image=registry:5000/agent:7",
                "--replicas=3",
                "--pod-disruption-budget",
                "--network-policy",
                "--service-monitor",
                "--",
                "--keep-failed-jobs=1d",
            ],
            json!({
                "name": "gpu",
                "image": {"repository": "registry:5000/agent", "tag": "7"},
                "replicas": 3,
                "prefect": {
                    "backend": "server", "api": "http://apollo:4200", "key": "pcu_$(hush)",
                    "labels": ["b", "a", "b"], "agentConfigId": "c",
                    "tenantId": "3f0d6b0e-2c54-4b7c-9f0e-9d9f5a1c7e21",
                },
                "jobs": {
                    "namespace": "flows", "env": {"A": "1", "B": "$(x)<"},
                    "imagePullSecrets": ["one", "two"], "serviceAccountName": "flow",
                    "memRequest": "512Mi", "memLimit": "1Gi", "cpuRequest": "500m", "cpuLimit": 2,
                    "imagePullPolicy": "Always",
                    "templateConfigMap": {"name": "templates", "key": "etl.yaml"},
                },
                "extraArgs": ["--keep-failed-jobs=1d"],
                "podDisruptionBudget": true,
                "networkPolicy": {"enabled": true},
                "serviceMonitor": true,
            }),
        ),
        (
            &[
                "--backend=cloud",
                "--secret-name=mine/token",
                "--rbac",
                "--agent-service-account=irsa",
            ],
            json!({
                "prefect": {"keySecret": {"name": "mine", "key": "token"}},
                "serviceAccount": {"create": false, "name": "irsa"},
            }),
        ),
    ];
    for (flags, values) in cases {
        let has = |flag: &str| flags.iter().any(|given| given.starts_with(flag));
        let mut values = values;
        values["rbac"]["create"] = json!(has("--rbac"));
        let mut flags = flags.to_vec();
        flags.insert(0, "--agent-namespace=agents");
        if !has("--namespace") {
            flags.insert(0, "--namespace=agents");
        }
        let Some(rendered) = rendered(&values) else {
            println!("there is no helm here: the chart was not compared");
            return;
        };
        let (chart, install) = (comparable(rendered), comparable(installed(&flags)));
        for (one, other) in chart.iter().zip(&install) {
            assert_eq!(texts(one.clone()), texts(other.clone()), "{flags:?}");
        }
        assert_eq!(chart.len(), install.len(), "{flags:?}");
    }
}

/// An object whose JSON within text is written in one way.
fn texts(mut object: Value) -> Value {
    let env = object.pointer_mut("/spec/template/spec/containers/0/env");
    for entry in env.and_then(Value::as_array_mut).into_iter().flatten() {
        let parsed = entry["value"]
            .as_str()
            .and_then(|text| serde_json::from_str(text).ok());
        if let Some(parsed @ Value::Object(_)) = parsed {
            entry["value"] = parsed;
        }
    }
    object
}
