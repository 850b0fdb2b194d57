//! Jobs, pods and events as the watches read them: of the many members of each, those that a view is
//! made from. The rest is passed over without being put into memory.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::JobCondition;
use k8s_openapi::api::core::v1::ContainerState;
use k8s_openapi::api::{batch, core};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use serde::{Deserialize, Deserializer};

use crate::reads::reads;

/// A Job.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Job {
    #[serde(deserialize_with = "metadata")]
    pub(super) metadata: ObjectMeta,
    pub(super) spec: Option<JobSpec>,
    pub(super) status: Option<JobStatus>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct JobSpec {
    pub(super) template: Option<PodTemplate>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct PodTemplate {
    pub(super) spec: Option<PodSpec>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct PodSpec {
    pub(super) containers: Option<Vec<Container>>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Container {
    pub(super) env: Option<Vec<EnvVar>>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct EnvVar {
    pub(super) name: String,
    pub(super) value: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct JobStatus {
    pub(super) conditions: Option<Vec<JobCondition>>,
}

/// A pod.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Pod {
    #[serde(deserialize_with = "metadata")]
    pub(super) metadata: ObjectMeta,
    pub(super) status: Option<PodStatus>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodStatus {
    pub(super) phase: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) message: Option<String>,
    pub(super) conditions: Option<Vec<PodCondition>>,
    pub(super) init_container_statuses: Option<Vec<ContainerStatus>>,
    pub(super) container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct PodCondition {
    #[serde(rename = "type")]
    pub(super) type_: String,
    pub(super) status: String,
    pub(super) reason: Option<String>,
    pub(super) message: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct ContainerStatus {
    pub(super) name: String,
    pub(super) state: Option<ContainerState>,
}

/// An event.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Event {
    #[serde(deserialize_with = "metadata")]
    pub(super) metadata: ObjectMeta,
    pub(super) involved_object: ObjectReference,
    pub(super) reason: Option<String>,
    pub(super) message: Option<String>,
    pub(super) last_timestamp: Option<Time>,
    pub(super) event_time: Option<MicroTime>,
    pub(super) first_timestamp: Option<Time>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct ObjectReference {
    pub(super) kind: Option<String>,
    pub(super) name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
}

fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let read = Metadata::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: read.name,
        uid: read.uid,
        resource_version: read.resource_version,
        labels: read.labels,
        annotations: read.annotations,
        creation_timestamp: read.creation_timestamp,
        deletion_timestamp: read.deletion_timestamp,
        ..ObjectMeta::default()
    })
}

reads!(Job, batch::v1::Job);
reads!(Pod, core::v1::Pod);
reads!(Event, core::v1::Event);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_needed_may_be_anything_and_what_is_needed_may_be_null() {
        let job = json!({
            "metadata": {"name": "a", "managedFields": [{"fieldsV1": {"f:spec": {}}}], "labels": null},
            "spec": {"template": {"spec": {"containers": null, "volumes": 7}}},
            "status": {"conditions": null, "active": 1},
        });
        let job: Job = serde_json::from_value(job).expect("a Job");
        assert_eq!(job.metadata.name.as_deref(), Some("a"));
        assert_eq!(job.metadata.managed_fields, None);
        let pod = json!({"metadata": {}, "spec": {}, "status": {"containerStatuses": [
            {"name": "flow", "image": "x", "state": {"waiting": {"reason": "Y"}}},
        ]}});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        let statuses = pod.status.and_then(|status| status.container_statuses);
        let state = statuses
            .into_iter()
            .flatten()
            .next()
            .and_then(|one| one.state);
        assert!(state.is_some_and(|state| state.waiting.is_some()));
    }
}
