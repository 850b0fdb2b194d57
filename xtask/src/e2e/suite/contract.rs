//! The testkit's Kubernetes API is held to what a real one does.

use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use super::world::World;

pub(super) async fn the_testkit_was_recorded_from_a_cluster_like_this_one(
    world: Arc<World>,
) -> Result<()> {
    let contract = world.target.contract.as_ref();
    let contract = contract.context("the contract is not compiled")?;
    let tests = Command::new(contract)
        .arg("contract::")
        .env("CONTRACT_KUBECONFIG", &world.target.kubeconfig)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot run {}", contract.display()))?;
    ensure!(
        tests.status.success(),
        "{}",
        String::from_utf8_lossy(&tests.stdout)
    );
    Ok(())
}
