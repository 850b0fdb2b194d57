//! The agent against a source and a backend in memory, under a paused clock.

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agent_core::{
    Agent, Error, FlowRun, FlowRunId, FlowRunSource, JobBackend, JobRef, LogEntry, LogLevel, Phase,
    Result, Submission, async_trait,
};
use support::{Faults, Jobs, Memory, Poison, Running, Stored, until};
use tokio::time::{Instant, sleep, timeout};

fn world() -> (Arc<Memory>, Arc<Jobs>) {
    let source = Memory::new(1);
    let jobs = Jobs::new(&source);
    (source, jobs)
}

#[tokio::test(start_paused = true)]
async fn drains_a_backlog_without_idle_gaps_oldest_first() {
    let (source, jobs) = world();
    for n in 0..1000 {
        let due = source.clock.at(Duration::ZERO) - jiff::SignedDuration::from_secs(2000 - n);
        source.seed(&format!("run-{n:04}"), Some(due));
    }
    let agent = Running::start(Agent::builder(source.clone(), jobs.clone()));
    until("the last deployment", || jobs.created().len() == 1000).await;
    assert!(
        source.clock.elapsed() < Duration::from_millis(300),
        "{:?}",
        source.clock.elapsed()
    );
    agent.stop().await;
    assert!(jobs.created().values().all(|times| times.len() == 1));
    let order = source.order.lock().expect("no panics").clone();
    for (n, page) in order.chunks(25).enumerate() {
        let mut page: Vec<_> = page.iter().map(|id| id.to_string()).collect();
        page.sort();
        let expected: Vec<_> = (n * 25..n * 25 + 25)
            .map(|n| format!("run-{n:04}"))
            .collect();
        assert_eq!(page, expected, "oldest pages first");
    }
}

