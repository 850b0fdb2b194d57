//! What one test has to itself: a namespace, a Prefect API, and agents between them.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent_testkit::prefect::FlowRunSnapshot;
use agent_testkit::{FlowRunSeed, PrefectApi};
use anyhow::{Context, Result, anyhow, bail, ensure};
use futures::future::join_all;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Namespace, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, LogParams, PostParams};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use uuid::Uuid;

use super::Target;

/// How long a test waits for one thing.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often it looks.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct World {
    pub(super) target: Arc<Target>,
    pub(super) namespace: String,
    pub(super) prefect: PrefectApi,
    dir: TempDir,
    agents: AtomicUsize,
    others: Mutex<Vec<String>>,
}

impl World {
    /// A Prefect API, and nothing in the cluster yet.
    pub(super) async fn new(target: Arc<Target>) -> Result<Self> {
        let id = Uuid::new_v4().simple().to_string();
        let namespace = format!("e2e-{}", id.get(..10).unwrap_or_default());
        let address = format!("{}:0", target.host).parse();
        let address = address.with_context(|| format!("{} is no address", target.host))?;
        let prefect = PrefectApi::builder().address(address).start().await?;
        let world = Self {
            namespace,
            prefect,
            dir: tempfile::tempdir()?,
            agents: AtomicUsize::new(0),
            others: Mutex::default(),
            target,
        };
        Ok(world)
    }

    /// Makes the test's namespace.
    pub(super) async fn begin(&self) -> Result<()> {
        self.make_namespace(&self.namespace).await
    }

    /// Another namespace that goes with the test.
    pub(super) async fn another_namespace(&self, name: &str) -> Result<String> {
        let name = format!("{}-{name}", self.namespace);
        // What may have been made is deleted, too.
        let others = self.others.lock();
        others.map_err(|_| anyhow!("a panic"))?.push(name.clone());
        self.make_namespace(&name).await?;
        Ok(name)
    }

