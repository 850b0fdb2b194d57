//! A pod's way through its life, with the statuses and events that a real kubelet gives it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::Cluster;
use super::course::{Course, Plan, PodEnd};
use super::events::Note;
use super::kinds::PODS;
use super::object::{Key, items, text};

/// The one node of the cluster.
pub(crate) const NODE_NAME: &str = "node-1";

/// A pod under way.
pub(crate) struct Pod {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) key: Key,
    /// The pod as it was created, to speak about in events.
    pub(crate) value: Value,
    /// For how long to wait before something is tried again, at first.
    pub(crate) retry: Duration,
}

/// What the kubelet tells about a pod that starts and ends.
pub(crate) trait Listener {
    fn started(&self);
    fn finished(&self, end: &PodEnd);
}

impl Pod {
    /// Plays the course to its end, if it has one.
    pub(crate) async fn play(&self, course: &Course, listener: &impl Listener) -> PodEnd {
        match &course.plan {
            Plan::Unschedulable { reason } => self.wait_for_a_node(reason).await,
            Plan::NeverStarts => {
                self.schedule();
                std::future::pending().await
            }
            Plan::ConfigError { message } => {
                self.schedule();
                self.pulled();
                self.refuse_config(message).await
            }
            Plan::PullFails { message, recovers } => {
                self.schedule();
                match recovers {
                    None => self.fail_to_pull(message).await,
                    Some(after) => {
                        self.pull_once_in_vain(message).await;
                        self.run(*after, PodEnd::Succeeded, course, listener).await
                    }
                }
            }
            Plan::Hangs => {
                self.schedule();
                tokio::time::sleep(course.pending).await;
                self.start(listener);
                std::future::pending().await
            }
            Plan::Ends { after, end } => {
                self.schedule();
                tokio::time::sleep(course.pending).await;
                self.run(*after, end.clone(), course, listener).await
            }
            Plan::FailedCreate { .. } => PodEnd::Deleted,
        }
    }

    async fn run(
        &self,
        after: Duration,
        end: PodEnd,
        course: &Course,
        listener: &impl Listener,
    ) -> PodEnd {
        self.start(listener);
        tokio::time::sleep(after).await;
        listener.finished(&end);
        self.terminate(&end, course.termination_message.as_deref());
        end
    }

