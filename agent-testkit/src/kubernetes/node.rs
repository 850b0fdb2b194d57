//! The scripted node: job controller and kubelet in one, which plays each Job through the course
//! chosen for it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cluster::Cluster;
use super::course::{Attempt, Course, Plan, PodEnd};
use super::events::Note;
use super::kinds::{JOBS, PODS};
use super::kubelet::{Listener, Pod};
use super::object::{Key, Stored, is_deleting, number, text};
use super::store::Life;

pub(crate) type ChooseCourse = Arc<dyn Fn(&Attempt) -> Course + Send + Sync>;
pub(crate) type OnStarted = Arc<dyn Fn(&Attempt) + Send + Sync>;
pub(crate) type OnFinished = Arc<dyn Fn(&Attempt, &PodEnd) + Send + Sync>;

/// What the node does when.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) course: ChooseCourse,
    pub(crate) on_started: Vec<OnStarted>,
    pub(crate) on_finished: Vec<OnFinished>,
    /// How long things wait before they are tried again, at first.
    pub(crate) retry: Duration,
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script")
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(crate) struct Node {
    cluster: Weak<Cluster>,
    script: Script,
    on: watch::Sender<bool>,
    logs: Mutex<HashMap<Key, String>>,
    stop: CancellationToken,
}

/// Why a Job's pod is not waited for any longer.
enum Interruption {
    JobGone,
    Suspended,
    Deadline,
}

/// One Job under control.
struct Control {
    node: Arc<Node>,
    cluster: Arc<Cluster>,
    key: Key,
    uid: String,
    life: watch::Receiver<Life>,
    failed: i64,
    succeeded: i64,
    started: Instant,
}

impl Node {
    pub(crate) fn new(cluster: &Arc<Cluster>, script: Script, on: bool) -> Arc<Self> {
        Arc::new(Self {
            cluster: Arc::downgrade(cluster),
            script,
            on: watch::Sender::new(on),
            logs: Mutex::default(),
            stop: CancellationToken::new(),
        })
    }

    /// Lets the node work, or leaves all Jobs as they are.
    pub(crate) fn set_on(&self, on: bool) {
        self.on.send_replace(on);
    }

    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// What a pod's container wrote.
    pub(crate) fn log(&self, pod: &Key) -> Option<String> {
        self.logs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(pod)
            .cloned()
    }

    /// Takes control of a Job.
    pub(crate) fn adopt(self: &Arc<Self>, job: &Stored) {
        let Some(cluster) = self.cluster.upgrade() else {
            return;
        };
        let uid = text(&job.value, "/metadata/uid").to_owned();
        let life = cluster.store().follow(&uid);
        let control = Control {
            node: self.clone(),
            key: Key::of(&job.value),
            uid,
            life,
            failed: 0,
            succeeded: 0,
            started: Instant::now(),
            cluster,
        };
        let stop = self.stop.clone();
        tokio::spawn(async move { stop.run_until_cancelled(control.run()).await });
    }

    async fn wait_until_on(&self) {
        let mut on = self.on.subscribe();
        let _ = on.wait_for(|on| *on).await;
    }
}

impl Control {
    async fn run(mut self) {
        loop {
            self.node.wait_until_on().await;
            let Some(job) = self.job() else { return };
            if job["spec"]["suspend"] == true {
                self.set_status(|status, _| status["active"] = json!(0));
                if self.life.changed().await.is_err() {
                    return;
                }
                continue;
            }
            self.begin(&job);
            let number = u32::try_from(self.failed + self.succeeded).unwrap_or(u32::MAX);
            let mut attempt = Attempt::of(&job, number);
            let course = (self.node.script.course)(&attempt);
            let outcome = match &course.plan {
                Plan::FailedCreate { reason } => Err(self.fail_to_create(&job, reason).await),
                _ => self.one_pod(&job, &mut attempt, &course).await,
            };
            let pod = Key::new(&*self.key.namespace, attempt.pod);
            match outcome {
                Err(Interruption::JobGone) => return,
                Err(Interruption::Suspended) => {
                    self.cluster.remove(PODS, &pod, false);
                }
                Err(Interruption::Deadline) => {
                    self.cluster.remove(PODS, &pod, false);
                    let message = "Job was active longer than specified deadline";
                    return self.fail(&job, "DeadlineExceeded", message).await;
                }
                Ok(PodEnd::Succeeded) => {
                    self.succeeded += 1;
                    if self.succeeded >= number_or(&job, "/spec/completions", 1) {
                        return self.complete(&job).await;
                    }
                }
                Ok(_) => {
                    self.failed += 1;
                    if self.failed > number_or(&job, "/spec/backoffLimit", 6) {
                        let message = "Job has reached the specified backoff limit";
                        return self.fail(&job, "BackoffLimitExceeded", message).await;
                    }
                    let (failed, succeeded) = (self.failed, self.succeeded);
                    self.set_status(|status, _| {
                        status["active"] = json!(0);
                        status["ready"] = json!(0);
                        status["failed"] = json!(failed);
                        if succeeded > 0 {
                            status["succeeded"] = json!(succeeded);
                        }
                    });
                    tokio::time::sleep(self.node.script.retry).await;
                }
            }
        }
    }

