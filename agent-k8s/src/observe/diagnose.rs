//! What the state of a Job and its pods means for the flow run: a pure function.

use std::collections::HashMap;
use std::time::Duration;

use agent_core::{Finding, JobState, LogEntry, LogLevel};
use jiff::Timestamp;
use tokio::time::Instant;

use crate::manifest::identifier;

use super::view::{ContainerState, EventView, JobView, PodView};

/// An image that cannot be pulled now and will hardly ever be.
const IMAGE: [&str; 3] = ["ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"];
/// A container that cannot be started as it is described.
const START: [&str; 3] = [
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];
/// How long a pod may be pending before its events are told: most start sooner.
const PENDING_GRACE: Duration = Duration::from_secs(1);
/// How long a failed Job waits for news of its pods.
const POD_GRACE: Duration = Duration::from_millis(1500);

/// The key of the finding that a Job cannot make pods.
const NO_POD: &str = "wnopod";
/// A pause that no process lives to see the end of.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// How long something that looks bad may stay so before the run fails.
#[derive(Debug, Clone)]
pub struct Graces {
    /// An image that cannot be pulled, once the kubelet backs off. Default: 0 s.
    pub image_pull: Duration,
    /// A container that cannot be started as it is described: what it refers to may be made a
    /// moment later. Default: 60 s.
    pub start_error: Duration,
    /// A Job that may not make pods. Default: 120 s.
    pub create_failure: Duration,
    /// A pod that no node takes. Default: for ever.
    pub pending: Option<Duration>,
}

impl Default for Graces {
    fn default() -> Self {
        Self {
            image_pull: Duration::ZERO,
            start_error: Duration::from_secs(60),
            create_failure: Duration::from_secs(120),
            pending: None,
        }
    }
}

/// When something about a Job was seen first.
#[derive(Debug, Default)]
pub(super) struct Since(HashMap<String, Instant>);

impl Since {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn of(&mut self, key: &str) -> Instant {
        *self.0.entry(key.to_owned()).or_insert_with(Instant::now)
    }

    /// It is over; should it come again, it is new.
    fn forget(&mut self, key: &str) {
        self.0.remove(key);
    }
}

/// What is to be told about a Job; `since` is when something was seen first.
pub(super) fn findings(
    job: &JobView,
    pods: &[&PodView],
    events: &[&EventView],
    graces: &Graces,
    since: &mut Since,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !pods.is_empty() {
        since.forget(NO_POD);
    }
    for pod in pods {
        if pod.phase == "Pending" {
            let own = events
                .iter()
                .filter(|event| !event.of_job && event.object == pod.name);
            findings.extend(own.map(|event| pending(job, pod, event, since)));
        }
        findings.extend(stuck(job, pod, graces, since));
        findings.extend(unschedulable(job, pod, graces, since));
        if pod.phase == "Failed" {
            findings.push(failed_pod(job, pod));
        }
    }
    let refused = events.iter().rfind(|event| event.of_job);
    if let Some(event) = refused.filter(|_| pods.is_empty() && !job.is_finished()) {
        findings.extend(no_pod(job, event, graces, since));
    }
    if let Some(reason) = &job.failed {
        findings.push(failed_job(job, pods, reason, since));
    }
    for finding in &mut findings {
        finding.told = job.told.contains(&finding.key);
    }
    findings
}

/// Whether what ends a Job by this finding stands, seen afresh.
pub(super) fn stands(key: &str, job: &JobView, pods: &[PodView]) -> bool {
    // Times do not matter: they have passed, or it would not be asked.
    let graces = Graces {
        pending: Some(Duration::ZERO),
        ..Graces::default()
    };
    if key == NO_POD {
        return pods.is_empty() && !job.is_finished();
    }
    pods.iter().any(|pod| {
        let stuck = stuck(job, pod, &graces, &mut Since::default());
        let unschedulable = unschedulable(job, pod, &graces, &mut Since::default());
        stuck
            .iter()
            .chain(&unschedulable)
            .any(|finding| finding.key == key)
    })
}

/// The finding for a Job that somebody else deleted while it was at work.
pub(super) fn gone(job: &JobView) -> Finding {
    let message = format!(
        "Kubernetes Error: Job {} was deleted before it had finished",
        job.name
    );
    let told = entry(job, LogLevel::Error, message, None);
    Finding::gone(JobState::Active, told)
}

