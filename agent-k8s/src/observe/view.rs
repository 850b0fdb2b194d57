//! The parts of Jobs, pods and events that matter, so that no more than these are kept in memory.

use std::collections::HashSet;

use agent_core::FlowRunId;
use jiff::Timestamp;
use kube::ResourceExt;

use super::notes::{Notes, REPORTED};
use super::read::{ContainerStatus, Event, Job, Pod};
use crate::manifest::{FLOW_RUN_ID, IDENTIFIER, KEEP, LABELS};

/// What is kept of a Job.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct JobView {
    pub(super) name: String,
    pub(super) identifier: String,
    pub(super) run: FlowRunId,
    /// Keys of the findings that were told.
    pub(super) told: HashSet<String>,
    /// Whether a finding that ends the Job was told, or is being told.
    pub(super) ending: bool,
    /// Whether the Job was made by an agent with our labels.
    pub(super) own: bool,
    /// Whether its agent keeps its Jobs.
    pub(super) kept: bool,
    pub(super) complete: bool,
    /// The message of the condition Failed.
    pub(super) failed: Option<String>,
    pub(super) deleting: bool,
    pub(super) created_at: Option<Timestamp>,
    pub(super) ended_at: Option<Timestamp>,
}

impl JobView {
    /// `None` for a Job that is not one of a flow run.
    pub(super) fn of(job: &Job, labels: &str) -> Option<Self> {
        let label = |name: &str| job.labels().get(name).cloned();
        let conditions = job.status.as_ref().and_then(|s| s.conditions.as_deref());
        let condition = |kind: &str| {
            let mut conditions = conditions.unwrap_or_default().iter();
            conditions.find(|one| one.type_ == kind && one.status == "True")
        };
        let notes = job.annotations().get(REPORTED).map(String::as_str);
        let notes = Notes::of(notes.unwrap_or_default());
        Some(Self {
            name: job.name_any(),
            identifier: label(IDENTIFIER)?,
            run: label(FLOW_RUN_ID).filter(|id| is_uuid(id))?.into(),
            ending: notes.0.keys().any(|key| super::diagnose::ends(key)),
            told: notes.told(),
            own: agents_labels(job) == Some(labels),
            kept: job
                .annotations()
                .get(KEEP)
                .is_some_and(|keep| keep == "true"),
            complete: condition("Complete").is_some(),
            failed: condition("Failed").map(|one| {
                let reason = one.reason.as_deref().unwrap_or_default();
                let message = one.message.as_deref().unwrap_or_default();
                format!("{reason}: {message}")
            }),
            deleting: job.metadata.deletion_timestamp.is_some(),
            created_at: job.metadata.creation_timestamp.as_ref().map(|time| time.0),
            ended_at: condition("Complete")
                .or(condition("Failed"))
                .and_then(|one| Some(one.last_transition_time.as_ref()?.0)),
        })
    }

    pub(super) fn is_finished(&self) -> bool {
        self.complete || self.failed.is_some()
    }
}

/// Whether the id of a flow run can be one: the API refuses a whole question for one that cannot.
fn is_uuid(id: &str) -> bool {
    let groups: Vec<&str> = id.split('-').collect();
    let hex = |group: &&str| group.bytes().all(|byte| byte.is_ascii_hexdigit());
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]) && groups.iter().all(hex)
}

/// The labels of the agent that made a Job, as it told the flow.
fn agents_labels(job: &Job) -> Option<&str> {
    let pod = job.spec.as_ref()?.template.as_ref()?.spec.as_ref()?;
    let containers = pod.containers.iter().flatten();
    let mut env = containers.flat_map(|one| one.env.iter().flatten());
    env.find(|one| one.name == LABELS)?.value.as_deref()
}

/// What is kept of a pod.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PodView {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) identifier: String,
    pub(super) phase: String,
    /// Why the pod as a whole failed, such as `Evicted`, and the message beside it.
    pub(super) reason: Option<String>,
    pub(super) message: Option<String>,
    /// Why the cluster ended it, such as `EvictionByEvictionAPI`, and the message beside it.
    pub(super) disruption: Option<(String, String)>,
    /// Why no node takes it.
    pub(super) unschedulable: Option<String>,
    pub(super) containers: Vec<ContainerView>,
}

