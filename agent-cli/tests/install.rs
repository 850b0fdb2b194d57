//! `install` and `uninstall` as people run them: the objects in every combination of flags, and
//! what `start` makes of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use agent_cli::args::{Cli, Command as Parsed};
use agent_cli::install::{Purpose, objects};
use agent_cli::settings::Settings;
use clap::Parser;
use serde::Deserialize;
use serde_json::{Value, json};

/// What the Python agent's users write.
const PYTHON: [&str; 28] = [
    "--key=pcu_hush",
    "--tenant-id=3F0D6B0E2C544B7C9F0E9D9F5A1C7E21",
    "--label=b",
    "--label=a",
    "--label=b",
    "--env=REGION=eu",
    "--env=URL=http://x?a=b",
    "--agent-config-id=c-1",
    "--api=http://apollo:4200",
    "--namespace=flows",
    "--image-pull-secrets=one,two",
    "--rbac",
    "--latest",
    "--mem-request=512Mi",
    "--mem-limit=1Gi",
    "--cpu-request=500m",
    "--cpu-limit=2",
    "--image-pull-policy=Always",
    "--service-account-name=flow",
    "--backend=server",
    "--replicas=3",
    "--job-template-configmap=templates/etl.yaml",
    "--agent-namespace=agents",
    "--pod-disruption-budget",
    "--network-policy",
    "--service-monitor",
    "--",
    "--keep-failed-jobs=1d",
];

/// Flags that may be there or not, in any combination.
const OPTIONAL: [&str; 8] = [
    "--rbac",
    "--pod-disruption-budget",
    "--network-policy",
    "--service-monitor",
    "--agent-namespace=agents",
    "--agent-service-account=irsa",
    "--job-template-configmap=templates",
    "--image-pull-secrets=pull",
];

fn run(args: &[&str]) -> Output {
    let dir = tempfile::tempdir().expect("a directory");
    Command::new(env!("CARGO_BIN_EXE_agent-cli"))
        .env_clear()
        .env("HOME", dir.path())
        .current_dir(dir.path())
        .args(args)
        .output()
        .expect("the binary starts")
}

fn text(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).expect("text")
}

/// The documents of a YAML stream.
fn documents(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_yaml::Deserializer::from_slice(&output.stdout)
        .map(|document| Value::deserialize(document).expect("YAML"))
        .collect()
}

fn build(purpose: Purpose, flags: &[&str]) -> anyhow::Result<Vec<Value>> {
    let line = ["agent-cli", "install"].iter().chain(flags);
    let Parsed::Install(args) = Cli::try_parse_from(line)?.command else {
        anyhow::bail!("not install")
    };
    let dir = tempfile::tempdir()?;
    objects(&args, purpose, &Default::default(), dir.path())
}

fn kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found = objects.iter().find(|object| object["kind"] == kind);
    found.unwrap_or_else(|| panic!("no {kind}"))
}

