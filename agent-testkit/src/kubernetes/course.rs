//! Courses: what the scripted node does with the pods of a Job.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::cluster::FLOW_RUN_LABEL;
use super::object::{items, members, text};

/// One try of a Job to run its pod.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The Job's name.
    pub job: String,
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The environment of the pod's first container, as far as it is given as values.
    pub env: BTreeMap<String, String>,
    /// The image of the pod's first container.
    pub image: String,
    /// How many pods of the Job ended before this one.
    pub number: u32,
    /// The pod's name, empty until there is one.
    pub pod: String,
}

impl Attempt {
    pub(crate) fn of(job: &Value, number: u32) -> Self {
        let container = &job["spec"]["template"]["spec"]["containers"][0];
        let env = items(container, "/env").filter_map(|one| {
            let (name, value) = (one["name"].as_str()?, one["value"].as_str()?);
            Some((name.to_owned(), value.to_owned()))
        });
        let labels = members(job, "/metadata/labels")
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
        Self {
            job: text(job, "/metadata/name").to_owned(),
            namespace: text(job, "/metadata/namespace").to_owned(),
            labels: labels.collect(),
            env: env.collect(),
            image: container["image"].as_str().unwrap_or_default().to_owned(),
            number,
            pod: String::new(),
        }
    }

    /// The flow run that the Job's label names.
    pub fn flow_run_id(&self) -> Option<&str> {
        self.labels.get(FLOW_RUN_LABEL).map(String::as_str)
    }
}

/// How a pod ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodEnd {
    /// Its containers exited with 0.
    Succeeded,
    /// A container exited with this code, other than 0.
    Exited(i32),
    /// A container was killed by this signal.
    Signalled(i32),
    /// A container used more memory than it may.
    OomKilled,
    /// The node ran short of something.
    Evicted,
    /// Somebody deleted the pod or its Job.
    Deleted,
}

/// What happens to the pod of one attempt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Plan {
    Ends {
        after: Duration,
        end: PodEnd,
    },
    PullFails {
        message: String,
        recovers: Option<Duration>,
    },
    Unschedulable {
        reason: String,
    },
    ConfigError {
        message: String,
    },
    FailedCreate {
        reason: String,
    },
    NeverStarts,
    Hangs,
}

/// What the node does with a Job, chosen for each attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Course {
    pub(crate) plan: Plan,
    pub(crate) pending: Duration,
    pub(crate) log: String,
    pub(crate) termination_message: Option<String>,
}

impl Course {
    fn new(plan: Plan) -> Self {
        Self {
            plan,
            pending: Duration::from_millis(5),
            log: String::new(),
            termination_message: None,
        }
    }

    fn ends(after: Duration, end: PodEnd) -> Self {
        Self::new(Plan::Ends { after, end })
    }

    /// Runs for `after`, then exits with 0.
    pub fn succeeds_after(after: Duration) -> Self {
        Self::ends(after, PodEnd::Succeeded)
    }

    /// Runs for `after`, then exits with `code`.
    pub fn exits_with(code: i32, after: Duration) -> Self {
        match code {
            0 => Self::succeeds_after(after),
            code => Self::ends(after, PodEnd::Exited(code)),
        }
    }

    /// Runs for `after`, then a signal kills it.
    pub fn killed_by(signal: i32, after: Duration) -> Self {
        Self::ends(after, PodEnd::Signalled(signal))
    }

    /// Runs for `after`, then uses more memory than it may.
    pub fn oom_killed(after: Duration) -> Self {
        Self::ends(after, PodEnd::OomKilled)
    }

    /// Runs for `after`, then the node is short of memory and evicts it.
    pub fn evicted(after: Duration) -> Self {
        Self::ends(after, PodEnd::Evicted)
    }

    /// Runs for ever.
    pub fn hangs() -> Self {
        Self::new(Plan::Hangs)
    }

    /// Gets a node, but its containers are being created for ever.
    pub fn never_starts() -> Self {
        Self::new(Plan::NeverStarts)
    }

    /// The image cannot be pulled, for the reason in `message`.
    pub fn image_pull_failure(message: impl Into<String>) -> Self {
        Self::new(Plan::PullFails {
            message: message.into(),
            recovers: None,
        })
    }

    /// The image cannot be pulled the first time; the second time it can, and the pod runs for
    /// `after` and succeeds.
    pub fn image_pull_recovers(message: impl Into<String>, after: Duration) -> Self {
        Self::new(Plan::PullFails {
            message: message.into(),
            recovers: Some(after),
        })
    }

    /// No node can take the pod, for instance `0/3 nodes are available: 3 Insufficient cpu.`
    pub fn unschedulable(reason: impl Into<String>) -> Self {
        Self::new(Plan::Unschedulable {
            reason: reason.into(),
        })
    }

    /// Something the container refers to is missing, for instance `secret "x" not found`.
    pub fn create_container_config_error(message: impl Into<String>) -> Self {
        Self::new(Plan::ConfigError {
            message: message.into(),
        })
    }

    /// The Job may not create pods, for instance `exceeded quota: compute`.
    pub fn failed_create(reason: impl Into<String>) -> Self {
        Self::new(Plan::FailedCreate {
            reason: reason.into(),
        })
    }

    /// How long the pod is pending before its containers start.
    pub fn pending_for(mut self, pending: Duration) -> Self {
        self.pending = pending;
        self
    }

    /// What the container writes to its log once it starts.
    pub fn with_log(mut self, log: impl Into<String>) -> Self {
        self.log = log.into();
        self
    }

    /// What the container leaves in its termination message file.
    pub fn with_termination_message(mut self, message: impl Into<String>) -> Self {
        self.termination_message = Some(message.into());
        self
    }
}