    /// Makes a namespace, which is known as one of the test, and waits until pods can be in it.
    async fn make_namespace(&self, name: &str) -> Result<()> {
        let made: Namespace = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"prefect-agent-e2e": self.namespace}},
        }))?;
        let client = &self.target.client;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        namespaces.create(&PostParams::default(), &made).await?;
        // Pods are refused before their service account is there.
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), name);
        until("the default service account", || async {
            accounts.get_opt("default").await.map_err(Into::into)
        })
        .await
        .map(drop)
    }

    /// The test's namespaces.
    fn namespaces(&self) -> Vec<String> {
        let others = self.others.lock();
        let others = others.map(|others| others.clone()).unwrap_or_default();
        [&[self.namespace.clone()][..], &others].concat()
    }

    /// Objects in the test's namespace.
    pub(super) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.target.client.clone(), &self.namespace)
    }

    /// Makes an object in the test's namespace.
    pub(super) async fn create<K>(&self, object: Value) -> Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + serde::Serialize
            + std::fmt::Debug,
    {
        let object: K = serde_json::from_value(object)?;
        self.api().create(&PostParams::default(), &object).await?;
        Ok(())
    }

    /// Puts a run into the Prefect API.
    pub(super) fn seed(&self, flow: Flow) -> Uuid {
        let mut config = json!({
            "type": "KubernetesRun",
            "image": self.target.flow_image,
            "env": {"FLOW": flow.does},
            "job_template": flow.template,
        });
        if let (Some(config), Value::Object(members)) = (config.as_object_mut(), flow.config) {
            config.extend(members);
        }
        self.prefect.seed(FlowRunSeed::new().run_config(config))
    }

    /// Starts an agent outside the cluster.
    pub(super) fn agent(&self, args: &[&str]) -> Result<Agent> {
        self.agent_with(args, &[])
    }

    /// Starts an agent outside the cluster, with variables.
    pub(super) fn agent_with(&self, args: &[&str], env: &[(&str, &str)]) -> Result<Agent> {
        let number = self.agents.fetch_add(1, Ordering::Relaxed);
        let log = self.log(number);
        let file = std::fs::File::create(&log)?;
        let child = self
            .command("start")
            .args(["--log-level", "debug"])
            .args(args)
            .envs(env.iter().copied())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        Ok(Agent { child, log })
    }

    fn log(&self, number: usize) -> PathBuf {
        self.path().join(format!("agent-{number}.log"))
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A command of the agent's for the namespace of the test.
    pub(super) fn command(&self, command: &str) -> Command {
        let mut agent = self.program();
        agent.arg(command).args(["--namespace", &self.namespace]);
        agent
    }

    /// The agent's program with nothing in its environment but the two APIs.
    pub(super) fn program(&self) -> Command {
        let mut agent = Command::new(&self.target.agent);
        agent
            .env_clear()
            .env("HOME", self.path())
            .env("KUBECONFIG", &self.target.kubeconfig)
            .env("PREFECT__BACKEND", "server")
            .env("PREFECT__CLOUD__API", self.prefect.url())
            .current_dir(self.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        agent
    }

    /// What `install` or `uninstall` prints for an agent of the test's Prefect API.
    pub(super) async fn objects(&self, command: &str, flags: &[&str]) -> Result<String> {
        let printed = self
            .program()
            .args([command, "--backend", "server", "--api"])
            .arg(self.prefect.url())
            .args(flags)
            .output()
            .await?;
        text(command, printed)
    }

    /// Runs `kubectl` with something on its input; what it printed.
    pub(super) async fn kubectl(&self, args: &[&str], input: &str) -> Result<String> {
        let (program, first) = self.target.kubectl.split_first().context("no kubectl")?;
        let mut kubectl = Command::new(program)
            .args(first)
            .arg("--kubeconfig")
            .arg(&self.target.kubeconfig)
            .args(args)
            .env("HOME", self.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let mut stdin = kubectl.stdin.take().context("piped")?;
        stdin.write_all(input.as_bytes()).await?;
        drop(stdin);
        text(&args.join(" "), kubectl.wait_with_output().await?)
    }

    /// Waits until a run is in a state; the run.
    pub(super) async fn reaches(&self, run: Uuid, state: &str) -> Result<FlowRunSnapshot> {
        let met = |prefect: &PrefectApi| prefect.state(run).as_deref() == Some(state);
        let reached = self.prefect.wait_until(PATIENCE, met).await;
        let now = self.prefect.run(run).context("the run is gone")?;
        ensure!(
            reached.is_ok(),
            "the run did not become {state}: it is {} ({})",
            now.state,
            now.message()
        );
        Ok(now)
    }

    /// What a run's log holds of the cluster, at a level.
    pub(super) fn messages(&self, run: Uuid, level: &str) -> Vec<String> {
        self.messages_of("k8s-infra", run, level)
    }

    /// What a run's log holds of a logger, at a level.
    pub(super) fn messages_of(&self, logger: &str, run: Uuid, level: &str) -> Vec<String> {
        let logs = self.prefect.logs(run).into_iter();
        logs.filter(|log| log.name.as_deref() == Some(logger))
            .filter(|log| log.level.as_deref() == Some(level))
            .filter_map(|log| log.message)
            .collect()
    }

    /// Waits for an entry of this level that contains a text; the whole entry.
    pub(super) async fn told(&self, run: Uuid, level: &str, text: &str) -> Result<String> {
        let entry = || {
            let mut entries = self.messages(run, level).into_iter();
            entries.find(|entry| entry.contains(text))
        };
        let waited = self.prefect.wait_until(PATIENCE, |_| entry().is_some());
        waited.await.ok();
        entry().with_context(|| {
            format!(
                "no {level} entry contains {text:?}; there are {:#?}",
                self.messages(run, level)
            )
        })
    }

    /// A run's Jobs.
    pub(super) async fn jobs(&self, run: Uuid) -> Result<Vec<Job>> {
        Ok(self.api().list(&of(run)).await?.items)
    }

    /// A run's pods.
    pub(super) async fn pods(&self, run: Uuid) -> Result<Vec<Pod>> {
        Ok(self.api().list(&of(run)).await?.items)
    }

    /// Waits for a run's Job.
    pub(super) async fn job(&self, run: Uuid) -> Result<Job> {
        until("a Job of the run", || async {
            Ok(self.jobs(run).await?.into_iter().next())
        })
        .await
    }

    /// Waits until the run's Job and pods are gone.
    pub(super) async fn goes(&self, run: Uuid) -> Result<()> {
        until("the end of the run's Job and pods", || async {
            let gone = self.jobs(run).await?.is_empty() && self.pods(run).await?.is_empty();
            Ok(gone.then_some(()))
        })
        .await
    }

    /// Waits for one of a run's pods that is in a phase and is not on its way out.
    pub(super) async fn pod(&self, run: Uuid, phase: &str) -> Result<Pod> {
        until(&format!("a pod of the run that is {phase}"), || async {
            let pods = self.pods(run).await?.into_iter();
            Ok(pods
                .filter(|pod| pod.metadata.deletion_timestamp.is_none())
                .find(|pod| {
                    let now = pod.status.as_ref().and_then(|status| status.phase.as_ref());
                    now.map(String::as_str) == Some(phase)
                }))
        })
        .await
    }

    /// Everything that explains why a test failed.
    pub(super) async fn describe(&self) -> String {
        let mut text = String::new();
        for number in 0..self.agents.load(Ordering::Relaxed) {
            let log = std::fs::read_to_string(self.log(number)).unwrap_or_default();
            text += &format!("  agent {number}:\n{}", indented(&log));
        }
        for run in self.prefect.runs() {
            text += &format!("  flow run {}: {} ({})\n", run.id, run.state, run.message());
            for log in &run.logs {
                let level = log.level.as_deref().unwrap_or_default();
                let message = log.message.as_deref().unwrap_or_default();
                text += &indented(&format!("{level} {message}"));
            }
        }
        for namespace in self.namespaces() {
            text += &self.describe_namespace(&namespace).await;
        }
        text
    }

    async fn describe_namespace(&self, namespace: &str) -> String {
        let mut text = format!("  namespace {namespace}\n");
        let client = || self.target.client.clone();
        let jobs: Api<Job> = Api::namespaced(client(), namespace);
        let jobs = jobs.list(&ListParams::default()).await;
        for job in jobs.into_iter().flatten() {
            let status = serde_json::to_string(&job.status).unwrap_or_default();
            text += &format!("  Job {}: {status}\n", job.name_any());
        }
        let pods: Api<Pod> = Api::namespaced(client(), namespace);
        for pod in pods
            .list(&ListParams::default())
            .await
            .into_iter()
            .flatten()
        {
            let status = serde_json::to_string(&pod.status).unwrap_or_default();
            text += &format!("  pod {}: {status}\n", pod.name_any());
            // Only agents have namespaces of their own.
            if namespace != self.namespace {
                let log = pods.logs(&pod.name_any(), &LogParams::default()).await;
                text += &indented(&log.unwrap_or_else(|error| error.to_string()));
            }
        }
        let events: Api<Event> = Api::namespaced(client(), namespace);
        let events = events.list(&ListParams::default()).await;
        for event in events.into_iter().flatten() {
            text += &format!(
                "  event of {} {}: {} {}\n",
                event.involved_object.kind.unwrap_or_default(),
                event.involved_object.name.unwrap_or_default(),
                event.reason.unwrap_or_default(),
                event.message.unwrap_or_default(),
            );
        }
        text
    }

    /// Removes what the test made in the cluster; waits for that only where others are to find
    /// nothing of it.
    pub(super) async fn clean_up(&self) -> Result<()> {
        let names = self.namespaces();
        // One that stays does not keep the others.
        let removed = join_all(names.iter().map(|name| self.remove_namespace(name)));
        removed.await.into_iter().collect()
    }

    async fn remove_namespace(&self, name: &str) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.target.client.clone());
        match namespaces.delete(name, &DeleteParams::background()).await {
            // It was not made, as in a test that was stopped at once.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            deleted => deleted.with_context(|| format!("cannot delete the namespace {name}"))?,
        };
        if self.target.local.is_some() {
            return Ok(());
        }
        until(&format!("the end of the namespace {name}"), || async {
            let left = namespaces.get_opt(name).await?;
            Ok(left.is_none().then_some(()))
        })
        .await
    }
}

