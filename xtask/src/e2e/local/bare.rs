//! etcd and an API server, and nothing that acts on what is in them: what benchmarks work against.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::config::Layout;
use super::process::Process;
use super::{network, service_account_key, until};

/// A control plane without controllers; its programs end with it.
pub(crate) struct ControlPlane {
    layout: Layout,
    _running: [Process; 2],
}

impl ControlPlane {
    /// Brings it up in a folder that is empty, its logs in another; returns when it answers.
    pub(crate) async fn start(folder: &Path, logs: &Path, kubernetes: &Path) -> Result<Self> {
        let layout = Layout::new(folder);
        layout
            .write("/")
            .with_context(|| format!("cannot write to {}", folder.display()))?;
        network()?;
        service_account_key(&layout.path("service-accounts.key"))?;
        let etcd = Process::start("etcd", layout.etcd(kubernetes), logs)?;
        let api_server = layout.api_server(kubernetes);
        let api_server = Process::start("kube-apiserver", api_server, logs)?;
        let mut running = [etcd, api_server];
        let certificate = layout.path("certificates/apiserver.crt");
        let kubeconfig = layout.kubeconfig("admin");
        let asking = until("the API server", || async {
            if !certificate.exists() {
                return Ok(false);
            }
            let client = super::super::client(&kubeconfig).await?;
            Ok(client.apiserver_version().await.is_ok())
        });
        let answers = asking.await;
        for process in &mut running {
            process.check()?;
        }
        answers?;
        Ok(Self {
            layout,
            _running: running,
        })
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.layout.kubeconfig("admin")
    }
}
