//! The supervision of jobs in memory, under a paused clock, with faults, kills and several replicas.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent_core::{Error, FlowRun, FlowRunSource, JobBackend, LogEntry, LogLevel, Phase, Work};
use jiff::SignedDuration;
use support::cluster::Cluster;
use support::{Faults, Memory, Running, until};
use tokio::time::sleep;

const RUNS: usize = 40;
const HOUR: Duration = Duration::from_secs(3600);

fn world() -> (Arc<Memory>, Arc<Cluster>) {
    let source = Memory::new(0);
    let cluster = Cluster::new(&source);
    (source, cluster)
}

/// An agent that has made the job of a run which is due.
async fn job_of(run: &str, source: &Memory, cluster: &Arc<Cluster>) -> Running {
    source.seed(run, Some(source.clock.now()));
    let agent = Running::start(cluster.agent(1));
    until("a job", || !cluster.is_empty()).await;
    agent
}

/// The same in a world of its own.
async fn one_job(run: &str) -> (Arc<Memory>, Arc<Cluster>, Running) {
    let (source, cluster) = world();
    let agent = job_of(run, &source, &cluster).await;
    (source, cluster, agent)
}

/// Whatever breaks and whoever dies, every run ends as its job did, each failed job is reported
/// once, and every job is deleted. Each seed is another interleaving.
#[tokio::test(start_paused = true)]
async fn every_run_ends_as_its_job_did_and_is_told_so_once() {
    for seed in 0..200 {
        // Of the pauses, too; the order of what is ready at the same time is left to chance.
        fastrand::seed(seed);
        let source = Memory::new(seed);
        let cluster = Cluster::new(&source);
        *source.faults.lock().expect("no panics") = Faults {
            before: 6,
            after: 6,
            latency_ms: 400,
        };
        let mut random = fastrand::Rng::with_seed(seed);
        for n in 0..RUNS {
            let due = source
                .clock
                .at(Duration::from_millis(random.u64(0..20_000)));
            source.seed(&n.to_string(), Some(due));
        }
        let mut next = 0;
        let mut start = || {
            next += 1;
            Running::start(cluster.agent(next))
        };
        let mut replicas = vec![start(), start()];
        for _ in 0..8 {
            sleep(Duration::from_millis(random.u64(0..6_000))).await;
            let one = replicas.swap_remove(random.usize(0..2));
            match random.bool() {
                true => one.kill(),
                false => one.stop().await,
            }
            replicas.push(start());
        }
        let ended = || {
            let finished = source
                .runs()
                .values()
                .all(|run| run.phase == Phase::Finished);
            finished && cluster.is_empty()
        };
        until(&format!("seed {seed}: the end of every run and job"), ended).await;
        for replica in replicas {
            replica.stop().await;
        }
        for (job, times) in cluster.made.lock().expect("no panics").iter() {
            assert_eq!(*times, 1, "seed {seed}: {job}");
        }
        for (id, run) in source.runs().iter() {
            let number: usize = id.as_str().parse().expect("a number");
            let fails = number.is_multiple_of(3);
            assert_eq!(run.failed.is_some(), fails, "seed {seed}: run {id}");
            let submitted = format!("Submitted for execution: Job job-{id}/0");
            let submitted = run.logs.iter().filter(|entry| entry.message == submitted);
            assert_eq!(submitted.count(), 1, "seed {seed}: run {id}");
            let reports = run.errors();
            assert_eq!(
                reports.len(),
                usize::from(fails),
                "seed {seed}: {reports:?}"
            );
        }
    }
}

/// Writes what there is to tell of the job of run 3.
async fn tell_of_run_3(source: &Memory) {
    let words = LogEntry {
        flow_run_id: "3".into(),
        name: "k8s-infra".to_owned(),
        message: "Pod of job-3/0 failed".to_owned(),
        level: LogLevel::Error,
        timestamp: None,
    };
    source.write_logs(&[words]).await.expect("no faults");
}

