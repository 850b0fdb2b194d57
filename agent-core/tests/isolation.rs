//! One run, one replica or one server that misbehaves harms nobody else.

mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_core::{
    Agent, AgentHealth, Error, FlowRun, FlowRunId, JobBackend, JobRef, LogEntry, LogLevel, Phase,
    Result, Submission, async_trait,
};
use support::{Jobs, Memory, Poison, Running, until};
use tokio::time::{Instant, sleep, timeout};

/// Whether a run's job can be created, and after what time the answer comes.
type Answer = dyn Fn(&FlowRunId) -> (Duration, Result<()>) + Send + Sync;

/// Jobs in memory, of which some cannot be created.
struct Picky {
    jobs: Arc<Jobs>,
    answer: Box<Answer>,
    preflight: Mutex<Result<()>>,
}

impl Picky {
    fn new(
        source: &Arc<Memory>,
        answer: impl Fn(&FlowRunId) -> (Duration, Result<()>) + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            jobs: Jobs::new(source),
            answer: Box::new(answer),
            preflight: Mutex::new(Ok(())),
        })
    }

    fn set_preflight(&self, answer: Result<()>) {
        *self.preflight.lock().expect("no panics") = answer;
    }
}

#[async_trait]
impl JobBackend for Picky {
    async fn preflight(&self) -> Result<()> {
        self.preflight.lock().expect("no panics").clone()
    }

    async fn submit(&self, run: &FlowRun) -> Result<Submission> {
        let (takes, answer) = (self.answer)(&run.id);
        sleep(takes).await;
        answer?;
        self.jobs.submit(run).await
    }

    async fn jobs(&self, runs: &[FlowRunId]) -> Result<HashMap<FlowRunId, Vec<JobRef>>> {
        self.jobs.jobs(runs).await
    }
}

fn is_bad(run: &FlowRunId) -> bool {
    run.as_str().starts_with("bad")
}

/// Five ordinary runs a second for a minute.
fn seed_ordinary(source: &Memory) {
    for n in 0..300_u64 {
        let due = source.clock.at(Duration::from_millis(200 * n));
        source.seed(&format!("good-{n:03}"), Some(due));
    }
}

/// The longest time from an ordinary run's start time to its job.
fn worst_latency(source: &Memory, jobs: &Jobs) -> Duration {
    let created = jobs.created();
    let late = source.runs().clone().into_iter().filter_map(|(id, run)| {
        let at = *created.get(&format!("{id}/0"))?.first()?;
        let due = run.due?.duration_since(source.clock.at(Duration::ZERO));
        Some(at.saturating_sub(Duration::try_from(due).ok()?))
    });
    late.max().expect("some")
}

fn good_jobs(jobs: &Jobs) -> usize {
    let created = jobs.created();
    created.keys().filter(|key| key.starts_with("good")).count()
}

/// Ordinary runs beside bad ones with this answer: the bad ones' messages.
async fn ordinary_runs_are_not_held_up_by(
    bad: usize,
    answer: impl Fn() -> (Duration, Result<()>) + Send + Sync + 'static,
) -> Vec<String> {
    let source = Memory::new(0);
    let backend = Picky::new(&source, move |run| match is_bad(run) {
        true => answer(),
        false => (Duration::ZERO, Ok(())),
    });
    for n in 0..bad {
        source.seed(&format!("bad-{n}"), Some(source.clock.now()));
    }
    seed_ordinary(&source);
    let agent = Agent::builder(source.clone(), backend.clone()).concurrency(4);
    let agent = Running::start(agent);
    until("the ordinary jobs", || good_jobs(&backend.jobs) == 300).await;
    let worst = worst_latency(&source, &backend.jobs);
    assert!(worst < Duration::from_secs(2), "{worst:?}");
    let failed = || {
        let runs = source.runs();
        let bad = runs.iter().filter(|(id, _)| is_bad(id));
        bad.filter_map(|(_, run)| run.failed.clone())
            .collect::<Vec<_>>()
    };
    until("the end of the bad ones", || failed().len() == bad).await;
    let within = Duration::from_secs(240);
    assert!(
        source.clock.elapsed() < within,
        "{:?}",
        source.clock.elapsed()
    );
    agent.stop().await;
    failed()
}

