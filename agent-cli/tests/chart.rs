//! The Helm chart: it hangs together, and where there is a `helm`, it makes the objects that
//! `install` prints.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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
fn what_could_be_read_as_another_thing_than_text_is_quoted() {
    // What cannot: numbers, words of a list that the schema has, and what quotes itself.
    let sound = [
        ".Values.replicas",
        ".",
        "$prefect.backend",
        "include \"agent.literal\"",
    ];
    for (name, template) in templates() {
        for line in template.lines() {
            let Some((key, action)) = line.split_once(": {{ ") else {
                continue;
            };
            let action = action.trim_end_matches(" }}");
            let plain = sound.iter().any(|sound| match *sound {
                "." => action == "." && !key.ends_with("ame"),
                sound => action.starts_with(sound),
            });
            assert!(plain || action.ends_with("| quote"), "{name}: {line}");
        }
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
    let role = agent_k8s::access::role("", "", &agent_k8s::access::rules("LEASE"));
    let role = serde_json::to_value(&role).expect("JSON");
    let rules = rules.replace("{{ include \"agent.lease\" . | quote }}", "LEASE");
    assert_eq!(yaml(&rules), role["rules"]);
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
    let output = helm(values)?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{values:#}: {said}");
    let documents = serde_yaml::Deserializer::from_slice(&output.stdout)
        .map(|document| Value::deserialize(document).expect("YAML"));
    Some(documents.filter(|document| !document.is_null()).collect())
}

/// What `helm template` says to these values; `None` where there is no `helm`.
fn helm(values: &Value) -> Option<Output> {
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
    match output {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => panic!("helm: {error}"),
    }
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
        // Names and values that YAML takes for numbers and truth values, unless they are quoted.
        (
            &[
                "--backend=cloud",
                "--namespace=1e3",
                "--rbac",
                "--secret-name=on/8080",
                "--name=0x10",
                "--agent-service-account=null",
                "--service-account-name=yes",
                "--image-pull-secrets=1.5,off",
                "--image=registry:5000/agent@sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945",
                "--job-template-configmap=123/true",
                "--mem-request=1073741824",
                "--cpu-request=1",
                "--network-policy",
                "--network-policy-port=8443",
                "--",
                "-l=~",
                "--max-in-flight=100",
            ],
            json!({
                "name": "0x10",
                "image": {
                    "repository": "registry:5000/agent",
                    "tag": "sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945",
                },
                "prefect": {"keySecret": {"name": "on", "key": "8080"}},
                "jobs": {
                    "namespace": "1e3", "imagePullSecrets": ["1.5", "off"], "serviceAccountName": "yes",
                    "memRequest": "1073741824", "cpuRequest": 1,
                    "templateConfigMap": {"name": "123", "key": "true"},
                },
                "serviceAccount": {"create": false, "name": "null"},
                "extraArgs": ["-l=~", "--max-in-flight=100"],
                "networkPolicy": {"enabled": true, "ports": [8443]},
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

#[test]
fn the_agents_own_container_can_be_given_more() {
    let mount = json!({"name": "ca", "mountPath": "/ca"});
    let volume = json!({"name": "ca", "configMap": {"name": "ca"}});
    let env = json!({"name": "AWS_ENDPOINT_URL", "value": "http://minio:9000"});
    let values = json!({
        "extraEnv": [env], "extraVolumes": [volume], "extraVolumeMounts": [mount],
        "extraArgs": ["--api-ca=/ca/ca.pem"],
    });
    let Some(objects) = rendered(&values) else {
        println!("there is no helm here: the chart was not tried");
        return;
    };
    let deployment = objects.iter().find(|object| object["kind"] == "Deployment");
    let pod = &deployment.expect("one")["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["volumeMounts"], json!([mount]));
    assert_eq!(pod["volumes"], json!([volume]));
    let variables = container["env"].as_array().expect("some");
    assert_eq!(variables.last(), Some(&env));
    assert_eq!(container["args"], json!(["start", "--api-ca=/ca/ca.pem"]));
}

#[test]
fn the_chart_refuses_what_install_refuses() {
    for (values, told) in [
        (json!({"prefect": {"backend": "server"}}), "is not known"),
        (json!({"prefect": {"backend": "mars"}}), "backend"),
        (json!({"prefect": {"api": "apollo:4200"}}), "api"),
        (
            json!({"prefect": {"key": "a", "keySecret": {"name": "b"}}}),
            "exclude each other",
        ),
        (json!({"jobs": {"namespace": "a.b"}}), "namespace"),
        (json!({"jobs": {"memLimit": "1K"}}), "memLimit"),
        (json!({"jobs": {"memLimits": "1Gi"}}), "memLimits"),
        (json!({"image": {"tag": "a b"}}), "tag"),
        (
            json!({"extraArgs": ["--key=hush"]}),
            "--key has a value of its own",
        ),
        (
            json!({"extraArgs": ["-a", "http://x"]}),
            "-a has a value of its own",
        ),
        (
            json!({"extraArgs": ["--backend=server"]}),
            "--backend has a value of its own",
        ),
        (
            json!({"extraArgs": ["--namespace", "x"]}),
            "--namespace has a value of its own",
        ),
    ] {
        let Some(output) = helm(&values) else {
            println!("there is no helm here: the chart was not tried");
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{values}");
        assert!(said.contains(told), "{values}: {said}");
        assert!(!said.contains("hush"), "{said}");
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
