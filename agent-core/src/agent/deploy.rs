//! One deployment: wait for the start time, claim, submit, tell.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::Instrument;

use super::Shared;
use super::in_flight::{Place, Ticket};
use super::in_hand::{Held, Stage};
use super::jobless::Jobless;
use super::slots::Slot;
use crate::backoff::Backoff;
use crate::failpoint;
use crate::{
    Claim, Error, FlowRun, FlowRunId, JobRef, LogEntry, LogLevel, Moment, Result, Submission,
};

/// How old the reading of a run may be when it is claimed. The open-source server refuses a
/// second claim only for 30 s after the first one and does not check versions, so an older
/// reading could claim a run that somebody else has started since.
const FRESH: Duration = Duration::from_secs(10);
/// The same for a run that is claimed so long after its start time, when others may have had it.
const LATE: Duration = Duration::from_secs(2);
/// The longest single sleep before a start time: a clock that is set, or a machine that slept, is
/// noticed after this time.
const LONGEST_NAP: Duration = Duration::from_secs(1);
/// How long a run that is left queued stays in hand.
const RESPITE: Duration = Duration::from_secs(2);
/// The same for a run that a concurrency limit keeps in the queue.
const QUEUED: Duration = Duration::from_secs(5);
/// The same at the most, if a side asks for more.
const LONGEST_RESPITE: Duration = Duration::from_secs(30);
/// How soon after its claim a run is submitted without being looked at again.
const PROMPT: Duration = Duration::from_secs(5);
/// A backend that takes longer for one job is overloaded.
const SLOW: Duration = Duration::from_secs(5);
/// How long a run is left alone that the source refuses to have claimed.
const REFUSED: Duration = Duration::from_secs(10);
/// For how long it is tried to fail a run.
const FAILS: Duration = Duration::from_secs(120);
/// How long a run that is to fail waits for its log to hold the reason.
const REASON: Duration = Duration::from_secs(2);

/// What a run that was due when a poll has found it brings along.
pub(super) struct Due {
    /// It has lined up for room already.
    pub(super) ticket: Ticket,
    /// The runs of that poll are asked about together.
    pub(super) jobless: Option<Arc<Jobless>>,
}

/// Deploys a run that a poll has found.
pub(super) async fn run(shared: Arc<Shared>, run: FlowRun, held: Held, due: Option<Due>) {
    let span = tracing::info_span!("deploy", flow_run_id = %run.id);
    async {
        let (ticket, jobless) = due.map(|due| (due.ticket, due.jobless)).unzip();
        let Some((place, slot)) = start_time(&shared, &run, &held, ticket).await else {
            return;
        };
        let jobless = jobless.flatten();
        let done = claim_and_submit(&shared, &run, &held, place, jobless.as_deref()).await;
        drop(slot);
        match done {
            Ok(None) => {}
            Ok(Some(respite)) => rest(&shared, &held, respite).await,
            Err(error) => {
                if !give_up(&shared, &run, error, false).await {
                    rest(&shared, &held, LONGEST_RESPITE).await;
                }
            }
        }
    }
    .instrument(span)
    .await;
}

/// Keeps a run in hand for a while, so that no poll finds it again at once.
async fn rest(shared: &Shared, held: &Held, respite: Duration) {
    held.enter(Stage::Waiting);
    let pause = tokio::time::sleep(respite.min(LONGEST_RESPITE));
    let _ = shared.stopping.run_until_cancelled(pause).await;
}

/// Leaves a run queued after a passing failure; for how long it is left alone.
fn leave(shared: &Shared, why: &str, error: &Error) -> Duration {
    tracing::warn!("{why}, leaving it queued: {error}");
    shared.slots.complain();
    error.retry_after().unwrap_or_default().max(RESPITE)
}

