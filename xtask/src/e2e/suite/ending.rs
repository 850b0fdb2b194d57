//! Jobs that end otherwise than by the first failure of a container.

use std::sync::Arc;

use anyhow::{Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, EvictParams};
use serde_json::json;

use super::world::{Flow, World, until};

pub(super) async fn a_job_with_a_backoff_limit_reports_each_pod_and_fails_when_it_gives_up(
    world: Arc<World>,
) -> Result<()> {
    let run = world.seed(Flow::that("exit 5").job(json!({"backoffLimit": 2})));
    let mut agent = world.agent(&[])?;
    world.told(run, "ERROR", "Exit Code:: 5").await?;
    ensure!(
        world.prefect.state(run).as_deref() == Some("Running"),
        "the run did not wait for the Job to try again"
    );
    let done = world.reaches(run, "Failed").await?;
    let named = done.message().matches("'prefect-job-").count();
    ensure!(named == 3, "the state says: {}", done.message());
    world.goes(run).await?;
    agent.stop().await?;
    let reports = world.messages(run, "ERROR");
    ensure!(reports.len() == 3, "{reports:?}");
    Ok(())
}

pub(super) async fn a_deadline_that_passes_fails_the_run(world: Arc<World>) -> Result<()> {
    let flow = Flow::that("sleep 3600")
        .job(json!({"activeDeadlineSeconds": 4}))
        .pod(json!({"terminationGracePeriodSeconds": 1}));
    let run = world.seed(flow);
    let mut agent = world.agent(&[])?;
    let done = world.reaches(run, "Failed").await?;
    ensure!(
        done.message().contains("DeadlineExceeded"),
        "the state says: {}",
        done.message()
    );
    world.goes(run).await?;
    agent.stop().await?;
    let told = world.messages(run, "ERROR").join("\n");
    ensure!(told.contains("DeadlineExceeded"), "{told}");
    Ok(())
}

pub(super) async fn a_job_that_kubernetes_deletes_after_its_end_was_told_in_full(
    world: Arc<World>,
) -> Result<()> {
    let brief = json!({"ttlSecondsAfterFinished": 0});
    let good = world.seed(Flow::that("true").job(brief.clone()));
    let bad = world.seed(Flow::that("exit 6").job(brief));
    let mut agent = world.agent(&["--disable-job-deletion"])?;
    world.reaches(good, "Success").await?;
    world.reaches(bad, "Failed").await?;
    for run in [good, bad] {
        world.goes(run).await?;
    }
    agent.stop().await?;
    let told = world.messages(good, "ERROR");
    ensure!(told.is_empty(), "{told:?}");
    let told = world.messages(bad, "ERROR");
    let of_pod = told.iter().filter(|text| text.contains("Exit Code:: 6"));
    // Where the pod went first, the Job is told of for itself, too.
    let of_job = |text: &&String| text.contains("BackoffLimitExceeded");
    ensure!(
        of_pod.count() == 1 && told.iter().filter(of_job).count() == told.len() - 1,
        "{told:?}"
    );
    Ok(())
}

pub(super) async fn a_job_that_ends_well_and_goes_without_a_report_fails_its_run(
    world: Arc<World>,
) -> Result<()> {
    let flow = Flow::that("")
        .job(json!({"ttlSecondsAfterFinished": 0}))
        .container(json!({"command": ["true"]}));
    let run = world.seed(flow);
    let mut agent = world.agent(&["--disable-job-deletion"])?;
    let done = world.reaches(run, "Failed").await?;
    let message = done.message().to_owned();
    let said = "has ended and is gone, and its flow run never started";
    ensure!(message.ends_with(said), "{message}");
    agent.stop().await?;
    let told = world.messages(run, "ERROR");
    ensure!(told == [message.as_str()], "{message:?}, but {told:?}");
    Ok(())
}

pub(super) async fn an_evicted_pod_is_told_and_replaced(world: Arc<World>) -> Result<()> {
    // The first pod waits to be evicted, the second has somewhere to find that out.
    let flow = Flow::that("sleep 3600")
        .job(json!({"backoffLimit": 3}))
        .pod(json!({"terminationGracePeriodSeconds": 1}));
    let run = world.seed(flow);
    let mut agent = world.agent(&[])?;
    let first = world.pod(run, "Running").await?.name_any();
    world
        .api::<Pod>()
        .evict(&first, &EvictParams::default())
        .await?;
    let second = until("a second pod", || async {
        let pod = world.pod(run, "Running").await?;
        Ok((pod.name_any() != first).then_some(pod))
    })
    .await?;
    ensure!(second.name_any() != first, "it is the same pod");
    let told = world
        .told(run, "ERROR", &format!("Pod {first} failed."))
        .await?;
    ensure!(told.contains("\tReason: EvictionByEvictionAPI"), "{told}");
    ensure!(
        world.prefect.state(run).as_deref() == Some("Running"),
        "the run did not go on"
    );
    agent.stop().await?;
    let told = world.messages(run, "ERROR");
    ensure!(told.len() == 1, "it was not told once but {told:?}");
    Ok(())
}

pub(super) async fn a_deleted_pod_is_replaced_and_the_run_goes_on(world: Arc<World>) -> Result<()> {
    let flow = Flow::that("sleep 6")
        .job(json!({"backoffLimit": 3}))
        .pod(json!({"terminationGracePeriodSeconds": 1}));
    let run = world.seed(flow);
    let mut agent = world.agent(&[])?;
    let first = world.pod(run, "Running").await?.name_any();
    let pods = world.api::<Pod>();
    pods.delete(&first, &DeleteParams::default()).await?;
    world.reaches(run, "Success").await?;
    world.goes(run).await?;
    agent.stop().await?;
    let told = world.messages(run, "ERROR");
    ensure!(
        told.len() == 1 && told[0].starts_with(&format!("Pod {first} failed.\n")),
        "the first pod was not told once but {told:?}"
    );
    Ok(())
}

pub(super) async fn a_deleted_job_fails_its_run(world: Arc<World>) -> Result<()> {
    let flow = Flow::that("sleep 3600").pod(json!({"terminationGracePeriodSeconds": 1}));
    let run = world.seed(flow);
    let mut agent = world.agent(&[])?;
    world.reaches(run, "Running").await?;
    let job = world.job(run).await?.name_any();
    let jobs = world.api::<Job>();
    jobs.delete(&job, &DeleteParams::background()).await?;
    let done = world.reaches(run, "Failed").await?;
    let message = format!("Kubernetes Error: Job {job} was deleted before it had finished");
    ensure!(done.message() == message, "{}", done.message());
    agent.stop().await?;
    ensure!(world.messages(run, "ERROR") == [message], "it was not told");
    Ok(())
}

pub(super) async fn the_job_of_a_cancelled_run_is_deleted(world: Arc<World>) -> Result<()> {
    let flow = Flow::that("sleep 3600").pod(json!({"terminationGracePeriodSeconds": 1}));
    let run = world.seed(flow);
    let mut agent = world.agent(&["--cancel-grace", "1s"])?;
    world.reaches(run, "Running").await?;
    world.pod(run, "Running").await?;
    world.prefect.set_state_named(run, "Cancelled", "by hand");
    world.goes(run).await?;
    agent.stop().await?;
    let done = world.prefect.state(run);
    ensure!(done.as_deref() == Some("Cancelled"), "it is {done:?}");
    let told = world.messages(run, "INFO").join("\n");
    ensure!(
        told.contains("is deleted: its flow run is Cancelled"),
        "{told}"
    );
    let errors = world.messages(run, "ERROR");
    ensure!(errors.is_empty(), "{errors:?}");
    Ok(())
}