fn container(objects: &[Value]) -> &Value {
    &kind(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
}

/// What `start` takes from a Deployment, as the kubelet would tell it.
fn started(objects: &[Value]) -> Settings {
    let container = container(objects);
    let args = container["args"].as_array().expect("some").iter();
    let args = args.map(|arg| arg.as_str().expect("text").replace("$$", "$"));
    let cli = Cli::try_parse_from(["agent-cli".to_owned()].into_iter().chain(args));
    let Parsed::Start(start) = cli.expect("start takes its flags").command else {
        panic!("not start")
    };
    let env = container["env"].as_array().expect("some").iter();
    let env = env.filter_map(|entry| {
        let value = entry["value"].as_str()?.replace("$$", "$");
        Some((entry["name"].as_str()?.to_owned(), value))
    });
    Settings::resolve(&start, &env.collect(), Path::new("/")).expect("start takes its settings")
}

#[test]
fn the_agent_in_the_cluster_is_told_what_install_was_told() {
    let output = run(&[&["install"], &PYTHON[..]].concat());
    let objects = documents(&output);
    let settings = started(&objects);
    assert_eq!(settings.url, "http://apollo:4200");
    assert_eq!(settings.manifest.backend, "server");
    assert_eq!(settings.namespace, "flows");
    assert_eq!(settings.labels, ["a", "b"]);
    assert_eq!(settings.agent_config_id.as_deref(), Some("c-1"));
    let tenant = settings.tenant_id.as_deref();
    assert_eq!(tenant, Some("3f0d6b0e-2c54-4b7c-9f0e-9d9f5a1c7e21"));
    let job = &settings.manifest;
    let env = [("REGION", "eu"), ("URL", "http://x?a=b")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(job.env, env);
    let pull = ["one".to_owned(), "two".to_owned()];
    assert_eq!(job.image_pull_secrets.as_deref(), Some(&pull[..]));
    assert_eq!(job.service_account_name.as_deref(), Some("flow"));
    assert_eq!(job.resources.memory_request.as_deref(), Some("512Mi"));
    assert_eq!(job.resources.memory_limit.as_deref(), Some("1Gi"));
    assert_eq!(job.resources.cpu_request.as_deref(), Some("500m"));
    assert_eq!(job.resources.cpu_limit.as_deref(), Some("2"));
    assert_eq!(job.image_pull_policy.as_deref(), Some("Always"));
    let template = job.job_template.as_deref();
    assert_eq!(template, Some("/etc/prefect-agent/template/etl.yaml"));
    assert_eq!(settings.keep_jobs.1.as_secs(), 86_400);
    let address = settings.agent_address.expect("one").to_string();
    assert_eq!(address, "0.0.0.0:8080");

    let deployment = kind(&objects, "Deployment");
    assert_eq!(deployment["spec"]["replicas"], 3);
    assert_eq!(deployment["metadata"]["namespace"], "agents");
    let image = &container(&objects)["image"];
    assert_eq!(image, "localhost/prefect-kubernetes-agent:latest");
    let pull = &deployment["spec"]["template"]["spec"]["imagePullSecrets"];
    assert_eq!(*pull, json!([{"name": "one"}, {"name": "two"}]));
    let hushed = objects.iter().filter(|object| object["kind"] != "Secret");
    assert!(
        hushed
            .into_iter()
            .all(|object| !object.to_string().contains("pcu_hush"))
    );
    assert!(!text(&output.stderr).contains("pcu_hush"));
}

#[test]
fn every_combination_of_flags_gives_objects_that_fit_each_other() {
    let keys = [&[][..], &["--key=pcu_hush"], &["--secret-name=mine/token"]];
    let mut count = 0;
    for set in 0..1u32 << OPTIONAL.len() {
        let chosen = OPTIONAL.iter().enumerate();
        let chosen = chosen.filter(|(n, _)| set & (1 << n) != 0);
        let chosen: Vec<&str> = chosen.map(|(_, flag)| *flag).collect();
        for key in keys {
            let flags = [&["--namespace=flows", "--backend=cloud"], key, &chosen[..]].concat();
            let objects = build(Purpose::Install, &flags).expect("fine");
            fits(&flags, &objects);
            count += 1;
        }
    }
    println!("{count} combinations");
    assert_eq!(count, 768);
}

fn fits(flags: &[&str], objects: &[Value]) {
    let has = |flag: &str| flags.iter().any(|given| given.starts_with(flag));
    let kinds: Vec<&str> = objects
        .iter()
        .filter_map(|object| object["kind"].as_str())
        .collect();
    let unique: BTreeSet<&str> = kinds.iter().copied().collect();
    assert_eq!(unique.len(), kinds.len(), "{flags:?}");
    for (kind, expected) in [
        ("ServiceAccount", !has("--agent-service-account")),
        ("Secret", has("--key")),
        ("Role", has("--rbac")),
        ("RoleBinding", has("--rbac")),
        ("Deployment", true),
        ("PodDisruptionBudget", has("--pod-disruption-budget")),
        ("NetworkPolicy", has("--network-policy")),
        ("Service", has("--service-monitor")),
        ("ServiceMonitor", has("--service-monitor")),
    ] {
        assert_eq!(unique.contains(kind), expected, "{kind} with {flags:?}");
    }
    let own = if has("--agent-namespace") {
        "agents"
    } else {
        "flows"
    };
    for object in objects {
        let of_jobs = matches!(object["kind"].as_str(), Some("Role" | "RoleBinding"));
        let expected = if of_jobs { "flows" } else { own };
        assert_eq!(object["metadata"]["namespace"], expected, "{flags:?}");
        assert_eq!(object["metadata"]["name"], "prefect-agent", "{flags:?}");
    }
    let pod = &kind(objects, "Deployment")["spec"]["template"]["spec"];
    let account = if has("--agent-service-account") {
        "irsa"
    } else {
        "prefect-agent"
    };
    assert_eq!(pod["serviceAccountName"], account, "{flags:?}");
    if has("--rbac") {
        let binding = kind(objects, "RoleBinding");
        let subject = json!([{"kind": "ServiceAccount", "name": account, "namespace": own}]);
        assert_eq!(binding["subjects"], subject, "{flags:?}");
        assert_eq!(
            binding["roleRef"]["name"],
            kind(objects, "Role")["metadata"]["name"]
        );
    }
    let settings = started(objects);
    assert_eq!(settings.namespace, "flows");
    assert_eq!(
        settings.manifest.job_template.is_some(),
        has("--job-template-configmap")
    );
}

#[test]
fn uninstall_names_the_same_objects_the_other_way_round_and_no_secret() {
    let made = documents(&run(&[&["install"], &PYTHON[..]].concat()));
    let output = run(&[&["uninstall"], &PYTHON[..]].concat());
    assert!(!text(&output.stdout).contains("hush"));
    let deleted = documents(&output);
    let names = |object: &Value| {
        let metadata = &object["metadata"];
        let parts = [&object["kind"], &metadata["namespace"], &metadata["name"]];
        parts.map(|part| part.to_string()).join("/")
    };
    let mut expected: Vec<String> = made.iter().map(names).collect();
    expected.reverse();
    assert_eq!(deleted.iter().map(names).collect::<Vec<_>>(), expected);
    // Nobody needs the key, or the API's address, to delete an agent.
    let plain = documents(&run(&["uninstall", "--backend=server"]));
    assert!(plain.iter().any(|object| object["kind"] == "Secret"));
}

#[test]
fn images_get_a_tag_unless_they_have_one() {
    let version = env!("CARGO_PKG_VERSION");
    let digest = format!("r/a@sha256:{}", "0".repeat(64));
    for (flags, image) in [
        (
            &[][..],
            format!("localhost/prefect-kubernetes-agent:{version}"),
        ),
        (
            &["--latest"],
            "localhost/prefect-kubernetes-agent:latest".to_owned(),
        ),
        (&["--image=r:5000/a"], format!("r:5000/a:{version}")),
        (
            &["--image=r:5000/a", "--latest"],
            "r:5000/a:latest".to_owned(),
        ),
        (&["--image=r:5000/a:2"], "r:5000/a:2".to_owned()),
        (&[&*format!("--image={digest}")], digest.clone()),
    ] {
        let objects = build(Purpose::Install, flags).expect("fine");
        assert_eq!(container(&objects)["image"], *image);
    }
}

#[test]
fn a_second_agent_in_one_namespace_has_a_name_of_its_own() {
    let flags = ["--name=gpu", "--label=gpu", "--rbac", "--key=hush"];
    let objects = build(Purpose::Install, &flags).expect("fine");
    assert!(
        objects
            .iter()
            .all(|object| object["metadata"]["name"] == "gpu")
    );
    let selector = &kind(&objects, "Deployment")["spec"]["selector"]["matchLabels"];
    assert_eq!(*selector, json!({"app": "gpu"}));
    assert_eq!(started(&objects).name, "gpu");
}

#[test]
fn a_network_policy_leaves_the_ways_that_the_agent_needs() {
    let flags = [
        "--network-policy",
        "--network-policy-port=16443",
        "--network-policy-port=443",
        "--api=http://apollo:4200/graphql",
        "--",
        "--job-template=http://templates:8000/job.yaml",
    ];
    let objects = build(Purpose::Install, &flags).expect("fine");
    let ports = &kind(&objects, "NetworkPolicy")["spec"]["egress"][0]["ports"];
    let ports: Vec<String> = ports
        .as_array()
        .expect("some")
        .iter()
        .map(|port| {
            format!(
                "{}/{}",
                port["port"],
                port["protocol"].as_str().expect("text")
            )
        })
        .collect();
    let expected = [
        "53/UDP",
        "53/TCP",
        "443/TCP",
        "4200/TCP",
        "6443/TCP",
        "8000/TCP",
        "16443/TCP",
    ];
    assert_eq!(ports, expected);
}

#[test]
fn what_cannot_be_is_refused_with_the_fix() {
    for (flags, part) in [
        (&["--backend=server"][..], "say it with --api"),
        (&["--api=apollo:4200"], "not an http or https address"),
        (&["--tenant-id=acme"], "must be a valid UUID"),
        (&["--env=novalue"], "NAME=VALUE"),
        (&["--secret-name=a/b/c"], "NAME or NAME/KEY"),
        (&["--job-template-configmap=/x"], "NAME or NAME/KEY"),
        (&["--image=a:1", "--latest"], "leave --latest out"),
        (&["--image=agent 1"], "is no image"),
        (&["--image=registry/agent@"], "is no image"),
        (&["--namespace=My_Flows"], "lower-case letters"),
        (
            &["--service-account-name=My_Flow"],
            "the service account of the Jobs is \"My_Flow\"",
        ),
        (&["--", "--keep-failed-jobs=soon"], "90s, 5m, 1h or 7d"),
        (&["--", "--key=hush"], "--key cannot follow"),
        (&["--", "--api=http://apollo:4200"], "--api cannot follow"),
        (&["--", "-b", "server"], "--backend cannot follow"),
        (&["--", "--namespace=other"], "--namespace cannot follow"),
    ] {
        let output = run(&[&["install"], flags].concat());
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(part), "{message}");
        assert!(output.stdout.is_empty());
    }
    for flags in [
        &["--mem-limit=1 GB"][..],
        &["--image-pull-policy=Sometimes"],
        &["--backend=mars"],
        &["--key=a", "--secret-name=b"],
        &["--replicas=-1"],
        &["--network-policy-port=8443"],
        &["--network-policy", "--network-policy-port=0"],
    ] {
        let output = run(&[&["install"], flags].concat());
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    }
}

#[test]
fn the_backend_is_the_configured_one_as_with_the_python_agent() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_agent-cli"))
        .env_clear()
        .env("HOME", dir.path())
        .env("PREFECT__BACKEND", "server")
        .env("PREFECT__CLOUD__API_KEY", "hush")
        .env("NAMESPACE", "elsewhere")
        .current_dir(dir.path())
        .args(["install", "--api=http://apollo:4200"])
        .output()
        .expect("the binary starts");
    let objects = documents(&output);
    let settings = started(&objects);
    assert_eq!(settings.manifest.backend, "server");
    // Nothing else of the environment counts.
    assert_eq!(settings.namespace, "default");
    assert!(!text(&output.stdout).contains("hush"));
}