/// Deploys a run that was claimed by a process which did not get further.
pub(super) async fn resume(shared: Arc<Shared>, run: FlowRun, held: Held) {
    let span = tracing::info_span!("resume", flow_run_id = %run.id);
    async {
        let Some(_slot) = shared.slots.acquire().await else {
            return;
        };
        if shared.stopping.is_cancelled() {
            return;
        }
        held.enter(Stage::Claimed);
        let place = shared.in_flight.enter_now(&run.id);
        if let Err(error) = submit(&shared, &run, place, None).await {
            give_up(&shared, &run, error, true).await;
        }
    }
    .instrument(span)
    .await;
}

/// Waits until the run is due, one more job may be in flight and a slot is free; `None` when the
/// agent stops before that.
async fn start_time<'a>(
    shared: &'a Shared,
    run: &FlowRun,
    held: &Held,
    ticket: Option<Ticket>,
) -> Option<(Place, Slot<'a>)> {
    let slot = async {
        if let Some(due) = run.due {
            while let Ok(left) = Duration::try_from(due.duration_since(shared.source.now()))
                && !left.is_zero()
            {
                tokio::time::sleep(left.min(LONGEST_NAP)).await;
            }
        }
        held.enter(Stage::Due);
        let ticket = ticket.unwrap_or_else(|| shared.in_flight.line_up(run));
        let place = ticket.enter().await;
        Some((place, shared.slots.acquire().await?))
    };
    tokio::select! {
        biased;
        () = shared.stopping.cancelled() => None,
        slot = slot => slot,
    }
}

/// The run as it is, read again when the reading at hand is too old to claim it, or when its earlier
/// job may be reporting just now: a claim would overwrite that report.
async fn reading(shared: &Shared, run: &FlowRun, has_job: bool) -> Result<Option<FlowRun>> {
    // Whoever comes late, because the process or its machine was halted, may not be the first.
    let late = run.due.is_none_or(|due| {
        let late = shared.source.now().duration_since(due);
        Duration::try_from(late).unwrap_or_default() > LATE
    });
    let age = run.read_at.elapsed();
    if !has_job && age <= if late { LATE } else { FRESH } {
        return Ok(Some(run.clone()));
    }
    let again = shared.source.reread(run).await?;
    // Rescheduled for later meanwhile: a later poll finds it in time.
    Ok(again.filter(|run| run.due.is_none_or(|due| due <= shared.source.now())))
}

/// The jobs of a run.
async fn jobs(shared: &Shared, run: &FlowRun, jobless: Option<&Jobless>) -> Result<Vec<JobRef>> {
    if let Some(jobless) = jobless
        && run.read_at.elapsed() <= LATE
        && jobless.has(&run.id, &*shared.backend).await
        && run.read_at.elapsed() <= LATE
    {
        return Ok(Vec::new());
    }
    let mut jobs = shared.backend.jobs(std::slice::from_ref(&run.id)).await?;
    Ok(jobs.remove(&run.id).unwrap_or_default())
}

