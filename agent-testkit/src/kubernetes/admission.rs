//! What stands between a valid Job and its storage: webhooks and quotas.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::kinds::{JOBS, KINDS, Kind};
use super::refused::Refused;

/// The name of the webhook in refusals.
const WEBHOOK: &str = "jobs.admission.testkit.example";
/// Where the API server would call it.
const ADDRESS: &str = "https://admission.testkit.svc:443/jobs?timeout=10s";

/// What an admission webhook says to the creation of a Job, or why it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The Job may be created.
    Allow,
    /// The Job is refused.
    Deny {
        /// The status code, which the webhook chooses; 403 with most.
        code: u16,
        /// What the webhook says.
        message: String,
    },
    /// The webhook cannot be reached, which refuses the Job.
    Error,
    /// The webhook does not answer within this time, which then refuses the Job.
    Timeout(Duration),
}

impl Verdict {
    /// Returns a [`Verdict::Deny`] with code 403.
    pub fn deny(message: impl Into<String>) -> Self {
        Self::Deny {
            code: 403,
            message: message.into(),
        }
    }
}

/// Decides on a Job; the second argument tells whether it is a dry run.
pub(crate) type Webhook = Arc<dyn Fn(&Value, bool) -> Verdict + Send + Sync>;

/// How many Jobs may exist in a namespace.
#[derive(Clone, Debug)]
pub(crate) struct Quota {
    pub(crate) name: String,
    pub(crate) jobs: usize,
}

/// What Jobs have to pass.
#[derive(Clone, Default)]
pub(crate) struct Admission {
    pub(crate) webhook: Option<Webhook>,
    pub(crate) quota: Option<Quota>,
    /// So many creations of Jobs lose the race for the quota against others.
    pub(crate) races: u32,
}

impl Admission {
    /// Refuses a Job for what the webhook says, which is asked without any lock.
    pub(crate) fn ask(webhook: &Webhook, job: &Value, dry_run: bool) -> Result<(), Refused> {
        match webhook(job, dry_run) {
            Verdict::Allow => Ok(()),
            Verdict::Deny { code, message } => Err(Refused::denied(code, WEBHOOK, &message)),
            Verdict::Error => {
                let why = "dial tcp 10.96.0.20:443: connect: connection refused";
                Err(Refused::webhook_failed(WEBHOOK, ADDRESS, why))
            }
            Verdict::Timeout(after) => {
                let refused =
                    Refused::webhook_failed(WEBHOOK, ADDRESS, "context deadline exceeded");
                let after = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
                Err(Refused { after, ..refused })
            }
        }
    }

    /// Refuses a Job for the quota, of which so many others use up something.
    pub(crate) fn charge(&mut self, name: &str, used: usize, dry_run: bool) -> Result<(), Refused> {
        let jobs: &Kind = &KINDS[JOBS];
        if let Some(quota) = &self.quota
            && used >= quota.jobs
        {
            let why = format!(
                "exceeded quota: {}, requested: count/jobs.batch=1, used: count/jobs.batch={used}, limited: count/jobs.batch={}",
                quota.name, quota.jobs
            );
            return Err(Refused::forbidden(jobs, name, &why));
        }
        // A dry run is checked, but does not change what is used.
        if self.races > 0 && !dry_run {
            self.races -= 1;
            let name = self.quota.as_ref().map_or("jobs", |quota| &quota.name);
            return Err(Refused::quota_modified(name));
        }
        Ok(())
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("webhook", &self.webhook.is_some())
            .field("quota", &self.quota)
            .field("races", &self.races)
            .finish()
    }
}