    async fn wait_for_a_node(&self, reason: &str) -> PodEnd {
        self.set_status(|status, now| {
            status["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": reason, "lastProbeTime": null, "lastTransitionTime": now,
            }]);
        });
        let mut pause = self.retry;
        loop {
            self.scheduler_note(true, "FailedScheduling", reason);
            tokio::time::sleep(pause).await;
            pause = longer(pause);
        }
    }

    fn schedule(&self) {
        let Key { namespace, name } = &self.key;
        let message = format!("Successfully assigned {namespace}/{name} to {NODE_NAME}");
        self.scheduler_note(false, "Scheduled", &message);
        self.cluster.update(PODS, &self.key, |pod| {
            pod["spec"]["nodeName"] = json!(NODE_NAME);
        });
        self.waiting("ContainerCreating", None);
    }

    async fn fail_to_pull(&self, why: &str) -> PodEnd {
        let mut pause = self.retry;
        loop {
            self.pull_in_vain(why);
            tokio::time::sleep(pause).await;
            self.back_off_pulling(why);
            pause = longer(pause);
            tokio::time::sleep(pause).await;
        }
    }

    async fn pull_once_in_vain(&self, why: &str) {
        self.pull_in_vain(why);
        tokio::time::sleep(self.retry).await;
        self.back_off_pulling(why);
        tokio::time::sleep(self.retry).await;
    }

    fn pull_in_vain(&self, why: &str) {
        let image = self.image();
        let message = format!("Failed to pull image {image:?}: {why}");
        self.kubelet_note(false, "Pulling", &format!("Pulling image {image:?}"));
        self.kubelet_note(true, "Failed", &message);
        self.kubelet_note(true, "Failed", "Error: ErrImagePull");
        self.waiting("ErrImagePull", Some(why));
    }

    fn back_off_pulling(&self, why: &str) {
        let message = format!("Back-off pulling image {:?}", self.image());
        self.kubelet_note(false, "BackOff", &message);
        self.kubelet_note(true, "Failed", "Error: ImagePullBackOff");
        self.waiting(
            "ImagePullBackOff",
            Some(&format!("{message}: ErrImagePull: {why}")),
        );
    }

    async fn refuse_config(&self, message: &str) -> PodEnd {
        let mut pause = self.retry;
        self.waiting("CreateContainerConfigError", Some(message));
        loop {
            self.kubelet_note(true, "Failed", &format!("Error: {message}"));
            tokio::time::sleep(pause).await;
            pause = longer(pause);
        }
    }

    fn pulled(&self) {
        let image = self.image();
        self.kubelet_note(false, "Pulling", &format!("Pulling image {image:?}"));
        let message = format!(
            "Successfully pulled image {image:?} in 412ms (412ms including waiting). Image size: 81920000 bytes."
        );
        self.kubelet_note(false, "Pulled", &message);
    }

    fn start(&self, listener: &impl Listener) {
        self.pulled();
        let container = self.container();
        self.kubelet_note(false, "Created", &format!("Created container: {container}"));
        self.kubelet_note(false, "Started", &format!("Started container {container}"));
        self.set_status(|status, now| {
            status["phase"] = json!("Running");
            status["podIP"] = json!("10.0.0.7");
            status["conditions"] = conditions(true, None, now);
            for container in containers(status) {
                container["ready"] = json!(true);
                container["started"] = json!(true);
                container["containerID"] = json!("containerd://0123456789abcdef");
                container["state"] = json!({"running": {"startedAt": now}});
            }
        });
        listener.started();
    }

    fn terminate(&self, end: &PodEnd, message: Option<&str>) {
        let (code, reason) = match end {
            PodEnd::Succeeded => (0, "Completed"),
            PodEnd::Exited(code) => (*code, "Error"),
            PodEnd::Signalled(signal) => (128 + signal, "Error"),
            PodEnd::OomKilled => (137, "OOMKilled"),
            PodEnd::Evicted | PodEnd::Deleted => (137, "Error"),
        };
        if *end == PodEnd::Evicted {
            self.kubelet_note(true, "Evicted", EVICTION);
        }
        self.set_status(|status, now| {
            let succeeded = *end == PodEnd::Succeeded;
            status["phase"] = json!(if succeeded { "Succeeded" } else { "Failed" });
            let why = if succeeded {
                "PodCompleted"
            } else {
                "PodFailed"
            };
            status["conditions"] = conditions(false, Some(why), now);
            if *end == PodEnd::Evicted {
                status["reason"] = json!("Evicted");
                status["message"] = json!(EVICTION);
            }
            for container in containers(status) {
                let started = container["state"]["running"]["startedAt"].clone();
                let mut terminated = json!({
                    "exitCode": code, "reason": reason, "startedAt": started, "finishedAt": now,
                    "containerID": container["containerID"],
                });
                if let PodEnd::Signalled(signal) = end {
                    terminated["signal"] = json!(signal);
                }
                if let Some(message) = message {
                    terminated["message"] = json!(message);
                }
                container["ready"] = json!(false);
                container["started"] = json!(false);
                container["state"] = json!({"terminated": terminated});
            }
        });
    }

    fn waiting(&self, reason: &str, message: Option<&str>) {
        let state = match message {
            Some(message) => json!({"waiting": {"reason": reason, "message": message}}),
            None => json!({"waiting": {"reason": reason}}),
        };
        let statuses: Vec<Value> = items(&self.value, "/spec/containers")
            .map(|container| {
                json!({
                    "name": container["name"], "image": container["image"], "imageID": "",
                    "ready": false, "started": false, "restartCount": 0, "lastState": {}, "state": state,
                })
            })
            .collect();
        self.set_status(|status, now| {
            status["startTime"] = json!(now);
            status["conditions"] = conditions(false, Some("ContainersNotReady"), now);
            status["containerStatuses"] = json!(statuses);
        });
    }

    fn set_status(&self, change: impl FnOnce(&mut Value, &str)) {
        let now = self.cluster.now_text();
        self.cluster
            .update(PODS, &self.key, |pod| change(&mut pod["status"], &now));
    }

    fn container(&self) -> &str {
        text(&self.value, "/spec/containers/0/name")
    }

    fn image(&self) -> &str {
        text(&self.value, "/spec/containers/0/image")
    }

    fn kubelet_note(&self, warning: bool, reason: &str, message: &str) {
        let note = Note {
            warning,
            reason,
            message,
            component: "kubelet",
            container: (reason != "Evicted").then(|| self.container()),
        };
        self.cluster.record(&self.value, note);
    }

    fn scheduler_note(&self, warning: bool, reason: &str, message: &str) {
        let note = Note {
            warning,
            reason,
            message,
            component: "default-scheduler",
            container: None,
        };
        self.cluster.record(&self.value, note);
    }
}

const EVICTION: &str =
    "The node was low on resource: memory. Threshold quantity: 100Mi, available: 61Mi. ";

/// Pauses double up to half a minute.
fn longer(pause: Duration) -> Duration {
    (pause * 2).min(Duration::from_secs(30))
}

fn containers(status: &mut Value) -> impl Iterator<Item = &mut Value> {
    status["containerStatuses"]
        .as_array_mut()
        .into_iter()
        .flatten()
}

fn conditions(ready: bool, why: Option<&str>, now: &str) -> Value {
    let status = if ready { "True" } else { "False" };
    let one = |kind: &str, status: &str, reason: Option<&str>| {
        let mut condition = json!({
            "type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": now,
        });
        if let Some(reason) = reason {
            condition["reason"] = json!(reason);
        }
        condition
    };
    let ended = why.is_some_and(|why| why.starts_with("Pod"));
    let sandbox = match ended {
        true => one(
            "PodReadyToStartContainers",
            "False",
            Some("PodSandboxNotReady"),
        ),
        false => one("PodReadyToStartContainers", "True", None),
    };
    json!([
        sandbox,
        one(
            "Initialized",
            "True",
            why.filter(|why| *why == "PodCompleted")
        ),
        one("Ready", status, why),
        one("ContainersReady", status, why),
        one("PodScheduled", "True", None),
    ])
}
