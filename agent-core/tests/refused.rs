//! What the source refuses: to have runs claimed, and to have them failed.

mod support;

use std::sync::Arc;
use std::time::Duration;

use agent_core::{Agent, Error, LogLevel, Phase};
use support::{Jobs, Memory, Running, until};
use tokio::time::sleep;

/// An agent with one run, which is due.
fn one() -> (Arc<Memory>, Arc<Jobs>, Running) {
    let source = Memory::new(0);
    let jobs = Jobs::new(&source);
    source.seed("run", None);
    let agent = Running::start(Agent::builder(source.clone(), jobs.clone()));
    (source, jobs, agent)
}

fn refuse_claims(source: &Memory, error: Option<Error>) {
    *source.refuse_claims.lock().expect("no panics") = error;
}

fn refuse_failing(source: &Memory, error: Option<Error>) {
    *source.refuse_failing.lock().expect("no panics") = error;
}

fn errors(source: &Memory) -> usize {
    let logs = source.run("run").logs.into_iter();
    logs.filter(|log| log.level == LogLevel::Error).count()
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_refused_for_a_while_fails_no_run() {
    let (source, jobs, agent) = one();
    let failover = Error::Refused("the database is in recovery mode".to_owned());
    refuse_claims(&source, Some(failover));
    sleep(Duration::from_secs(90)).await;
    refuse_claims(&source, None);
    until("its job", || !jobs.created().is_empty()).await;
    assert_eq!(source.run("run").failed, None);
    assert_eq!(errors(&source), 0);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_source_that_takes_nothing_for_long_fails_no_run_when_it_takes_everything_again() {
    // Whatever the agent is about at the end of that.
    for seconds in (600..780).step_by(15) {
        let (source, jobs, agent) = one();
        let full = Error::Refused("the disk is full".to_owned());
        refuse_claims(&source, Some(full.clone()));
        refuse_failing(&source, Some(full));
        sleep(Duration::from_secs(seconds)).await;
        refuse_failing(&source, None);
        refuse_claims(&source, None);
        until("its job", || !jobs.created().is_empty()).await;
        assert_eq!(source.run("run").failed, None, "after {seconds} s");
        agent.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_stays_refused_fails_the_run_in_the_words_of_the_source() {
    let (source, _, agent) = one();
    refuse_claims(&source, Some(Error::Refused("no such state".to_owned())));
    until("its end", || source.run("run").failed.is_some()).await;
    assert_eq!(source.run("run").failed.as_deref(), Some("no such state"));
    assert!(source.clock.elapsed() > Duration::from_secs(120));
    assert_eq!(errors(&source), 1);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_can_be_neither_claimed_nor_failed_is_tried_in_peace_and_told_of_once() {
    let (source, _, agent) = one();
    let read_only = Error::permanent("this key may not write");
    refuse_claims(&source, Some(read_only.clone()));
    refuse_failing(&source, Some(read_only));
    sleep(Duration::from_secs(3600)).await;
    let polls = source.polls.lock().expect("no panics").len();
    assert!(polls < 1000, "{polls} polls within an hour");
    assert_eq!(errors(&source), 1);
    refuse_failing(&source, None);
    until("its end", || source.run("run").failed.is_some()).await;
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_has_begun_anew_is_not_failed_for_its_earlier_attempt() {
    let (source, jobs, agent) = one();
    let refuse = |error| *jobs.refuse.lock().expect("no panics") = error;
    refuse(Some(Error::permanent("no such service account")));
    refuse_failing(&source, Some(Error::transient("no connection")));
    until("its claim", || source.run("run").claims == 1).await;
    sleep(Duration::from_secs(10)).await;
    // Its owner mends it and starts it again.
    refuse(None);
    source.update("run", |run| {
        (run.phase, run.scheduled) = (Phase::Scheduled, 1)
    });
    refuse_failing(&source, None);
    until("its job", || jobs.created().contains_key("run/1")).await;
    assert_eq!(source.run("run").failed, None);
    agent.stop().await;
}
