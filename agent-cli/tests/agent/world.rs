//! Two servers, a kubeconfig, and the binary between them.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_testkit::faults::Faults;
use agent_testkit::kubernetes::{Attempt, KubernetesApiBuilder};
use agent_testkit::prefect::PrefectApiBuilder;
use agent_testkit::{Course, FlowRunSeed, KubernetesApi, PodEnd, PrefectApi};
use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use uuid::Uuid;

/// What a test may wait for, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct World {
    pub(crate) prefect: Arc<PrefectApi>,
    pub(crate) kubernetes: KubernetesApi,
    dir: TempDir,
}

impl World {
    /// Servers without faults, and a node that does nothing.
    pub(crate) async fn new() -> Self {
        Self::with_faults(Faults::new(0), Faults::new(0)).await
    }

    pub(crate) async fn with_faults(prefect: Faults, kubernetes: Faults) -> Self {
        let prefect = PrefectApi::builder().faults(prefect).start().await;
        let kubernetes = KubernetesApi::builder().node_off().faults(kubernetes);
        Self::of(Arc::new(prefect.expect("a port is free")), kubernetes).await
    }

    /// Servers without faults, and a node on which every pod takes this course. Flows report that
    /// they run, and that they have succeeded.
    pub(crate) async fn with_course(course: Course) -> Self {
        Self::with_courses(move |_| course.clone(), &[]).await
    }

    /// The same, with a course for each pod and a Kubernetes API that refuses these verbs on these
    /// resources.
    pub(crate) async fn with_courses(
        course: impl Fn(&Attempt) -> Course + Send + Sync + 'static,
        denied: &[(&str, &str)],
    ) -> Self {
        let prefect = PrefectApi::builder().start().await;
        let prefect = Arc::new(prefect.expect("a port is free"));
        let run = |attempt: &Attempt| attempt.flow_run_id().and_then(|id| id.parse().ok());
        let (started, ended) = (prefect.clone(), prefect.clone());
        let kubernetes = KubernetesApi::builder()
            .course(course)
            .on_pod_started(move |attempt| {
                if let Some(run) = run(attempt) {
                    started.set_state_named(run, "Running", "");
                }
            })
            .on_pod_finished(move |attempt, end| {
                if let (Some(run), PodEnd::Succeeded) = (run(attempt), end) {
                    ended.set_state_named(run, "Success", "");
                }
            });
        let deny =
            |api: KubernetesApiBuilder, (verb, resource): &(&str, &str)| api.deny(verb, resource);
        Self::of(prefect, denied.iter().fold(kubernetes, deny)).await
    }

    /// These servers, and a node that does nothing.
    pub(crate) async fn with(prefect: PrefectApiBuilder, kubernetes: KubernetesApiBuilder) -> Self {
        let prefect = prefect.start().await.expect("a port is free");
        Self::of(Arc::new(prefect), kubernetes.node_off()).await
    }

    async fn of(prefect: Arc<PrefectApi>, kubernetes: KubernetesApiBuilder) -> Self {
        let kubernetes = kubernetes.namespace("flows").start().await;
        let world = Self {
            prefect,
            kubernetes: kubernetes.expect("a port is free"),
            dir: tempfile::tempdir().expect("a directory"),
        };
        let kubeconfig = world.kubernetes.kubeconfig_yaml();
        std::fs::write(world.dir.path().join("kubeconfig"), kubeconfig).expect("written");
        world
    }

    /// Waits until a run has failed; its message.
    pub(crate) async fn fails(&self, run: Uuid, agent: &Agent) -> String {
        let failed = self
            .prefect
            .wait_until(PATIENCE, |prefect| {
                prefect.state(run).as_deref() == Some("Failed")
            })
            .await;
        assert!(failed.is_ok(), "{}", agent.output());
        let run = self.prefect.run(run).expect("seeded");
        run.message().to_owned()
    }

