//! The testkit's Kubernetes API is held to what a real one does.

use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use super::world::World;

/// The records of the scenarios, one for each test.
const RECORDS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../agent-testkit/tests/api/contract"
);

pub(super) async fn the_testkit_was_recorded_from_a_cluster_like_this_one(
    world: Arc<World>,
) -> Result<()> {
    let contract = world.target.contract.as_ref();
    let contract = contract.context("the contract is not compiled")?;
    let tests = Command::new(contract)
        .arg("contract::")
        .env("CONTRACT_KUBECONFIG", &world.target.kubeconfig)
        .env_remove("CONTRACT_RECORD")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot run {}", contract.display()))?;
    let printed = String::from_utf8_lossy(&tests.stdout);
    ensure!(tests.status.success(), "{printed}");
    let files = std::fs::read_dir(RECORDS).with_context(|| format!("cannot read {RECORDS}"))?;
    let records = files
        .flatten()
        .filter(|file| file.path().extension().is_some_and(|end| end == "json"))
        .count();
    // Without a test of that name, nothing would have failed.
    ensure!(
        records > 0 && printed.contains(&format!(" ok. {records} passed;")),
        "there are {records} records, but:\n{printed}"
    );
    Ok(())
}
