//! The agent inside the cluster, out of what `agent-cli install` prints, from the image.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, LogParams, PostParams};
use serde_json::{Value, json};
use uuid::Uuid;

use super::world::{Flow, World, until};

/// What `install` names everything unless it is told otherwise.
pub(super) const NAME: &str = "prefect-agent";

/// An agent in a namespace of its own, for Jobs in that of the test.
pub(super) struct Inside<'a> {
    world: &'a World,
    pub(super) namespace: String,
}

impl<'a> Inside<'a> {
    /// Applies what `install` prints with these flags more.
    pub(super) async fn install(world: &'a World, flags: &[&str]) -> Result<Self> {
        let namespace = world.another_namespace("agent").await?;
        let inside = Self { world, namespace };
        let objects = inside.objects("install", flags).await?;
        world.kubectl(&["apply", "-f", "-"], &objects).await?;
        Ok(inside)
    }

    /// What `install` or `uninstall` prints for this agent.
    async fn objects(&self, command: &str, flags: &[&str]) -> Result<String> {
        let image = self.world.target.agent_image.as_str();
        let places = [
            ["--namespace", &self.world.namespace],
            ["--agent-namespace", &self.namespace],
            ["--image", image],
        ];
        let flags = [&places.concat(), flags].concat();
        self.world.objects(command, &flags).await
    }

    /// Waits until every replica is ready.
    pub(super) async fn is_ready(&self) -> Result<()> {
        let name = format!("deployment/{NAME}");
        let args = ["rollout", "status", &name, "--timeout", "90s"];
        self.kubectl(&args).await.map(drop)
    }

    /// `kubectl` in the agent's namespace.
    async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let args = [&["--namespace", &self.namespace], args].concat();
        self.world.kubectl(&args, "").await
    }

    pub(super) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.world.target.client.clone(), &self.namespace)
    }

    /// Runs another command of the agent's in a pod like the agent's; its end and what it printed.
    async fn run(&self, command: &str, env: Value) -> Result<(i32, String)> {
        let deployments: Api<Deployment> =
            Api::namespaced(self.world.target.client.clone(), &self.namespace);
        let deployment = serde_json::to_value(deployments.get(NAME).await?)?;
        let mut spec = deployment["spec"]["template"]["spec"].clone();
        spec["restartPolicy"] = json!("Never");
        let container = &mut spec["containers"][0];
        container["args"] = json!([command]);
        for probe in ["livenessProbe", "readinessProbe"] {
            container[probe] = Value::Null;
        }
        if let (Some(variables), Value::Array(more)) = (container["env"].as_array_mut(), env) {
            variables.extend(more);
        }
        let name = format!("run-{}", Uuid::new_v4().simple());
        let pod = json!({"metadata": {"name": name}, "spec": spec});
        let pod = serde_json::from_value(pod)?;
        self.pods().create(&PostParams::default(), &pod).await?;
        let code = until("the end of the command in a pod", || async {
            let pod = serde_json::to_value(self.pods().get(&name).await?)?;
            let container = &pod["status"]["containerStatuses"][0];
            Ok(container["state"]["terminated"]["exitCode"].as_i64())
        })
        .await?;
        let log = self.pods().logs(&name, &LogParams::default()).await?;
        Ok((i32::try_from(code)?, log))
    }
}

pub(super) async fn the_agent_inside_deploys_into_another_namespace_and_tells_of_failures(
    world: Arc<World>,
) -> Result<()> {
    let inside = Inside::install(&world, &["--rbac"]).await?;
    inside.is_ready().await?;
    unprivileged(&inside).await?;
    let good = world.seed(Flow::that("true"));
    let bad = world.seed(Flow::that("echo 'no such table: sales'; exit 3"));
    world.reaches(good, "Success").await?;
    world.reaches(bad, "Failed").await?;
    let told = world.told(bad, "ERROR", "Exit Code:: 3").await?;
    ensure!(told.contains("no such table: sales"), "{told}");
    for run in [good, bad] {
        world.goes(run).await?;
    }
    let objects = inside.objects("uninstall", &["--rbac"]).await?;
    // Without a key there was no Secret to make.
    let delete = ["delete", "--ignore-not-found", "-f", "-"];
    world.kubectl(&delete, &objects).await?;
    until("the end of the agent's pods", || async {
        let left = inside.pods().list(&ListParams::default()).await?;
        Ok(left.items.is_empty().then_some(()))
    })
    .await
}

