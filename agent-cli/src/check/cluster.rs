//! The cluster's side.

use std::sync::Arc;

use agent_api_client::FlowRunRow;
use agent_core::{TemplateOrigin, TemplateStore};
use agent_k8s::access::{self, Rule};
use agent_k8s::probe::{Found, Probe};
use agent_k8s::{Cluster, KeySecret, ManifestSettings, Manifests, manifest};
use agent_templates::Templates;
use serde_json::{Value, json};

use super::report::Report;
use crate::settings::Settings;

/// What is looked at after the cluster has answered, and what needs no cluster.
const AFTER_CLUSTER: [&str; 3] = ["namespace", "permissions", "dry run"];
const NAMESPACE: &str = "namespace";
const DRY_RUN: &str = "dry run";
/// What to do about a namespace that is being deleted.
const ENDING: &str =
    "wait until the namespace is gone and create it again, or name another with --namespace";

pub(super) async fn connect() -> Result<Cluster, String> {
    agent_k8s::connect().await
}

pub(super) async fn look(
    report: &mut Report,
    cluster: Result<Cluster, String>,
    settings: Settings,
    tenant: Option<String>,
) {
    let namespace = settings.namespace.clone();
    let mut needs = Needs::of_settings(&settings.manifest);
    needs.lease = match &tenant {
        Some(tenant) => Some(settings.lease_of(tenant)),
        None => settings.lease_name.clone(),
    };
    let probe = match cluster {
        Ok(cluster) => {
            let detail = format!("{} at {}", cluster.version, cluster.address);
            report.good("cluster", detail);
            Some(Probe::new(cluster.client, &namespace))
        }
        Err(error) => {
            let remedy = "see that `kubectl get jobs` works with the same KUBECONFIG, or that the pod has a service account's token";
            report.bad("cluster", error, remedy);
            report.skip(&AFTER_CLUSTER[..2], "the cluster did not answer");
            None
        }
    };
    let mut made = Report::default();
    let manifest = render(&mut made, settings, tenant).await;
    if let Some(manifest) = &manifest {
        needs.take(manifest);
    }
    let there = match &probe {
        Some(probe) => look_around(report, probe, &needs, &namespace).await,
        None => Err("the cluster did not answer"),
    };
    report.extend(made);
    match (&probe, there, manifest) {
        (_, Err(because), _) => report.skip(&[DRY_RUN], because),
        (_, _, None) => report.skip(&[DRY_RUN], "there is no Job to try"),
        (None, ..) => {}
        (Some(probe), _, Some(manifest)) => dry_run(report, probe, &namespace, &manifest).await,
    }
}

/// What Jobs refer to.
struct Needs {
    service_account: Option<String>,
    pull_secrets: Vec<String>,
    key: Option<KeySecret>,
    /// The Lease, if its name is known.
    lease: Option<String>,
}

impl Needs {
    /// What the settings say.
    fn of_settings(job: &ManifestSettings) -> Self {
        let names = job.image_pull_secrets.iter().flatten();
        Self {
            service_account: job
                .service_account_name
                .clone()
                .filter(|name| !name.is_empty()),
            pull_secrets: names.filter(|name| !name.is_empty()).cloned().collect(),
            key: job.key_secret.clone(),
            lease: None,
        }
    }

    /// What a Job says, to which template and patch have contributed.
    fn take(&mut self, job: &Value) {
        let pod = &job["spec"]["template"]["spec"];
        // The Python agent makes empty names, which refer to nothing.
        let text = |value: &Value| Some(value.as_str()?.to_owned()).filter(|name| !name.is_empty());
        self.service_account = text(&pod["serviceAccountName"]);
        let secrets = pod["imagePullSecrets"].as_array();
        let names = secrets.into_iter().flatten();
        self.pull_secrets = names.filter_map(|secret| text(&secret["name"])).collect();
    }
}

