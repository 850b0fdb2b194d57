//! Jobs and pods that the API server does not let in.

use std::sync::Arc;

use anyhow::{Result, ensure};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{LimitRange, Namespace, ResourceQuota};
use kube::api::{Api, DeleteParams, PostParams};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::world::{Flow, World, until};

/// A run whose Job may not make pods: it is told with these words, then fails with them.
async fn no_pod(world: &World, flow: Flow, text: &str) -> Result<()> {
    let run = world.seed(flow);
    let mut agent = world.agent(&["--create-failure-grace", "4s"])?;
    let warned = world.told(run, "WARNING", text).await?;
    ensure!(
        warned.starts_with("Job prefect-job-") && warned.contains(" cannot create its pod: "),
        "{warned}"
    );
    let done = world.reaches(run, "Failed").await?;
    ensure!(
        done.message()
            .starts_with("Kubernetes Error: Job prefect-job-")
            && done.message().contains(text),
        "the state says: {}",
        done.message()
    );
    world.goes(run).await?;
    agent.stop().await?;
    let warnings = world.messages(run, "WARNING");
    ensure!(warnings.len() == 1, "it was not told once but {warnings:?}");
    let errors = world.messages(run, "ERROR");
    ensure!(errors.len() == 1, "there is not one report but {errors:?}");
    Ok(())
}

/// A run whose Job is not made: it fails with these words, which its log has as well, once.
async fn no_job(world: &World, flow: Flow, args: &[&str], texts: &[&str]) -> Result<()> {
    let run = world.seed(flow);
    let mut agent = world.agent(args)?;
    let message = world.reaches(run, "Failed").await?.message().to_owned();
    for text in texts {
        ensure!(message.contains(text), "no {text:?} in {message}");
    }
    agent.stop().await?;
    let errors = world.messages_of("agent", run, "ERROR");
    ensure!(errors == [message.as_str()], "{message:?}, but {errors:?}");
    Ok(())
}

pub(super) async fn a_missing_service_account_fails_the_run_after_its_grace(
    world: Arc<World>,
) -> Result<()> {
    let flow = Flow::that("").with(json!({"service_account_name": "nobody"}));
    no_pod(&world, flow, "serviceaccount \"nobody\" not found").await
}

pub(super) async fn an_exhausted_quota_fails_the_run_after_its_grace(
    world: Arc<World>,
) -> Result<()> {
    quota(&world, "pods", "0").await?;
    no_pod(&world, Flow::that(""), "exceeded quota: few").await
}

/// Limits how many of something there may be, from now on.
async fn quota(world: &World, what: &str, how_many: &str) -> Result<()> {
    let quota = json!({"metadata": {"name": "few"}, "spec": {"hard": {what: how_many}}});
    world.create::<ResourceQuota>(quota).await?;
    let quotas: Api<ResourceQuota> = world.api();
    until("the quota's status", || async {
        let quota = quotas.get("few").await?;
        let known = quota.status.and_then(|status| status.used);
        Ok(known.filter(|used| !used.is_empty()))
    })
    .await
    .map(drop)
}

pub(super) async fn a_quota_on_jobs_holds_a_run_up_until_there_is_room(
    world: Arc<World>,
) -> Result<()> {
    quota(&world, "count/jobs.batch", "1").await?;
    let first = world.seed(Flow::that("sleep 3600"));
    let mut agent = world.agent(&[])?;
    world.reaches(first, "Running").await?;
    let second = world.seed(Flow::that("true"));
    agent.prints(&["exceeded quota: few"]).await?;
    ensure!(
        world.prefect.state(second).as_deref() == Some("Submitted"),
        "the run is not held up"
    );
    let job = world.job(first).await?.name_any();
    let jobs = world.api::<Job>();
    jobs.delete(&job, &DeleteParams::background()).await?;
    world.reaches(second, "Success").await?;
    world.goes(second).await?;
    agent.stop().await?;
    let errors = world.messages(second, "ERROR");
    ensure!(errors.is_empty(), "{errors:?}");
    Ok(())
}

pub(super) async fn a_quota_on_jobs_that_stays_exhausted_fails_the_run_after_the_budget(
    world: Arc<World>,
) -> Result<()> {
    quota(&world, "count/jobs.batch", "0").await?;
    let args = ["--submit-retry-budget", "2s"];
    no_job(&world, Flow::that(""), &args, &["exceeded quota: few"]).await
}