#[tokio::test(start_paused = true)]
async fn starts_runs_on_time_and_never_early() {
    let (source, jobs) = world();
    for ms in [1, 700, 3_000, 9_999, 12_345, 60_001] {
        let due = source.clock.at(Duration::from_millis(ms));
        source.seed(&ms.to_string(), Some(due));
    }
    let agent = Running::start(Agent::builder(source.clone(), jobs.clone()));
    until("the last deployment", || jobs.created().len() == 6).await;
    agent.stop().await;
    for (attempt, times) in jobs.created() {
        let ms: u128 = attempt
            .split('/')
            .next()
            .and_then(|id| id.parse().ok())
            .expect("an id");
        let late = times[0].as_millis().checked_sub(ms);
        assert!(
            late.is_some_and(|late| late <= 250),
            "{ms} was deployed at {times:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn polls_at_growing_intervals_and_anew_after_work() {
    let (source, jobs) = world();
    let agent = Agent::builder(source.clone(), jobs.clone())
        .max_polls(Some(8))
        .build();
    agent
        .run(std::future::pending())
        .await
        .expect("a clean end");
    let polls: Vec<f64> = {
        let polls = source.polls.lock().expect("no panics");
        polls.iter().map(Duration::as_secs_f64).collect()
    };
    let pauses: Vec<f64> = polls
        .windows(2)
        .map(|pair| (pair[1] - pair[0]) * 1000.0)
        .collect();
    let expected = [500.0, 1000.0, 2000.0, 4000.0, 8000.0, 10_000.0, 10_000.0];
    for (pause, expected) in pauses.iter().zip(expected) {
        assert!((pause - expected).abs() < 5.0, "{pauses:?}");
    }
    assert_eq!(pauses.len(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_poke_ends_the_pause() {
    let (source, jobs) = world();
    let agent = Agent::builder(source.clone(), jobs.clone()).build();
    let health = agent.health();
    let task = tokio::spawn(agent.run(std::future::pending()));
    until("the long pauses", || health.polls() == 7).await;
    sleep(Duration::from_secs(1)).await;
    source.seed("a", None);
    let poked = Instant::now();
    health.poke();
    until("the deployment", || jobs.created().len() == 1).await;
    assert!(poked.elapsed() < Duration::from_millis(100));
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_lost_claim_makes_no_job_and_no_noise() {
    let (source, jobs) = world();
    source.seed("a", None);
    source.lose_next_claims.store(1, Ordering::SeqCst);
    let agent = Agent::builder(source.clone(), jobs.clone())
        .max_polls(Some(4))
        .build();
    agent
        .run(std::future::pending())
        .await
        .expect("a clean end");
    assert!(jobs.created().is_empty());
    let run = source.run("a");
    assert_eq!((run.failed, run.logs), (None, Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn success_is_logged_to_the_run() {
    let (source, jobs) = world();
    source.seed("a", None);
    let agent = Agent::builder(source.clone(), jobs)
        .name("north")
        .max_polls(Some(1))
        .build();
    agent
        .run(std::future::pending())
        .await
        .expect("a clean end");
    let logs = source.run("a").logs;
    assert_eq!(logs.len(), 1);
    assert_eq!(logs[0].message, "Submitted for execution: Job job-a/0");
    assert_eq!(
        (logs[0].name.as_str(), logs[0].level),
        ("north", LogLevel::Info)
    );
}

#[tokio::test(start_paused = true)]
async fn a_permanent_error_is_told_once_and_fails_the_run() {
    let (source, jobs) = world();
    source.seed("a", None);
    *jobs.refuse.lock().expect("no panics") = Some(Error::permanent("no such namespace"));
    let agent = Agent::builder(source.clone(), jobs)
        .max_polls(Some(6))
        .build();
    agent
        .run(std::future::pending())
        .await
        .expect("a clean end");
    let run = source.run("a");
    assert_eq!(run.failed.as_deref(), Some("no such namespace"));
    assert_eq!(run.logs.len(), 1);
    assert_eq!(run.logs[0].level, LogLevel::Error);
    assert_eq!(run.logs[0].message, "no such namespace");
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_backend_fails_nothing_and_claims_no_more_than_it_can_deploy() {
    let (source, jobs) = world();
    for n in 0..100 {
        source.seed(&format!("{n}"), None);
    }
    *jobs.refuse.lock().expect("no panics") = Some(Error::transient("connection refused"));
    let builder = Agent::builder(source.clone(), jobs.clone()).concurrency(4);
    let agent = Running::start(builder);
    sleep(Duration::from_secs(3600)).await;
    let claimed = source.runs().values().filter(|run| run.claims > 0).count();
    assert!((1..=4).contains(&claimed), "{claimed}");
    *jobs.refuse.lock().expect("no panics") = None;
    until("the deployments", || jobs.created().len() == 100).await;
    agent.stop().await;
    assert!(
        source
            .runs()
            .values()
            .all(|run| run.failed.is_none() && run.claims == 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_is_away_is_no_reason_to_poll_without_a_pause() {
    let (source, jobs) = world();
    for n in 0..5 {
        source.seed(&format!("{n}"), None);
    }
    jobs.away.store(true, Ordering::SeqCst);
    let agent = Running::start(Agent::builder(source.clone(), jobs.clone()));
    sleep(Duration::from_secs(60)).await;
    let polls = source.polls.lock().expect("no panics").len();
    assert!((5..100).contains(&polls), "{polls} polls in a minute");
    jobs.away.store(false, Ordering::SeqCst);
    until("the deployments", || jobs.created().len() == 5).await;
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_kept_queued_is_not_claimed_without_a_pause() {
    let (source, jobs) = world();
    source.seed("a", None);
    source.keeps_queued.store(true, Ordering::SeqCst);
    let agent = Running::start(Agent::builder(source.clone(), jobs.clone()));
    sleep(Duration::from_secs(60)).await;
    let polls = source.polls.lock().expect("no panics").len();
    assert!((5..60).contains(&polls), "{polls} polls in a minute");
    source.keeps_queued.store(false, Ordering::SeqCst);
    until("the deployment", || jobs.created().len() == 1).await;
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn never_deploys_more_than_the_limit_at_once() {
    let (source, jobs) = world();
    source.faults.lock().expect("no panics").latency_ms = 50;
    for n in 0..200 {
        source.seed(&format!("{n}"), None);
    }
    let builder = Agent::builder(source.clone(), jobs.clone()).concurrency(7);
    let agent = Running::start(builder);
    until("the deployments", || jobs.created().len() == 200).await;
    agent.stop().await;
    assert_eq!(jobs.most_active.load(Ordering::SeqCst), 7);
}

#[tokio::test(start_paused = true)]
async fn adopts_the_running_job_of_a_rescheduled_run() {
    let (source, jobs) = world();
    source.seed("a", None);
    source.seed("b", None);
    let job = |finished| JobRef {
        name: "earlier".to_owned(),
        finished,
    };
    {
        let mut existing = jobs.existing.lock().expect("no panics");
        existing.insert("a".into(), vec![job(true), job(false)]);
        existing.insert("b".into(), vec![job(true)]);
    }
    let agent = Agent::builder(source.clone(), jobs.clone())
        .max_polls(Some(2))
        .build();
    agent
        .run(std::future::pending())
        .await
        .expect("a clean end");
    let created: Vec<_> = jobs.created().into_keys().collect();
    assert_eq!(
        created,
        ["b/0"],
        "only the run whose job has finished gets a new one"
    );
    assert_eq!(
        source.run("a").phase,
        Phase::Submitted,
        "the run has left the queue"
    );
}

#[tokio::test(start_paused = true)]
async fn runs_that_are_due_together_are_asked_about_together() {
    let (source, jobs) = world();
    for n in 0..100 {
        source.seed(&format!("{n}"), None);
    }
    let agent = Running::start(Agent::builder(source.clone(), jobs.clone()));
    until("the deployments", || jobs.created().len() == 100).await;
    agent.stop().await;
    let asked = [&jobs.asked, &jobs.asked_for_many].map(|count| count.load(Ordering::SeqCst));
    assert_eq!(asked, [0, 4], "once for each page of the source");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_waits_is_asked_about_again_before_its_claim() {
    let (source, jobs) = world();
    source.seed("a", None);
    source.seed("b", None);
    let refuse = || jobs.refuse.lock().expect("no panics");
    *refuse() = Some(Error::transient("connection refused"));
    let agent = Running::start(Agent::builder(source.clone(), jobs.clone()).concurrency(1));
    until("a claim", || {
        source.runs().values().any(|run| run.claims > 0)
    })
    .await;
    let queued = {
        let runs = source.runs();
        let queued = runs.iter().find(|(_, run)| run.claims == 0);
        queued.expect("one waits for the other").0.clone()
    };
    sleep(Duration::from_secs(3)).await;
    let late = JobRef {
        name: "late".to_owned(),
        finished: false,
    };
    let existing = || jobs.existing.lock().expect("no panics");
    existing().insert(queued.clone(), vec![late]);
    *refuse() = None;
    until("the other claim", || {
        source.run(queued.as_str()).claims == 1
    })
    .await;
    agent.stop().await;
    assert_eq!(jobs.created().len(), 1, "the other one has a job");
}

/// An agent is killed after its claim of run `a`; the next one has to deploy it without another.
async fn is_deployed_by_the_next(source: &Arc<Memory>, jobs: &Arc<Jobs>) {
    *jobs.refuse.lock().expect("no panics") = Some(Error::transient("connection refused"));
    let first = Running::start(Agent::builder(source.clone(), jobs.clone()));
    until("the claim", || source.run("a").claims == 1).await;
    first.kill();
    *jobs.refuse.lock().expect("no panics") = None;
    let second = Running::start(Agent::builder(source.clone(), jobs.clone()));
    until("the deployment", || jobs.created().len() == 1).await;
    second.stop().await;
    assert_eq!(source.run("a").claims, 1);
}

#[tokio::test(start_paused = true)]
async fn a_run_claimed_by_a_killed_agent_gets_its_job_from_the_next() {
    let (source, jobs) = world();
    source.seed("a", None);
    is_deployed_by_the_next(&source, &jobs).await;
}

#[tokio::test(start_paused = true)]
async fn a_claimed_run_with_nothing_but_an_ended_job_of_an_earlier_attempt_gets_its_job() {
    let (source, jobs) = world();
    source.seed("a", None);
    let earlier = JobRef {
        name: "earlier".to_owned(),
        finished: true,
    };
    let existing = || jobs.existing.lock().expect("no panics");
    existing().insert("a".into(), vec![earlier]);
    is_deployed_by_the_next(&source, &jobs).await;
}

/// Makes jobs, of which the first answer is lost; then it may refuse.
#[derive(Default)]
struct Unanswered {
    asked: AtomicUsize,
    then: Option<Error>,
}

#[async_trait]
impl JobBackend for Unanswered {
    async fn submit(&self, run: &FlowRun) -> Result<Submission> {
        if self.asked.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err(Error::transient("connection broken"));
        }
        if let Some(error) = &self.then {
            return Err(error.clone());
        }
        let job = format!("job-{}", run.attempt);
        Ok(Submission { job, created: true })
    }

    async fn jobs(&self, runs: &[FlowRunId]) -> Result<HashMap<FlowRunId, Vec<JobRef>>> {
        let made = self.asked.load(Ordering::SeqCst) > 1;
        let job = JobRef {
            name: "job-a/0".to_owned(),
            finished: false,
        };
        let jobs = made.then(|| vec![job]);
        Ok(runs.first().cloned().zip(jobs).into_iter().collect())
    }
}

/// How often the owner of a run is told of its job whose making was not answered, when somebody else
/// tells of it too or not.
async fn told_of_an_unanswered_job(by_another: bool) -> usize {
    let (source, _) = world();
    source.seed("a", None);
    let jobs = Arc::new(Unanswered::default());
    let agent = Running::start(Agent::builder(source.clone(), jobs.clone()).name("north"));
    until("the job", || jobs.asked.load(Ordering::SeqCst) == 2).await;
    if by_another {
        source.write_logs(&[submitted()]).await.expect("no faults");
    }
    sleep(Duration::from_secs(60)).await;
    agent.stop().await;
    source.run("a").logs.len()
}

fn submitted() -> LogEntry {
    LogEntry {
        flow_run_id: "a".into(),
        name: "north".to_owned(),
        message: "Submitted for execution: Job job-a/0".to_owned(),
        level: LogLevel::Info,
        timestamp: None,
    }
}

#[tokio::test(start_paused = true)]
async fn two_replicas_that_take_a_job_for_theirs_tell_of_it_once() {
    assert_eq!(told_of_an_unanswered_job(true).await, 1);
    assert_eq!(told_of_an_unanswered_job(false).await, 1);
}

/// Its owner, who has not mended what it failed for, starts it once more.
#[tokio::test(start_paused = true)]
async fn a_run_that_fails_again_is_told_of_again() {
    let (source, jobs) = world();
    source.seed("a", None);
    *jobs.refuse.lock().expect("no panics") = Some(Error::permanent("no such template"));
    let agent = Running::start(Agent::builder(source.clone(), jobs));
    for times in 1..=2 {
        until("the failure", || source.run("a").phase == Phase::Finished).await;
        assert_eq!(source.errors("a").len(), times);
        source.update("a", |run| {
            (run.phase, run.scheduled) = (Phase::Scheduled, run.scheduled + 1);
        });
    }
    agent.stop().await;
}

/// The job that was made fills the quota, or its template cannot be read any more.
#[tokio::test(start_paused = true)]
async fn a_run_is_not_failed_for_a_job_that_cannot_be_made_once_more() {
    let reasons = [
        Error::Refused("the quota is full".to_owned()),
        Error::permanent("no such template"),
    ];
    for reason in reasons {
        let (source, _) = world();
        source.seed("a", None);
        let jobs = Arc::new(Unanswered {
            then: Some(reason.clone()),
            ..Unanswered::default()
        });
        let agent = Agent::builder(source.clone(), jobs).name("north");
        let agent = Running::start(agent);
        let told = || !source.run("a").logs.is_empty();
        until("what the owner is told", told).await;
        agent.stop().await;
        let run = source.run("a");
        assert_eq!(
            (run.failed, run.logs),
            (None, vec![submitted()]),
            "{reason}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_was_written_in_spite_of_many_failures_is_not_written_again() {
    for failures in 0..12 {
        let (source, jobs) = world();
        source.seed("a", None);
        let poison = Poison::FailsAndIsLost(failures);
        *source.poison.lock().expect("no panics") = Some(("a".into(), poison));
        let agent = Running::start(Agent::builder(source.clone(), jobs.clone()));
        until("the entry", || !source.run("a").logs.is_empty()).await;
        sleep(Duration::from_secs(30)).await;
        agent.stop().await;
        let told = source.run("a").logs.len();
        assert_eq!(told, 1, "after {failures} failures");
    }
}

/// The source has a backlog of what to write, and goes on after the request was given up.
#[tokio::test(start_paused = true)]
async fn an_entry_that_is_written_long_after_the_request_is_not_written_again() {
    let (source, jobs) = world();
    source.seed("a", None);
    let late = (Duration::from_secs(8), Duration::from_secs(7));
    *source.late_logs.lock().expect("no panics") = Some(late);
    let agent = Running::start(Agent::builder(source.clone(), jobs));
    sleep(Duration::from_secs(60)).await;
    agent.stop().await;
    assert_eq!(source.run("a").logs.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_always_fails_or_a_writer_that_panics_holds_up_no_other_entry() {
    for poison in [Poison::Fails, Poison::Panics] {
        let (source, jobs) = world();
        for n in 0..20 {
            source.seed(&format!("{n}"), None);
        }
        *source.poison.lock().expect("no panics") = Some(("7".into(), poison));
        let agent = Running::start(Agent::builder(source.clone(), jobs.clone()));
        until("the deployments", || jobs.created().len() == 20).await;
        source.seed("later", None);
        until("a later entry", || !source.run("later").logs.is_empty()).await;
        if matches!(poison, Poison::Fails) {
            let told = |run: &Stored| usize::from(!run.logs.is_empty());
            until("all others", || {
                source.runs().values().map(told).sum::<usize>() == 20
            })
            .await;
        }
        assert!(source.run("7").logs.is_empty());
        agent.kill();
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_was_rescheduled_and_claimed_by_another_meanwhile_makes_no_job() {
    let (source, jobs) = world();
    source.seed("a", None);
    *jobs.refuse.lock().expect("no panics") = Some(Error::transient("connection refused"));
    let agent = Running::start(Agent::builder(source.clone(), jobs.clone()));
    until("the claim", || source.run("a").claims == 1).await;
    // The run is Submitted again, but for another attempt.
    source.runs().get_mut("a").expect("known").scheduled += 1;
    *jobs.refuse.lock().expect("no panics") = None;
    source.seed("b", None);
    until("a later deployment", || !jobs.created().is_empty()).await;
    // By stopping, the agent finishes what it has in hand.
    agent.stop().await;
    let created: Vec<_> = jobs.created().into_keys().collect();
    assert_eq!(created, ["b/0"]);
}

/// Jobs, of which the answer takes its time: run a is claimed for another cluster meanwhile.
struct ClaimedElsewhere(Arc<Jobs>);

#[async_trait]
impl JobBackend for ClaimedElsewhere {
    async fn submit(&self, run: &FlowRun) -> Result<Submission> {
        self.0.submit(run).await
    }

    async fn jobs(&self, runs: &[FlowRunId]) -> Result<HashMap<FlowRunId, Vec<JobRef>>> {
        self.0.source.update("a", |run| run.claimed_at = None);
        self.0.jobs(runs).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_not_its_own_any_more_is_not_recovered() {
    let (source, jobs) = world();
    for id in ["a", "b"] {
        source.seed(id, None);
        source.update(id, |run| {
            (run.phase, run.claimed_at) = (Phase::Submitted, Some(Instant::now()));
        });
    }
    let backend = Arc::new(ClaimedElsewhere(jobs.clone()));
    let agent = Running::start(Agent::builder(source.clone(), backend));
    until("a recovery", || !jobs.created().is_empty()).await;
    agent.stop().await;
    let created: Vec<_> = jobs.created().into_keys().collect();
    assert_eq!(created, ["b/0"]);
}

#[tokio::test(start_paused = true)]
async fn many_claimed_runs_without_a_job_are_all_recovered_and_those_with_one_are_left_alone() {
    let (source, jobs) = world();
    for n in 0..2_000 {
        source.seed(&format!("{n}"), None);
        let mut runs = source.runs();
        let run = runs.get_mut(&*format!("{n}")).expect("known");
        (run.phase, run.claimed_at) = (Phase::Submitted, Some(Instant::now()));
        if n % 2 == 0 {
            let job = JobRef {
                name: "there".to_owned(),
                finished: false,
            };
            let mut existing = jobs.existing.lock().expect("no panics");
            existing.insert(format!("{n}").into(), vec![job]);
        }
    }
    let agent = Running::start(Agent::builder(source.clone(), jobs.clone()));
    until("the recoveries", || jobs.created().len() == 1_000).await;
    assert!(
        source.clock.elapsed() < Duration::from_secs(60),
        "{:?}",
        source.clock.elapsed()
    );
    agent.stop().await;
    assert_eq!(jobs.created().len(), 1_000);
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_earlier_job_reports_just_before_the_claim_is_left_alone() {
    let (source, jobs) = world();
    source.seed("a", None);
    let earlier = JobRef {
        name: "earlier".to_owned(),
        finished: false,
    };
    let existing = || jobs.existing.lock().expect("no panics");
    existing().insert("a".into(), vec![earlier]);
    source.ends_when_read_again.store(true, Ordering::SeqCst);
    let agent = Running::start(Agent::builder(source.clone(), jobs.clone()));
    until("another poll", || {
        source.polls.lock().expect("no panics").len() > 2
    })
    .await;
    agent.stop().await;
    assert_eq!(source.run("a").phase, Phase::Finished);
    assert_eq!(source.run("a").claims, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stop_finishes_what_has_begun_and_begins_nothing() {
    let (source, jobs) = world();
    source.faults.lock().expect("no panics").latency_ms = 1000;
    source.seed("due", None);
    source.seed("soon", Some(source.clock.at(Duration::from_secs(8))));
    let agent = Running::start(Agent::builder(source.clone(), jobs.clone()));
    until("the claim", || source.run("due").claims == 1).await;
    agent.stop().await;
    assert_eq!(jobs.created().len(), 1);
    assert_eq!(
        source.run("due").logs.len(),
        1,
        "its log entry was written too"
    );
    assert_eq!(source.run("soon").phase, Phase::Scheduled);
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_a_dead_backend_for_ever() {
    let (source, jobs) = world();
    source.seed("a", None);
    *jobs.refuse.lock().expect("no panics") = Some(Error::transient("connection refused"));
    let agent =
        Running::start(Agent::builder(source.clone(), jobs).drain_timeout(Duration::from_secs(3)));
    until("the claim", || source.run("a").claims == 1).await;
    let told = Instant::now();
    agent.stop().await;
    assert!(
        told.elapsed() < Duration::from_secs(10),
        "{:?}",
        told.elapsed()
    );
    assert_eq!(source.run("a").failed, None);
}

/// Under every kind of fault, with two replicas and kills at random times, each run gets exactly
/// one job. Each seed is another interleaving.
#[tokio::test(start_paused = true)]
async fn whatever_breaks_every_run_gets_exactly_one_job() {
    for seed in 0..150 {
        let source = Memory::new(seed);
        let jobs = Jobs::new(&source);
        *source.faults.lock().expect("no panics") = Faults {
            before: 5,
            after: 5,
            latency_ms: 300,
        };
        let mut random = fastrand::Rng::with_seed(seed);
        for n in 0..60 {
            let due = source
                .clock
                .at(Duration::from_millis(random.u64(0..30_000)));
            source.seed(&format!("{n}"), Some(due));
        }
        let start = || Running::start(Agent::builder(source.clone(), jobs.clone()).concurrency(8));
        let mut replicas = vec![start(), start()];
        for _ in 0..6 {
            sleep(Duration::from_millis(random.u64(0..8_000))).await;
            replicas.swap_remove(random.usize(0..2)).kill();
            replicas.push(start());
        }
        let deployed = || jobs.created().len() == 60;
        until(&format!("seed {seed}: the last deployment"), deployed).await;
        for replica in replicas {
            replica.stop().await;
        }
        for (attempt, times) in jobs.created() {
            assert_eq!(times.len(), 1, "seed {seed}: {attempt}");
        }
        for (id, run) in source.runs().iter() {
            assert_eq!((run.claims, &run.failed), (1, &None), "seed {seed}: {id}");
        }
    }
}

/// Takes its time to say whether this agent may create jobs.
struct LatePreflight(Arc<Jobs>);

#[async_trait]
impl JobBackend for LatePreflight {
    async fn preflight(&self) -> Result<()> {
        sleep(Duration::from_secs(1)).await;
        Ok(())
    }

    async fn submit(&self, run: &FlowRun) -> Result<Submission> {
        self.0.submit(run).await
    }

    async fn jobs(&self, runs: &[FlowRunId]) -> Result<HashMap<FlowRunId, Vec<JobRef>>> {
        self.0.jobs(runs).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_of_the_last_poll_is_deployed_although_the_preflight_takes_longer() {
    let (source, jobs) = world();
    source.seed("a", None);
    let backend = Arc::new(LatePreflight(jobs.clone()));
    let agent = Agent::builder(source.clone(), backend).max_polls(Some(1));
    let ended = timeout(
        Duration::from_secs(60),
        agent.build().run(std::future::pending()),
    );
    ended.await.expect("an end").expect("a clean one");
    assert_eq!(jobs.created().len(), 1);
}
