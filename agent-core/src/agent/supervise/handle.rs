//! What follows from an observation: the run fails, its owner is told, the job is deleted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument;

use super::Supervisor;
use super::table::{Job, Own};
use crate::failpoint;
use crate::observation::{Finding, JobState, Observation};
use crate::{Error, FlowRun, LogEntry, LogLevel, Moment, Phase, Result, State};

/// The pause before another look at an ended job of which its run's owner may not know yet.
const UNTOLD: Duration = Duration::from_secs(2);
/// How long a job is kept whose run has not reported although the job has ended.
const UNREPORTED: Duration = Duration::from_secs(60);
/// How long an ended job is kept in any case. Who is about to make it once more, because the answer
/// to its making was lost, has to find it.
const SETTLE: Duration = Duration::from_secs(2);
/// After what time something that was refused is tried again.
const REFUSED: Duration = Duration::from_secs(300);
/// The same for something that this agent may not do at present.
const DENIED: Duration = Duration::from_secs(60);
/// The same for something that has failed for a while and may pass.
pub(super) const AGAIN: Duration = Duration::from_secs(10);
/// The same for a job whose run gets a job just now.
const DEPLOYING: Duration = Duration::from_secs(1);
/// The same for a job that does not get on and whose run is scheduled again.
const RESCHEDULED: Duration = Duration::from_secs(5);
/// The same for a job that has changed since it was seen: the watch will tell.
const CHANGED: Duration = Duration::from_secs(5);
/// How long the new job of a run that was claimed again may take to be made by another replica.
const SUPERSEDED: Duration = Duration::from_secs(30);

/// How old the reading of a run's state may be when the run is failed by it: whoever starts the run
/// again meanwhile does not want that.
const FRESH: Duration = Duration::from_secs(1);

/// The key of the finding that a run has ended without its job.
const ENDED_WITHOUT: &str = "wrun";

impl Supervisor {
    /// Does what there is to do about a job.
    pub(super) async fn work_off(&self, name: String, teller: &str) {
        let Some(mut job) = self.table.take(&name) else {
            return;
        };
        let span =
            tracing::info_span!("supervise", flow_run_id = %job.seen.flow_run_id, job = name);
        self.shared.health.supervision_begins();
        let handled = self.handle(&mut job, teller).instrument(span).await;
        self.shared.health.supervision_ended();
        let again = match handled {
            Ok(again) => again,
            // What fails has said so.
            Err(error) if super::may_pass(&error) => Some(AGAIN),
            Err(Error::Agent(_)) => Some(DENIED),
            Err(_) if job.seen.state == JobState::Gone => None,
            Err(_) => Some(REFUSED),
        };
        if let Some(pause) = again {
            job.put_off = true;
            self.table.look_again(&name, Instant::now() + pause);
        }
        self.table.done(&name, job);
    }

    /// Does it, unless it has to be put off, and then for how long.
    async fn handle(&self, job: &mut Job, teller: &str) -> Result<Option<Duration>> {
        if job.own.foreign {
            return Ok(None);
        }
        let seen = job.seen.clone();
        let (mut due, mut delete) = self.due(&seen, &job.own);
        if seen.state == JobState::Gone && job.own.deleted {
            // That it is gone is our own doing.
            due.clear();
        }
        let ended_without = self.ended_without(job);
        if let Some(finding) = &ended_without {
            due.push(finding);
            delete = true;
        }
        delete &= !self.keeps(&seen) || ended_without.is_some();
        delete &= seen.state != JobState::Gone && !job.own.deleted;
        if due.is_empty() && !delete {
            return Ok(None);
        }
        if due.is_empty() && self.shared.made.is_untold(&seen) {
            // Afterwards nobody would know that there was a job to tell of.
            return Ok(Some(UNTOLD));
        }
        let run = &seen.flow_run_id;
        let read_at = Moment::now();
        let state = || self.states.of(run);
        let what = format!("Cannot read the state of flow run {run}");
        let Some(state) = self.insistently(&what, state).await? else {
            tracing::warn!(
                "Job {} is for flow run {run}, which the API does not know; it is left alone",
                seen.job
            );
            job.own.foreign = true;
            return Ok(None);
        };
        if ended_without.is_some() && !state.is_finished() {
            // It was started again meanwhile.
            job.run_restarted = true;
            due.retain(|finding| finding.key != ENDED_WITHOUT);
            delete = false;
        }
        if let Some(pause) = self.in_doubt(&seen, &mut due, &mut job.own, &state).await? {
            return Ok(Some(pause));
        }
        let failing = self.fail(&seen, &due, &mut job.own, &state, read_at);
        let Some(failed) = failing.await? else {
            return Ok(Some(Duration::ZERO));
        };
        if let Some(pause) = self.tell(&seen, &due, &mut job.own, teller).await? {
            return Ok(Some(pause));
        }
        if delete {
            let reported = failed || state.phase != Phase::Submitted;
            self.delete(&seen, &mut job.own, reported, ended_without.is_some())
                .await?;
        }
        Ok(None)
    }