/// The finding for a Job that has ended well and is gone, as after `ttlSecondsAfterFinished`: a run
/// that has not reported would wait for it for ever.
pub(super) fn vanished(job: &JobView) -> Finding {
    let message = format!(
        "Kubernetes Error: Job {} has ended and is gone, and its flow run never started",
        job.name
    );
    let told = entry(job, LogLevel::Error, message, None);
    Finding::gone(JobState::Succeeded, told)
}

/// Whether what this finding says may be different by now.
pub(super) fn may_pass(key: &str) -> bool {
    key.starts_with('w') || key == Finding::GONE
}

/// Whether the finding of this key was the end of its Job.
pub(super) fn ends(key: &str) -> bool {
    key.starts_with('w') || key == "job"
}

fn entry(job: &JobView, level: LogLevel, message: String, at: Option<Timestamp>) -> LogEntry {
    LogEntry {
        flow_run_id: job.run.clone(),
        name: LogEntry::JOBS.to_owned(),
        message,
        level,
        timestamp: at,
    }
}

/// A time so much later, or one that never comes.
fn after(start: Instant, pause: Duration) -> Option<Instant> {
    let never = || start.checked_add(NEVER);
    start.checked_add(pause).or_else(never)
}

fn pending(job: &JobView, pod: &PodView, event: &EventView, since: &mut Since) -> Finding {
    let message = format!(
        "Event: '{}' on pod '{}'\n\tMessage: {}",
        event.reason, pod.name, event.message
    );
    let seen = since.of(&format!("pending {}", pod.uid));
    Finding {
        not_before: after(seen, PENDING_GRACE),
        ..Finding::new(
            format!("e{}", short(&event.uid)),
            vec![entry(job, LogLevel::Debug, message, event.at)],
        )
    }
}

/// A container that waits for what will not come.
fn stuck(job: &JobView, pod: &PodView, graces: &Graces, since: &mut Since) -> Option<Finding> {
    pod.containers.iter().find_map(|container| {
        let key = |what: &str| format!("{what} {} {}", pod.uid, container.name);
        if container.state == ContainerState::Running && !since.is_empty() {
            since.forget(&key("image"));
            since.forget(&key("start"));
        }
        let ContainerState::Waiting { reason, message } = &container.state else {
            return None;
        };
        let grace = if IMAGE.contains(&reason.as_str()) {
            after(since.of(&key("image")), graces.image_pull)
        } else if START.contains(&reason.as_str()) {
            after(since.of(&key("start")), graces.start_error)
        } else {
            return None;
        };
        let message = if message.is_empty() { reason } else { message };
        let failure = format!("Kubernetes Error: {message}");
        let told = format!(
            "Pod {} cannot start: container '{}' is waiting, {reason}: {message}",
            pod.name, container.name
        );
        Some(Finding {
            failure: Some(failure),
            deletes: true,
            not_before: grace,
            ..Finding::new(
                format!("w{}", short(&pod.uid)),
                vec![entry(job, LogLevel::Error, told, None)],
            )
        })
    })
}

/// A pod that no node takes: each reason is told once.
fn unschedulable(job: &JobView, pod: &PodView, graces: &Graces, since: &mut Since) -> Vec<Finding> {
    let Some(reason) = pod
        .unschedulable
        .as_ref()
        .filter(|_| pod.phase == "Pending")
    else {
        return Vec::new();
    };
    let message = format!("Pod {} cannot be scheduled: {reason}", pod.name);
    let mut findings = vec![Finding::new(
        format!("u{}", identifier(reason, 0)),
        vec![entry(job, LogLevel::Warning, message.clone(), None)],
    )];
    if let Some(timeout) = graces.pending {
        findings.push(Finding {
            failure: Some(format!("Kubernetes Error: {message}")),
            deletes: true,
            not_before: after(since.of(&format!("pending {}", pod.uid)), timeout),
            ..Finding::new(
                format!("wpending{}", short(&pod.uid)),
                vec![entry(job, LogLevel::Error, message, None)],
            )
        });
    }
    findings
}

/// A Job that may not make pods: a quota, a missing service account, a policy.
fn no_pod(job: &JobView, event: &EventView, graces: &Graces, since: &mut Since) -> [Finding; 2] {
    let message = format!("Job {} cannot create its pod: {}", job.name, event.message);
    // Each attempt names another pod, but for the same reason.
    let words = event.message.split(' ');
    let reason: Vec<&str> = words.filter(|word| !word.contains(&job.name)).collect();
    let told = Finding::new(
        format!("c{}", identifier(&reason.join(" "), 0)),
        vec![entry(job, LogLevel::Warning, message.clone(), event.at)],
    );
    let failed = Finding {
        failure: Some(format!("Kubernetes Error: {message}")),
        deletes: true,
        not_before: after(since.of(NO_POD), graces.create_failure),
        ..Finding::new(NO_POD, vec![entry(job, LogLevel::Error, message, None)])
    };
    [told, failed]
}

