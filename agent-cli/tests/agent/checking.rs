//! `check` finds what is wrong, names it, and says what to do.

use std::process::Output;

use agent_testkit::faults::{Fault, Faults, Rule};
use agent_testkit::kubernetes::KubernetesApiBuilder;
use agent_testkit::prefect::{Auth, PrefectApiBuilder};
use agent_testkit::{FlowRunSeed, KubernetesApi, PrefectApi};
use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::world::World;

/// Something wrong in an otherwise good world, and how the report tells it.
struct Planted {
    fault: &'static str,
    prefect: fn(PrefectApiBuilder) -> PrefectApiBuilder,
    kubernetes: fn(KubernetesApiBuilder) -> KubernetesApiBuilder,
    spoil: fn(&World),
    args: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
    /// The line that tells it, a part of what was found, and a part of the remedy.
    told: (&'static str, &'static str, &'static str),
}

impl Default for Planted {
    fn default() -> Self {
        Self {
            fault: "",
            prefect: |builder| builder,
            kubernetes: |builder| builder,
            spoil: |_| {},
            args: &[],
            env: &[],
            told: ("", "", ""),
        }
    }
}

const TENANT: &str = "3f0d6b0e-2c54-4b7c-9f0e-9d9f5a1c7e21";
const GOOD: &[&str] = &[
    "--namespace=flows",
    "--service-account-name=flow",
    "--image-pull-secrets=pull",
    "--flow-run-key-secret=prefect",
    "--job-template=job.yaml",
];
const TEMPLATE: &str =
    "metadata: {labels: {team: etl}}\nspec: {template: {spec: {containers: [{name: flow}]}}}\n";

fn faulty(rule: Rule) -> Faults {
    let faults = Faults::new(0);
    faults.add(rule);
    faults
}

/// A cluster whose admission refuses every Job.
fn refusing(builder: KubernetesApiBuilder, said: &str) -> KubernetesApiBuilder {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
        "reason": "Forbidden", "message": said,
    });
    let fault = Fault::Status {
        code: 403,
        retry_after: None,
        body: Some(status.to_string()),
    };
    builder.faults(faulty(Rule::new("create jobs", fault)))
}

fn write(world: &World, name: &str, text: &str) {
    std::fs::write(world.path().join(name), text).expect("written");
}