    /// Drops what does not hold for the run as it is, and says for how long it stays open whether
    /// the run fails by what was found: it may be about to get another job.
    async fn in_doubt(
        &self,
        seen: &Observation,
        due: &mut Vec<&Finding>,
        own: &mut Own,
        state: &State,
    ) -> Result<Option<Duration>> {
        let fails = |due: &[&Finding]| due.iter().any(|finding| finding.failure.is_some());
        if !fails(due) {
            return Ok(None);
        }
        if self.shared.in_hand.is_claimed(&seen.flow_run_id) {
            // Once the new job is there, it shows whether this one is still the run's.
            return Ok(Some(DEPLOYING));
        }
        if state.phase == Phase::Scheduled && seen.state == JobState::Active {
            // Whoever claims the run keeps this job, and then it fails the run.
            return Ok(Some(RESCHEDULED));
        }
        let only = state.phase == Phase::Submitted && !self.table.has_another(seen);
        let awaited = only && self.is_awaited(seen).await?;
        if !has_failed_by(due, own, state) {
            let ended = state.is_finished();
            due.retain(|finding| awaited || !finding.unreported);
            due.retain(|finding| !(ended && finding.unfinished));
        }
        if only && !awaited && fails(due) {
            // Its new job is made by another replica just now; if none comes, this one was kept.
            let since = *own.superseded.get_or_insert_with(Instant::now);
            if since.elapsed() < SUPERSEDED {
                return Ok(Some(DEPLOYING));
            }
        }
        self.look_afresh(seen, due).await
    }

    /// Drops what does not stand of a job that is gone; for one that is there, says when to look again
    /// then.
    async fn look_afresh(
        &self,
        seen: &Observation,
        due: &mut Vec<&Finding>,
    ) -> Result<Option<Duration>> {
        let gone = seen.state == JobState::Gone;
        let last = due.iter().filter(|finding| finding.deletes || gone);
        for finding in last {
            let stands = || self.shared.backend.stands(&seen.job, &finding.key);
            let what = format!("Cannot look at Job {} again", seen.job);
            match self.insistently(&what, stands).await {
                Ok(false) if gone => {
                    tracing::warn!("Job {} is there, but is not seen any more", seen.job);
                    due.clear();
                    break;
                }
                Ok(false) => {
                    tracing::debug!("Job {} has changed since it was seen", seen.job);
                    return Ok(Some(CHANGED));
                }
                Err(error) if super::may_pass(&error) => return Err(error),
                // What may not be looked at is taken as it was seen.
                Ok(true) | Err(_) => {}
            }
        }
        Ok(None)
    }

