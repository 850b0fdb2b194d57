//! What `agent-cli install` prints, before the API server's validation and admission.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec};
use kube::api::DeleteParams;
use serde_json::{Value, json};

use super::inside::NAME;
use super::world::{World, until};

/// Flags that go with each other in every way that matters: each flag is in at least one line, and
/// each kind of object is made with and without a key, with one namespace and with two.
const COMBINATIONS: [&str; 8] = [
    "--rbac",
    "--rbac --key secret$(HOME) --tenant-id 3f0d6b0e-2c54-4b7c-9f0e-9d9f5a1c7e21",
    "--secret-name prefect/key --agent-namespace AGENT --rbac --replicas 3 --pod-disruption-budget",
    "--network-policy --name second --label a --label b --env A=$(B) --env C={\"d\":1}",
    "--agent-service-account default --image-pull-secrets one,two --latest",
    "--job-template-configmap template/job --agent-namespace AGENT --service-account-name flows",
    "--mem-request 1Gi --mem-limit 2Gi --cpu-request 500m --cpu-limit 2 --image-pull-policy Always",
    "--rbac --replicas 0 --network-policy --pod-disruption-budget --agent-config-id x -- --keep-failed-jobs=1d --volume=[] --log-level=debug",
];

pub(super) async fn what_install_prints_is_accepted_in_every_combination(
    world: Arc<World>,
) -> Result<()> {
    let agents = world.another_namespace("agent").await?;
    for combination in COMBINATIONS {
        let words = combination.split(' ').map(|word| match word {
            "AGENT" => agents.as_str(),
            word => word,
        });
        let flags: Vec<&str> = ["--namespace", &world.namespace]
            .into_iter()
            .chain(words)
            .collect();
        let objects = world.objects("install", &flags).await?;
        let tried = world.kubectl(&["apply", "--dry-run=server", "-f", "-"], &objects);
        let taken = tried.await.with_context(|| combination.to_owned())?;
        let wanted = objects.matches("\nkind: ").count();
        ensure!(
            taken.lines().count() == wanted,
            "{combination}: of {wanted} objects these were taken:\n{taken}"
        );
    }
    Ok(())
}

pub(super) async fn what_uninstall_prints_deletes_what_install_has_made(
    world: Arc<World>,
) -> Result<()> {
    let all = "--rbac --key secret --replicas 0 --network-policy --pod-disruption-budget";
    let all: Vec<&str> = all.split(' ').collect();
    let flags = [&["--namespace", &world.namespace], &all[..]].concat();
    let objects = world.objects("install", &flags).await?;
    world.kubectl(&["apply", "-f", "-"], &objects).await?;
    let objects = world.objects("uninstall", &flags).await?;
    world.kubectl(&["delete", "-f", "-"], &objects).await?;
    let kinds = "deployments,secrets,serviceaccounts,roles,rolebindings,networkpolicies,poddisruptionbudgets";
    let left = ["get", kinds, "-l", "app.kubernetes.io/name=prefect-agent"];
    let left = [&left[..], &["-o", "name", "--namespace", &world.namespace]].concat();
    let left = world.kubectl(&left, "").await?;
    ensure!(left.is_empty(), "there is still {left}");
    Ok(())
}