/// Namespace, permissions, and what Jobs refer to; why no Job can be tried, if none can.
async fn look_around(
    report: &mut Report,
    probe: &Probe,
    needs: &Needs,
    namespace: &str,
) -> Result<(), &'static str> {
    let there = see_namespace(report, probe, namespace).await;
    let may_create = permissions(report, probe, namespace, needs.lease.as_deref()).await;
    if !there {
        return Err("there is no namespace for it");
    }
    if let Some(name) = &needs.service_account {
        let found = probe.service_account(name).await;
        let remedy = format!("kubectl -n {namespace} create serviceaccount {name}");
        see(report, "service account", name, namespace, found, &remedy);
    }
    for name in &needs.pull_secrets {
        let found = probe.pull_secret(name).await;
        let remedy = format!(
            "kubectl -n {namespace} create secret docker-registry {name} --docker-server=…"
        );
        see(report, "image pull secret", name, namespace, found, &remedy);
    }
    if let Some(KeySecret { name, key }) = &needs.key {
        let found = probe.secret_with(name, key).await;
        let remedy =
            format!("kubectl -n {namespace} create secret generic {name} --from-literal={key}=…");
        see(report, "API key's Secret", name, namespace, found, &remedy);
    }
    may_create.then_some(()).ok_or("Jobs may not be created")
}

/// Notes whether the namespace is there; `false` if it is known not to be.
async fn see_namespace(report: &mut Report, probe: &Probe, namespace: &str) -> bool {
    let found = probe.namespace().await;
    let there = !matches!(found, Ok(Found::No | Found::Unfit(_)));
    match found {
        Ok(Found::Yes) => report.good(NAMESPACE, namespace),
        Ok(Found::No) => {
            let detail = format!("there is no namespace {namespace}");
            report.bad(NAMESPACE, detail, create_namespace(namespace));
        }
        Ok(Found::Unfit(why)) => {
            report.bad(NAMESPACE, format!("{namespace} {why}"), ENDING);
        }
        Ok(Found::Hidden) => report.open(
            NAMESPACE,
            format!("whether {namespace} exists may not be asked; the dry run tells"),
        ),
        Err(error) => report.bad(NAMESPACE, error, "see why the API server does not answer"),
    }
    there
}

fn create_namespace(namespace: &str) -> String {
    format!(
        "create it with `kubectl create namespace {namespace}`, or name another with --namespace"
    )
}

/// Notes what is allowed, rule by rule; whether Jobs may be created.
async fn permissions(
    report: &mut Report,
    probe: &Probe,
    namespace: &str,
    lease: Option<&str>,
) -> bool {
    let mut missing: Vec<Rule> = Vec::new();
    let mut names = Vec::new();
    let mut rules = access::rules(lease.unwrap_or_default());
    // Without its tenant, nobody knows which Lease it is.
    rules.retain(|rule| lease.is_some() || rule.names.is_empty());
    for rule in rules {
        names.push(rule.resource);
        match probe.missing(&rule).await {
            Ok(None) => {}
            Ok(Some(rule)) => missing.push(rule),
            Err(error) => {
                let remedy = "see why the API server does not answer SelfSubjectAccessReviews";
                report.bad("permissions", error, remedy);
                return true;
            }
        }
    }
    names.dedup();
    if missing.is_empty() {
        let detail = format!("all there for {} in {namespace}", names.join(", "));
        report.good("permissions", detail);
        return true;
    }
    let told = missing
        .iter()
        .map(|rule| format!("{} {}", rule.verbs.join(", "), rule.resource));
    let detail = format!(
        "not allowed in {namespace}: {}",
        told.collect::<Vec<_>>().join("; ")
    );
    let remedy = "apply the Role below and bind it to the agent's service account, or `agent-cli install --rbac | kubectl apply -f -`";
    report.bad("permissions", detail, remedy);
    let role = access::role("prefect-agent-missing", namespace, &missing);
    report.role = serde_json::to_value(&role).ok();
    let create = |rule: &Rule| rule.resource == "jobs" && rule.verbs.contains(&"create");
    !missing.iter().any(create)
}