    /// The binary's working and home directory.
    pub(crate) fn path(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// `agent-cli start` with nothing in its environment but these servers.
    pub(crate) fn command(&self) -> Command {
        self.subcommand("start")
    }

    /// The same for another command.
    pub(crate) fn subcommand(&self, name: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent-cli"));
        command
            .env_clear()
            .env("HOME", self.dir.path())
            .env("KUBECONFIG", self.dir.path().join("kubeconfig"))
            .env("PREFECT__BACKEND", "server")
            .env("PREFECT__CLOUD__API", self.prefect.url())
            .current_dir(self.dir.path())
            .arg(name)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub(crate) fn start(&self, args: &[&str]) -> Agent {
        let mut command = self.command();
        Agent::spawn(command.args(args))
    }

    /// The binary with its HTTP endpoint.
    pub(crate) fn start_with_endpoint(&self, args: &[&str]) -> (Agent, Endpoint) {
        let endpoint = Endpoint::free();
        let mut command = self.command();
        command.args(args).args(["--agent-address", &endpoint.0]);
        (Agent::spawn(&mut command), endpoint)
    }

    /// The texts in a run's log that come from the cluster, of one level, once there are any.
    pub(crate) async fn told(&self, run: Uuid, level: &str) -> Vec<String> {
        let entries = || self.log(run, level);
        let there = self
            .prefect
            .wait_until(PATIENCE, |_| !entries().is_empty())
            .await;
        assert!(there.is_ok(), "nothing was told");
        entries()
    }

    /// The texts in a run's log that come from the cluster, of one level.
    pub(crate) fn log(&self, run: Uuid, level: &str) -> Vec<String> {
        let logs = self.prefect.logs(run).into_iter();
        logs.filter(|log| log.name.as_deref() == Some("k8s-infra"))
            .filter(|log| log.level.as_deref() == Some(level))
            .filter_map(|log| log.message)
            .collect()
    }

    /// Puts a run into the API that this agent has deployed before and two of whose task runs are due for
    /// a retry.
    pub(crate) async fn retry(&self) -> Uuid {
        self.start(&["--max-polls", "1"]).ended().await;
        let id = self.prefect.agents().remove(0).id;
        let due = Timestamp::now() - SignedDuration::from_secs(60);
        let seed = FlowRunSeed::new().agent_id(id);
        self.prefect.seed_retry(seed, [due, due])
    }

    /// Waits until the cluster is as a test wants it.
    pub(crate) async fn cluster(&self, agent: &Agent, ready: impl Fn(&KubernetesApi) -> bool) {
        let became = self.kubernetes.wait_until(PATIENCE, ready).await;
        assert!(became.is_ok(), "{}", agent.output());
    }
}

/// Where an agent serves its health.
pub(crate) struct Endpoint(String);

impl Endpoint {
    pub(crate) fn free() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Self(format!("http://127.0.0.1:{}", free_port()))
    }

    /// Host and port.
    pub(crate) fn address(&self) -> String {
        self.0.trim_start_matches("http://").to_owned()
    }

    /// Status and body of a page, once the endpoint answers.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let asked = async {
            loop {
                if let Ok(answer) = reqwest::get(format!("{}{path}", self.0)).await {
                    let status = answer.status().as_u16();
                    return (status, answer.text().await.expect("a body"));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let answer = tokio::time::timeout(PATIENCE, asked).await;
        answer.expect("it answers")
    }

    pub(crate) async fn health(&self) -> Value {
        serde_json::from_str(&self.get("/api/health").await.1).expect("JSON")
    }

    /// Waits until the health is as a test wants it.
    pub(crate) async fn is(&self, agent: &Agent, ready: impl Fn(&Value) -> bool) {
        let became = async {
            while !ready(&self.health().await) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let became = tokio::time::timeout(PATIENCE, became).await;
        let health = self.health().await;
        assert!(became.is_ok(), "{health}\n{}", agent.output());
    }
}

/// A port that nobody listens at.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// A running binary and what it has printed.
pub(crate) struct Agent {
    child: Child,
    output: Arc<Mutex<String>>,
    readers: [JoinHandle<()>; 2],
}

impl Agent {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().expect("the binary starts");
        let output = Arc::new(Mutex::new(String::new()));
        let readers = [
            collect(child.stdout.take().expect("piped"), output.clone()),
            collect(child.stderr.take().expect("piped"), output.clone()),
        ];
        Self {
            child,
            output,
            readers,
        }
    }

    pub(crate) fn output(&self) -> String {
        self.output.lock().expect("no panics").clone()
    }

    /// The process's id.
    pub(crate) fn pid(&self) -> i32 {
        let pid = self.child.id().expect("it runs");
        pid.try_into().expect("a pid")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("it runs");
    }

    /// Waits for the end; the exit code, and everything that was printed.
    pub(crate) async fn ended(mut self) -> (Option<i32>, String) {
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("it did not end:\n{}", self.output()));
        for reader in &mut self.readers {
            reader.await.expect("no panics");
        }
        (status.expect("it ran").code(), self.output())
    }

    /// Waits until it has printed a text.
    pub(crate) async fn prints(&self, text: &str) {
        let printed = async {
            while !self.output().contains(text) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let printed = tokio::time::timeout(PATIENCE, printed).await;
        assert!(
            printed.is_ok(),
            "{text:?} was not printed:\n{}",
            self.output()
        );
    }
}

fn collect(
    from: impl AsyncRead + Unpin + Send + 'static,
    into: Arc<Mutex<String>>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut lines = BufReader::new(from).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let mut output = into.lock().expect("no panics");
            output.push_str(&line);
            output.push('\n');
        }
    })
}