#[tokio::test(start_paused = true)]
async fn runs_whose_job_always_fails_hold_up_nobody_and_fail_with_the_reason() {
    let why = "500: resourceVersion should not be set";
    let failed = ordinary_runs_are_not_held_up_by(12, move || {
        (Duration::from_millis(20), Err(Error::unclear(why)))
    });
    assert!(failed.await.iter().all(|message| message == why));
}

#[tokio::test(start_paused = true)]
async fn runs_whose_webhook_times_out_hold_up_nobody() {
    ordinary_runs_are_not_held_up_by(12, || {
        (
            Duration::from_secs(30),
            Err(Error::unclear("webhook: deadline exceeded")),
        )
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_template_server_does_not_decide_how_long_others_wait() {
    ordinary_runs_are_not_held_up_by(12, || {
        let asks = Error::Unclear {
            message: "503".to_owned(),
            retry_after: Some(Duration::from_secs(3600)),
        };
        (Duration::ZERO, Err(asks))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_owner_is_told_within_a_minute_why_there_is_no_job_yet() {
    let source = Memory::new(0);
    let backend = Picky::new(&source, |_| {
        (Duration::ZERO, Err(Error::unclear("no route")))
    });
    source.seed("bad", None);
    let agent = Running::start(Agent::builder(source.clone(), backend));
    let warned = || {
        let logs = source.run("bad").logs.into_iter();
        logs.filter(|log| log.level == LogLevel::Warning).count()
    };
    until("a warning", || warned() > 0).await;
    assert!(source.clock.elapsed() < Duration::from_secs(60));
    until("the end", || source.run("bad").failed.is_some()).await;
    assert!(warned() <= 3, "{}", warned());
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_may_not_create_jobs_claims_nothing_and_fails_nothing() {
    let source = Memory::new(0);
    let denied = || Err(Error::agent("jobs is forbidden: User cannot create"));
    let may_not = Picky::new(&source, move |_| (Duration::ZERO, denied()));
    may_not.set_preflight(Err(Error::agent("jobs is forbidden: User cannot create")));
    seed_ordinary(&source);
    let agent = Agent::builder(source.clone(), may_not.clone()).build();
    let health = agent.health();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let unable = tokio::spawn(agent.run(async {
        let _ = stopped.await;
    }));
    let reason = || {
        health
            .check(Duration::from_secs(60))
            .err()
            .unwrap_or_default()
    };
    until("the reason", || reason().contains("forbidden")).await;
    sleep(Duration::from_secs(120)).await;
    assert!(source.runs().values().all(|run| run.claims == 0));

    let able = Picky::new(&source, |_| (Duration::ZERO, Ok(())));
    let healthy = Running::start(Agent::builder(source.clone(), able.clone()));
    until("all jobs", || good_jobs(&able.jobs) == 300).await;
    assert!(
        source
            .runs()
            .values()
            .all(|run| run.failed.is_none() && run.claims == 1)
    );
    healthy.stop().await;
    let _ = stop.send(());
    unable.await.expect("no panic").expect("a clean end");
}

fn blocked(health: &AgentHealth) -> bool {
    health.status().blocked.is_some()
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_loses_its_permission_waits_and_goes_on_by_itself() {
    let source = Memory::new(0);
    let allowed = Arc::new(Mutex::new(false));
    let may = allowed.clone();
    let backend = Picky::new(&source, move |_| match *may.lock().expect("no panics") {
        true => (Duration::ZERO, Ok(())),
        false => (Duration::ZERO, Err(Error::agent("forbidden"))),
    });
    let agent = Agent::builder(source.clone(), backend.clone()).build();
    let health = agent.health();
    let task = tokio::spawn(agent.run(std::future::pending()));
    sleep(Duration::from_secs(5)).await;
    backend.set_preflight(Err(Error::agent("forbidden")));
    seed_ordinary(&source);
    until("the block", || blocked(&health)).await;
    sleep(Duration::from_secs(600)).await;
    let claims: usize = source.runs().values().map(|run| run.claims).sum();
    assert!(claims <= 64, "{claims} claims that could not be served");
    *allowed.lock().expect("no panics") = true;
    backend.set_preflight(Ok(()));
    until("all jobs", || good_jobs(&backend.jobs) == 300).await;
    assert!(source.runs().values().all(|run| run.failed.is_none()));
    until("the end of the block", || !blocked(&health)).await;
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_side_that_refuses_everybody_fails_nobody_however_long_that_takes() {
    let source = Memory::new(0);
    let away = Arc::new(Mutex::new(true));
    let is_away = away.clone();
    let backend = Picky::new(&source, move |_| {
        match *is_away.lock().expect("no panics") {
            true => (Duration::from_millis(50), Err(Error::unclear("500"))),
            false => (Duration::ZERO, Ok(())),
        }
    });
    backend.set_preflight(Err(Error::unclear("500")));
    seed_ordinary(&source);
    let agent = Running::start(Agent::builder(source.clone(), backend.clone()));
    sleep(Duration::from_secs(1800)).await;
    let claims: usize = source.runs().values().map(|run| run.claims).sum();
    assert!(claims < 100, "{claims} claims for nothing");
    assert!(source.runs().values().all(|run| run.failed.is_none()));
    *away.lock().expect("no panics") = false;
    backend.set_preflight(Ok(()));
    until("all jobs", || good_jobs(&backend.jobs) == 300).await;
    assert!(source.runs().values().all(|run| run.failed.is_none()));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_quota_fails_few_of_a_backlog() {
    let source = Memory::new(0);
    let full = || Error::Refused("exceeded quota".to_owned());
    let backend = Picky::new(&source, move |_| (Duration::ZERO, Err(full())));
    backend.set_preflight(Err(full()));
    seed_ordinary(&source);
    let agent = Running::start(Agent::builder(source.clone(), backend.clone()));
    sleep(Duration::from_secs(600)).await;
    let failed = source
        .runs()
        .values()
        .filter(|run| run.failed.is_some())
        .count();
    assert!((1..100).contains(&failed), "{failed}");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_source_that_asks_to_be_left_alone_is_left_alone_and_the_agent_is_alive() {
    let source = Memory::new(0);
    let backend = Picky::new(&source, |_| (Duration::ZERO, Ok(())));
    let busy = Error::Transient {
        message: "429".to_owned(),
        retry_after: Some(Duration::from_secs(120)),
    };
    *source.refuse_polls.lock().expect("no panics") = Some(busy);
    let agent = Agent::builder(source.clone(), backend).build();
    let health = agent.health();
    let task = tokio::spawn(agent.run(std::future::pending()));
    for _ in 0..60 {
        sleep(Duration::from_secs(10)).await;
        assert_eq!(health.check_alive(Duration::from_secs(60)), Ok(()));
    }
    let polls = source.polls.lock().expect("no panics").len();
    assert!((4..=6).contains(&polls), "{polls} polls in ten minutes");
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_the_log_refuses_delays_no_other() {
    let source = Memory::new(0);
    let backend = Picky::new(&source, |_| (Duration::ZERO, Ok(())));
    *source.poison.lock().expect("no panics") = Some(("good-007".into(), Poison::IsRefused));
    seed_ordinary(&source);
    let agent = Running::start(Agent::builder(source.clone(), backend.clone()));
    let waiting = Instant::now();
    until("the last job", || good_jobs(&backend.jobs) == 300).await;
    let told = |(id, run): (&FlowRunId, &support::Stored)| {
        let submitted = |log: &LogEntry| log.message.starts_with(LogEntry::SUBMITTED);
        id.as_str() == "good-007" || run.logs.iter().any(submitted)
    };
    until("all entries but one", || source.runs().iter().all(told)).await;
    assert!(
        waiting.elapsed() < Duration::from_secs(63),
        "{:?}",
        waiting.elapsed()
    );
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_can_never_be_claimed_is_claimed_in_another_way_to_be_failed() {
    let source = Memory::new(0);
    let backend = Picky::new(&source, |_| (Duration::ZERO, Ok(())));
    let large = Error::permanent("413: the state is too large");
    *source.refuse_claims.lock().expect("no panics") = Some(large);
    source.seed("bad", None);
    let agent = Running::start(Agent::builder(source.clone(), backend));
    until("the end", || source.run("bad").failed.is_some()).await;
    let run = source.run("bad");
    assert_eq!((run.phase, run.errors().len()), (Phase::Finished, 1));
    assert!(source.polls.lock().expect("no panics").len() < 10);
    agent.stop().await;
}

/// A backend that fails with this error, and whose preflight does, until that is switched off.
fn switched(source: &Arc<Memory>, error: Error) -> (Arc<Picky>, Arc<AtomicBool>) {
    let away = Arc::new(AtomicBool::new(true));
    let is_away = away.clone();
    let backend = Picky::new(source, move |_| match is_away.load(Ordering::SeqCst) {
        true => (Duration::from_millis(20), Err(error.clone())),
        false => (Duration::ZERO, Ok(())),
    });
    (backend, away)
}

fn failed(source: &Memory) -> usize {
    let runs = source.runs();
    runs.values().filter(|run| run.failed.is_some()).count()
}

#[tokio::test(start_paused = true)]
async fn runs_with_slots_and_runs_with_memory_do_not_wait_for_each_other() {
    for (weight, outage) in [(100 << 10, 2), (1 << 20, 2), (1 << 20, 60), (4 << 20, 60)] {
        let source = Memory::new(1);
        source.weight.store(weight, Ordering::SeqCst);
        let refused = Error::transient("connection refused");
        let (backend, away) = switched(&source, refused.clone());
        for n in 0..200 {
            source.seed(&format!("run-{n:03}"), None);
        }
        let agent = Running::start(Agent::builder(source.clone(), backend.clone()));
        sleep(Duration::from_millis(10)).await;
        backend.set_preflight(Err(refused));
        sleep(Duration::from_secs(outage)).await;
        backend.set_preflight(Ok(()));
        away.store(false, Ordering::SeqCst);
        until("all jobs", || backend.jobs.created().len() == 200).await;
        agent.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_that_a_dry_run_does_not_show_fails_no_run_soon() {
    for preflight in [Ok(()), Err(Error::permanent("no dry run"))] {
        let source = Memory::new(1);
        let (backend, away) = switched(&source, Error::unclear("500"));
        backend.set_preflight(preflight);
        for n in 0..40 {
            source.seed(&format!("run-{n:03}"), None);
        }
        let agent = Running::start(Agent::builder(source.clone(), backend.clone()));
        sleep(Duration::from_secs(300)).await;
        away.store(false, Ordering::SeqCst);
        until("all jobs", || backend.jobs.created().len() == 40).await;
        assert_eq!(failed(&source), 0);
        agent.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn bad_runs_that_are_alone_fail_as_well() {
    let source = Memory::new(1);
    let (backend, _) = switched(&source, Error::unclear("500"));
    for n in 0..5 {
        source.seed(&format!("bad-{n}"), None);
    }
    let budget = Duration::from_secs(10);
    let agent = Agent::builder(source.clone(), backend).submit_retry_budget(budget);
    let agent = Running::start(agent);
    until("their ends", || failed(&source) == 5).await;
    assert!(source.clock.elapsed() < Duration::from_secs(180));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_bad_run_fails_although_the_side_complains_now_and_then() {
    let source = Memory::new(1);
    let count = AtomicUsize::new(0);
    let backend = Picky::new(&source, move |run| {
        let answer = match (is_bad(run), count.load(Ordering::SeqCst) % 8) {
            (false, _) => return (Duration::ZERO, Ok(())),
            (true, 0) => Error::transient("429"),
            (true, _) => Error::unclear("500"),
        };
        count.fetch_add(1, Ordering::SeqCst);
        (Duration::ZERO, Err(answer))
    });
    source.seed("bad", None);
    seed_ordinary(&source);
    for n in 0..300 {
        let due = source.clock.at(Duration::from_secs(60 + 5 * n));
        source.seed(&format!("later-{n}"), Some(due));
    }
    let agent = Running::start(Agent::builder(source.clone(), backend));
    until("the end", || source.run("bad").failed.is_some()).await;
    assert!(source.clock.elapsed() < Duration::from_secs(600));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_decides_that_a_run_waits_for_a_day() {
    let source = Memory::new(1);
    let day = Error::Transient {
        message: "503".to_owned(),
        retry_after: Some(Duration::from_secs(86_400)),
    };
    let (backend, away) = switched(&source, day);
    source.seed("run", None);
    let agent = Running::start(Agent::builder(source.clone(), backend.clone()));
    sleep(Duration::from_secs(10)).await;
    away.store(false, Ordering::SeqCst);
    sleep(Duration::from_secs(300)).await;
    assert_eq!(backend.jobs.created().len(), 1);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_long_outage_of_logs_loses_no_entry() {
    let source = Memory::new(1);
    let backend = Picky::new(&source, |_| (Duration::ZERO, Ok(())));
    source.logs_away.store(true, Ordering::SeqCst);
    seed_ordinary(&source);
    let agent = Running::start(Agent::builder(source.clone(), backend.clone()));
    until("all jobs", || good_jobs(&backend.jobs) == 300).await;
    sleep(Duration::from_secs(8 * 3600)).await;
    source.logs_away.store(false, Ordering::SeqCst);
    let submitted = |log: &LogEntry| log.message.starts_with(LogEntry::SUBMITTED);
    let told = |run: &support::Stored| run.logs.iter().any(submitted);
    until("all entries", || source.runs().values().all(told)).await;
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_last_poll_ends_an_agent_that_may_not_work() {
    let source = Memory::new(1);
    let backend = Picky::new(&source, |_| (Duration::ZERO, Ok(())));
    backend.set_preflight(Err(Error::agent("forbidden")));
    source.seed("run", None);
    let agent = Agent::builder(source.clone(), backend).max_polls(Some(1));
    let run = agent.build().run(std::future::pending());
    let ended = timeout(Duration::from_secs(120), run).await;
    ended.expect("an end").expect("a clean one");
    assert_eq!(source.run("run").claims, 0);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_does_not_fit_the_agents_settings_fails_and_blocks_nobody() {
    let wrong = "the agent's job template has null where a mapping belongs";
    let failed = ordinary_runs_are_not_held_up_by(3, move || {
        (Duration::from_millis(20), Err(Error::agent(wrong)))
    });
    assert!(failed.await.iter().all(|message| message == wrong));
}

#[tokio::test(start_paused = true)]
async fn runs_with_places_and_runs_with_memory_do_not_wait_for_each_other() {
    let source = Memory::new(1);
    source.weight.store(1 << 20, Ordering::SeqCst);
    let refused = Error::transient("connection refused");
    let (backend, away) = switched(&source, refused);
    for n in 0..100 {
        source.seed(&format!("run-{n:03}"), None);
    }
    let agent = Agent::builder(source.clone(), backend.clone()).max_in_flight(Some(200));
    let agent = Running::start(agent);
    sleep(Duration::from_secs(60)).await;
    away.store(false, Ordering::SeqCst);
    until("all jobs", || backend.jobs.created().len() == 100).await;
    agent.stop().await;
}