    /// The Job as it is now, unless it is gone or going.
    fn job(&self) -> Option<Value> {
        let store = self.cluster.store();
        let job = &store.get(JOBS, &self.key)?.value;
        let mine = text(job, "/metadata/uid") == self.uid && !is_deleting(job);
        mine.then(|| job.clone())
    }

    fn begin(&mut self, job: &Value) {
        if text(job, "/status/startTime").is_empty() {
            self.started = Instant::now();
        }
    }

    async fn one_pod(
        &mut self,
        job: &Value,
        attempt: &mut Attempt,
        course: &Course,
    ) -> Result<PodEnd, Interruption> {
        let Some(value) = self.create_pod(job, course) else {
            return Err(Interruption::JobGone);
        };
        attempt.pod = text(&value, "/metadata/name").to_owned();
        let mut pod_life = self.cluster.store().follow(text(&value, "/metadata/uid"));
        let (succeeded, failed) = (self.succeeded, self.failed);
        self.set_status(|status, now| {
            if status["startTime"].is_null() {
                status["startTime"] = json!(now);
            }
            status["active"] = json!(1);
            status["ready"] = json!(0);
            status["terminating"] = json!(0);
            status["uncountedTerminatedPods"] = json!({});
            if succeeded > 0 {
                status["succeeded"] = json!(succeeded);
            }
            if failed > 0 {
                status["failed"] = json!(failed);
            }
        });
        let pod = Pod {
            cluster: self.cluster.clone(),
            key: Key::of(&value),
            value,
            retry: self.node.script.retry,
        };
        let reporter = Reporter {
            control: self,
            attempt,
        };
        let deleted = async {
            let _ = pod_life.wait_for(|life| *life == Life::Gone).await;
        };
        tokio::select! {
            biased;
            interruption = self.interrupted(job) => Err(interruption),
            () = deleted => Ok(PodEnd::Deleted),
            end = pod.play(course, &reporter) => Ok(end),
        }
    }

