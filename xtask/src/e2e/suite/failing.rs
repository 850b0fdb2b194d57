//! Containers that fail, and containers that cannot be started.

use std::sync::Arc;

use anyhow::{Result, ensure};
use serde_json::json;
use uuid::Uuid;

use super::world::{Agent, Flow, World};

/// What the run of a failed pod must say and come to, and that the Job goes.
async fn fails(world: &World, run: Uuid, agent: &mut Agent, texts: &[&str]) -> Result<()> {
    let done = world.reaches(run, "Failed").await?;
    ensure!(
        done.message()
            .starts_with("Kubernetes Error: pods ['prefect-job-")
            && done.message().ends_with("'] failed for this job"),
        "the state says: {}",
        done.message()
    );
    one_report(world, run, agent, texts).await
}

/// The Job goes, and the run's log has one error, which contains these texts.
async fn one_report(world: &World, run: Uuid, agent: &mut Agent, texts: &[&str]) -> Result<()> {
    world.goes(run).await?;
    agent.stop().await?;
    let errors = world.messages(run, "ERROR");
    ensure!(errors.len() == 1, "there is not one report but {errors:?}");
    for text in texts {
        ensure!(errors[0].contains(text), "no {text:?} in {}", errors[0]);
    }
    Ok(())
}

pub(super) async fn a_flow_that_exits_with_an_error_is_told_with_its_exit_code(
    world: Arc<World>,
) -> Result<()> {
    let run = world.seed(Flow::that("exit 42"));
    let mut agent = world.agent(&[])?;
    let texts = [
        "failed.\n\tContainer 'flow' state: terminated\n\t\tExit Code:: 42",
        "\n\t\tReason: Error",
    ];
    fails(&world, run, &mut agent, &texts).await
}

pub(super) async fn a_flow_that_is_killed_by_a_signal_is_told_so(world: Arc<World>) -> Result<()> {
    // A container's first process cannot be killed from within; the shell ends as its child did.
    let run = world.seed(Flow::that("sleep 60 & kill -SEGV $!; wait $!"));
    let mut agent = world.agent(&[])?;
    let texts = [
        "failed.\n\tContainer 'flow' state: terminated\n\t\tExit Code:: 139",
        "\n\t\tReason: Error",
    ];
    fails(&world, run, &mut agent, &texts).await
}

pub(super) async fn a_flow_that_takes_too_much_memory_is_told_so(world: Arc<World>) -> Result<()> {
    let hungry = Flow::that("exec tail /dev/zero").with(json!({"memory_limit": "24Mi"}));
    let run = world.seed(hungry);
    let mut agent = world.agent(&[])?;
    let texts = [
        "Exit Code:: 137",
        "Reason: OOMKilled",
        "The container used more memory than its limit allows and was killed.",
    ];
    fails(&world, run, &mut agent, &texts).await
}

pub(super) async fn a_command_that_does_not_exist_is_told(world: Arc<World>) -> Result<()> {
    let run = world.seed(Flow::that("").container(json!({"command": ["/no/such/program"]})));
    let mut agent = world.agent(&[])?;
    let texts = ["Exit Code:: 128", "Reason: StartError", "/no/such/program"];
    fails(&world, run, &mut agent, &texts).await
}

pub(super) async fn an_init_container_that_fails_fails_the_run(world: Arc<World>) -> Result<()> {
    let run = world.seed(Flow::that("true").pod(json!({"initContainers": [{
        "name": "migrate", "image": world.target.flow_image, "command": ["sh", "-c", "exit 7"],
    }]})));
    let mut agent = world.agent(&[])?;
    let texts = ["Container 'migrate' state: terminated\n\t\tExit Code:: 7"];
    fails(&world, run, &mut agent, &texts).await
}

/// What the run of a pod that never starts must say and come to, and that the Job goes.
async fn never_starts(
    world: &World,
    run: Uuid,
    agent: &mut Agent,
    reason: &str,
    text: &str,
) -> Result<()> {
    let done = world.reaches(run, "Failed").await?;
    ensure!(
        done.message().starts_with("Kubernetes Error: ") && done.message().contains(text),
        "the state says: {}",
        done.message()
    );
    one_report(world, run, agent, &[reason, text]).await
}

pub(super) async fn an_image_that_does_not_exist_fails_the_run(world: Arc<World>) -> Result<()> {
    let image = "registry.invalid/team/nothing:1";
    let run = world.seed(Flow::that("").with(json!({"image": image})));
    let mut agent = world.agent(&[])?;
    never_starts(&world, run, &mut agent, "ImagePullBackOff", image).await?;
    // The kubelet's own words on the way there.
    let events = world.messages(run, "DEBUG");
    ensure!(
        events
            .iter()
            .any(|event| event.contains("Failed to pull image")),
        "{events:?}"
    );
    Ok(())
}

pub(super) async fn an_invalid_image_name_fails_the_run(world: Arc<World>) -> Result<()> {
    let run = world.seed(Flow::that("").with(json!({"image": "Capital/Letters:1"})));
    let mut agent = world.agent(&[])?;
    never_starts(
        &world,
        run,
        &mut agent,
        "InvalidImageName",
        "Capital/Letters:1",
    )
    .await
}

pub(super) async fn a_missing_secret_fails_the_run_after_its_grace(
    world: Arc<World>,
) -> Result<()> {
    let run = world.seed(Flow::that("").container(json!({"env": [{
        "name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}},
    }]})));
    let mut agent = world.agent(&["--start-error-grace", "2s"])?;
    let reason = "CreateContainerConfigError";
    never_starts(&world, run, &mut agent, reason, "secret \"db\" not found").await
}

pub(super) async fn a_pod_that_no_node_takes_fails_the_run_when_it_waits_too_long(
    world: Arc<World>,
) -> Result<()> {
    let run = world.seed(Flow::that("").with(json!({"cpu_request": "1000"})));
    let mut agent = world.agent(&["--pending-timeout", "3s"])?;
    let warned = world.told(run, "WARNING", "cannot be scheduled").await?;
    ensure!(warned.contains("Insufficient cpu"), "{warned}");
    let text = "Insufficient cpu";
    never_starts(&world, run, &mut agent, "cannot be scheduled", text).await
}