/// The agent's pod is nobody's in particular, and can write nowhere.
async fn unprivileged(inside: &Inside<'_>) -> Result<()> {
    let pods = inside.pods().list(&ListParams::default()).await?;
    let pod = serde_json::to_value(pods.items.first().context("no pod")?)?;
    let container = &pod["spec"]["containers"][0]["securityContext"];
    ensure!(
        container["readOnlyRootFilesystem"] == true
            && container["allowPrivilegeEscalation"] == false
            && pod["spec"]["securityContext"]["runAsNonRoot"] == true,
        "it may more than it needs: {}",
        pod["spec"]
    );
    ensure!(
        pod["spec"]["serviceAccountName"] == NAME,
        "it has another's account"
    );
    Ok(())
}

pub(super) async fn check_inside_the_agents_pod_finds_everything_in_order(
    world: Arc<World>,
) -> Result<()> {
    let inside = Inside::install(&world, &["--rbac"]).await?;
    inside.is_ready().await?;
    let deployment = format!("deployment/{NAME}");
    let printed = inside
        .kubectl(&["exec", &deployment, "--", "agent-cli", "check"])
        .await?;
    for name in ["cluster", "permissions", "dry run"] {
        let mut lines = printed.lines();
        let good = lines.any(|line| line.starts_with(&format!("✓ {name} ")));
        ensure!(good, "{name} is not in order:\n{printed}");
    }
    ensure!(!printed.contains('✗'), "{printed}");
    Ok(())
}

pub(super) async fn check_names_what_the_agents_account_may_not_do(
    world: Arc<World>,
) -> Result<()> {
    let inside = Inside::install(&world, &["--replicas", "0"]).await?;
    let (code, printed) = inside.run("check", json!([])).await?;
    ensure!(code == 1, "it ended with {code}:\n{printed}");
    for text in [
        "✓ cluster",
        "✗ permissions",
        "create, delete, get, list, patch, watch jobs",
        "list, watch pods",
        "kind: Role",
    ] {
        ensure!(printed.contains(text), "no {text:?} in:\n{printed}");
    }
    // What it prints is the remedy: with it, all is well.
    let role = printed.split_once("\n\n").map(|(_, role)| role);
    let role = role.and_then(|role| role.split_once("\n\n"));
    let (_, role) = role.with_context(|| format!("no Role in:\n{printed}"))?;
    world.kubectl(&["apply", "-f", "-"], role).await?;
    let account = format!("{}:{NAME}", inside.namespace);
    let binding = [
        "create",
        "rolebinding",
        "missing",
        "--role",
        "prefect-agent-missing",
        "--serviceaccount",
        &account,
        "--namespace",
        &world.namespace,
    ];
    world.kubectl(&binding, "").await?;
    let (code, printed) = inside.run("check", json!([])).await?;
    ensure!(code == 0, "it ended with {code}:\n{printed}");
    Ok(())
}

pub(super) async fn check_names_a_missing_namespace_service_account_and_api(
    world: Arc<World>,
) -> Result<()> {
    let check = async |args: &[&str]| -> Result<String> {
        let checked = world.program().arg("check").args(args).output().await?;
        let printed = String::from_utf8_lossy(&checked.stdout).into_owned();
        ensure!(checked.status.code() == Some(1), "{printed}");
        Ok(printed)
    };
    let nowhere = format!("{}-none", world.namespace);
    let printed = check(&["--namespace", &nowhere]).await?;
    ensure!(
        printed.contains("✗ namespace")
            && printed.contains(&format!("there is no namespace {nowhere}")),
        "{printed}"
    );
    let here = ["--namespace", &world.namespace];
    let account = ["--service-account-name", "nobody"];
    let printed = check(&[here, account].concat()).await?;
    ensure!(printed.contains("there is no nobody"), "{printed}");
    // Nothing listens at the first port.
    let api = ["--api", "http://127.0.0.1:1"];
    let printed = check(&[here, api].concat()).await?;
    ensure!(
        printed.contains("✗ Prefect API") && printed.contains("✓ dry run"),
        "{printed}"
    );
    Ok(())
}

