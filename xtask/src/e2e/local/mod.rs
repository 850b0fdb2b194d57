//! One node of Kubernetes out of upstream parts, in namespaces of its own: etcd, the API server,
//! the controller manager, the scheduler, containerd and the kubelet.

mod bare;
mod config;
mod process;
pub(crate) mod sandbox;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::api::Api;
use serde_json::{Value, json};

pub(crate) use self::bare::ControlPlane;
use self::config::{Layout, NODE, NODE_NAME, SERVICE};
use self::process::Process;

/// How long a part of the cluster may take to come up on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is asked whether it is up.
const PAUSE: Duration = Duration::from_millis(200);

/// A running cluster; its programs end with it.
pub(super) struct Cluster {
    layout: Layout,
    kubernetes: PathBuf,
    logs: PathBuf,
    api_server: Process,
    kubelet: Process,
    others: Vec<Process>,
}

impl Cluster {
    /// Brings a cluster up in a folder that is empty, with these images in it, its logs in another; returns when pods
    /// can run.
    pub(super) async fn start(
        folder: &Path,
        logs: &Path,
        kubernetes: &Path,
        cgroup: &str,
        images: &[PathBuf],
    ) -> Result<Self> {
        let layout = Layout::new(folder);
        layout
            .write(cgroup)
            .with_context(|| format!("cannot write to {}", folder.display()))?;
        network()?;
        service_account_key(&layout.path("service-accounts.key"))?;
        let start = |name, command| Process::start(name, command, logs);
        let containerd = start("containerd", layout.containerd())?;
        let etcd = start("etcd", layout.etcd(kubernetes))?;
        let api_server = start("kube-apiserver", layout.api_server(kubernetes))?;
        let mut others = vec![containerd, etcd];
        let importing = import(&layout, images, &mut others);
        importing.await?;
        // The kubelet and the others wait for the API server by themselves, the kubeconfigs'
        // certificate excepted.
        let certificate = layout.path("certificates/apiserver.crt");
        until("the API server's certificate", || async {
            Ok(certificate.exists())
        })
        .await?;
        others.push(start(
            "kube-controller-manager",
            layout.controller_manager(kubernetes),
        )?);
        others.push(start("kube-scheduler", layout.scheduler(kubernetes))?);
        let kubelet = start("kubelet", layout.kubelet(kubernetes))?;
        let mut cluster = Self {
            kubernetes: kubernetes.to_owned(),
            logs: logs.to_owned(),
            api_server,
            kubelet,
            others,
            layout,
        };
        cluster.ready().await?;
        Ok(cluster)
    }