/// Claims a run and submits it; for how long it is left alone when it stays in the queue.
async fn claim_and_submit(
    shared: &Shared,
    run: &FlowRun,
    held: &Held,
    place: Place,
    jobless: Option<&Jobless>,
) -> Result<Option<Duration>> {
    let jobs = match jobs(shared, run, jobless).await {
        Ok(jobs) => jobs,
        Err(error) if error.is_transient() => {
            let why = "Cannot tell whether the run has a job";
            return Ok(Some(leave(shared, why, &error)));
        }
        Err(error) => return Err(error),
    };
    let run = &match reading(shared, run, !jobs.is_empty()).await {
        Ok(Some(run)) => run,
        Ok(None) => {
            tracing::debug!("The flow run is not ready any more");
            return Ok(Some(RESPITE));
        }
        Err(error) => {
            let why = "Cannot read the flow run again";
            return Ok(Some(leave(shared, why, &error)));
        }
    };
    let running = jobs.into_iter().find(|job| !job.finished);
    tracing::info!("Deploying flow run {} to execution environment...", run.id);
    failpoint::reached("before-claim");
    let claimed = Moment::now();
    let claim = shared.source.claim(run).await;
    count_claim(&claim);
    match claim {
        Ok(Claim::Claimed) => {
            held.enter(Stage::Claimed);
            shared.refusals.forget(&run.id);
        }
        Ok(Claim::Lost(reason)) => {
            tracing::debug!("Not deploying the flow run: {reason}");
            return Ok(Some(RESPITE));
        }
        Ok(Claim::StillQueued(reason)) => {
            tracing::info!("Flow run {} stays in the queue: {reason}", run.id);
            return Ok(Some(QUEUED));
        }
        Err(Error::Refused(why)) => {
            // The source words what passes as it words what does not.
            if shared.refusals.again(&run.id) >= shared.options.submit_budget {
                return Err(Error::permanent(why));
            }
            tracing::warn!("Cannot claim the flow run, leaving it queued: {why}");
            return Ok(Some(REFUSED));
        }
        Err(error) if error.is_transient() => {
            return Ok(Some(leave(shared, "Cannot claim the flow run", &error)));
        }
        Err(error) => return Err(error),
    }
    if let Some(job) = running {
        tracing::info!(
            "Flow run {} was scheduled again while its job {} is unfinished; keeping that job",
            run.id,
            job.name
        );
        count_deployment("adopted");
        return Ok(None);
    }
    submit(shared, run, place, Some(claimed)).await?;
    Ok(None)
}

/// Submits a claimed run. An outage of the backend is waited out: the slot stays taken, so that
/// no more is claimed than can be deployed. When the agent stops meanwhile, the next process
/// recovers the run.
///
/// Before it is submitted again, or long after the claim, the run is looked at: it may have got its
/// job, which may be gone already.
async fn submit(
    shared: &Shared,
    run: &FlowRun,
    place: Place,
    claimed: Option<Moment>,
) -> Result<()> {
    failpoint::reached("after-claim");
    let making = shared.made.begin(&run.id);
    let made = make(shared, run, claimed).await;
    let job = match &made {
        Ok(Some(made)) => Some(&made.submission.job),
        Ok(None) | Err(_) => None,
    };
    for seen in making.end(job) {
        // By a request that got no answer, or by another replica.
        let entry = submitted(shared, &run.id, &seen);
        let untold = shared.made.untold(&seen);
        shared.logs.write_if_missing_later(entry, untold);
    }
    let Some(made) = made? else {
        return Ok(());
    };
    let Submission { job, created } = made.submission;
    failpoint::reached("after-create");
    place.made(&job);
    count_deployment(if created { "created" } else { "found" });
    if created && claimed.is_none() {
        tracing::info!("Flow run {} had been claimed, but had no job", run.id);
        metrics::counter!("prefect_agent_recovered_total").increment(1);
    }
    if created {
        let now = shared.source.now();
        let late = run.due.map_or_else(
            || run.read_at.elapsed(),
            |due| Duration::try_from(now.duration_since(due)).unwrap_or_default(),
        );
        metrics::histogram!("prefect_agent_deploy_latency_seconds").record(late);
    }
    tracing::info!("Completed deployment of flow run {}", run.id);
    let entry = submitted(shared, &run.id, &job);
    let untold = shared.made.untold(&job);
    if created && !made.doubtful {
        shared.logs.write(entry, untold).await;
    } else {
        // Another replica may have taken the run for its own, or may have told of the job.
        shared.logs.write_if_missing_later(entry, untold);
    }
    Ok(())
}

/// A job that is there now.
struct JobMade {
    submission: Submission,
    /// Others may have told of it.
    doubtful: bool,
}

