//! The image of the flow's container and the command that runs in it.

use std::str::FromStr;
use std::sync::LazyLock;

use agent_core::Flow;
use agent_core::run_config::KubernetesRun;
use pep440_rs::Version;
use serde_json::{Map, Value, json};

use super::storage;

/// The first version of Prefect whose command is `flow-run`.
static FLOW_RUN: LazyLock<Version> = LazyLock::new(|| Version::new([0, 13, 0]));

/// The image: of Docker storage, else of the run config, else of the template, else the one of the
/// flow's version of Prefect.
pub(super) fn image(
    container: &Map<String, Value>,
    flow: &Flow,
    config: &KubernetesRun,
) -> Result<Value, String> {
    if let Some(image) = storage::image(&flow.storage)? {
        return Ok(image.into());
    }
    if let Some(image) = &config.image {
        return Ok(image.as_str().into());
    }
    if let Some(image) = container.get("image").filter(|image| !image.is_null()) {
        return Ok(image.clone());
    }
    let version = flow.core_version.as_deref();
    let version = version
        .filter(|version| !version.is_empty())
        .unwrap_or("latest");
    let version = version.split('+').next().unwrap_or(version);
    Ok(format!("prefecthq/prefect:{version}").into())
}

/// The command of the flow's container.
pub(super) fn arguments(core_version: Option<&str>) -> Value {
    let version = core_version.and_then(|version| Version::from_str(version).ok());
    let command = match version {
        Some(version) if version >= *FLOW_RUN => "flow-run",
        _ => "cloud-flow",
    };
    json!(["prefect", "execute", command])
}
