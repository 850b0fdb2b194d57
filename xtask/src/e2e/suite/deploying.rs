//! Runs that are deployed and come to a good end.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{LogParams, Patch, PatchParams};
use serde_json::{Value, json};
use uuid::Uuid;

use super::world::{Flow, World, until};

/// Variables that a container gets from others than the manifest: the runtime, the image, the
/// kubelet.
const FOREIGN: [&str; 4] = ["HOME", "HOSTNAME", "PATH", "TERM"];

pub(super) async fn a_container_sees_exactly_the_environment_that_render_promised(
    world: Arc<World>,
) -> Result<()> {
    let env = json!({
        "FLOW": "cat /proc/1/environ | base64",
        "QUOTED": "it's \"so\" $HOME",
        "REFERENCE": "$(QUOTED) $$(QUOTED)",
        "LINES": "one\ntwo\n",
        "UMLAUTS": "äöü €",
        "EMPTY": "",
        "NUMBER": 3,
        "LIST": [1, {"a": null}],
    });
    let labelled = agent_testkit::FlowRunSeed::new()
        .labels(["prod"])
        .run_config(json!({
            "type": "KubernetesRun", "image": world.target.flow_image, "env": env,
        }));
    let run = world.prefect.seed(labelled);
    let mut agent = world.agent(&[
        "--label",
        "prod",
        "--env",
        "FROM_AGENT=a=b",
        "--keep-succeeded-jobs",
        "1h",
    ])?;
    world.reaches(run, "Success").await?;
    let pod = world.pod(run, "Succeeded").await?;
    let log = world
        .api::<Pod>()
        .logs(&pod.name_any(), &LogParams::default())
        .await?;
    let seen = environment(&world, &log).await?;
    let promised = rendered(&world, run).await?;
    for (name, value) in &promised {
        // Of all values, Kubernetes changes those that have references to others.
        let value = match name.as_str() {
            "REFERENCE" => "it's \"so\" $HOME $(QUOTED)",
            _ => value,
        };
        ensure!(
            seen.get(name).map(String::as_str) == Some(value),
            "{name} should be {value:?} but is {:?}",
            seen.get(name)
        );
    }
    for name in seen.keys() {
        ensure!(
            promised.contains_key(name)
                || FOREIGN.contains(&name.as_str())
                || name.starts_with("KUBERNETES_"),
            "{name} was not promised"
        );
    }
    agent.stop().await
}