    /// Waits until the Job is deleted, suspended or out of time.
    async fn interrupted(&self, job: &Value) -> Interruption {
        let mut life = self.life.clone();
        let changed = async {
            loop {
                if life.changed().await.is_err() {
                    return Interruption::JobGone;
                }
                match self.job() {
                    None => return Interruption::JobGone,
                    Some(job) if job["spec"]["suspend"] == true => return Interruption::Suspended,
                    Some(_) => {}
                }
            }
        };
        let deadline = async {
            let seconds = number(job, "/spec/activeDeadlineSeconds");
            match seconds.and_then(|seconds| u64::try_from(seconds).ok()) {
                Some(seconds) => {
                    tokio::time::sleep_until(self.started + Duration::from_secs(seconds)).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            interruption = changed => interruption,
            () = deadline => Interruption::Deadline,
        }
    }

    async fn fail_to_create(&self, job: &Value, reason: &str) -> Interruption {
        let message = format!(
            "Error creating: pods \"{}-\" is forbidden: {reason}",
            self.key.name
        );
        let repeat = async {
            let mut pause = self.node.script.retry;
            loop {
                self.note(job, true, "FailedCreate", &message);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(30));
            }
        };
        self.set_status(|status, now| status["startTime"] = json!(now));
        tokio::select! {
            interruption = self.interrupted(job) => interruption,
            () = repeat => Interruption::JobGone,
        }
    }

    fn create_pod(&self, job: &Value, course: &Course) -> Option<Value> {
        let (uid, suffix) = {
            let mut store = self.cluster.store();
            (store.new_uid(), store.name_suffix())
        };
        let prefix: String = self.key.name.chars().take(57).collect();
        let template = &job["spec"]["template"];
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("{prefix}-{suffix}"), "generateName": format!("{prefix}-"),
                "namespace": self.key.namespace, "uid": uid,
                "creationTimestamp": self.cluster.now_text(),
                "labels": template["metadata"]["labels"],
                "ownerReferences": [{
                    "apiVersion": "batch/v1", "kind": "Job", "name": self.key.name, "uid": self.uid,
                    "controller": true, "blockOwnerDeletion": true,
                }],
            },
            "spec": template["spec"],
            "status": {"phase": "Pending", "qosClass": "BestEffort"},
        });
        if template["metadata"]["annotations"].is_object() {
            pod["metadata"]["annotations"] = template["metadata"]["annotations"].clone();
        }
        let created = self.cluster.insert(PODS, pod)?.value.clone();
        if !course.log.is_empty() {
            let mut logs = self
                .node
                .logs
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            logs.insert(Key::of(&created), course.log.clone());
        }
        let message = format!("Created pod: {prefix}-{suffix}");
        self.note(job, false, "SuccessfulCreate", &message);
        Some(created)
    }

    async fn complete(self, job: &Value) {
        let succeeded = self.succeeded;
        self.set_status(|status, now| {
            let message = "Reached expected number of succeeded pods";
            let met = condition("SuccessCriteriaMet", "CompletionsReached", message, now);
            let complete = condition("Complete", "CompletionsReached", message, now);
            status["conditions"] = json!([met, complete]);
            status["completionTime"] = json!(now);
            status["succeeded"] = json!(succeeded);
            status["ready"] = json!(0);
            remove(status, "active");
        });
        self.note(job, false, "Completed", "Job completed");
        self.expire(job).await;
    }

    async fn fail(self, job: &Value, reason: &str, message: &str) {
        let failed = match reason {
            "DeadlineExceeded" => self.failed + 1,
            _ => self.failed,
        };
        self.set_status(|status, now| {
            let target = condition("FailureTarget", reason, message, now);
            status["conditions"] = json!([target, condition("Failed", reason, message, now)]);
            status["failed"] = json!(failed);
            status["ready"] = json!(0);
            remove(status, "active");
        });
        self.note(job, true, reason, message);
        self.expire(job).await;
    }

    /// Deletes a finished Job when its time has come.
    async fn expire(self, job: &Value) {
        let seconds = number(job, "/spec/ttlSecondsAfterFinished");
        if let Some(seconds) = seconds.and_then(|seconds| u64::try_from(seconds).ok()) {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            let mine = self.job().is_some();
            if mine {
                self.cluster.remove(JOBS, &self.key, false);
            }
        }
    }

    fn set_status(&self, change: impl FnOnce(&mut Value, &str)) {
        if self.job().is_some() {
            let now = self.cluster.now_text();
            self.cluster
                .update(JOBS, &self.key, |job| change(&mut job["status"], &now));
        }
    }

    fn note(&self, job: &Value, warning: bool, reason: &str, message: &str) {
        let note = Note {
            warning,
            reason,
            message,
            component: "job-controller",
            container: None,
        };
        self.cluster.record(job, note);
    }
}

/// Passes a pod's start and end on to whoever wants to know.
struct Reporter<'a> {
    control: &'a Control,
    attempt: &'a Attempt,
}

impl Listener for Reporter<'_> {
    fn started(&self) {
        self.control
            .set_status(|status, _| status["ready"] = json!(1));
        for hook in &self.control.node.script.on_started {
            hook(self.attempt);
        }
    }

    fn finished(&self, end: &PodEnd) {
        for hook in &self.control.node.script.on_finished {
            hook(self.attempt, end);
        }
    }
}

fn number_or(value: &Value, pointer: &str, preset: i64) -> i64 {
    number(value, pointer).unwrap_or(preset)
}

fn remove(status: &mut Value, name: &str) {
    if let Some(members) = status.as_object_mut() {
        members.remove(name);
    }
}

fn condition(kind: &str, reason: &str, message: &str, now: &str) -> Value {
    json!({
        "type": kind, "status": "True", "reason": reason, "message": message,
        "lastProbeTime": now, "lastTransitionTime": now,
    })
}