#[test]
fn the_role_names_the_lease_that_the_agent_uses() {
    const TENANT: &str = "3f0d6b0e-2c54-4b7c-9f0e-9d9f5a1c7e21";
    let known = format!("prefect-agent-{TENANT}");
    let tenant = format!("--tenant-id={TENANT}");
    let api = "--api=http://me:pw@Apollo:4200/graphql";
    for (flags, name, flag) in [
        (&[api][..], "prefect-agent-apollo-4200", true),
        (&[], "prefect-agent-api-prefect-io", true),
        (&[api, &tenant], &known, false),
        (&[api, "--", "--lease-name=mine"], "mine", true),
    ] {
        let flags = [&["--rbac", "--backend=cloud"], flags].concat();
        let objects = build(Purpose::Install, &flags).expect("fine");
        let of = |kind: &str| {
            let found = objects.iter().find(|object| object["kind"] == kind);
            found.expect(kind).clone()
        };
        let role = of("Role");
        let rules = role["rules"].as_array().expect("rules").iter();
        let leases: Vec<_> = rules
            .filter(|rule| rule["resources"] == json!(["leases"]))
            .map(|rule| (&rule["verbs"], &rule["resourceNames"]))
            .collect();
        let (create, change) = (json!(["create"]), json!(["get", "update"]));
        let names = json!([name]);
        assert_eq!(leases, [(&create, &Value::Null), (&change, &names)]);
        let pod = &of("Deployment")["spec"]["template"]["spec"];
        let args = pod["containers"][0]["args"]
            .as_array()
            .expect("some")
            .clone();
        let given = args.iter().any(|arg| arg == &json!("--lease-name=mine"));
        assert_eq!(given, name == "mine");
        // For commands that are run in the pod as well.
        let env = pod["containers"][0]["env"].as_array().expect("some");
        let named = env
            .iter()
            .find(|one| one["name"] == "PREFECT_AGENT_LEASE_NAME");
        let named = named.map(|one| one["value"].as_str().expect("text"));
        assert_eq!(named, flag.then_some(name));
    }
}