/// What is kept of a container, of init containers too.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ContainerView {
    pub(super) name: String,
    pub(super) state: ContainerState,
}

/// Where a container stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ContainerState {
    Running,
    Waiting {
        reason: String,
        message: String,
    },
    Terminated {
        exit_code: i32,
        message: Option<String>,
        reason: Option<String>,
        signal: Option<i32>,
    },
    NotFound,
}

impl PodView {
    /// Whether it is past all that keeps a pod from starting.
    pub(super) fn has_started(&self) -> bool {
        !matches!(self.phase.as_str(), "" | "Pending")
    }

    /// `None` for a pod that is not one of a flow run.
    pub(super) fn of(pod: &Pod) -> Option<Self> {
        let status = pod.status.clone().unwrap_or_default();
        let init = status.init_container_statuses.unwrap_or_default();
        let main = status.container_statuses.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let unschedulable = conditions.iter().find(|one| {
            one.type_ == "PodScheduled"
                && one.status == "False"
                && one.reason.as_deref() == Some("Unschedulable")
        });
        let mut disruptions = conditions
            .iter()
            .filter(|one| one.type_ == "DisruptionTarget");
        let disruption = disruptions.find(|one| one.status == "True");
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Some(Self {
            unschedulable: unschedulable.map(|one| text(&one.message)),
            disruption: disruption.map(|one| (text(&one.reason), text(&one.message))),
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            identifier: pod.labels().get(IDENTIFIER)?.clone(),
            phase: status.phase.unwrap_or_default(),
            reason: status.reason,
            message: status.message,
            containers: main.iter().chain(&init).map(container).collect(),
        })
    }
}

fn container(status: &ContainerStatus) -> ContainerView {
    let state = status.state.clone().unwrap_or_default();
    let state = if let Some(ended) = state.terminated {
        ContainerState::Terminated {
            exit_code: ended.exit_code,
            message: ended.message,
            reason: ended.reason,
            signal: ended.signal,
        }
    } else if let Some(waiting) = state.waiting {
        ContainerState::Waiting {
            reason: waiting.reason.unwrap_or_default(),
            message: waiting.message.unwrap_or_default(),
        }
    } else if state.running.is_some() {
        ContainerState::Running
    } else {
        ContainerState::NotFound
    };
    ContainerView {
        name: status.name.clone(),
        state,
    }
}

/// What is kept of an event.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct EventView {
    pub(super) uid: String,
    /// It is about the Job itself, not about a pod.
    pub(super) of_job: bool,
    /// The pod's name, or the Job's.
    pub(super) object: String,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) at: Option<Timestamp>,
}

impl EventView {
    pub(super) fn of(event: &Event) -> Option<Self> {
        // Of a Job, only that it cannot make pods is told.
        let of_job = match event.involved_object.kind.as_deref() {
            Some("Pod") => false,
            Some("Job") if event.reason.as_deref() == Some("FailedCreate") => true,
            _ => return None,
        };
        let at = event.last_timestamp.as_ref().map(|time| time.0);
        let at = at.or(event.event_time.as_ref().map(|time| time.0));
        let at = at.or(event.first_timestamp.as_ref().map(|time| time.0));
        Some(Self {
            uid: event.uid().unwrap_or_else(|| event.name_any()),
            of_job,
            object: event.involved_object.name.clone()?,
            reason: event.reason.clone().unwrap_or_default(),
            message: event.message.clone().unwrap_or_default(),
            at,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_uuid_can_be_the_id_of_a_flow_run() {
        assert!(is_uuid("8069d81f-27b0-4584-bbb5-524adbba6df1"));
        for other in [
            "",
            "test",
            "8069d81f-27b0-4584-bbb5-524adbba6dfx",
            "a-b-c-d-e",
        ] {
            assert!(!is_uuid(other), "{other}");
        }
    }
}