    /// The administrator's kubeconfig.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.layout.kubeconfig("admin")
    }

    /// The address of this process as pods see it.
    pub(super) fn host(&self) -> &'static str {
        NODE
    }

    async fn ready(&mut self) -> Result<()> {
        let client = super::client(&self.kubeconfig()).await?;
        let nodes: Api<Node> = Api::all(client.clone());
        let accounts: Api<ServiceAccount> = Api::namespaced(client, "default");
        let began = Instant::now();
        loop {
            for process in self.all() {
                process.check()?;
            }
            let node = nodes.get_opt(NODE_NAME).await.ok().flatten();
            let account = accounts.get_opt("default").await.ok().flatten();
            if account.is_some() && node.as_ref().is_some_and(is_ready) {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                let words: Vec<String> = self.all().map(|one| one.last_words()).collect();
                bail!(
                    "the node was not ready within {PATIENCE:?}; the ends of the logs:\n{}",
                    words.join("\n\n")
                );
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Process> {
        let main = [&mut self.api_server, &mut self.kubelet];
        main.into_iter().chain(&mut self.others)
    }

    /// Kills the API server; nothing answers until [`Self::start_api_server`].
    pub(super) async fn kill_api_server(&mut self) -> Result<()> {
        self.api_server.kill().await
    }

    /// Starts the API server again.
    pub(super) async fn start_api_server(&mut self) -> Result<()> {
        let command = self.layout.api_server(&self.kubernetes);
        self.api_server = Process::start("kube-apiserver", command, &self.logs)?;
        self.ready().await
    }

    /// Kills the kubelet; what runs on the node goes on.
    pub(super) async fn kill_kubelet(&mut self) -> Result<()> {
        self.kubelet.kill().await
    }

    /// Starts the kubelet again.
    pub(super) async fn start_kubelet(&mut self) -> Result<()> {
        let command = self.layout.kubelet(&self.kubernetes);
        self.kubelet = Process::start("kubelet", command, &self.logs)?;
        self.ready().await
    }

    /// Starts again what a test has killed and left so.
    pub(super) async fn restore(&mut self) -> Result<()> {
        if self.api_server.check().is_err() {
            self.start_api_server().await?;
        }
        if self.kubelet.check().is_err() {
            self.start_kubelet().await?;
        }
        Ok(())
    }

    /// Makes etcd forget everything but the present, which is newer than all that anybody has seen.
    pub(super) fn compact(&self) -> Result<()> {
        // "now", in the encoding of etcd's JSON.
        const KEY: &str = "bm93";
        let put: Value = serde_json::from_str(&etcd("kv/put", &json!({"key": KEY}))?)?;
        let revision = put["header"]["revision"].as_str();
        let revision = revision.context("etcd did not say its revision")?;
        let revision: u64 = revision.parse()?;
        etcd(
            "kv/compaction",
            &json!({"revision": revision, "physical": true}),
        )?;
        let knows = |revision| etcd("kv/range", &json!({"key": KEY, "revision": revision})).is_ok();
        ensure!(
            knows(revision) && !knows(revision - 1),
            "etcd did not forget what was before {revision}"
        );
        Ok(())
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let tainted = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.as_ref())
        .is_some_and(|taints| !taints.is_empty());
    !tainted
        && conditions.is_some_and(|conditions| {
            let mut ready = conditions.iter().filter(|one| one.type_ == "Ready");
            ready.any(|one| one.status == "True")
        })
}

/// The node's addresses, on a device of their own. The API server listens at that of the service
/// `kubernetes` itself, so that nothing has to be translated.
fn network() -> Result<()> {
    for command in [
        "ip link add node0 type bridge".to_owned(),
        format!("ip address add {NODE}/32 dev node0"),
        format!("ip address add {SERVICE}/32 dev node0"),
        "ip link set node0 up".to_owned(),
    ] {
        let mut words = command.split(' ');
        output(Command::new(words.next().unwrap_or_default()).args(words))?;
    }
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot set ip_forward")
}

/// The key that signs the tokens of service accounts.
fn service_account_key(path: &Path) -> Result<()> {
    let mut command = Command::new("openssl");
    command.args(["genpkey", "-algorithm", "RSA", "-out"]);
    output(command.arg(path).stderr(Stdio::null())).map(drop)
}

/// Puts images into containerd as soon as it answers.
async fn import(layout: &Layout, images: &[PathBuf], running: &mut [Process]) -> Result<()> {
    let ctr = || {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(layout.containerd_socket());
        command.args(["--namespace", "k8s.io"]);
        command
    };
    until("containerd", || async {
        Ok(output(ctr().arg("version")).is_ok())
    })
    .await?;
    for process in running {
        process.check()?;
    }
    for image in images {
        output(ctr().args(["images", "import"]).arg(image))?;
    }
    Ok(())
}

/// Asks etcd over its JSON gateway.
fn etcd(what: &str, request: &Value) -> Result<String> {
    let address = format!("{}/v3/{what}", config::ETCD);
    let mut command = Command::new("busybox");
    command.args(["wget", "-q", "-O", "-", "--post-data"]);
    command.arg(request.to_string()).arg(&address);
    output(&mut command)
}

/// Runs a command to its end; what it printed.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().display().to_string();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Asks until the answer is yes.
async fn until<F: Future<Output = Result<bool>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> Result<()> {
    let began = Instant::now();
    while !ask().await? {
        ensure!(
            began.elapsed() < PATIENCE,
            "{what} was not there within {PATIENCE:?}"
        );
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}