/// The variables in the log of a flow that printed them, between zeros and encoded.
async fn environment(world: &World, log: &str) -> Result<BTreeMap<String, String>> {
    let file = world.path().join("environ");
    // Lines of the API's answers are in the log as well.
    let encoded = log.lines().filter(|line| !line.contains(['{', '}']));
    std::fs::write(&file, encoded.collect::<Vec<_>>().join("\n"))?;
    let mut base64 = tokio::process::Command::new("base64");
    let decoded = base64.arg("-d").arg(&file).output().await?;
    ensure!(decoded.status.success(), "the log is no base64: {log}");
    let text = String::from_utf8(decoded.stdout).context("the variables are no text")?;
    let variables = text.split('\0').filter_map(|one| one.split_once('='));
    Ok(variables
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}

/// The variables in the Job that `render` prints for a run.
async fn rendered(world: &World, run: Uuid) -> Result<BTreeMap<String, String>> {
    let row = world.prefect.run(run).context("seeded")?;
    let asked = json!({
        "id": row.id, "name": row.name, "run_config": row.run_config,
        "flow": {
            "id": row.flow.id, "name": row.flow.name, "core_version": row.flow.core_version,
            "storage": row.flow.storage, "environment": row.flow.environment,
        },
    });
    let file = world.path().join("flow-run.json");
    std::fs::write(&file, asked.to_string())?;
    let printed = world
        .command("render")
        .args(["--label", "prod", "--env", "FROM_AGENT=a=b"])
        .args(["--output", "json", "--flow-run"])
        .arg(&file)
        .output()
        .await?;
    ensure!(
        printed.status.success(),
        "render: {}",
        String::from_utf8_lossy(&printed.stderr)
    );
    let job: Value = serde_json::from_slice(&printed.stdout)?;
    let env = &job["spec"]["template"]["spec"]["containers"][0]["env"];
    let text = |entry: &Value, member: &str| entry[member].as_str().unwrap_or_default().to_owned();
    let entries = env.as_array().context("render printed no env")?;
    Ok(entries
        .iter()
        .map(|entry| (text(entry, "name"), text(entry, "value")))
        .collect())
}

pub(super) async fn a_run_without_an_image_gets_that_of_its_prefect_version(
    world: Arc<World>,
) -> Result<()> {
    // Clusters that are not ours cannot be given this image.
    if world.target.local.is_none() {
        return Ok(());
    }
    let run = world.seed(Flow::that("true").with(json!({"image": null})));
    let _agent = world.agent(&[])?;
    let done = world.reaches(run, "Success").await?;
    ensure!(
        done.state_names() == ["Scheduled", "Submitted", "Running", "Success"],
        "{:?}",
        done.state_names()
    );
    world.goes(run).await
}

pub(super) async fn init_containers_and_sidecars_run_beside_a_flow(
    world: Arc<World>,
) -> Result<()> {
    let image = &world.target.flow_image;
    let flow = Flow::that("test \"$(cat /shared/first)\" = done && wait_for() { until test -e /shared/second; do sleep 0.1; done; } && wait_for")
        .pod(json!({
            "volumes": [{"name": "shared", "emptyDir": {}}],
            "terminationGracePeriodSeconds": 1,
            "initContainers": [
                {
                    "name": "first", "image": image,
                    "command": ["sh", "-c", "echo done > /shared/first"],
                    "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
                },
                {
                    "name": "beside", "image": image, "restartPolicy": "Always",
                    "command": ["sh", "-c", "echo done > /shared/second; exec sleep 3600"],
                    "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
                },
            ],
        }))
        .container(json!({"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}));
    let run = world.seed(flow);
    let mut agent = world.agent(&[])?;
    world.reaches(run, "Success").await?;
    world.goes(run).await?;
    agent.stop().await?;
    let errors = world.messages(run, "ERROR");
    ensure!(errors.is_empty(), "{errors:?}");
    Ok(())
}

pub(super) async fn a_suspended_job_waits_until_it_is_resumed(world: Arc<World>) -> Result<()> {
    let run = world.seed(Flow::that("true").job(json!({"suspend": true})));
    let mut agent = world.agent(&[
        "--create-failure-grace",
        "1s",
        "--pending-timeout",
        "30s",
        "--start-error-grace",
        "1s",
    ])?;
    let job = world.job(run).await?.name_any();
    until("the condition Suspended", || async {
        let jobs = world.jobs(run).await?;
        let status = jobs.first().and_then(|job| job.status.as_ref());
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let suspended = conditions
            .is_some_and(|conditions| conditions.iter().any(|one| one.type_ == "Suspended"));
        Ok(suspended.then_some(()))
    })
    .await?;
    // A second run that comes and goes shows that the agent had time for the first.
    let other = world.seed(Flow::that("true"));
    world.reaches(other, "Success").await?;
    ensure!(world.pods(run).await?.is_empty(), "it has a pod");
    ensure!(
        world.prefect.state(run).as_deref() == Some("Submitted"),
        "it is not Submitted"
    );
    let resume = json!({"spec": {"suspend": false}});
    world
        .api::<Job>()
        .patch(&job, &PatchParams::default(), &Patch::Merge(resume))
        .await?;
    world.reaches(run, "Success").await?;
    world.goes(run).await?;
    agent.stop().await?;
    let told = world.messages(run, "ERROR");
    ensure!(told.is_empty(), "{told:?}");
    Ok(())
}

pub(super) async fn a_killed_agents_successor_finishes_its_work_and_tells_nothing_twice(
    world: Arc<World>,
) -> Result<()> {
    let good = world.seed(Flow::that("sleep 8"));
    let bad = world.seed(Flow::that("sleep 3; exit 9"));
    let told = world.seed(Flow::that("exit 8"));
    let mut agent = world.agent(&["--keep-failed-jobs", "1h"])?;
    world.reaches(good, "Running").await?;
    world.told(told, "ERROR", "Exit Code:: 8").await?;
    world.reaches(told, "Failed").await?;
    agent.kill().await?;
    world.pod(bad, "Failed").await?;
    let mut agent = world.agent(&[])?;
    world.told(bad, "ERROR", "Exit Code:: 9").await?;
    world.reaches(bad, "Failed").await?;
    world.reaches(good, "Success").await?;
    for run in [good, bad, told] {
        world.goes(run).await?;
    }
    agent.stop().await?;
    for (run, times) in [(good, 0), (bad, 1), (told, 1)] {
        let errors = world.messages(run, "ERROR");
        ensure!(errors.len() == times, "{errors:?}");
    }
    Ok(())
}