/// A teller that is only slow has sent its words just before it was taken for dead.
#[tokio::test(start_paused = true)]
async fn what_a_slow_teller_has_sent_is_not_told_again_by_who_takes_over() {
    let (source, cluster, agent) = one_job("3").await;
    cluster.begun_by("slow", "p");
    until("another teller", || !cluster.is_told_by("slow", "p")).await;
    tell_of_run_3(&source).await;
    until("the end of the job", || cluster.is_empty()).await;
    agent.stop().await;
    assert_eq!(source.errors("3").len(), 1);
}

/// After the words of a dead teller, it is not answered for a while that another has taken over, or
/// its log cannot be read.
#[tokio::test(start_paused = true)]
async fn who_has_taken_over_without_an_answer_looks_at_what_was_told() {
    for answers_lost in [true, false] {
        let (source, cluster) = world();
        let agent = job_of("3", &source, &cluster).await;
        cluster.begun_by("dead", "p");
        tell_of_run_3(&source).await;
        let away = match answers_lost {
            true => &cluster.take_overs_lost,
            false => &source.logs_away,
        };
        away.store(true, Ordering::SeqCst);
        until("another teller", || !cluster.is_told_by("dead", "p")).await;
        sleep(Duration::from_secs(120)).await;
        away.store(false, Ordering::SeqCst);
        until("the end of the job", || cluster.is_empty()).await;
        agent.stop().await;
        assert_eq!(source.errors("3").len(), 1, "lost: {answers_lost}");
    }
}

/// A dead teller had told of it.
#[tokio::test(start_paused = true)]
async fn what_was_told_of_a_job_that_has_just_gone_is_not_told_again() {
    let (source, cluster) = world();
    source.seed("3", Some(source.clock.now()));
    cluster.led_by_another();
    let agent = Running::start(cluster.agent(1));
    until("the end of its job", || cluster.has_ended("job-3/0")).await;
    cluster.begun_by("dead", "p");
    tell_of_run_3(&source).await;
    cluster.goes_when_noted.store(true, Ordering::SeqCst);
    until("the end of the job", || cluster.is_empty()).await;
    sleep(Duration::from_secs(60)).await;
    agent.stop().await;
    assert_eq!(source.errors("3").len(), 1);
}

/// Between two terms of one replica, another leads and begins to tell what a dead one had begun.
#[tokio::test(start_paused = true)]
async fn a_teller_is_given_its_time_in_every_term() {
    let (source, cluster, agent) = one_job("3").await;
    cluster.begun_by("dead", "p");
    sleep(Duration::from_secs(10)).await;
    cluster.led_by_another();
    sleep(Duration::from_secs(10)).await;
    cluster.begun_by("slow", "p");
    // Longer than that replica leads.
    sleep(Duration::from_secs(10)).await;
    tell_of_run_3(&source).await;
    until("the end of the job", || cluster.is_empty()).await;
    agent.stop().await;
    assert_eq!(source.errors("3").len(), 1);
}

