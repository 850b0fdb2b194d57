//! Parts of the cluster that die and come back.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};

use super::super::local::Cluster;
use super::world::{Flow, World, until};

async fn cluster(world: &World) -> Result<MutexGuard<'_, Cluster>> {
    let local: &Mutex<Cluster> = world.target.local.as_ref().context("a local cluster")?;
    Ok(local.lock().await)
}

pub(super) async fn an_api_server_that_is_killed_and_comes_back_costs_no_run(
    world: Arc<World>,
) -> Result<()> {
    let mut cluster = cluster(&world).await?;
    let under_way = world.seed(Flow::that("sleep 5; exit 4"));
    let mut agent = world.agent(&[])?;
    world.reaches(under_way, "Running").await?;
    cluster.kill_api_server().await?;
    let meanwhile = world.seed(Flow::that("true"));
    agent.prints(&["The watch over jobs broke off"]).await?;
    cluster.start_api_server().await?;
    world.told(under_way, "ERROR", "Exit Code:: 4").await?;
    world.reaches(under_way, "Failed").await?;
    world.reaches(meanwhile, "Success").await?;
    for run in [under_way, meanwhile] {
        world.goes(run).await?;
    }
    agent.stop().await?;
    ensure!(world.messages(under_way, "ERROR").len() == 1, "told twice");
    Ok(())
}

pub(super) async fn changes_that_etcd_has_forgotten_are_found_by_listing_again(
    world: Arc<World>,
) -> Result<()> {
    let mut cluster = cluster(&world).await?;
    let bad = world.seed(Flow::that("sleep 4; exit 3"));
    let deleted =
        world.seed(Flow::that("sleep 3600").pod(json!({"terminationGracePeriodSeconds": 1})));
    let mut agent = world.agent(&[])?;
    for run in [bad, deleted] {
        world.reaches(run, "Running").await?;
    }
    // While the agent sees nothing, one Job fails, another goes, and the past with them.
    agent.signal("STOP").await?;
    world.pod(bad, "Failed").await?;
    let job = world.job(deleted).await?.name_any();
    let jobs = world.api::<k8s_openapi::api::batch::v1::Job>();
    jobs.delete(&job, &kube::api::DeleteParams::background())
        .await?;
    world.goes(deleted).await?;
    cluster.kill_api_server().await?;
    cluster.compact()?;
    cluster.start_api_server().await?;
    agent.signal("CONT").await?;
    for watch in ["jobs", "pods"] {
        let broken = format!("The watch over {watch} broke off");
        agent.prints(&[&broken, "Expired"]).await?;
    }
    world.told(bad, "ERROR", "Exit Code:: 3").await?;
    world.reaches(bad, "Failed").await?;
    let gone = world.reaches(deleted, "Failed").await?;
    ensure!(
        gone.message()
            .ends_with("was deleted before it had finished"),
        "{}",
        gone.message()
    );
    agent.stop().await
}

pub(super) async fn what_happens_under_a_dead_kubelet_is_told_when_it_is_back(
    world: Arc<World>,
) -> Result<()> {
    let mut cluster = cluster(&world).await?;
    let good = world.seed(Flow::that("sleep 5"));
    let bad = world.seed(Flow::that("sleep 5; exit 2"));
    let mut agent = world.agent(&[])?;
    for run in [good, bad] {
        world.reaches(run, "Running").await?;
    }
    cluster.kill_kubelet().await?;
    // The controllers take the node for lost, but leave the pods of the only node there is.
    until("the pod's node to be lost", || async {
        let pods = world.pods(bad).await?;
        let status = pods.first().and_then(|pod| pod.status.as_ref());
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let lost = conditions.is_some_and(|conditions| {
            let mut ready = conditions.iter().filter(|one| one.type_ == "Ready");
            ready.any(|one| one.status == "False")
        });
        Ok(lost.then_some(()))
    })
    .await?;
    world.reaches(good, "Success").await?;
    ensure!(
        world.prefect.state(bad).as_deref() == Some("Running"),
        "something was told that nobody can know"
    );
    cluster.start_kubelet().await?;
    world.told(bad, "ERROR", "Exit Code:: 2").await?;
    world.reaches(bad, "Failed").await?;
    for run in [good, bad] {
        world.goes(run).await?;
    }
    agent.stop().await?;
    ensure!(world.messages(good, "ERROR").is_empty(), "told of success");
    ensure!(world.messages(bad, "ERROR").len() == 1, "told twice");
    Ok(())
}