/// Makes a claimed run's job, however often that has to be tried; `None` when the run does not wait
/// for it any more.
async fn make(shared: &Shared, run: &FlowRun, claimed: Option<Moment>) -> Result<Option<JobMade>> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    let mut refused: Option<Instant> = None;
    let mut fresh = claimed.is_some_and(|at| at.elapsed() < PROMPT);
    let mut doubtful = false;
    let submission = loop {
        if !std::mem::replace(&mut fresh, false) {
            match look(shared, run).await {
                Ok(Found::NoJob) => {}
                Ok(Found::Job(job)) => {
                    let created = false;
                    break Submission { job, created };
                }
                Ok(Found::Changed) => {
                    tracing::info!("Flow run {} does not wait for a job any more", run.id);
                    return Ok(None);
                }
                Err(error) if error.is_transient() => {
                    tracing::warn!("Cannot look at flow run {} again: {error}", run.id);
                    tokio::time::sleep(backoff.pause(error.retry_after())).await;
                    continue;
                }
                Err(error) => return Err(error),
            }
        }
        let began = Instant::now();
        let refusal = match shared.backend.submit(run).await {
            Ok(submission) if began.elapsed() > SLOW => {
                doubtful = true;
                shared.slots.complain();
                break submission;
            }
            Ok(submission) => {
                shared.slots.succeed();
                break submission;
            }
            Err(Error::Refused(why)) => {
                let since = *refused.get_or_insert(began);
                if since.elapsed() < shared.options.submit_budget {
                    tracing::warn!("Cannot submit flow run {}, will try again: {why}", run.id);
                    tokio::time::sleep(backoff.pause(None)).await;
                    continue;
                }
                Error::permanent(why)
            }
            Err(error) if error.is_transient() => {
                doubtful = true;
                shared.slots.complain();
                tracing::warn!("Cannot submit flow run {}, will try again: {error}", run.id);
                tokio::time::sleep(backoff.pause(error.retry_after())).await;
                continue;
            }
            Err(error) => error,
        };
        // What cannot be made may be there: an answer was lost, or another replica has made it. A
        // full quota refuses it even then.
        match made_already(shared, run).await {
            Ok(None) => return Err(refusal),
            Ok(Some(job)) => {
                doubtful = true;
                let created = false;
                break Submission { job, created };
            }
            Err(error) if error.is_transient() => {
                tracing::warn!("Cannot look for the job of flow run {}: {error}", run.id);
                tokio::time::sleep(backoff.pause(error.retry_after())).await;
            }
            Err(_) => return Err(refusal),
        }
    };
    Ok(Some(JobMade {
        submission,
        doubtful,
    }))
}

/// How a claimed run is found that is looked at before its job is made.
enum Found {
    NoJob,
    /// Another replica has made this one.
    Job(String),
    /// It does not wait for a job any more.
    Changed,
}

/// Looks at a claimed run. What tells an attempt at a part of a run is complete only after its claim:
/// whoever recovers it before that makes another job.
async fn look(shared: &Shared, run: &FlowRun) -> Result<Found> {
    if !awaits_job(shared, run).await? {
        return Ok(Found::Changed);
    }
    if !run.under_way {
        return Ok(Found::NoJob);
    }
    let jobs = jobs(shared, run, None).await?.into_iter();
    let mut unfinished = jobs.filter(|job| !job.finished);
    // That of this attempt is found when it is made.
    let other = unfinished.find(|job| !shared.backend.is_of(&job.name, &run.attempt));
    Ok(other.map_or(Found::NoJob, |job| Found::Job(job.name)))
}

/// The job that there is for this attempt at a run.
async fn made_already(shared: &Shared, run: &FlowRun) -> Result<Option<String>> {
    let mut jobs = jobs(shared, run, None).await?.into_iter();
    let job = jobs.find(|job| shared.backend.is_of(&job.name, &run.attempt));
    Ok(job.map(|job| job.name))
}

/// Whether a claimed run still waits for the job of this attempt. It does not when it has been
/// scheduled again meanwhile: whoever claims that makes another job.
async fn awaits_job(shared: &Shared, run: &FlowRun) -> Result<bool> {
    let runs = shared
        .source
        .claimed_runs(std::slice::from_ref(&run.id))
        .await?;
    Ok(runs.iter().any(|now| now.attempt == run.attempt))
}

