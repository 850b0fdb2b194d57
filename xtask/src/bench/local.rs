//! A real API server and etcd for the benchmarks, in namespaces of this machine. No controller and no
//! kubelet runs: a Job stays as it was created, and all the machine's time goes into what is measured.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::Options;
use crate::e2e::{self, ControlPlane, Sandbox, sandbox};

/// What the process inside the namespaces has to know beside its flags.
#[derive(Serialize, Deserialize)]
struct Plan {
    cluster: PathBuf,
    logs: PathBuf,
    kubernetes: PathBuf,
    agent: PathBuf,
}

/// Prepares everything, then goes on with the same flags inside namespaces.
pub(super) async fn outside(agent: &Path) -> Result<()> {
    sandbox::check()?;
    let kubernetes = e2e::kubernetes()?;
    let sandbox = Sandbox::new()?;
    let plan = Plan {
        cluster: sandbox.cluster(),
        logs: sandbox.folder().to_owned(),
        kubernetes,
        agent: std::path::absolute(agent)?,
    };
    let file = sandbox.folder().join("plan.json");
    std::fs::write(&file, serde_json::to_vec(&plan)?)?;
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    arguments.push(format!("--inside={}", file.display()));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let program = std::env::current_exe()?;
    let status = sandbox.run(&program, &arguments).await?;
    ensure!(status.success(), "the benchmark ended with {status}");
    Ok(())
}

/// Brings the API server up and measures on it.
pub(super) async fn inside(plan: &Path, mut options: Options) -> Result<()> {
    let text = std::fs::read(plan);
    let text = text.with_context(|| format!("cannot read {}", plan.display()))?;
    let plan: Plan = serde_json::from_slice(&text)?;
    eprintln!("Starting etcd and the API server...");
    let plane = ControlPlane::start(&plan.cluster, &plan.logs, &plan.kubernetes).await?;
    options.kubeconfig = Some(plane.kubeconfig());
    super::measure(&options, plan.agent).await
}
