//! One deployment: wait for the start time, claim, submit, tell.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout};
use tracing::Instrument;

use super::Shared;
use super::backend_health::{Concern, Pace, SLOW_CREATION};
use super::in_flight::{Place, Ticket};
use super::in_hand::{Held, Stage};
use super::jobless::Jobless;
use super::slots::Slot;
use super::waiting::WaitingRun;
use crate::backoff::Backoff;
use crate::failpoint;
use crate::text::{LONGEST_MESSAGE, clip};
use crate::{
    Claim, Error, FlowRun, FlowRunId, JobRef, LogEntry, LogLevel, Moment, Result, Submission, Work,
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
/// How long a run is left alone that the source refuses to have claimed.
const REFUSED: Duration = Duration::from_secs(10);
/// For how long it is tried to fail a run.
const FAILS: Duration = Duration::from_secs(120);
/// How long a run that is to fail waits for its log to hold the reason.
const REASON: Duration = Duration::from_secs(2);

/// For how long a run's Job has failed to be created when its owner is told, and how often after that.
const WARN_AFTER: Duration = Duration::from_secs(10);
const WARN_INTERVAL: Duration = Duration::from_secs(60);
/// How long after the start of the process a run is taken up with which an earlier process has died:
/// others are served first.
const SUSPECT_DELAY: Duration = Duration::from_secs(5);
/// The longest pause between two attempts at a Job, whoever asks for more.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// How many times longer a run is tried again when several others fail as well and no Job has been
/// created since, although a dry run succeeds: it may be the side after all.
const UNSURE_BUDGET_FACTOR: u32 = 10;
/// Deaths of the process with the same run in hand after which the run is failed.
const MAX_DEATHS: u8 = 3;

/// What a run that was due when a poll has found it brings along.
pub(super) struct Due {
    /// It has lined up for room already.
    pub(super) ticket: Ticket,
    /// The runs of that poll are asked about together.
    pub(super) jobless: Option<Arc<Jobless>>,
}

/// What became of the claim of a run.
enum Claimed {
    /// The run is ours, and has no Job.
    Now(Box<FlowRun>, Moment),
    /// The run is ours, and has a Job already that goes on.
    Adopted,
    /// The run is ours only to be failed, for this reason.
    ToFail(Error),
    /// The run stays queued, or is somebody else's; it is left alone for so long.
    Not(Duration),
}

/// An attempt at a run whose Job is to be created.
struct Attempt {
    id: FlowRunId,
    /// What tells it from other attempts. Not known of a recovered run before it is read.
    key: Option<String>,
    due: Option<Timestamp>,
    read_at: Moment,
    /// Whether an earlier process, or another one, has claimed it.
    recovered: bool,
    /// Its description, if that is new; else it is read again.
    fresh: Option<Fresh>,
}

/// The description of a run as it was just before its claim.
struct Fresh {
    run: Box<FlowRun>,
    memory: OwnedSemaphorePermit,
    claimed_at: Moment,
}

/// Deploys a run that a poll has found.
pub(super) async fn run(
    shared: Arc<Shared>,
    run: FlowRun,
    held: Held,
    memory: OwnedSemaphorePermit,
    due: Option<Due>,
) {
    let span = tracing::info_span!("deploy", flow_run_id = %run.id);
    async {
        let (ticket, jobless) = due.map(|due| (due.ticket, due.jobless)).unzip();
        let Some((place, slot)) = start_time(&shared, &run, &held, ticket).await else {
            return;
        };
        let mut attempt = Attempt {
            id: run.id.clone(),
            key: Some(run.attempt.clone()),
            due: run.due,
            read_at: run.read_at,
            recovered: false,
            fresh: None,
        };
        let jobless = jobless.flatten();
        let outcome = match claim(&shared, run, &held, jobless.as_deref()).await {
            Claimed::Now(run, claimed_at) => {
                attempt.key = Some(run.attempt.clone());
                attempt.fresh = Some(Fresh {
                    run,
                    memory,
                    claimed_at,
                });
                create(&shared, &mut attempt, place, Some(slot)).await
            }
            Claimed::Adopted => Ok(()),
            Claimed::ToFail(why) => {
                drop((memory, place, slot));
                Err(why)
            }
            Claimed::Not(respite) => {
                drop((memory, place, slot));
                return rest(&shared, &held, respite).await;
            }
        };
        if let Err(error) = outcome
            && !give_up(&shared, &attempt, &error).await
        {
            rest(&shared, &held, LONGEST_RESPITE).await;
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

/// Leaves a run queued after a passing failure. Returns for how long it is left alone.
fn leave(shared: &Shared, why: &str, error: &Error) -> Duration {
    tracing::warn!("{why}, leaving it queued: {error}");
    if let Error::Unclear { .. } | Error::Transient { .. } = error {
        shared.slots.complain();
    }
    error.retry_after().unwrap_or_default().max(RESPITE)
}

/// Deploys a run that was claimed by a process which did not get further.
pub(super) async fn resume(shared: Arc<Shared>, id: FlowRunId, held: Held) {
    let span = tracing::info_span!("resume", flow_run_id = %id);
    async {
        // What this process may not do, another replica may.
        let open = shared.backend_health.wait_until_open();
        if shared.stopping.run_until_cancelled(open).await.is_none() {
            return;
        }
        held.enter(Stage::Claimed);
        let place = shared.in_flight.enter_now(&id);
        let mut attempt = Attempt {
            id,
            key: None,
            due: None,
            read_at: Moment::now(),
            recovered: true,
            fresh: None,
        };
        if let Err(error) = create(&shared, &mut attempt, place, None).await {
            give_up(&shared, &attempt, &error).await;
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
        shared.backend_health.wait_until_open().await;
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
async fn reading(shared: &Shared, run: FlowRun, has_job: bool) -> Result<Option<FlowRun>> {
    // Whoever comes late, because the process or its machine was halted, may not be the first.
    let late = run.due.is_none_or(|due| {
        let late = shared.source.now().duration_since(due);
        Duration::try_from(late).unwrap_or_default() > LATE
    });
    let age = run.read_at.elapsed();
    if !has_job && age <= if late { LATE } else { FRESH } {
        return Ok(Some(run));
    }
    let again = shared.source.reread(&run).await?;
    // Rescheduled for later meanwhile: a later poll finds it in time.
    Ok(again.filter(|run| run.due.is_none_or(|due| due <= shared.source.now())))
}

/// The jobs of a run that a poll has found.
async fn jobs(shared: &Shared, run: &FlowRun, jobless: Option<&Jobless>) -> Result<Vec<JobRef>> {
    if let Some(jobless) = jobless
        && run.read_at.elapsed() <= LATE
        && jobless.has(&run.id, &*shared.backend).await
        && run.read_at.elapsed() <= LATE
    {
        return Ok(Vec::new());
    }
    jobs_of(shared, &run.id).await
}

/// The jobs of a run.
async fn jobs_of(shared: &Shared, run: &FlowRunId) -> Result<Vec<JobRef>> {
    let mut jobs = shared.backend.jobs(std::slice::from_ref(run)).await?;
    Ok(jobs.remove(run).unwrap_or_default())
}

/// Claims a run, unless it has ended or is somebody else's by now.
async fn claim(shared: &Shared, run: FlowRun, held: &Held, jobless: Option<&Jobless>) -> Claimed {
    let jobs = match jobs(shared, &run, jobless).await {
        Ok(jobs) => jobs,
        Err(error) => {
            if let Error::Agent(reason) = &error {
                shared.backend_health.record_agent_error(reason);
            }
            let why = "Cannot tell whether the run has a job";
            return Claimed::Not(leave(shared, why, &error));
        }
    };
    let run = match reading(shared, run, !jobs.is_empty()).await {
        Ok(Some(run)) => run,
        Ok(None) => {
            tracing::debug!("The flow run is not ready any more");
            return Claimed::Not(RESPITE);
        }
        Err(error) => {
            let why = "Cannot read the flow run again";
            return Claimed::Not(leave(shared, why, &error));
        }
    };
    let running = jobs.into_iter().find(|job| !job.finished);
    tracing::info!("Deploying flow run {} to execution environment...", run.id);
    failpoint::reached("before-claim");
    let claimed_at = Moment::now();
    let claim = shared.source.claim(&run).await;
    count_claim(&claim);
    match claim {
        Ok(Claim::Claimed) => {
            held.enter(Stage::Claimed);
            shared.refusals.forget(&run.id);
        }
        Ok(Claim::Lost(reason)) => {
            tracing::debug!("Not deploying the flow run: {reason}");
            return Claimed::Not(RESPITE);
        }
        Ok(Claim::StillQueued(reason)) => {
            tracing::info!("Flow run {} stays in the queue: {reason}", run.id);
            return Claimed::Not(QUEUED);
        }
        Err(Error::Refused(why)) => {
            // The source words what passes as it words what does not.
            if shared.refusals.again(&run.id) >= shared.options.submit_budget {
                return claim_to_fail(shared, &run, held, why).await;
            }
            tracing::warn!("Cannot claim the flow run, leaving it queued: {why}");
            return Claimed::Not(REFUSED);
        }
        Err(Error::Permanent(why)) => return claim_to_fail(shared, &run, held, why).await,
        Err(error) => return Claimed::Not(leave(shared, "Cannot claim the flow run", &error)),
    }
    if let Some(job) = running {
        tracing::info!(
            "Flow run {} was scheduled again while its job {} is unfinished; keeping that job",
            run.id,
            job.name
        );
        count_deployment("adopted");
        return Claimed::Adopted;
    }
    Claimed::Now(Box::new(run), claimed_at)
}

/// Claims a run that can never be claimed as usual, to fail it. Where even that is refused, its owner
/// is told why and it stays queued: another agent may be able to claim it.
async fn claim_to_fail(shared: &Shared, run: &FlowRun, held: &Held, why: String) -> Claimed {
    let claim = shared.source.claim_to_fail(run).await;
    count_claim(&claim);
    match claim {
        Ok(Claim::Claimed) => {
            held.enter(Stage::Claimed);
            return Claimed::ToFail(Error::Permanent(why));
        }
        Ok(Claim::Lost(reason) | Claim::StillQueued(reason)) => {
            tracing::warn!(reason, "Cannot claim the flow run to fail it: {why}");
        }
        Err(error) => tracing::warn!(%error, "Cannot claim the flow run to fail it: {why}"),
    }
    if shared.refusals.is_to_be_told(&run.id) {
        let told = entry(shared, &run.id, LogLevel::Error, clipped(&why));
        shared.logs.write_if_missing_later(told, ());
    }
    Claimed::Not(LONGEST_RESPITE)
}

/// Creates the Job of a claimed run. When the agent stops meanwhile, the next process recovers the
/// run.
async fn create(
    shared: &Shared,
    attempt: &mut Attempt,
    place: Place,
    slot: Option<Slot<'_>>,
) -> Result<()> {
    let id = attempt.id.clone();
    let making = shared.made.begin(&id);
    let mut place = Some(place);
    let made = create_with_retries(shared, attempt, &mut place, slot).await;
    let job = match &made {
        Ok(Some(made)) => Some(&made.submission.job),
        Ok(None) | Err(_) => None,
    };
    for seen in making.end(job) {
        // By a request that got no answer, or by another replica.
        let entry = submitted(shared, &id, &seen);
        let untold = shared.made.untold(&seen);
        shared.logs.write_if_missing_later(entry, untold);
    }
    let Some(made) = made? else {
        return Ok(());
    };
    let Submission { job, created } = made.submission;
    failpoint::reached("after-create");
    if let Some(place) = place {
        place.made(&job);
    }
    count_deployment(if created { "created" } else { "found" });
    if created && attempt.recovered {
        tracing::info!("Flow run {id} had been claimed, but had no job");
        metrics::counter!("prefect_agent_recovered_total").increment(1);
    }
    if created {
        let now = shared.source.now();
        let late = attempt.due.map_or_else(
            || attempt.read_at.elapsed(),
            |due| Duration::try_from(now.duration_since(due)).unwrap_or_default(),
        );
        metrics::histogram!("prefect_agent_deploy_latency_seconds").record(late);
    }
    tracing::info!("Completed deployment of flow run {id}");
    let entry = submitted(shared, &id, &job);
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

/// What has gone wrong so far with the creation of a run's Job.
struct Trouble<'a> {
    shared: &'a Shared,
    run: FlowRunId,
    backoff: Backoff,
    /// Since when it fails for a reason that concerns the run alone.
    since: Option<Instant>,
    /// When this agent was first told that it may not create the Job.
    denied_since: Option<Instant>,
    warned: Option<Instant>,
    waiting: Option<WaitingRun>,
}

impl<'a> Trouble<'a> {
    fn new(shared: &'a Shared, run: &FlowRunId) -> Self {
        Self {
            shared,
            run: run.clone(),
            backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(10)),
            since: None,
            denied_since: None,
            warned: None,
            waiting: None,
        }
    }

    /// Records that the Job could not be created by an attempt that began then.
    fn record(&mut self, error: &Error, began: Instant) -> Concern {
        let mut since = self.since.unwrap_or(began);
        let health = &self.shared.backend_health;
        let mut may_work = false;
        if let Error::Agent(_) = error {
            let first = *self.denied_since.get_or_insert(began);
            may_work = health.has_succeeded_since(first);
            since = since.min(first);
        }
        let concern = match may_work {
            // It may create others: what is wrong with its settings is so with this run alone.
            true => Concern::Run,
            false => health.record_failure(&self.run, since, error),
        };
        // What the agent or the side causes does not count against the run, unless others got their
        // Jobs meanwhile.
        let counts = concern == Concern::Run || health.has_created_since(since);
        self.since = counts.then_some(since);
        if concern == Concern::Side {
            self.shared.slots.complain();
        }
        tracing::warn!(
            concern = concern.name(),
            "Cannot submit flow run {}: {error}",
            self.run
        );
        self.wait_for(concern);
        concern
    }

    /// Records that the run could not be looked at.
    fn record_unseen(&mut self, error: &Error) {
        tracing::warn!("Cannot look at flow run {} again: {error}", self.run);
        let concern = match error {
            Error::Agent(_) => Concern::Agent,
            _ => Concern::Side,
        };
        self.wait_for(concern);
    }

    fn wait_for(&mut self, concern: Concern) {
        match &self.waiting {
            Some(waiting) => waiting.set_concern(concern),
            None => self.waiting = Some(self.shared.waiting.begin(&self.run, concern)),
        }
    }

    /// Returns whether the run has used up its budget.
    fn is_hopeless(&self) -> bool {
        self.since.is_some_and(|since| {
            let sure = self.shared.backend_health.is_runs_own(since);
            let factor = if sure { 1 } else { UNSURE_BUDGET_FACTOR };
            since.elapsed() >= self.shared.options.submit_budget.saturating_mul(factor)
        })
    }

    /// Tells the run's owner, early and then from time to time, why there is no Job yet.
    fn warn_owner(&mut self, error: &Error) {
        let failing = self.since.map_or(Duration::ZERO, |since| since.elapsed());
        let recent = |at: Instant| at.elapsed() < WARN_INTERVAL;
        if failing < WARN_AFTER || self.warned.is_some_and(recent) {
            return;
        }
        self.warned = Some(Instant::now());
        let seconds = self.shared.options.submit_budget.as_secs();
        let message = format!(
            "The Job cannot be created yet, and is tried again for {seconds} s in all: {}",
            clipped(&error.to_string())
        );
        let entry = entry(self.shared, &self.run, LogLevel::Warning, message);
        self.shared.logs.write_soon(entry);
    }

    /// Pauses before the next attempt, or until this agent may do its work again.
    async fn pause(&mut self, error: &Error, concern: Concern) {
        let mut pause = self.backoff.pause(error.retry_after()).min(MAX_PAUSE);
        if concern == Concern::Run {
            let failing = self.since.map_or(Duration::ZERO, |since| since.elapsed());
            let left = self.shared.options.submit_budget.saturating_sub(failing);
            if !left.is_zero() {
                pause = pause.min(left.max(Duration::from_millis(100)));
            }
        }
        if concern == Concern::Agent {
            let opened = self.shared.backend_health.wait_until_open();
            let _ = timeout(pause.max(LONGEST_RESPITE), opened).await;
        }
        sleep(pause).await;
    }
}

/// Waits for the turn of a run with which a process has died, after others and one at a time.
///
/// # Errors
/// When too many have.
async fn wait_for_turn<'a>(
    shared: &'a Shared,
    id: &FlowRunId,
) -> Result<Option<SemaphorePermit<'a>>> {
    let deaths = shared.journal.deaths(id);
    if deaths == 0 {
        return Ok(None);
    }
    if deaths >= MAX_DEATHS {
        return Err(Error::permanent(format!(
            "the agent's process has ended {deaths} times while it was creating the Job of this flow run, which is not tried again; check its run config and job template for what may take all memory"
        )));
    }
    sleep(SUSPECT_DELAY.saturating_sub(shared.started.elapsed())).await;
    Ok(shared.suspects.acquire().await.ok())
}

/// Creates a claimed run's job, however often that has to be tried. Between two attempts neither a
/// slot nor a place nor the run's description is held. Returns `None` when the run does not wait for
/// a job any more.
///
/// Before it is submitted again, or long after the claim, the run is looked at: it may have got its
/// job, which may be gone already.
async fn create_with_retries(
    shared: &Shared,
    attempt: &mut Attempt,
    place: &mut Option<Place>,
    mut slot: Option<Slot<'_>>,
) -> Result<Option<JobMade>> {
    let id = attempt.id.clone();
    if shared.journal.deaths(&id) > 0 {
        slot = None;
    }
    let mut turn = wait_for_turn(shared, &id).await?;
    let mut mark = Some(shared.journal.begin(&id));
    failpoint::reached("after-claim");
    let mut trouble = Trouble::new(shared, &id);
    let mut doubtful = false;
    let submission = loop {
        let mark = mark.take().unwrap_or_else(|| shared.journal.begin(&id));
        let fresh = attempt.fresh.take();
        let (run, memory) = match fresh.filter(|fresh| fresh.claimed_at.elapsed() < PROMPT) {
            Some(fresh) => (fresh.run, Some(fresh.memory)),
            None => match look_with_room(shared, attempt, &mut slot, place).await {
                Ok((Found::NoJob(run), memory)) => (run, memory),
                Ok((Found::Job(job), _)) => {
                    let created = doubtful;
                    break Submission { job, created };
                }
                Ok((Found::Changed, _)) => {
                    tracing::info!("Flow run {id} does not wait for a job any more");
                    return Ok(None);
                }
                Err(error) => {
                    mark.put_back();
                    trouble.record_unseen(&error);
                    trouble.pause(&error, Concern::Side).await;
                    continue;
                }
            },
        };
        if place.is_none() {
            *place = Some(shared.in_flight.enter_now(&id));
        }
        let began = Instant::now();
        let created = match &run.work {
            Work::Unreadable(reason) => Err(Error::permanent(reason.clone())),
            _ => {
                shared
                    .slots
                    .run(&mut slot, shared.backend.submit(&run))
                    .await
            }
        };
        // The process has survived it.
        drop((run, memory, mark, turn.take()));
        let error = match created {
            Ok(submission) => {
                doubtful |= began.elapsed() > SLOW_CREATION;
                match shared.backend_health.record_success(began.elapsed()) {
                    Pace::Overloaded => shared.slots.complain(),
                    Pace::Fast => shared.slots.succeed(),
                    Pace::Slow => {}
                }
                break submission;
            }
            Err(error) => error,
        };
        doubtful |= matches!(error, Error::Unclear { .. } | Error::Transient { .. });
        let concern = trouble.record(&error, began);
        let last = matches!(error, Error::Permanent(_)) || trouble.is_hopeless();
        if last {
            // What cannot be made may be there: an answer was lost, or another replica has made it.
            // A full quota refuses it even then.
            match made_already(shared, attempt).await {
                Ok(Some(job)) => {
                    let created = false;
                    doubtful = true;
                    break Submission { job, created };
                }
                Ok(None) | Err(Error::Permanent(_)) => {
                    return Err(Error::permanent(error.to_string()));
                }
                Err(unseen) => trouble.record_unseen(&unseen),
            }
        }
        if concern != Concern::Side || shared.backend_health.has_created_since(began) {
            // Others may have what this one holds. While the side is away, no more is claimed than
            // could be deployed.
            *place = None;
            slot = None;
        }
        trouble.warn_owner(&error);
        trouble.pause(&error, concern).await;
    };
    Ok(Some(JobMade {
        submission,
        doubtful,
    }))
}

/// How a claimed run is found that is looked at before its job is made.
enum Found {
    NoJob(Box<FlowRun>),
    /// It has this one.
    Job(String),
    /// It does not wait for a job any more.
    Changed,
}

/// Looks at a claimed run, and waits for room in memory for its description. Few are described at the
/// same time without having room, and neither a slot nor a place is held while there is none: those
/// that have room may wait for them.
async fn look_with_room(
    shared: &Shared,
    attempt: &mut Attempt,
    slot: &mut Option<Slot<'_>>,
    place: &mut Option<Place>,
) -> Result<(Found, Option<OwnedSemaphorePermit>)> {
    let _place = match shared.looks.try_acquire() {
        Ok(place) => Some(place),
        Err(_) => {
            (*slot, *place) = (None, None);
            // The semaphore is never closed.
            shared.looks.acquire().await.ok()
        }
    };
    let found = look(shared, &attempt.id, attempt.key.as_deref()).await?;
    let Found::NoJob(run) = &found else {
        return Ok((found, None));
    };
    attempt.key = Some(run.attempt.clone());
    let memory = match shared.try_reserve_memory(run) {
        Some(memory) => Some(memory),
        None => {
            (*slot, *place) = (None, None);
            shared.reserve_memory(run).await
        }
    };
    Ok((found, memory))
}

/// Looks at a claimed run: whether it still waits for the job of this attempt, and whether there is
/// one under any name. What tells an attempt at a part of a run is complete only after its claim:
/// whoever recovers it before that makes another job.
async fn look(shared: &Shared, id: &FlowRunId, attempt: Option<&str>) -> Result<Found> {
    let runs = shared.source.claimed_runs(std::slice::from_ref(id)).await?;
    // One that was scheduled again meanwhile gets another job from whoever claims that.
    let is_same = |now: &FlowRun| attempt.is_none_or(|attempt| now.attempt == attempt);
    let Some(run) = runs.into_iter().find(is_same) else {
        return Ok(Found::Changed);
    };
    let jobs = match jobs_of(shared, id).await {
        Err(Error::Agent(reason)) => {
            shared.backend_health.record_agent_error(&reason);
            return Err(Error::Agent(reason));
        }
        jobs => jobs?,
    };
    let is_of_attempt = |job: &&JobRef| {
        // Who takes a job for one of any attempt cannot tell whether one that has ended is an
        // earlier attempt's.
        let can_tell = || !shared.backend.is_of(&job.name, "");
        shared.backend.is_of(&job.name, &run.attempt) && (!job.finished || can_tell())
    };
    let found = jobs.iter().find(is_of_attempt);
    let found = found.or_else(|| jobs.iter().find(|job| run.under_way && !job.finished));
    Ok(match found {
        Some(job) => Found::Job(job.name.clone()),
        None => Found::NoJob(Box::new(run)),
    })
}

/// The job that there is for this attempt at a run.
async fn made_already(shared: &Shared, attempt: &Attempt) -> Result<Option<String>> {
    let Some(key) = &attempt.key else {
        return Ok(None);
    };
    let mut jobs = jobs_of(shared, &attempt.id).await?.into_iter();
    let job = jobs.find(|job| shared.backend.is_of(&job.name, key));
    Ok(job.map(|job| job.name))
}

/// Whether a claimed run still waits for the job of this attempt. It does not when it has been
/// scheduled again meanwhile: whoever claims that makes another job.
async fn awaits_job(shared: &Shared, attempt: &Attempt) -> Result<bool> {
    let id = std::slice::from_ref(&attempt.id);
    let runs = shared.source.claimed_runs(id).await?;
    let same = |now: &FlowRun| attempt.key.as_ref().is_none_or(|key| now.attempt == *key);
    Ok(runs.iter().any(same))
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

/// Fails a claimed run that can never be deployed, after telling its owner why. Returns whether that
/// is over; if it is not, the recovery finds the run again.
async fn give_up(shared: &Shared, attempt: &Attempt, error: &Error) -> bool {
    let id = &attempt.id;
    let message = clipped(&error.to_string());
    tracing::error!("Cannot deploy flow run {id}: {message}");
    if shared.refusals.is_to_be_told(id) {
        let told = entry(shared, id, LogLevel::Error, message.clone());
        // The reason before the state, unless the log takes its time.
        let telling = async {
            match attempt.recovered {
                // The process that died may have told of it.
                true => shared.logs.written_if_missing(told).await,
                false => shared.logs.written(vec![told]).await,
            }
        };
        let _ = timeout(REASON, telling).await;
    }
    failpoint::reached("before-give-up");
    let failed = fail(shared, attempt, &message).await;
    tracing::error!("Deployment of {id} aborted!");
    count_deployment("failed");
    match failed {
        Ok(true) => {
            metrics::counter!("prefect_agent_runs_failed_total", "by" => "deployment").increment(1);
        }
        Ok(false) => tracing::info!("Flow run {id} has ended or begun anew meanwhile"),
        Err(error) => {
            tracing::error!("Flow run {id} could not be set to Failed: {error}");
            return false;
        }
    }
    shared.journal.clear(id);
    shared.refusals.forget(id);
    true
}

/// Sets a claimed run to Failed, again for a while as long as the failure may pass; `false` when this
/// attempt at it has ended meanwhile.
async fn fail(shared: &Shared, attempt: &Attempt, message: &str) -> Result<bool> {
    let id = &attempt.id;
    tracing::info!("Updating flow run {id} state to Failed...");
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    let until = Instant::now() + FAILS;
    loop {
        let error = match shared.source.fail(id, message).await {
            Err(error) if error.is_transient() && Instant::now() < until => error,
            done => return done.map(|()| true),
        };
        tracing::warn!("Cannot fail flow run {id}, will try again: {error}");
        sleep(backoff.pause(error.retry_after()).min(LONGEST_RESPITE)).await;
        match awaits_job(shared, attempt).await {
            Ok(false) => return Ok(false),
            Err(error) if !error.is_transient() => return Err(error),
            // Whoever cannot be asked will not fail the run either.
            Ok(true) | Err(_) => {}
        }
    }
}

/// A text that others may have written, at a length that suits a message.
fn clipped(text: &str) -> String {
    clip(text, LONGEST_MESSAGE).into_owned()
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