pub(super) async fn check_warns_of_pods_that_pod_security_refuses(world: Arc<World>) -> Result<()> {
    let label = "pod-security.kubernetes.io/enforce=restricted";
    let args = ["label", "namespace", &world.namespace, label];
    world.kubectl(&args, "").await?;
    let mut check = world.program();
    let check = check.args(["check", "--namespace", &world.namespace]);
    let checked = check.output().await?;
    let printed = String::from_utf8_lossy(&checked.stdout).into_owned();
    ensure!(
        checked.status.success()
            && printed.contains("– dry run")
            && printed.contains("would violate PodSecurity \"restricted"),
        "{printed}"
    );
    Ok(())
}

pub(super) async fn of_two_replicas_the_one_with_the_lease_supervises_until_it_is_killed(
    world: Arc<World>,
) -> Result<()> {
    let flags = ["--rbac", "--replicas", "2", "--", "--lease-duration", "4s"];
    let inside = Inside::install(&world, &flags).await?;
    inside.is_ready().await?;
    let first = world.seed(Flow::that("exit 3"));
    world.told(first, "ERROR", "Exit Code:: 3").await?;
    let leader = holder(&world).await?;
    // The flow fails while nobody supervises.
    let second = world.seed(Flow::that("sleep 1; exit 4"));
    world.reaches(second, "Running").await?;
    let kill = DeleteParams::default().grace_period(0);
    inside.pods().delete(&leader, &kill).await?;
    world.told(second, "ERROR", "Exit Code:: 4").await?;
    world.reaches(second, "Failed").await?;
    let successor = holder(&world).await?;
    ensure!(successor != leader, "{leader} still holds the Lease");
    let third = world.seed(Flow::that("true"));
    world.reaches(third, "Success").await?;
    for (run, times) in [(first, 1), (second, 1), (third, 0)] {
        world.goes(run).await?;
        let errors = world.messages(run, "ERROR");
        ensure!(errors.len() == times, "{errors:?}");
    }
    Ok(())
}

/// The pod that holds the Lease.
async fn holder(world: &World) -> Result<String> {
    let leases = world.api::<Lease>().list(&ListParams::default()).await?;
    let mut ours = leases.items.into_iter();
    let lease = ours.find(|lease| lease.name_any().starts_with("prefect-agent-"));
    let spec = lease.and_then(|lease| lease.spec);
    let holder = spec.and_then(|spec| spec.holder_identity);
    let holder = holder.context("nobody holds the Lease")?;
    let (pod, _) = holder.split_once('_').context("another kind of name")?;
    Ok(pod.to_owned())
}

pub(super) async fn the_agents_account_may_do_what_is_listed_and_nothing_else(
    world: Arc<World>,
) -> Result<()> {
    let inside = Inside::install(&world, &["--rbac", "--replicas", "0"]).await?;
    let accounts: Api<ServiceAccount> =
        Api::namespaced(world.target.client.clone(), &inside.namespace);
    accounts.get(NAME).await?;
    let listed = async |account: &str, namespace: &str| -> Result<BTreeSet<String>> {
        let account = format!("system:serviceaccount:{}:{account}", inside.namespace);
        let args = ["auth", "can-i", "--list", "--no-headers", "--as", &account];
        let args = [&args[..], &["--namespace", namespace]].concat();
        let listed = world.kubectl(&args, "").await?;
        let words = listed.lines().map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.join(" ")
        });
        Ok(words.collect())
    };
    // What every account may, such as asking about itself, is the cluster's affair.
    let may = async |namespace: &str| -> Result<Vec<String>> {
        let anybody = listed("default", namespace).await?;
        let ours = listed(NAME, namespace).await?;
        Ok(ours.difference(&anybody).cloned().collect())
    };
    let there = may(&world.namespace).await?;
    let mut leases = there.iter().filter_map(|rule| {
        let name = rule.strip_prefix("leases.coordination.k8s.io [] [")?;
        name.strip_suffix("] [get update]")
    });
    let lease = leases.next().context("it may use no Lease of a name")?;
    ensure!(lease.starts_with("prefect-agent-"), "{lease}");
    ensure!(
        there
            == [
                "events [] [] [list watch]",
                "jobs.batch [] [] [create delete get list patch watch]",
                "leases.coordination.k8s.io [] [] [create]",
                &format!("leases.coordination.k8s.io [] [{lease}] [get update]"),
                "pods [] [] [list watch]",
                "pods/log [] [] [get]",
            ]
            .map(str::to_owned),
        "among its Jobs it may {there:#?}"
    );
    let here = may(&inside.namespace).await?;
    ensure!(here.is_empty(), "beside itself it may {here:#?}");
    Ok(())
}