pub(super) async fn a_limit_range_that_refuses_the_pod_fails_the_run_after_its_grace(
    world: Arc<World>,
) -> Result<()> {
    let limits = json!({
        "metadata": {"name": "small"},
        "spec": {"limits": [{"type": "Container", "max": {"memory": "64Mi"}}]},
    });
    world.create::<LimitRange>(limits).await?;
    let flow = Flow::that("").with(json!({"memory_limit": "1Gi", "memory_request": "1Gi"}));
    no_pod(&world, flow, "maximum memory usage per Container is 64Mi").await
}

pub(super) async fn a_policy_that_refuses_the_pod_fails_the_run_after_its_grace(
    world: Arc<World>,
) -> Result<()> {
    let refused = refusing(&world, "", "pods", "no flows on Tuesdays").await?;
    let outcome = no_pod(&world, Flow::that(""), "no flows on Tuesdays").await;
    refused.lift().await?;
    outcome
}

pub(super) async fn a_policy_that_refuses_the_job_fails_the_run_at_once(
    world: Arc<World>,
) -> Result<()> {
    let refused = refusing(&world, "batch", "jobs", "Jobs need a cost centre").await?;
    let outcome = no_job(&world, Flow::that(""), &[], &["Jobs need a cost centre"]).await;
    refused.lift().await?;
    outcome
}

pub(super) async fn a_job_that_the_api_server_finds_invalid_fails_the_run_at_once(
    world: Arc<World>,
) -> Result<()> {
    let flow = Flow::that("").container(json!({"volumeMounts": [{
        "name": "nowhere", "mountPath": "/data",
    }]}));
    no_job(&world, flow, &[], &["volumeMounts[0].name", "nowhere"]).await
}

/// A policy that refuses objects of one kind in one namespace.
struct Refusal {
    name: String,
    policies: Api<ValidatingAdmissionPolicy>,
    bindings: Api<ValidatingAdmissionPolicyBinding>,
}

impl Refusal {
    async fn lift(&self) -> Result<()> {
        let gone = DeleteParams::default();
        self.bindings.delete(&self.name, &gone).await?;
        self.policies.delete(&self.name, &gone).await?;
        Ok(())
    }
}

/// Refuses objects of this kind in the test's namespace from now on.
async fn refusing(world: &World, group: &str, kind: &str, message: &str) -> Result<Refusal> {
    let client = &world.target.client;
    let refusal = Refusal {
        name: world.namespace.clone(),
        policies: Api::all(client.clone()),
        bindings: Api::all(client.clone()),
    };
    // Neither is in the namespace, but both go when it is gone.
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let owner = namespaces.get(&refusal.name).await?;
    let metadata = json!({
        "name": refusal.name,
        "ownerReferences": [{
            "apiVersion": "v1", "kind": "Namespace", "name": refusal.name, "uid": owner.uid(),
        }],
    });
    let rule = json!({
        "apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE"],
        "resources": [kind],
    });
    let policy = json!({
        "metadata": metadata,
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [rule]},
            "validations": [{"expression": "false", "message": message}],
        },
    });
    let binding = json!({
        "metadata": metadata,
        "spec": {
            "policyName": refusal.name,
            "validationActions": ["Deny"],
            "matchResources": {
                "namespaceSelector": {"matchLabels": {"prefect-agent-e2e": world.namespace}},
            },
        },
    });
    create(&refusal.policies, policy).await?;
    create(&refusal.bindings, binding).await?;
    // The API server takes a moment to heed a policy.
    let (path, probe) = probe(group, kind);
    let path = path.replace("NAMESPACE", &world.namespace);
    until("the refusal of the policy", || async {
        let request = http::Request::post(format!("{path}?dryRun=All"))
            .header("content-type", "application/json")
            .body(probe.to_string().into_bytes())?;
        let tried = client.request::<Value>(request).await;
        Ok(tried.is_err().then_some(()))
    })
    .await?;
    Ok(refusal)
}

/// Where objects of a kind are made, and one that would be let in.
fn probe(group: &str, kind: &str) -> (String, Value) {
    let pod = json!({
        "restartPolicy": "Never",
        "containers": [{"name": "probe", "image": "localhost/probe"}],
    });
    let (path, spec) = match group {
        "" => ("/api/v1".to_owned(), pod),
        group => (
            format!("/apis/{group}/v1"),
            json!({"template": {"spec": pod}}),
        ),
    };
    let object = json!({"metadata": {"name": "probe"}, "spec": spec});
    (format!("{path}/namespaces/NAMESPACE/{kind}"), object)
}

async fn create<K>(api: &Api<K>, object: Value) -> Result<()>
where
    K: Resource + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let object: K = serde_json::from_value(object)?;
    api.create(&PostParams::default(), &object).await?;
    Ok(())
}