pub(super) async fn install_can_be_applied_over_the_python_agent(world: Arc<World>) -> Result<()> {
    let [namespace, rights] = [&*world.namespace, "role,rolebinding"];
    let in_place = ["--namespace", namespace];
    let apply = [&["apply", "-f", "-"], &in_place[..]].concat();
    for object in of_python(namespace) {
        world.kubectl(&apply, &object.to_string()).await?;
    }
    let flags = ["--rbac", "--key", "secret", "--label", "a"];
    let objects = world
        .objects("install", &[&in_place[..], &flags].concat())
        .await?;
    world.kubectl(&["apply", "-f", "-"], &objects).await?;
    let old = [&["delete", rights, "prefect-agent-rbac"], &in_place[..]].concat();
    world.kubectl(&old, "").await?;
    let over = spec(&world).await?;

    let deployments = world.api::<Deployment>();
    deployments.delete(NAME, &DeleteParams::default()).await?;
    until("the end of the Deployment", || async {
        let left = deployments.get_opt(NAME).await?;
        Ok(left.is_none().then_some(()))
    })
    .await?;
    world.kubectl(&["apply", "-f", "-"], &objects).await?;
    let alone = spec(&world).await?;
    ensure!(over == alone, "applied over: {over:?}\nalone: {alone:?}");
    let left = [&["get", rights, "-o", "name"], &in_place[..]].concat();
    let left = world.kubectl(&left, "").await?;
    let left: Vec<&str> = left.lines().collect();
    let kinds = ["role", "rolebinding"];
    let ours = kinds.map(|kind| format!("{kind}.rbac.authorization.k8s.io/{NAME}"));
    ensure!(left == ours, "these rights are there: {left:?}");
    Ok(())
}

/// The agent's Deployment, as the API server has it.
async fn spec(world: &World) -> Result<DeploymentSpec> {
    let deployment = world.api::<Deployment>().get(NAME).await?;
    deployment.spec.context("a Deployment without a spec")
}

/// What the Python agent's `install` prints with every flag.
fn of_python(namespace: &str) -> [Value; 3] {
    let env = [
        ("PREFECT__CLOUD__AGENT__AUTH_TOKEN", "secret"),
        ("PREFECT__CLOUD__API", "http://apollo:4200"),
        ("NAMESPACE", namespace),
        ("IMAGE_PULL_SECRETS", "registry"),
        ("PREFECT__CLOUD__AGENT__LABELS", "['a']"),
        ("JOB_MEM_REQUEST", "1Gi"),
        ("JOB_MEM_LIMIT", "2Gi"),
        ("JOB_CPU_REQUEST", "1"),
        ("JOB_CPU_LIMIT", "2"),
        ("IMAGE_PULL_POLICY", "Always"),
        ("SERVICE_ACCOUNT_NAME", "flows"),
        ("PREFECT__BACKEND", "server"),
        ("PREFECT__CLOUD__AGENT__AGENT_ADDRESS", "http://:8080"),
        ("PREFECT__CLOUD__API_KEY", "secret"),
        ("PREFECT__CLOUD__TENANT_ID", ""),
        ("PREFECT__CLOUD__AGENT__ENV_VARS", r#"{"A": "B"}"#),
    ];
    let env = env.map(|(name, value)| json!({"name": name, "value": value}));
    let name = json!({"name": "prefect-agent-rbac", "namespace": namespace});
    let probe = json!({
        "httpGet": {"path": "/api/health", "port": 8080},
        "initialDelaySeconds": 40,
        "periodSeconds": 40,
        "failureThreshold": 2,
    });
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "labels": {"app": NAME}},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": NAME}},
            "template": {
                "metadata": {"labels": {"app": NAME}},
                "spec": {
                    "containers": [{
                        "name": "agent",
                        "image": "prefecthq/prefect:1.4.1-python3.7",
                        "imagePullPolicy": "Always",
                        "command": ["/bin/bash", "-c"],
                        "args": ["prefect agent kubernetes start"],
                        "env": env,
                        "livenessProbe": probe,
                    }],
                    "imagePullSecrets": [{"name": "registry"}],
                },
            },
        },
    });
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": name,
        "rules": [
            {"apiGroups": ["batch", "extensions"], "resources": ["jobs"], "verbs": ["*"]},
            {"apiGroups": [""], "resources": ["events", "pods"], "verbs": ["*"]},
        ],
    });
    let group = "rbac.authorization.k8s.io";
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": name,
        "subjects": [{"kind": "ServiceAccount", "name": "default"}],
        "roleRef": {"apiGroup": group, "kind": "Role", "name": "prefect-agent-rbac"},
    });
    [deployment, role, binding]
}
