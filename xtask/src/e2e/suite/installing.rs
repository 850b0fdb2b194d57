//! What `agent-cli install` prints, before the API server's validation and admission.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use super::world::World;

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
