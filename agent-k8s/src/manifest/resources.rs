//! What the flow's container may use: the run config's word, the template's, or the agent's.

use agent_core::run_config::KubernetesRun;
use serde_json::{Map, Value, json};

use super::shape::{Misfit, mapping};

/// What flows may use unless they say something else. Amounts are Kubernetes quantities.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobResources {
    /// The memory to be reserved.
    pub memory_request: Option<String>,
    /// The memory after which the flow is killed.
    pub memory_limit: Option<String>,
    /// The processor time to be reserved.
    pub cpu_request: Option<String>,
    /// The processor time that is given at most.
    pub cpu_limit: Option<String>,
}

/// Sets the amounts of the run config, and those of the agent for what nobody has spoken of: a flow
/// that asks for memory is not given the agent's limit of memory, which may be less.
pub(super) fn fill(
    container: &mut Map<String, Value>,
    config: &KubernetesRun,
    defaults: &JobResources,
) -> Result<(), Misfit> {
    let resources = container.entry("resources").or_insert_with(|| json!({}));
    let resources = mapping(resources)?;
    for (member, cpu, memory) in [
        ("requests", &config.cpu_request, &config.memory_request),
        ("limits", &config.cpu_limit, &config.memory_limit),
    ] {
        let amounts = resources.entry(member).or_insert_with(|| json!({}));
        for (unit, amount) in [("memory", memory), ("cpu", cpu)] {
            if let Some(amount) = amount {
                mapping(amounts)
                    .map_err(|misfit| misfit.within(member))?
                    .insert(unit.to_owned(), amount.as_str().into());
            }
        }
    }
    for (unit, request, limit) in [
        ("memory", &defaults.memory_request, &defaults.memory_limit),
        ("cpu", &defaults.cpu_request, &defaults.cpu_limit),
    ] {
        let given = ["requests", "limits"].map(|member| &resources[member][unit]);
        if given.iter().any(|amount| !amount.is_null()) {
            continue;
        }
        for (member, amount) in [("requests", request), ("limits", limit)] {
            if let Some(amount) = amount {
                let amounts = &mut resources[member];
                if amounts.is_null() {
                    *amounts = json!({});
                }
                mapping(amounts)
                    .map_err(|misfit| misfit.within(member))?
                    .insert(unit.to_owned(), amount.as_str().into());
            }
        }
    }
    Ok(())
}