fn count_claim(claim: &Result<Claim>) {
    let outcome = match claim {
        Ok(Claim::Claimed) => "claimed",
        Ok(Claim::Lost(_)) => "lost",
        Ok(Claim::StillQueued(_)) => "queued",
        Err(_) => "failed",
    };
    metrics::counter!("prefect_agent_claims_total", "outcome" => outcome).increment(1);
}

fn count_deployment(outcome: &'static str) {
    metrics::counter!("prefect_agent_deployments_total", "outcome" => outcome).increment(1);
}

/// Fails a run that can never be deployed, after telling its owner why; whether that is over. If it
/// is not, a later poll finds the run again, or the recovery does.
async fn give_up(shared: &Shared, run: &FlowRun, error: Error, recovered: bool) -> bool {
    let message = error.to_string();
    tracing::error!("Cannot deploy flow run {}: {message}", run.id);
    if shared.refusals.is_to_be_told(&run.id) {
        let told = entry(shared, &run.id, LogLevel::Error, message.clone());
        // The reason before the state, unless the log takes its time.
        let telling = async {
            match recovered {
                // The process that died may have told of it.
                true => shared.logs.written_if_missing(told).await,
                false => shared.logs.written(vec![told]).await,
            }
        };
        let _ = timeout(REASON, telling).await;
    }
    failpoint::reached("before-give-up");
    let failed = fail(shared, run, &message).await;
    tracing::error!("Deployment of {} aborted!", run.id);
    count_deployment("failed");
    match failed {
        Ok(true) => {
            metrics::counter!("prefect_agent_runs_failed_total", "by" => "deployment").increment(1);
        }
        Ok(false) => tracing::info!("Flow run {} has ended or begun anew meanwhile", run.id),
        Err(error) => {
            tracing::error!("Flow run {} could not be set to Failed: {error}", run.id);
            return false;
        }
    }
    shared.refusals.forget(&run.id);
    true
}

/// Sets a run to Failed, again for a while as long as the failure may pass; `false` when this
/// attempt at it has ended meanwhile.
async fn fail(shared: &Shared, run: &FlowRun, message: &str) -> Result<bool> {
    tracing::info!("Updating flow run {} state to Failed...", run.id);
    let claimed = shared.in_hand.is_claimed(&run.id);
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    let until = Instant::now() + FAILS;
    loop {
        let error = match shared.source.fail(&run.id, message).await {
            // It refuses whatever is said of the run. Once it takes that, it may take the claim.
            Err(error @ Error::Refused(_)) if !claimed => return Err(error),
            Err(error) if error.is_transient() && Instant::now() < until => error,
            done => return done.map(|()| true),
        };
        tracing::warn!("Cannot fail flow run {}, will try again: {error}", run.id);
        tokio::time::sleep(backoff.pause(error.retry_after())).await;
        let same = match claimed {
            true => awaits_job(shared, run).await,
            false => shared
                .source
                .reread(run)
                .await
                .map(|now| now.is_some_and(|now| now.attempt == run.attempt)),
        };
        match same {
            Ok(false) => return Ok(false),
            Err(error) if !error.is_transient() => return Err(error),
            // Whoever cannot be asked will not fail the run either.
            Ok(true) | Err(_) => {}
        }
    }
}

/// What a run's owner is told when its job is there.
pub(super) fn submitted(shared: &Shared, run: &FlowRunId, job: &str) -> LogEntry {
    let message = format!("{}{job}", LogEntry::SUBMITTED);
    entry(shared, run, LogLevel::Info, message)
}

fn entry(shared: &Shared, run: &FlowRunId, level: LogLevel, message: String) -> LogEntry {
    LogEntry {
        flow_run_id: run.clone(),
        name: shared.options.name.clone(),
        message,
        level,
        timestamp: None,
    }
}