#[test]
fn a_key_where_the_jobs_are_is_warned_of_beside_the_objects() {
    let base = ["install", "--namespace=flows"];
    for (flags, warns) in [
        (&["--key=hush"][..], true),
        (&["--secret-name=mine"], true),
        (&["--key=hush", "--agent-namespace=flows"], true),
        (&["--key=hush", "--agent-namespace=agents"], false),
        (&[], false),
    ] {
        let output = run(&[&base[..], flags].concat());
        documents(&output);
        let said = text(&output.stderr);
        assert_eq!(said.contains("--agent-namespace"), warns, "{said}");
        assert_eq!(said.is_empty(), !warns, "{said}");
    }
    let uninstall = run(&["uninstall", "--namespace=flows", "--key=hush"]);
    assert_eq!(text(&uninstall.stderr), "");
}

#[test]
fn the_pod_has_a_place_that_outlives_its_container() {
    let objects = build(Purpose::Install, &[]).expect("fine");
    let pod = objects.iter().find(|object| object["kind"] == "Deployment");
    let pod = &pod.expect("a Deployment")["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert!(pod["volumes"][0]["emptyDir"].is_object(), "{pod}");
    assert_eq!(
        pod["volumes"][0]["name"],
        container["volumeMounts"][0]["name"]
    );
    let dir = json!({"name": "PREFECT_AGENT_STATE_DIR", "value": "/var/run/prefect-agent"});
    let env = container["env"].as_array().expect("some");
    assert!(env.contains(&dir), "{env:?}");
    assert_eq!(container["volumeMounts"][0]["mountPath"], dir["value"]);
}