/// What a program printed, if it succeeded.
fn text(what: &str, output: Output) -> Result<String> {
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{what}: {}: {errors}{printed}",
        output.status
    );
    Ok(printed)
}

fn of(run: Uuid) -> ListParams {
    ListParams::default().labels(&format!("prefect.io/flow_run_id={run}"))
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

/// Looks until there is something; errors of the API server count as nothing.
pub(super) async fn until<T, F: Future<Output = Result<Option<T>>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> Result<T> {
    let began = Instant::now();
    let mut last = None;
    while began.elapsed() < PATIENCE {
        match look().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => last = None,
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(PAUSE).await;
    }
    match last {
        Some(error) => Err(error.context(format!("{what}: not there within {PATIENCE:?}"))),
        None => bail!("{what}: not there within {PATIENCE:?}"),
    }
}

/// A flow run to be: what its container does, and how its Job differs from the plainest one.
pub(super) struct Flow {
    does: String,
    config: Value,
    template: Value,
}

impl Flow {
    /// A run whose container executes a shell command; its Job does not try again.
    pub(super) fn that(does: &str) -> Self {
        Self {
            does: does.to_owned(),
            config: json!({}),
            template: json!({
                "spec": {"backoffLimit": 0, "template": {"spec": {"containers": [{"name": "flow"}]}}},
            }),
        }
    }

    /// Sets members of the run config.
    pub(super) fn with(mut self, members: Value) -> Self {
        self.config = members;
        self
    }

    /// Sets members of the Job's spec.
    pub(super) fn job(mut self, members: Value) -> Self {
        merge(&mut self.template["spec"], members);
        self
    }

    /// Sets members of the pod's spec.
    pub(super) fn pod(mut self, members: Value) -> Self {
        merge(&mut self.template["spec"]["template"]["spec"], members);
        self
    }

    /// Sets members of the flow's container.
    pub(super) fn container(mut self, members: Value) -> Self {
        let containers = &mut self.template["spec"]["template"]["spec"]["containers"];
        merge(&mut containers[0], members);
        self
    }
}

fn merge(into: &mut Value, members: Value) {
    if let (Some(into), Value::Object(members)) = (into.as_object_mut(), members) {
        into.extend(members);
    }
}

/// A running agent.
pub(super) struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    /// Kills it as a crash does.
    pub(super) async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("cannot kill the agent")
    }

    /// Sends it a signal, by name.
    pub(super) async fn signal(&self, name: &str) -> Result<()> {
        let pid = self.child.id().context("the agent has ended by itself")?;
        let mut kill = Command::new("kill");
        let sent = kill.args(["-s", name, &pid.to_string()]).status().await?;
        ensure!(sent.success(), "the agent got no {name}");
        Ok(())
    }

    /// Tells it to stop, and waits until it has.
    pub(super) async fn stop(&mut self) -> Result<()> {
        self.signal("TERM").await?;
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = ended.context("the agent did not stop")??;
        ensure!(status.success(), "the agent ended with {status}");
        Ok(())
    }

    /// Waits until a line of its log contains these texts.
    pub(super) async fn prints(&self, texts: &[&str]) -> Result<()> {
        let what = format!("a line with {texts:?} in the agent's log");
        until(&what, || async {
            let log = std::fs::read_to_string(&self.log)?;
            let has_all = |line: &str| texts.iter().all(|text| line.contains(text));
            Ok(log.lines().any(has_all).then_some(()))
        })
        .await
    }
}