fn failed_pod(job: &JobView, pod: &PodView) -> Finding {
    let mut lines = vec![format!("Pod {} failed.", pod.name)];
    if pod.containers.is_empty() {
        lines.push("\tNo container statuses found for pod".to_owned());
    }
    for container in &pod.containers {
        report(&mut lines, &container.name, &container.state);
    }
    let own = pod.reason.as_deref();
    let own = own.map(|reason| (reason, pod.message.as_deref().unwrap_or_default()));
    let disruption = pod.disruption.as_ref();
    let disruption = disruption.map(|(reason, message)| (reason.as_str(), message.as_str()));
    if let Some((reason, message)) = own.or(disruption) {
        lines.push(format!("\tReason: {reason}"));
        lines.push(format!("\tMessage: {message}"));
        if let Some(meaning) = explained(reason) {
            lines.push(format!("\t{meaning}"));
        }
    }
    Finding {
        output_of: outputs(pod),
        ..Finding::new(
            format!("p{}", short(&pod.uid)),
            vec![entry(job, LogLevel::Error, lines.join("\n"), None)],
        )
    }
}

/// The containers of a pod whose last output may say why it failed.
fn outputs(pod: &PodView) -> Vec<String> {
    let failed = pod.containers.iter().filter(|container| {
        matches!(container.state, ContainerState::Terminated { exit_code, .. } if exit_code != 0)
    });
    failed
        .map(|container| format!("{}/{}", pod.name, container.name))
        .collect()
}

fn report(lines: &mut Vec<String>, name: &str, state: &ContainerState) {
    let (word, details) = match state {
        ContainerState::Running => ("running", None),
        ContainerState::Waiting { .. } => ("waiting", None),
        ContainerState::NotFound => ("Not Found", None),
        ContainerState::Terminated {
            exit_code,
            message,
            reason,
            signal,
        } => ("terminated", Some((exit_code, message, reason, signal))),
    };
    lines.push(format!("\tContainer '{name}' state: {word}"));
    let Some((exit_code, message, reason, signal)) = details else {
        return;
    };
    lines.push(format!("\t\tExit Code:: {exit_code}"));
    if let Some(message) = message {
        lines.push(format!("\t\tMessage: {message}"));
    }
    if let Some(reason) = reason {
        lines.push(format!("\t\tReason: {reason}"));
    }
    if let Some(signal) = signal {
        lines.push(format!("\t\tSignal: {signal}"));
    }
    if let Some(meaning) = reason.as_deref().and_then(explained) {
        lines.push(format!("\t\t{meaning}"));
    }
}

/// What a reason means, for people who do not know Kubernetes.
fn explained(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "OOMKilled" => "The container used more memory than its limit allows and was killed.",
        "Evicted" => "The node ran out of a resource and removed the pod.",
        "DeadlineExceeded" => "The Job took longer than its activeDeadlineSeconds.",
        "NodeLost" | "NodeAffinity" | "DeletionByPodGC" => {
            "The node is no longer there for the pod."
        }
        "EvictionByEvictionAPI" => "Somebody evicted the pod, as when its node is drained.",
        "PreemptionByScheduler" => "The pod made room for one of higher priority.",
        "DeletionByTaintManager" => "The node got a taint that the pod does not tolerate.",
        "TerminationByKubelet" => "The node ended the pod, as when it shuts down.",
        _ => return None,
    })
}

fn failed_job(job: &JobView, pods: &[&PodView], reason: &str, since: &mut Since) -> Finding {
    let failed: Vec<String> = pods
        .iter()
        .filter(|pod| pod.phase == "Failed")
        .map(|pod| format!("'{}'", pod.name))
        .collect();
    let key = "job";
    if failed.is_empty() {
        let message = format!("Kubernetes Error: Job {} failed, {reason}", job.name);
        return Finding {
            failure: Some(message.clone()),
            not_before: after(since.of(key), POD_GRACE),
            ..Finding::new(key, vec![entry(job, LogLevel::Error, message, None)])
        };
    }
    Finding {
        failure: Some(format!(
            "Kubernetes Error: pods [{}] failed for this job",
            failed.join(", ")
        )),
        ..Finding::new(key, Vec::new())
    }
}

/// Enough of a uid to tell the few of one Job apart.
fn short(uid: &str) -> &str {
    uid.get(..13).unwrap_or(uid)
}