    /// Whether a run that is claimed waits for this job, as far as this agent can tell: not if it
    /// was scheduled again and claimed since.
    async fn is_awaited(&self, seen: &Observation) -> Result<bool> {
        let run = &seen.flow_run_id;
        let reading = || self.shared.source.claimed_runs(std::slice::from_ref(run));
        let what = format!("Cannot read flow run {run}");
        let runs = self.insistently(&what, reading).await?;
        let is_of = |now: &FlowRun| self.shared.backend.is_of(&seen.job, &now.attempt);
        Ok(runs.first().is_none_or(is_of))
    }

    /// The findings that are new and due, and whether the job is of no more use; sees to those that
    /// are not due yet.
    fn due<'a>(&self, seen: &'a Observation, own: &Own) -> (Vec<&'a Finding>, bool) {
        let now = Instant::now();
        let mut due = Vec::new();
        let mut delete = seen.state != JobState::Active;
        let mut wait = false;
        for finding in &seen.findings {
            if finding.told || own.handled.contains(&finding.key) {
                delete |= finding.deletes;
                continue;
            }
            if let Some(at) = finding.not_before.filter(|at| *at > now) {
                self.table.look_again(&seen.job, at);
                // What only becomes true if the job goes on does not hold up its end.
                wait |= !finding.deletes;
                continue;
            }
            delete |= finding.deletes;
            due.push(finding);
        }
        (due, delete && !wait)
    }

    /// The finding that the run has ended although its job goes on, once that is so for long
    /// enough.
    fn ended_without(&self, job: &Job) -> Option<Finding> {
        let ended = job.run_ended.as_ref()?;
        if job.seen.state != JobState::Active || self.is_kept(job) {
            return None;
        }
        // A grace that goes beyond the end of time never ends.
        let due = ended.since.checked_add(self.shared.options.cancel_grace)?;
        if due > Instant::now() {
            // This look may be one that was asked for earlier, in place of the one for then.
            self.table.look_again(&job.seen.job, due);
            return None;
        }
        let (name, run) = (&job.seen.job, &job.seen.flow_run_id);
        let message = format!("Job {name} is deleted: its flow run is {}", ended.state);
        tracing::info!("{message}");
        let entry = LogEntry {
            flow_run_id: run.clone(),
            name: LogEntry::JOBS.to_owned(),
            message,
            level: LogLevel::Info,
            timestamp: None,
        };
        Some(Finding::new(ENDED_WITHOUT, vec![entry]))
    }

    /// Whether a job is kept that would be deleted for what was found: it is there to be looked at.
    fn is_kept(&self, job: &Job) -> bool {
        let now = Instant::now();
        let mut ends = job.seen.findings.iter().filter(|finding| finding.deletes);
        let found = ends.any(|finding| {
            finding.told
                || job.own.handled.contains(&finding.key)
                || finding.not_before.is_none_or(|at| at <= now)
        });
        found && self.keeps(&job.seen)
    }

    /// Fails the run if a finding says so; first the consequence, which is harmless to repeat, then
    /// the words, which are not. `None` when the run has changed since its state was read.
    async fn fail(
        &self,
        seen: &Observation,
        due: &[&Finding],
        own: &mut Own,
        state: &State,
        read_at: Moment,
    ) -> Result<Option<bool>> {
        let Some(message) = due.iter().find_map(|finding| finding.failure.as_ref()) else {
            return Ok(Some(false));
        };
        if state.is_finished() {
            return Ok(Some(true));
        }
        if state.phase == Phase::Scheduled || self.table.has_another(seen) {
            // It was started again, and this job is not that attempt's.
            return Ok(Some(false));
        }
        let run = &seen.flow_run_id;
        tracing::info!("Failing flow run {run}, Job {}: {message}", seen.job);
        failpoint::reached("before-fail");
        let old = read_at.elapsed() > FRESH;
        let sent = &AtomicBool::new(false);
        let failing = || {
            async move {
                if sent.load(Ordering::Relaxed) || old {
                    let now = self.states.of(run).await?;
                    if sent.load(Ordering::Relaxed)
                        && now.as_ref().is_some_and(|now| is_failed_by(now, message))
                    {
                        // By the attempt of which the answer was lost.
                        return Ok(true);
                    }
                    if self.has_changed(seen, state, now) {
                        return Ok(false);
                    }
                }
                sent.store(true, Ordering::Relaxed);
                self.shared.source.fail(run, message).await?;
                Ok(true)
            }
        };
        let what = format!("Cannot fail flow run {run}");
        if !self.insistently(&what, failing).await? {
            tracing::info!("Flow run {run} has changed meanwhile");
            return Ok(None);
        }
        own.failed = true;
        failpoint::reached("after-fail");
        metrics::counter!("prefect_agent_runs_failed_total", "by" => "supervision").increment(1);
        Ok(Some(true))
    }

    /// Whether a run is not any more as it was read.
    fn has_changed(&self, seen: &Observation, before: &State, now: Option<State>) -> bool {
        let same = now.is_some_and(|now| now.phase == before.phase);
        let claimed = self.shared.in_hand.is_claimed(&seen.flow_run_id);
        !same || claimed || self.table.has_another(seen)
    }

    /// Deletes a job, or sees to it that this happens later. A run that is still Submitted without
    /// a job would be taken for one whose job was never made.
    async fn delete(
        &self,
        seen: &Observation,
        own: &mut Own,
        reported: bool,
        now: bool,
    ) -> Result<()> {
        let settled = match seen.state {
            JobState::Active => Duration::ZERO,
            _ => {
                let ended = *own.ended.get_or_insert_with(Instant::now);
                SETTLE.saturating_sub(ended.elapsed())
            }
        };
        let keep = if now {
            Duration::ZERO
        } else {
            self.kept(seen).max(settled)
        };
        if !keep.is_zero() {
            self.table
                .look_again(&seen.job, later(Instant::now(), keep));
            return Ok(());
        }
        if !reported {
            tracing::debug!(
                "Job {} has ended, but flow run {} has not reported; it is kept for now",
                seen.job,
                seen.flow_run_id
            );
            self.table
                .look_again(&seen.job, Instant::now() + UNREPORTED);
            return Ok(());
        }
        if !now && self.shared.made.is_untold(seen) {
            self.table.look_again(&seen.job, Instant::now() + UNTOLD);
            return Ok(());
        }
        tracing::debug!("Deleting job {}", seen.job);
        let deleting = || self.shared.backend.delete(&seen.job);
        self.insistently(&format!("Cannot delete Job {}", seen.job), deleting)
            .await?;
        own.deleted = true;
        failpoint::reached("after-delete");
        Ok(())
    }

    /// Returns whether a job is kept for good.
    fn keeps(&self, seen: &Observation) -> bool {
        seen.kept || !self.shared.options.delete_finished
    }

    /// How much longer an ended job is kept.
    fn kept(&self, seen: &Observation) -> Duration {
        let options = &self.shared.options;
        let keep = match seen.state {
            JobState::Succeeded => options.keep_succeeded,
            JobState::Failed => options.keep_failed,
            _ => Duration::ZERO,
        };
        let now = self.shared.source.now();
        let passed = now.duration_since(seen.ended_at.unwrap_or(now));
        keep.saturating_sub(Duration::try_from(passed).unwrap_or_default())
    }
}

/// Whether a run has ended as one that was failed with a message, as far as its state tells.
fn is_failed_by(state: &State, message: &String) -> bool {
    state.is_finished() && state.message.as_ref().is_none_or(|it| it == message)
}

/// Whether a run has ended by being failed for one of these findings, by this process or by one that
/// died before it told of it.
fn has_failed_by(due: &[&Finding], own: &Own, state: &State) -> bool {
    let says = |finding: &&Finding| finding.failure.is_some() && finding.failure == state.message;
    state.is_finished() && (own.failed || due.iter().any(says))
}

/// A time so much later; where time does not go that far, one at which to look again.
fn later(start: Instant, pause: Duration) -> Instant {
    start.checked_add(pause).unwrap_or(start + REFUSED)
}