/// The job of a run that was ended goes after the grace, also when there is something else to look
/// at just before.
#[tokio::test(start_paused = true)]
async fn the_job_of_an_ended_run_goes_whatever_else_there_is_to_do_for_it() {
    const GRACE: Duration = Duration::from_secs(1);
    // Its end is noticed within two seconds.
    const LATEST: Duration = Duration::from_millis(3_500);
    for pause in (0..3_500).step_by(50) {
        let (source, cluster) = world();
        *cluster.news.lock().expect("no panics") = Some(Duration::from_millis(pause));
        *cluster.lasts.lock().expect("no panics") = Some(HOUR);
        source.seed("134", Some(source.clock.now()));
        let agent = Running::start(cluster.agent(1).cancel_grace(GRACE));
        until("a job", || !cluster.is_empty()).await;
        let began = source.clock.elapsed();
        for run in source.runs().values_mut() {
            run.phase = Phase::Finished;
        }
        until("the end of the job", || cluster.is_empty()).await;
        let took = source.clock.elapsed() - began;
        assert!(took >= GRACE && took < LATEST, "{pause} ms: {took:?}");
        agent.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_grace_the_source_is_not_asked_all_the_time() {
    let (source, cluster) = world();
    let agent = Running::start(cluster.agent(1).cancel_grace(Duration::ZERO));
    sleep(Duration::from_secs(60)).await;
    let asked = source.ends_asked.load(Ordering::SeqCst);
    assert!((2..=31).contains(&asked), "{asked}");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_job_of_an_ended_run_stays_with_a_grace_that_never_ends() {
    let (source, cluster) = world();
    *cluster.lasts.lock().expect("no panics") = Some(HOUR * 2);
    source.seed("1", Some(source.clock.now()));
    let agent = Running::start(cluster.agent(1).cancel_grace(Duration::MAX));
    until("a job", || !cluster.is_empty()).await;
    source.update("1", |run| run.phase = Phase::Finished);
    sleep(HOUR).await;
    // Something else to look at.
    *cluster.news.lock().expect("no panics") = Some(Duration::ZERO);
    sleep(HOUR / 2).await;
    assert!(!cluster.is_empty());
    let watches = cluster.watches.load(Ordering::SeqCst);
    assert_eq!(watches, 1, "the supervision has not failed");
    agent.stop().await;
}

/// The one replica that leads has not seen to a job that failed; its run is started again, and the
/// other replica claims it and takes its time to make the new job.
#[tokio::test(start_paused = true)]
async fn a_run_that_another_replica_has_claimed_again_is_not_failed_by_its_earlier_job() {
    let (source, cluster) = world();
    cluster.led_by_another();
    source.seed("3", Some(source.clock.now()));
    let agent = cluster.agent(1);
    let agent = Running::start(agent);
    until("the end of its job", || cluster.has_ended("job-3/0")).await;
    source.update("3", |run| {
        (run.phase, run.scheduled) = (Phase::Submitted, 1)
    });
    // Or this replica would recover it.
    source.update("3", |run| run.claimed_at = None);
    let again = source.claimed_runs(&["3".into()]).await.expect("no faults");
    // Meanwhile the lease of whoever led runs out.
    sleep(Duration::from_secs(20)).await;
    assert_eq!(source.run("3").failed, None);
    cluster
        .replica(2)
        .submit(&again[0])
        .await
        .expect("no faults");
    until("the end of the run", || source.run("3").failed.is_some()).await;
    assert_eq!(source.run("3").failed.as_deref(), Some("job-3/1 failed"));
    agent.stop().await;
}

/// The watch has broken since it was seen that a job cannot start.
#[tokio::test(start_paused = true)]
async fn what_is_not_so_any_more_fails_no_run() {
    for (stands, failed) in [(true, Some("job-134/0 cannot start")), (false, None)] {
        let (source, cluster) = world();
        *cluster.stuck.lock().expect("no panics") = Some(stands);
        let agent = job_of("134", &source, &cluster).await;
        until("the end of the job", || cluster.is_empty()).await;
        assert_eq!(source.run("134").failed.as_deref(), failed);
        agent.stop().await;
    }
}

/// Its job cannot start, which takes long to be seen once more, or the source takes long to be told.
#[tokio::test(start_paused = true)]
async fn a_run_that_is_scheduled_again_while_it_is_about_to_be_failed_stays_so() {
    for slow_look in [false, true] {
        let (source, cluster) = world();
        let agent = job_of("134", &source, &cluster).await;
        match slow_look {
            true => *cluster.look_takes.lock().expect("no panics") = Duration::from_secs(3),
            false => {
                let away = Error::transient("away");
                *source.refuse_failing.lock().expect("no panics") = Some(away);
            }
        }
        *cluster.stuck.lock().expect("no panics") = Some(true);
        sleep(Duration::from_secs(2)).await;
        source.update("134", |run| {
            run.phase = Phase::Scheduled;
            run.due = Some(source.clock.now() + SignedDuration::from_hours(1));
        });
        *source.refuse_failing.lock().expect("no panics") = None;
        sleep(Duration::from_secs(60)).await;
        assert_eq!(source.run("134").failed, None, "slow look: {slow_look}");
        agent.stop().await;
    }
}

/// What is tried first is lost; then the run turns out to have ended otherwise.
#[tokio::test(start_paused = true)]
async fn a_run_that_ends_while_it_cannot_be_failed_is_not_told_of_a_failure() {
    let (source, cluster, agent) = one_job("134").await;
    let refuse = |error| *source.refuse_failing.lock().expect("no panics") = error;
    refuse(Some(Error::transient("away")));
    cluster.remove_all();
    sleep(Duration::from_secs(5)).await;
    source.update("134", |run| {
        run.phase = Phase::Finished;
        run.failed = Some("cancelled by its owner".to_owned());
    });
    refuse(None);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(source.errors("134"), Vec::<String>::new());
    agent.stop().await;
}

/// Somebody may want to look at the pod.
#[tokio::test(start_paused = true)]
async fn a_job_that_cannot_start_is_kept_if_jobs_are() {
    for restarts in [false, true] {
        let (source, cluster) = world();
        *cluster.stuck.lock().expect("no panics") = Some(true);
        *cluster.lasts.lock().expect("no panics") = Some(HOUR);
        source.seed("1", Some(source.clock.now()));
        let start = || Running::start(cluster.agent(1).delete_finished_jobs(false));
        let mut agent = start();
        until("the end of the run", || source.run("1").failed.is_some()).await;
        if restarts {
            sleep(Duration::from_secs(10)).await;
            agent.stop().await;
            agent = start();
        }
        sleep(HOUR / 2).await;
        assert!(!cluster.is_empty());
        // At last its image is there; the run has ended all the same.
        *cluster.stuck.lock().expect("no panics") = None;
        sleep(Duration::from_secs(60)).await;
        assert!(cluster.is_empty());
        agent.stop().await;
    }
}

/// A process that dies after it has made a job has told of it or not; the flow starts at once.
#[tokio::test(start_paused = true)]
async fn the_owner_of_a_run_is_told_of_its_job_once_whoever_dies() {
    const LOOK: Duration = Duration::from_secs(10);
    for by_its_maker in [false, true] {
        let (source, cluster) = world();
        source.seed("1", Some(source.clock.now()));
        let agent = cluster.agent(1);
        let agent = Running::start(agent.name("north").recovery(LOOK, LOOK));
        source.update("1", |run| run.phase = Phase::Submitted);
        let claimed = source.claimed_runs(&["1".into()]).await;
        let run = claimed.expect("no faults").remove(0);
        cluster.replica(2).submit(&run).await.expect("no faults");
        let line = LogEntry {
            flow_run_id: "1".into(),
            name: "north".to_owned(),
            message: "Submitted for execution: Job job-1/0".to_owned(),
            level: LogLevel::Info,
            timestamp: None,
        };
        sleep(Duration::from_secs(5)).await;
        if by_its_maker {
            let line = std::slice::from_ref(&line);
            source.write_logs(line).await.expect("no faults");
        }
        sleep(LOOK * 3).await;
        assert_eq!(source.run("1").logs, [line]);
        agent.stop().await;
    }
}

/// Somebody else may be about to write the same.
#[tokio::test(start_paused = true)]
async fn a_replica_that_stops_leaves_it_to_the_next_to_tell_of_what_it_may_have_made() {
    let (source, cluster) = world();
    *cluster.makes_lost.lock().expect("no panics") = Some(Duration::from_secs(5));
    *cluster.lasts.lock().expect("no panics") = Some(HOUR);
    source.seed("134", Some(source.clock.now()));
    let first = Running::start(cluster.agent(1));
    until("a job", || !cluster.is_empty()).await;
    first.stop().await;
    assert_eq!(source.run("134").logs, []);
    let next = Running::start(cluster.agent(2));
    sleep(Duration::from_secs(60)).await;
    next.stop().await;
    assert_eq!(source.run("134").logs.len(), 1);
}

/// It ends at once, and would be deleted before the next one who looks for what is missing, which may
/// be an agent with other labels.
#[tokio::test(start_paused = true)]
async fn the_owner_of_a_run_is_told_of_a_short_job_whose_maker_died() {
    for others in [false, true] {
        let (source, cluster, agent) = a_short_job_of_another().await;
        cluster.others.store(others, Ordering::SeqCst);
        until("the end of the job", || cluster.is_empty()).await;
        let told = source.run("1").logs.into_iter().map(|entry| entry.message);
        let told: Vec<String> = told.collect();
        assert_eq!(told, ["Submitted for execution: Job job-1/0"]);
        agent.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_of_which_nothing_can_be_told_is_deleted_at_last() {
    let (source, cluster, agent) = a_short_job_of_another().await;
    source.logs_away.store(true, Ordering::SeqCst);
    sleep(HOUR / 2).await;
    assert!(!cluster.is_empty());
    sleep(HOUR).await;
    assert!(cluster.is_empty());
    agent.stop().await;
}

/// A job whose run does not last, and whose maker has died at once; the agent that leads.
async fn a_short_job_of_another() -> (Arc<Memory>, Arc<Cluster>, Running) {
    let (source, cluster) = world();
    *cluster.lasts.lock().expect("no panics") = Some(Duration::ZERO);
    source.seed("1", Some(source.clock.now()));
    source.update("1", |run| run.phase = Phase::Submitted);
    let agent = Running::start(cluster.agent(1));
    let claimed = source.claimed_runs(&["1".into()]).await;
    let run = claimed.expect("no faults").remove(0);
    cluster.replica(2).submit(&run).await.expect("no faults");
    (source, cluster, agent)
}

/// The flow has begun when its job's maker learns that it will get no answer.
#[tokio::test(start_paused = true)]
async fn the_owner_of_a_run_is_told_of_a_job_whose_making_was_not_answered() {
    let (source, cluster) = world();
    *cluster.makes_lost.lock().expect("no panics") = Some(Duration::from_secs(5));
    *cluster.lasts.lock().expect("no panics") = Some(HOUR);
    source.seed("134", Some(source.clock.now()));
    let agent = Running::start(cluster.agent(1));
    sleep(Duration::from_secs(60)).await;
    agent.stop().await;
    let logs = source.run("134").logs.into_iter();
    let told: Vec<String> = logs.map(|entry| entry.message).collect();
    assert_eq!(told, ["Submitted for execution: Job job-134/0"]);
}

/// The parts of a retry are claimed one by one. While that takes long, another replica takes those that
/// are claimed for all of it, and makes a job for them.
#[tokio::test(start_paused = true)]
async fn a_retry_that_gets_a_job_during_its_claim_gets_no_other() {
    let (source, cluster) = world();
    *cluster.lasts.lock().expect("no panics") = Some(HOUR);
    source.under_way.store(true, Ordering::SeqCst);
    *source.claims_take.lock().expect("no panics") = Duration::from_secs(15);
    source.seed("1", None);
    let agent = Running::start(cluster.agent(1));
    sleep(Duration::from_secs(12)).await;
    assert_eq!(source.run("1").claims, 0);
    let part = FlowRun {
        attempt: "1/0-part".to_owned(),
        ..FlowRun::new("1", "1", Work::Flow(Box::default()))
    };
    cluster.replica(2).submit(&part).await.expect("no faults");
    until("the claim", || source.run("1").claims == 1).await;
    sleep(Duration::from_secs(60)).await;
    let made = cluster.made.lock().expect("no panics").clone();
    assert_eq!(made.into_keys().collect::<Vec<_>>(), ["job-1/0-part"]);
    let told = source.run("1").logs.into_iter().map(|log| log.message);
    let submitted = "Submitted for execution: Job job-1/0-part";
    assert_eq!(told.collect::<Vec<_>>(), [submitted]);
    agent.stop().await;
}

/// Everything works but the writing of logs, or of what was told.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_told_or_noted_holds_up_nothing_and_is_told_afterwards() {
    for logs in [true, false] {
        let (source, cluster) = world();
        let ids: Vec<String> = (1..=200).map(|n| (3 * n).to_string()).collect();
        for id in &ids {
            source.seed(id, Some(source.clock.now()));
        }
        let away = match logs {
            true => &source.logs_away,
            false => &cluster.notes_away,
        };
        away.store(true, Ordering::SeqCst);
        let agent = Running::start(cluster.agent(1));
        let all_failed = || source.runs().values().all(|run| run.failed.is_some());
        until("the end of every run", all_failed).await;
        let took = source.clock.elapsed();
        assert!(took < Duration::from_secs(60), "logs: {logs}: {took:?}");
        assert!(!cluster.is_empty(), "their jobs are kept until it is told");
        away.store(false, Ordering::SeqCst);
        until("the end of every job", || cluster.is_empty()).await;
        for id in &ids {
            assert_eq!(source.errors(id).len(), 1, "{id}");
        }
        agent.stop().await;
    }
}

/// While the source is away, a job is deleted by hand.
#[tokio::test(start_paused = true)]
async fn a_job_that_goes_during_an_outage_fails_its_run_afterwards() {
    let (source, cluster, agent) = one_job("134").await;
    source.faults.lock().expect("no panics").before = 100;
    cluster.remove_all();
    sleep(Duration::from_secs(300)).await;
    source.faults.lock().expect("no panics").before = 0;
    until("the end of the run", || source.run("134").failed.is_some()).await;
    agent.stop().await;
}

/// The watch ends, or panics, and another one begins.
#[tokio::test(start_paused = true)]
async fn a_job_that_goes_while_nothing_is_watched_takes_no_place() {
    for panics in [false, true] {
        let (source, cluster) = world();
        *cluster.lasts.lock().expect("no panics") = Some(HOUR);
        source.seed("1", Some(source.clock.now()));
        let agent = Running::start(cluster.agent(1).max_in_flight(Some(1)));
        until("a job", || !cluster.is_empty()).await;
        source.seed("2", Some(source.clock.now()));
        sleep(Duration::from_secs(10)).await;
        assert_eq!(source.run("2").claims, 0, "there is no room");
        match panics {
            true => end(&cluster.watch_panics).await,
            false => end(&cluster.watch_ends).await,
        }
        cluster.remove_all();
        until("another job", || !cluster.is_empty()).await;
        if !panics {
            until("the end of the run", || source.run("1").failed.is_some()).await;
        }
        agent.stop().await;
    }
}

/// In whatever state it was seen last, while another one led.
#[tokio::test(start_paused = true)]
async fn a_job_that_goes_while_nothing_is_watched_fails_its_run() {
    let gone = "Job job-1/0 was gone before it had ended";
    let vanished = "Job job-1/0 has ended and is gone, and its flow run never started";
    for (id, lasts, failed, told) in [
        ("1", HOUR, gone, gone),
        ("1", Duration::ZERO, vanished, vanished),
        (
            "3",
            Duration::ZERO,
            "job-3/0 failed",
            "Pod of job-3/0 failed",
        ),
    ] {
        let (source, cluster) = world();
        *cluster.lasts.lock().expect("no panics") = Some(lasts);
        cluster.silent.store(true, Ordering::SeqCst);
        cluster.led_by_another();
        source.seed(id, Some(source.clock.now()));
        // Or the job is made again before it is missed.
        let agent = cluster.agent(1).recovery(HOUR * 2, HOUR);
        let agent = Running::start(agent);
        until("a job", || !cluster.is_empty()).await;
        sleep(Duration::from_secs(1)).await;
        end(&cluster.watch_ends).await;
        cluster.remove_all();
        until("the end of the run", || source.run(id).failed.is_some()).await;
        assert_eq!(source.run(id).failed.as_deref(), Some(failed));
        sleep(Duration::from_secs(60)).await;
        assert_eq!(source.errors(id), [told]);
        agent.stop().await;
    }
}

/// Ends the watch.
async fn end(how: &AtomicBool) {
    how.store(true, Ordering::SeqCst);
    until("the end of the watch", || !how.load(Ordering::SeqCst)).await;
}

/// Somebody ends a run and then deletes its job, which would have gone on for a while.
#[tokio::test(start_paused = true)]
async fn a_job_that_goes_after_the_end_of_its_run_is_no_news() {
    let (source, cluster, agent) = one_job("134").await;
    source.update("134", |run| run.phase = Phase::Finished);
    cluster.remove_all();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(source.errors("134"), [""; 0]);
    agent.stop().await;
}

/// The log is away when a job goes, and for long after its run was failed for that; whoever has
/// failed the run lives to tell of it, or dies.
#[tokio::test(start_paused = true)]
async fn what_a_run_was_failed_for_is_told_however_late_and_by_whomever() {
    let what = ["job-134/0 was deleted", "job-1/0 has ended and is gone"];
    for (id, told) in ["134", "1"].into_iter().zip(what) {
        for dies in [false, true] {
            let (source, cluster) = world();
            cluster.silent.store(true, Ordering::SeqCst);
            source.terse.store(!dies, Ordering::SeqCst);
            source.seed(id, Some(source.clock.now()));
            let mut replicas = vec![Running::start(cluster.agent(1))];
            sleep(Duration::from_millis(300)).await;
            replicas.push(Running::start(cluster.agent(2)));
            sleep(Duration::from_millis(300)).await;
            source.logs_away.store(true, Ordering::SeqCst);
            cluster.remove_all();
            until("the end of the run", || source.run(id).failed.is_some()).await;
            if dies {
                replicas.remove(0).kill();
            }
            sleep(Duration::from_secs(120)).await;
            source.logs_away.store(false, Ordering::SeqCst);
            until("the report", || !source.errors(id).is_empty()).await;
            sleep(Duration::from_secs(60)).await;
            assert_eq!(source.errors(id), [told], "dies: {dies}");
            for replica in replicas {
                replica.stop().await;
            }
        }
    }
}

/// It finishes what it has begun, which takes longer than it may lead without a sign of life.
#[tokio::test(start_paused = true)]
async fn a_replica_that_stops_leads_until_it_has_ended() {
    let (source, cluster) = world();
    *cluster.makes_lost.lock().expect("no panics") = Some(Duration::from_secs(18));
    source.seed("134", Some(source.clock.now()));
    let first = Running::start(cluster.agent(1));
    until("a job", || !cluster.is_empty()).await;
    let second = Running::start(cluster.agent(2));
    let mut leaders = Vec::new();
    let watching = async {
        for _ in 0..16 {
            sleep(Duration::from_secs(1)).await;
            leaders.push(cluster.leader());
        }
    };
    tokio::join!(first.stop(), watching);
    assert_eq!(leaders, [Some(1); 16]);
    until("the other one leads", || cluster.leader() == Some(2)).await;
    second.stop().await;
}

/// The log takes its time. A job that is gone bears no marks: whoever leads next looks into the log.
#[tokio::test(start_paused = true)]
async fn a_replica_that_stops_leads_until_it_has_told_what_it_had_begun_to_tell() {
    let (source, cluster) = world();
    source.seed("134", Some(source.clock.now()));
    let first = Running::start(cluster.agent(1));
    until("a job", || !cluster.is_empty()).await;
    let second = Running::start(cluster.agent(2));
    sleep(Duration::from_secs(1)).await;
    *source.writing_takes.lock().expect("no panics") = Duration::from_secs(5);
    cluster.remove_all();
    until("the end of the run", || source.run("134").failed.is_some()).await;
    first.stop().await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(source.errors("134"), ["job-134/0 was deleted"]);
    second.stop().await;
}

/// Who cannot tell all it has to tell keeps nobody waiting for that.
#[tokio::test(start_paused = true)]
async fn a_replica_that_stops_lets_others_lead_when_the_log_is_away() {
    let (source, cluster, agent) = one_job("134").await;
    source.logs_away.store(true, Ordering::SeqCst);
    cluster.remove_all();
    until("the end of the run", || source.run("134").failed.is_some()).await;
    let stopped = source.clock.elapsed();
    agent.stop().await;
    let took = source.clock.elapsed() - stopped;
    assert!(cluster.is_free());
    assert!(took < Duration::from_secs(10), "{took:?}");
}