fn planted() -> Vec<Planted> {
    vec![
        Planted {
            fault: "nothing listens at the API's address",
            args: &["--api=http://127.0.0.1:1"],
            told: ("Prefect API", "cannot connect", "--api"),
            ..Planted::default()
        },
        Planted {
            fault: "a web page is at the API's address",
            prefect: |builder| builder.faults(faulty(Rule::new("*", Fault::Garbage))),
            told: ("Prefect API", "no GraphQL answer", "not of the UI"),
            ..Planted::default()
        },
        Planted {
            fault: "the API is down",
            prefect: |builder| builder.faults(faulty(Rule::new("*", Fault::status(503)))),
            told: ("Prefect API", "503", "wait until the API is well"),
            ..Planted::default()
        },
        Planted {
            fault: "the API refuses the key",
            prefect: |builder| builder.auth(Auth::Status401("right".into())),
            args: &["--key=wrong"],
            told: ("API key", "refused the key", "give a key that is valid"),
            ..Planted::default()
        },
        Planted {
            fault: "Cloud refuses the key",
            prefect: |builder| builder.cloud().auth(Auth::CloudError("right".into())),
            args: &["--key=wrong"],
            env: &[("PREFECT__BACKEND", "cloud")],
            told: ("API key", "refused the key", "give a key that is valid"),
            ..Planted::default()
        },
        Planted {
            fault: "Cloud without a key",
            prefect: PrefectApiBuilder::cloud,
            env: &[("PREFECT__BACKEND", "cloud")],
            told: ("tenant", "have not set an API key", "--backend server"),
            ..Planted::default()
        },
        Planted {
            fault: "the server has no tenant",
            prefect: PrefectApiBuilder::without_tenant,
            told: ("tenant", "no tenant", "prefect server create-tenant"),
            ..Planted::default()
        },
        Planted {
            fault: "another server's tenant",
            args: &["--tenant-id=3f0d6b0e-2c54-4b7c-9f0e-9d9f5a1c7e21"],
            told: ("tenant", TENANT, "leave --tenant-id out"),
            ..Planted::default()
        },
        Planted {
            fault: "clocks that differ",
            prefect: |builder| builder.clock_skew(SignedDuration::from_secs(-90)),
            told: ("clock", "behind this machine's", "NTP"),
            ..Planted::default()
        },
        Planted {
            fault: "a server that fails at the queue",
            prefect: |builder| {
                builder.faults(faulty(Rule::new("get_runs_in_queue", Fault::status(500))))
            },
            told: ("ready queue", "500", "log"),
            ..Planted::default()
        },
        Planted {
            fault: "a setting that cannot be",
            args: &["--tenant-id=acme"],
            told: ("settings", "must be a valid UUID", "change the setting"),
            ..Planted::default()
        },
        Planted {
            fault: "no kubeconfig",
            env: &[("KUBECONFIG", "/nowhere")],
            told: ("cluster", "no usable kubeconfig", "KUBECONFIG"),
            ..Planted::default()
        },
        Planted {
            fault: "a token that has expired",
            kubernetes: |builder| builder.token("new"),
            spoil: |world| {
                let old = world.kubernetes.kubeconfig_yaml().replace("new", "old");
                write(world, "kubeconfig", &old);
            },
            told: ("cluster", "401", "kubectl get jobs"),
            ..Planted::default()
        },
        Planted {
            fault: "a namespace that nobody made",
            spoil: |world| assert!(world.kubernetes.remove("namespaces", "", "flows")),
            told: ("namespace", "flows", "kubectl create namespace flows"),
            ..Planted::default()
        },
        Planted {
            fault: "a namespace that is being deleted",
            spoil: |world| {
                let modified = world
                    .kubernetes
                    .modify("namespaces", "", "flows", |namespace| {
                        namespace["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                    });
                assert!(modified);
            },
            told: ("namespace", "is being deleted", "create it again"),
            ..Planted::default()
        },
        Planted {
            fault: "a namespace that is being deleted and may not be looked at",
            kubernetes: |builder| {
                let said = "unable to create new content in namespace flows because it is being terminated";
                refusing(builder.deny("get", "namespaces"), said)
            },
            told: ("dry run", "is being terminated", "create it again"),
            ..Planted::default()
        },
        Planted {
            fault: "a quota that is used up",
            kubernetes: |builder| {
                refusing(
                    builder,
                    "exceeded quota: few, requested: count/jobs.batch=1",
                )
            },
            told: ("dry run", "exceeded quota: few", "raise the quota"),
            ..Planted::default()
        },
        Planted {
            fault: "a service account that only the job patch names, and nobody made",
            args: &["--job-patch=patch.yaml"],
            spoil: |world| {
                let patch = "spec: {template: {spec: {serviceAccountName: etl}}}\n";
                write(world, "patch.yaml", patch);
            },
            told: ("service account", "no etl", "create serviceaccount etl"),
            ..Planted::default()
        },
        Planted {
            fault: "a pull secret that only the job patch names, and nobody made",
            args: &["--job-patch=patch.yaml"],
            spoil: |world| {
                let patch = "spec: {template: {spec: {imagePullSecrets: [{name: other}]}}}\n";
                write(world, "patch.yaml", patch);
            },
            told: ("image pull secret", "no other", "docker-registry other"),
            ..Planted::default()
        },
        Planted {
            fault: "a pull secret of another type",
            spoil: |world| {
                let modified = world
                    .kubernetes
                    .modify("secrets", "flows", "pull", |secret| {
                        secret["type"] = json!("Opaque");
                    });
                assert!(modified);
            },
            told: ("image pull secret", "of type \"Opaque\"", "make it anew"),
            ..Planted::default()
        },
        Planted {
            fault: "a Secret with another key than the flows' key",
            spoil: |world| {
                let modified = world
                    .kubernetes
                    .modify("secrets", "flows", "prefect", |secret| {
                        secret["data"] = json!({"token": "aHVzaA=="});
                    });
                assert!(modified);
            },
            told: (
                "API key's Secret",
                "no key PREFECT__CLOUD__API_KEY, but token",
                "make it anew",
            ),
            ..Planted::default()
        },
        Planted {
            fault: "a missing namespace that may not be looked at",
            kubernetes: |builder| {
                let builder = builder.deny("get", "namespaces");
                builder
                    .deny("get", "secrets")
                    .deny("get", "serviceaccounts")
            },
            spoil: |world| assert!(world.kubernetes.remove("namespaces", "", "flows")),
            told: ("dry run", "flows", "kubectl create namespace flows"),
            ..Planted::default()
        },
        Planted {
            fault: "a verb that nobody granted",
            kubernetes: |builder| builder.deny("watch", "pods").deny("get", "pods/log"),
            told: ("permissions", "watch pods; get pods/log", "Role below"),
            ..Planted::default()
        },
        Planted {
            fault: "no service account for the Jobs",
            spoil: |world| assert!(world.kubernetes.remove("serviceaccounts", "flows", "flow")),
            told: ("service account", "no flow", "create serviceaccount flow"),
            ..Planted::default()
        },
        Planted {
            fault: "no pull secret",
            spoil: |world| assert!(world.kubernetes.remove("secrets", "flows", "pull")),
            told: ("image pull secret", "no pull", "docker-registry pull"),
            ..Planted::default()
        },
        Planted {
            fault: "no Secret for the flows' key",
            spoil: |world| assert!(world.kubernetes.remove("secrets", "flows", "prefect")),
            told: (
                "API key's Secret",
                "no prefect",
                "generic prefect --from-literal=PREFECT__CLOUD__API_KEY",
            ),
            ..Planted::default()
        },
        Planted {
            fault: "no template",
            spoil: |world| std::fs::remove_file(world.path().join("job.yaml")).expect("there"),
            told: ("job template", "job.yaml", "--job-template"),
            ..Planted::default()
        },
        Planted {
            fault: "a template that is no YAML",
            spoil: |world| write(world, "job.yaml", "spec: [a\n"),
            told: ("Job", "job.yaml, line", "change the template"),
            ..Planted::default()
        },
        Planted {
            fault: "a template that makes no Job",
            spoil: |world| write(world, "job.yaml", "spec: {template: {spec: [a]}}\n"),
            told: (
                "Job",
                "spec.template.spec: expected a mapping",
                "change the template",
            ),
            ..Planted::default()
        },
        Planted {
            fault: "a template that the API server refuses",
            spoil: |world| {
                let bad = TEMPLATE.replace("etl", "'a team'");
                write(world, "job.yaml", &bad);
            },
            told: ("dry run", "a team", "change the job template"),
            ..Planted::default()
        },
        Planted {
            fault: "an admission webhook that says no",
            kubernetes: |builder| {
                let said = "admission webhook \"policy\" denied the request: no limits";
                refusing(builder, said)
            },
            told: ("dry run", "denied the request: no limits", "admission"),
            ..Planted::default()
        },
    ]
}

async fn good_world(planted: &Planted) -> World {
    let prefect = (planted.prefect)(PrefectApi::builder());
    let kubernetes = (planted.kubernetes)(KubernetesApi::builder());
    let world = World::with(prefect, kubernetes).await;
    for (plural, object) in [
        ("serviceaccounts", json!({"metadata": {"name": "flow"}})),
        (
            "secrets",
            json!({
                "metadata": {"name": "pull"},
                "type": "kubernetes.io/dockerconfigjson",
                "data": {".dockerconfigjson": "e30="},
            }),
        ),
        (
            "secrets",
            json!({
                "metadata": {"name": "prefect"},
                "data": {"PREFECT__CLOUD__API_KEY": "aHVzaA=="},
            }),
        ),
    ] {
        let made = world.kubernetes.create(plural, "flows", object);
        made.expect("made");
    }
    write(&world, "job.yaml", TEMPLATE);
    (planted.spoil)(&world);
    world
}

async fn check(world: &World, planted: &Planted, more: &[&str]) -> Output {
    let mut command = world.subcommand("check");
    command.args(GOOD).args(planted.args).args(more);
    command.envs(planted.env.iter().copied());
    command.output().await.expect("it starts")
}

fn json_of(output: &Output) -> Value {
    let shown = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {shown}"))
}

/// The names of the lines with this verdict.
fn named(report: &Value, ok: Value) -> Vec<&str> {
    let lines = report["checks"].as_array().expect("a list").iter();
    let lines = lines.filter(|line| line["ok"] == ok);
    lines
        .map(|line| line["name"].as_str().expect("text"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_world_that_is_well_is_told_so_and_left_as_it_was() {
    let planted = Planted::default();
    let world = good_world(&planted).await;
    world.prefect.seed(FlowRunSeed::new());
    let output = check(&world, &planted, &["-o", "json"]).await;
    let report = json_of(&output);
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    let all = [
        "settings",
        "Prefect API",
        "API key",
        "tenant",
        "server version",
        "clock",
        "ready queue",
        "cluster",
        "namespace",
        "permissions",
        "service account",
        "image pull secret",
        "API key's Secret",
        "job template",
        "Job",
        "dry run",
    ];
    assert_eq!(named(&report, json!(true)), all);
    assert_eq!(
        report["checks"][6]["detail"],
        "1 flow run(s) for these labels are due"
    );
    assert!(world.prefect.agents().is_empty(), "nobody registered");
    assert_eq!(world.prefect.count_in_state("Scheduled"), 1);
    assert_eq!(world.kubernetes.creation_count(), 0);
    assert_eq!(world.kubernetes.count("jobs"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_planted_fault_is_found_and_named_with_its_remedy() {
    let all = planted();
    println!("{} faults", all.len());
    for planted in all {
        let world = good_world(&planted).await;
        let output = check(&world, &planted, &["-o", "json"]).await;
        let (fault, report) = (planted.fault, json_of(&output));
        assert_eq!(output.status.code(), Some(1), "{fault}: {report:#}");
        assert_eq!(report["ok"], false, "{fault}");
        let (name, detail, remedy) = planted.told;
        let bad = named(&report, json!(false));
        assert_eq!(bad, [name], "{fault}: {report:#}");
        let lines = report["checks"].as_array().expect("a list");
        let line = lines.iter().find(|line| line["name"] == name);
        let line = line.expect("told");
        let has = |member: &str, part: &str| {
            line[member]
                .as_str()
                .is_some_and(|text| text.contains(part))
        };
        assert!(has("detail", detail), "{fault}: {line:#}");
        assert!(has("remedy", remedy), "{fault}: {line:#}");
        let remedy = line["remedy"].as_str().expect("text");
        assert!(!remedy.contains(". "), "{fault}: one sentence: {remedy}");
        let shown = format!("{output:?}");
        assert!(
            !shown.contains("wrong") || !planted.args.contains(&"--key=wrong"),
            "{shown}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_verbs_are_told_as_a_role_that_can_be_pasted() {
    let planted = Planted {
        kubernetes: |builder| builder.deny("create", "jobs").deny("*", "leases"),
        ..Planted::default()
    };
    let world = good_world(&planted).await;
    let output = check(&world, &planted, &[]).await;
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(1), "{text}");
    let (table, role) = text.split_once("apiVersion").expect("a Role");
    assert!(table.contains("✗ permissions"), "{text}");
    assert!(table.contains("– dry run"), "{text}");
    assert!(!text.contains('\x1b'), "no colours in a pipe: {text}");
    let role: Value = serde_yaml::from_str(&format!("apiVersion{role}")).expect("YAML");
    assert_eq!(role["metadata"]["namespace"], "flows");
    let lease = format!("prefect-agent-{}", world.prefect.tenant_id());
    let rules = json!([
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": [lease], "verbs": ["get", "update"]},
    ]);
    assert_eq!(role["rules"], rules);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_agent_may_not_look_at_is_not_held_against_it() {
    // The agent's own Role allows none of these.
    let planted = Planted {
        kubernetes: |builder| {
            let builder = builder.deny("get", "namespaces");
            builder
                .deny("get", "secrets")
                .deny("get", "serviceaccounts")
        },
        ..Planted::default()
    };
    let world = good_world(&planted).await;
    let output = check(&world, &planted, &["-o", "json"]).await;
    let report = json_of(&output);
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    let open = [
        "namespace",
        "service account",
        "image pull secret",
        "API key's Secret",
    ];
    assert_eq!(named(&report, Value::Null), open);
}
