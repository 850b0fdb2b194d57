//! What the programs of a local cluster are told: addresses, files and flags.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

/// The node's address, and with it that of everything in the host's part of the cluster.
pub(super) const NODE: &str = "10.199.0.1";
/// The node's name.
pub(super) const NODE_NAME: &str = "node-1";
/// The address of the service `kubernetes`: the first of the services.
pub(super) const SERVICE: &str = "10.96.0.1";
const SERVICES: &str = "10.96.0.0/24";
const PODS: &str = "10.200.0.0/16";
pub(super) const ETCD: &str = "http://127.0.0.1:2379";
/// Where Debian keeps the network plugins.
pub(super) const PLUGINS: &str = "/usr/lib/cni";

/// The users of the cluster, with their groups.
const USERS: [(&str, &str, &str); 4] = [
    ("admin", "admin", "system:masters"),
    ("kubelet", "system:node:node-1", "system:nodes"),
    ("controllers", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
];

/// The folder of a cluster.
pub(super) struct Layout {
    folder: PathBuf,
}

impl Layout {
    pub(super) fn new(folder: &Path) -> Self {
        let folder = folder.to_owned();
        Self { folder }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A flag with a path in the folder.
    fn flag(&self, flag: &str, name: &str) -> String {
        format!("--{flag}={}", self.text(name))
    }

    /// Each user's kubeconfig.
    pub(super) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.path(&format!("{user}.kubeconfig"))
    }

    pub(super) fn containerd_socket(&self) -> PathBuf {
        self.path("containerd.sock")
    }

    /// Writes everything that the programs read; `cgroup` is the group that all pods are in.
    pub(super) fn write(&self, cgroup: &str) -> std::io::Result<()> {
        for folder in ["cni", "certificates"] {
            std::fs::create_dir_all(self.path(folder))?;
        }
        let users = USERS.map(|(user, name, group)| format!("{user},{name},{user},{group}\n"));
        std::fs::write(self.path("tokens.csv"), users.concat())?;
        for (user, ..) in USERS {
            let text = self.kubeconfig_of(user).to_string();
            std::fs::write(self.kubeconfig(user), text)?;
        }
        std::fs::write(self.path("containerd.toml"), self.containerd_toml())?;
        let network = self.network().to_string();
        std::fs::write(self.path("cni/pods.conflist"), network)?;
        let kubelet = self.kubelet_config(cgroup).to_string();
        std::fs::write(self.path("kubelet.json"), kubelet)
    }

    fn kubeconfig_of(&self, user: &str) -> serde_json::Value {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "local", "cluster": {
                "server": format!("https://{NODE}"),
                "certificate-authority": self.text("certificates/apiserver.crt"),
            }}],
            "users": [{"name": user, "user": {"token": user}}],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": user}}],
            "current-context": "local",
        })
    }

    fn containerd_toml(&self) -> String {
        let path = |name| self.text(name);
        format!(
            r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Without CAP_SYS_RESOURCE nobody may protect a container from the kernel's choice.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{PLUGINS}"
    conf_dir = "{cni}"
"#,
            root = path("containerd"),
            state = path("containerd-state"),
            socket = self.containerd_socket().display(),
            pause = super::super::images::PAUSE,
            cni = path("cni"),
        )
    }

    fn network(&self) -> serde_json::Value {
        json!({
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [{
                "type": "bridge",
                "bridge": "pods",
                "isGateway": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": self.text("addresses"),
                    "ranges": [[{"subnet": PODS}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }],
        })
    }

    fn kubelet_config(&self, cgroup: &str) -> serde_json::Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": format!("unix://{}", self.containerd_socket().display()),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroup,
            "failCgroupV1": false,
            "failSwapOn": false,
            "enforceNodeAllocatable": [],
            "localStorageCapacityIsolation": false,
            // The disk of a developer's machine may be fuller than a node's.
            "evictionHard": {
                "memory.available": "50Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
                "imagefs.available": "0%", "imagefs.inodesFree": "0%",
            },
            "imageGCHighThresholdPercent": 100,
            "makeIPTablesUtilChains": false,
            "serializeImagePulls": false,
            "nodeStatusUpdateFrequency": "2s",
            "nodeLeaseDurationSeconds": 8,
            "podLogsDir": self.text("pod-logs"),
            "resolvConf": "",
            // Nobody answers there, but each pod would have an event that says so.
            "clusterDNS": [SERVICE],
            "healthzPort": 0,
        })
    }

    pub(super) fn etcd(&self, kubernetes: &Path) -> Command {
        let mut command = program(kubernetes, "etcd");
        command
            .arg(self.flag("data-dir", "etcd"))
            .arg(format!("--listen-client-urls={ETCD}"))
            .arg(format!("--advertise-client-urls={ETCD}"))
            .arg("--listen-peer-urls=http://127.0.0.1:2380");
        command
    }

    pub(super) fn api_server(&self, kubernetes: &Path) -> Command {
        let mut command = program(kubernetes, "kube-apiserver");
        command
            .arg(format!("--etcd-servers={ETCD}"))
            // What etcd forgets, the tests say.
            .arg("--etcd-compaction-interval=0")
            .arg(format!("--advertise-address={NODE}"))
            .args(["--bind-address=0.0.0.0", "--secure-port=443"])
            .arg(format!("--service-cluster-ip-range={SERVICES}"))
            .arg("--endpoint-reconciler-type=none")
            .arg("--kubelet-preferred-address-types=InternalIP")
            .arg(self.flag("cert-dir", "certificates"))
            .arg(self.flag("token-auth-file", "tokens.csv"))
            .arg("--authorization-mode=Node,RBAC")
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(self.flag("service-account-key-file", "service-accounts.key"))
            .arg(self.flag("service-account-signing-key-file", "service-accounts.key"))
            .arg("--default-not-ready-toleration-seconds=5")
            .arg("--default-unreachable-toleration-seconds=5");
        command
    }

    pub(super) fn controller_manager(&self, kubernetes: &Path) -> Command {
        let mut command = program(kubernetes, "kube-controller-manager");
        command
            .arg(format!(
                "--kubeconfig={}",
                self.kubeconfig("controllers").display()
            ))
            .arg(self.flag("cert-dir", "certificates"))
            .arg(self.flag("service-account-private-key-file", "service-accounts.key"))
            .arg(self.flag("root-ca-file", "certificates/apiserver.crt"))
            .args(["--leader-elect=false", "--bind-address=127.0.0.1"])
            .arg("--use-service-account-credentials")
            .args([
                "--node-monitor-period=2s",
                "--node-monitor-grace-period=10s",
            ]);
        command
    }

    pub(super) fn scheduler(&self, kubernetes: &Path) -> Command {
        let mut command = program(kubernetes, "kube-scheduler");
        command
            .arg(format!(
                "--kubeconfig={}",
                self.kubeconfig("scheduler").display()
            ))
            .args(["--leader-elect=false", "--bind-address=127.0.0.1"]);
        command
    }

    pub(super) fn kubelet(&self, kubernetes: &Path) -> Command {
        let mut command = program(kubernetes, "kubelet");
        command
            .arg(self.flag("config", "kubelet.json"))
            .arg(format!(
                "--kubeconfig={}",
                self.kubeconfig("kubelet").display()
            ))
            .arg(self.flag("root-dir", "kubelet"))
            .arg(self.flag("cert-dir", "kubelet-certificates"))
            .arg(format!("--hostname-override={NODE_NAME}"))
            .arg(format!("--node-ip={NODE}"));
        command
    }

    pub(super) fn containerd(&self) -> Command {
        let mut command = Command::new("containerd");
        command.arg("--config").arg(self.path("containerd.toml"));
        command
    }
}

fn program(kubernetes: &Path, name: &str) -> Command {
    let mut command = Command::new(kubernetes);
    command.arg(name);
    command
}