fn see(
    report: &mut Report,
    what: &'static str,
    name: &str,
    namespace: &str,
    found: Result<Found, String>,
    command: &str,
) {
    match found {
        Ok(Found::Yes) => report.good(what, name),
        Ok(Found::No) => report.bad(
            what,
            format!("there is no {name} in namespace {namespace}"),
            format!("create it: `{command}`"),
        ),
        Ok(Found::Unfit(why)) => report.bad(
            what,
            format!("{name} in namespace {namespace} {why}"),
            format!("name another, or delete it and make it anew: `{command}`"),
        ),
        Ok(Found::Hidden) => {
            report.open(what, format!("whether {name} exists may not be asked"));
        }
        Err(error) => report.bad(what, error, "see why the API server does not answer"),
    }
}

/// The Job of a flow run that is made up.
async fn render(report: &mut Report, settings: Settings, tenant: Option<String>) -> Option<Value> {
    let store = Arc::new(Templates::new(settings.templates));
    let mut job = settings.manifest;
    job.tenant_id = tenant.unwrap_or_default();
    match &job.job_template {
        None => report.good("job template", "the built-in one"),
        Some(location) => match store.load(location, TemplateOrigin::Agent).await {
            Ok(_) => report.good("job template", location),
            Err(error) => {
                let remedy = "put the template where --job-template says, or say where it is";
                report.bad("job template", error.to_string(), remedy);
                report.skip(&["Job"], "there is no template");
                return None;
            }
        },
    }
    let row = json!({
        "id": "00000000-0000-4000-8000-000000000001",
        "name": "check",
        "flow": {
            "id": "00000000-0000-4000-8000-000000000002",
            "name": "check",
            "core_version": "1.4.1",
            "storage": {"type": "Local"},
        },
        "run_config": {"type": "UniversalRun"},
    });
    let remedy =
        "change the template at the place that is named; `agent-cli render` shows what comes of it";
    let run = match FlowRunRow::from_json(&row) {
        Ok(row) => row.into_flow_run(),
        Err(error) => {
            report.bad("Job", error, remedy);
            return None;
        }
    };
    let identifier = manifest::identifier(&run.attempt, 0);
    match Manifests::new(job, store).build(&run, &identifier).await {
        Ok(manifest) => {
            report.good("Job", "can be made from template and settings");
            Some(manifest.into_value())
        }
        Err(error) => {
            report.bad("Job", error.to_string(), remedy);
            None
        }
    }
}

async fn dry_run(report: &mut Report, probe: &Probe, namespace: &str, manifest: &Value) {
    let error = match probe.dry_run(manifest).await {
        Ok(warnings) => return taken(report, &warnings),
        Err(error) => error,
    };
    let remedy = remedy(&error, namespace);
    report.bad(DRY_RUN, error, remedy);
}

/// Notes that a Job would be taken. Pods have rules of their own, of which only warnings tell.
fn taken(report: &mut Report, warnings: &[String]) {
    let good = "the API server would take the Job";
    if warnings.is_empty() {
        return report.good(DRY_RUN, good);
    }
    let told = warnings.join("; ");
    let hint = if told.contains("PodSecurity") {
        " (its pods may be refused: set their securityContext in the job template or --job-patch)"
    } else {
        ""
    };
    report.open(DRY_RUN, format!("{good}, and warns: {told}{hint}"));
}

/// What to do about the API server's refusal of a Job.
fn remedy(error: &str, namespace: &str) -> String {
    let says = |text: &str| error.contains(text);
    // Who may not look at namespaces learns of them here.
    if says(&format!("namespaces {namespace:?} not found")) {
        create_namespace(namespace)
    } else if says("is being terminated") {
        ENDING.to_owned()
    } else if says("exceeded quota") {
        "raise the quota, or delete Jobs that have ended, and limit the agent with --max-in-flight"
            .to_owned()
    } else {
        "change the job template or --job-patch so that the API server and its admission take the Job"
            .to_owned()
    }
}
