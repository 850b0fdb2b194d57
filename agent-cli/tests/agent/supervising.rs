//! What becomes of Jobs, as flow runs and their owners see it.

use std::time::Duration;

use agent_testkit::faults::{Fault, Rule};
use agent_testkit::{Course, FlowRunSeed, KubernetesApi};
use serde_json::json;
use uuid::Uuid;

use crate::world::{Agent, PATIENCE, World};

/// A world in which one run's pods take this course.
async fn world(course: Course) -> (World, Uuid) {
    let world = World::with_course(course).await;
    let run = world.prefect.seed(retried(0));
    (world, run)
}

/// A run whose Job tries again so often.
pub(crate) fn retried(times: u32) -> FlowRunSeed {
    FlowRunSeed::new().run_config(json!({"type": "KubernetesRun", "job_template": {
        "spec": {"backoffLimit": times, "template": {"spec": {"containers": [{"name": "flow"}]}}},
    }}))
}

async fn job_goes(world: &World, agent: &Agent) {
    let gone = |api: &KubernetesApi| api.creation_count() == 1 && api.count("jobs") == 0;
    world.cluster(agent, gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_pod_is_reported_fails_the_run_and_its_job_is_deleted() {
    let (world, run) = world(Course::exits_with(3, Duration::ZERO)).await;
    let agent = world.start(&[]);
    let message = world.fails(run, &agent).await;
    assert!(
        message.starts_with("Kubernetes Error: pods ['prefect-job-")
            && message.ends_with("'] failed for this job"),
        "{message}"
    );
    job_goes(&world, &agent).await;
    let told = world.told(run, "ERROR").await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains(" failed.\n\tContainer 'flow' state: terminated\n\t\tExit Code:: 3"),
        "{told:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_killed_the_pod_is_explained() {
    let (world, run) = world(Course::oom_killed(Duration::ZERO)).await;
    let agent = world.start(&[]);
    world.fails(run, &agent).await;
    let told = world.told(run, "ERROR").await;
    assert!(
        told[0].contains("Reason: OOMKilled") && told[0].contains("more memory than its limit"),
        "{told:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_took_the_pod_away_is_explained() {
    let (world, run) = world(Course::hangs()).await;
    let agent = world.start(&[]);
    let running = |api: &KubernetesApi| {
        let pods = api.objects("pods");
        pods.iter().any(|pod| pod["status"]["phase"] == "Running")
    };
    world.cluster(&agent, running).await;
    let name = world.kubernetes.objects("pods")[0]["metadata"]["name"].clone();
    let name = name.as_str().expect("a name");
    // As the API server and the kubelet leave the pod of a node that is drained.
    world.kubernetes.modify("pods", "default", name, |pod| {
        pod["status"]["phase"] = json!("Failed");
        pod["status"]["conditions"] = json!([{
            "type": "DisruptionTarget", "status": "True",
            "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
        }]);
        pod["status"]["containerStatuses"][0]["state"] =
            json!({"terminated": {"exitCode": 137, "reason": "Error"}});
    });
    let told = world.told(run, "ERROR").await;
    assert!(
        told[0].contains("\tReason: EvictionByEvictionAPI\n\tMessage: Eviction API: evicting\n")
            && told[0].contains("its node is drained"),
        "{told:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_pulled_fails_the_run_and_its_events_are_told_once() {
    let (world, run) = world(Course::image_pull_failure("manifest unknown")).await;
    let agent = world.start(&[]);
    let message = world.fails(run, &agent).await;
    assert!(
        message.starts_with("Kubernetes Error: Back-off pulling image")
            && message.contains("manifest unknown"),
        "{message}"
    );
    job_goes(&world, &agent).await;
    let told = world.told(run, "ERROR").await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("container 'flow' is waiting, ImagePullBackOff"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_recovers_fails_nothing() {
    let course = Course::image_pull_recovers("timeout", Duration::ZERO);
    let (world, run) = world(course).await;
    let agent = world.start(&[]);
    job_goes(&world, &agent).await;
    assert_eq!(world.prefect.state(run).as_deref(), Some("Success"));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_pod_that_stays_pending_are_told_once_over_restarts() {
    let (world, run) = world(Course::unschedulable("0/3 nodes: no cpu")).await;
    for _ in 0..2 {
        let agent = world.start(&[]);
        // What is told of a later run shows that everything before it was dealt with.
        let later = world.prefect.seed(retried(0));
        world.told(later, "DEBUG").await;
        let events = world.told(run, "DEBUG").await;
        assert_eq!(events.len(), 1, "{events:?}\n{}", agent.output());
        assert!(
            events[0].starts_with("Event: 'FailedScheduling' on pod 'prefect-job-")
                && events[0].ends_with("\n\tMessage: 0/3 nodes: no cpu"),
            "{events:?}"
        );
        agent.signal(nix::sys::signal::Signal::SIGKILL);
        agent.ended().await;
    }
    assert_eq!(world.prefect.state(run).as_deref(), Some("Submitted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_somebody_deletes_fails_its_run() {
    let (world, run) = world(Course::hangs()).await;
    let agent = world.start(&[]);
    world.cluster(&agent, |api| api.count("pods") == 1).await;
    let job = world.kubernetes.creations().remove(0).name;
    assert!(world.kubernetes.remove("jobs", "default", &job));
    let message = world.fails(run, &agent).await;
    assert_eq!(
        message,
        format!("Kubernetes Error: Job {job} was deleted before it had finished")
    );
    assert_eq!(world.told(run, "ERROR").await, [message]);
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_jobs_are_reported_once_over_restarts() {
    let (world, run) = world(Course::exits_with(1, Duration::ZERO)).await;
    for _ in 0..2 {
        let agent = world.start(&["--disable-job-deletion", "--log-level", "debug"]);
        world.fails(run, &agent).await;
        assert_eq!(world.told(run, "ERROR").await.len(), 1);
        // A later run shows that everything before it was dealt with.
        let later = world.prefect.seed(retried(0));
        world.fails(later, &agent).await;
        agent.signal(nix::sys::signal::Signal::SIGTERM);
        agent.ended().await;
    }
    assert_eq!(world.told(run, "ERROR").await.len(), 1);
    assert_eq!(world.kubernetes.count("jobs"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_ended_well_goes_and_its_run_is_left_as_it_is() {
    let (world, run) = world(Course::succeeds_after(Duration::ZERO)).await;
    let agent = world.start(&[]);
    job_goes(&world, &agent).await;
    let run = world.prefect.run(run).expect("seeded");
    assert_eq!(run.state_names().last(), Some(&"Success"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_tries_again_is_left_to_it_and_each_pod_is_reported() {
    let (world, first) = world(Course::exits_with(1, Duration::ZERO)).await;
    let run = world.prefect.seed(retried(1));
    let agent = world.start(&[]);
    world.fails(first, &agent).await;
    world.fails(run, &agent).await;
    assert_eq!(world.told(first, "ERROR").await.len(), 1);
    let reports = || world.told(run, "ERROR");
    let both = async {
        while reports().await.len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, both).await.is_ok());
    assert_eq!(reports().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_cannot_start_fails_the_run_after_its_grace() {
    let course = Course::create_container_config_error("secret \"db\" not found");
    let (world, run) = world(course).await;
    let agent = world.start(&["--start-error-grace", "300ms"]);
    let message = world.fails(run, &agent).await;
    assert_eq!(message, "Kubernetes Error: secret \"db\" not found");
    job_goes(&world, &agent).await;
    let told = world.told(run, "ERROR").await;
    assert!(
        told[0].contains("CreateContainerConfigError: secret \"db\" not found"),
        "{told:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_may_not_create_pods_is_told_and_fails_after_its_grace() {
    let (world, run) = world(Course::failed_create("exceeded quota: compute")).await;
    let agent = world.start(&["--create-failure-grace", "500ms"]);
    let warned = world.told(run, "WARNING").await;
    assert!(
        warned[0].contains("cannot create its pod") && warned[0].contains("exceeded quota"),
        "{warned:?}"
    );
    let message = world.fails(run, &agent).await;
    assert!(message.contains("exceeded quota: compute"), "{message}");
    job_goes(&world, &agent).await;
    assert_eq!(world.told(run, "WARNING").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_no_node_takes_is_told_and_fails_only_with_a_timeout() {
    let (world, run) = world(Course::unschedulable("0/3 nodes: no cpu")).await;
    let agent = world.start(&["--pending-timeout", "700ms"]);
    let warned = world.told(run, "WARNING").await;
    assert!(
        warned[0].ends_with("cannot be scheduled: 0/3 nodes: no cpu"),
        "{warned:?}"
    );
    let message = world.fails(run, &agent).await;
    assert!(message.contains("cannot be scheduled"), "{message}");
    job_goes(&world, &agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_job_of_a_cancelled_run_is_deleted_after_its_grace() {
    let (world, run) = world(Course::hangs()).await;
    let agent = world.start(&["--cancel-grace", "200ms"]);
    let running = world
        .prefect
        .wait_until(PATIENCE, |prefect| {
            prefect.state(run).as_deref() == Some("Running")
        })
        .await;
    assert!(running.is_ok(), "{}", agent.output());
    world.prefect.set_state_named(run, "Cancelled", "by hand");
    job_goes(&world, &agent).await;
    let told = world.told(run, "INFO").await;
    assert!(
        told[0].ends_with("is deleted: its flow run is Cancelled"),
        "{told:?}"
    );
    let run = world.prefect.run(run).expect("seeded");
    assert_eq!(run.state_names().last(), Some(&"Cancelled"));
    let errors = run
        .logs
        .iter()
        .filter(|log| log.level.as_deref() == Some("ERROR"));
    assert_eq!(errors.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_jobs_can_be_kept() {
    let (world, failing) = world(Course::exits_with(1, Duration::ZERO)).await;
    let agent = world.start(&["--keep-failed-jobs", "1h"]);
    world.fails(failing, &agent).await;
    assert_eq!(world.kubernetes.count("jobs"), 1);
    agent.signal(nix::sys::signal::Signal::SIGKILL);
    agent.ended().await;
    let agent = world.start(&[]);
    job_goes(&world, &agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_may_not_see_pods_still_follows_the_jobs() {
    let denied = [("list", "pods"), ("watch", "pods")];
    let course = |_: &_| Course::exits_with(3, Duration::ZERO);
    let world = World::with_courses(course, &denied).await;
    let run = world.prefect.seed(retried(0));
    let agent = world.start(&["--max-in-flight", "1"]);
    let message = world.fails(run, &agent).await;
    assert!(message.contains("BackoffLimitExceeded"), "{message}");
    assert_eq!(world.told(run, "ERROR").await.len(), 1);
    let other = world.prefect.seed(retried(0));
    world.fails(other, &agent).await;
    assert!(
        agent.output().contains("Pods are not seen"),
        "{}",
        agent.output()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_may_not_mark_jobs_tells_nothing_twice() {
    let course = |_: &_| Course::exits_with(3, Duration::ZERO);
    let world = World::with_courses(course, &[("patch", "jobs")]).await;
    let run = world.prefect.seed(retried(0));
    let agent = world.start(&["--disable-job-deletion"]);
    world.fails(run, &agent).await;
    assert_eq!(world.told(run, "ERROR").await.len(), 1);
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    agent.ended().await;
    let again = world.start(&["--disable-job-deletion"]);
    let other = world.prefect.seed(retried(0));
    world.fails(other, &again).await;
    // By its end, it has told all that it had to tell.
    again.signal(nix::sys::signal::Signal::SIGTERM);
    again.ended().await;
    assert_eq!(world.told(run, "ERROR").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_under_faults_and_cut_watches_ends_every_run_and_tells_each_once() {
    storm(300, Duration::from_secs(3), Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes some minutes"]
async fn so_does_a_storm_of_2_000_pods_within_10_seconds() {
    storm(2_000, Duration::from_secs(60), Duration::from_secs(10)).await;
}

/// Runs whose pods fail between `calm` and `calm` + `storm` after the start, one answer in ten of
/// either API a fault, and all watches cut twice a second.
async fn storm(count: usize, calm: Duration, storm: Duration) {
    let start = std::time::Instant::now();
    let course = move |_: &_| {
        let fails = calm + storm.mul_f64(fastrand::f64());
        Course::exits_with(1, fails.saturating_sub(start.elapsed()))
    };
    let world = World::with_courses(course, &[]).await;
    let runs: Vec<Uuid> = (0..count).map(|_| world.prefect.seed(retried(0))).collect();
    let mut command = world.command();
    command.env("PREFECT__CLOUD__REQUEST_TIMEOUT", "2");
    let agent = Agent::spawn(&mut command);
    agent.prints("Waiting for flow runs").await;
    for faults in [world.prefect.faults(), world.kubernetes.faults()] {
        for fault in [Fault::status(500), Fault::status(503), Fault::DropBefore] {
            faults.add(Rule::new("*", fault).probability(0.034));
        }
    }
    let all = async {
        while world.prefect.count_in_state("Failed") < count || world.kubernetes.count("jobs") > 0 {
            world.kubernetes.cut_watches();
            tokio::time::sleep(Duration::from_millis(500)).await;
            world.kubernetes.expire_watches();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let ended = tokio::time::timeout(PATIENCE * 3, all).await;
    assert!(
        ended.is_ok(),
        "{} failed, {} Jobs left\n{}",
        world.prefect.count_in_state("Failed"),
        world.kubernetes.count("jobs"),
        agent.output()
    );
    world.prefect.faults().clear();
    assert_eq!(world.kubernetes.creation_count(), count);
    // What is still in the agent's hands is written before it ends.
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    let (_, printed) = agent.ended().await;
    // The words of kube for what the agent has words of its own for.
    assert!(
        !printed.contains("failed with status") && !printed.contains("failed with error"),
        "{printed}"
    );
    for run in runs {
        // The report of the pod, and of the Job alone where the pods' watch was away for long.
        let told = world.told(run, "ERROR").await;
        let reports = told.iter().filter(|text| text.starts_with("Pod ")).count();
        assert!(reports <= 1 && told.len() <= 2, "{told:?}");
        let run = world.prefect.run(run).expect("seeded");
        let message = run.message();
        assert!(message.starts_with("Kubernetes Error: "), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_due_yet_does_not_hold_up_the_end() {
    let (world, run) = world(Course::unschedulable("0/3 nodes: no cpu")).await;
    let agent = world.start(&["--pending-timeout", "1h"]);
    world.told(run, "WARNING").await;
    let asked = std::time::Instant::now();
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    let (code, output) = agent.ended().await;
    assert_eq!(code, Some(0), "{output}");
    assert!(asked.elapsed() < Duration::from_secs(3), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_lines_of_a_failed_container_are_in_its_report_where_they_may_be_read() {
    let course = Course::exits_with(1, Duration::ZERO).with_log("reading\nboom: no such table\n");
    let (world, run) = world(course).await;
    let agent = world.start(&["--output-lines", "1"]);
    world.fails(run, &agent).await;
    let told = world.told(run, "ERROR").await;
    assert!(
        told[0].ends_with("\tLast output of container 'flow':\n\t\tboom: no such table"),
        "{told:?}"
    );
    world.kubernetes.deny("get", "pods/log");
    let secret = world.prefect.seed(retried(0));
    world.fails(secret, &agent).await;
    let told = world.told(secret, "ERROR").await;
    assert!(
        told[0].ends_with("Exit Code:: 1\n\t\tReason: Error"),
        "{told:?}"
    );
    agent
        .prints("The output of failed containers is not shown")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_run_that_the_api_does_not_know_is_left_alone_and_named_once() {
    let (world, run) = world(Course::exits_with(1, Duration::ZERO)).await;
    let foreign = Uuid::new_v4().to_string();
    let job = json!({
        "metadata": {"name": "foreign", "labels": {
            "prefect.io/identifier": "0badcafe", "prefect.io/flow_run_id": foreign,
        }},
        "spec": {"backoffLimit": 0, "template": {
            "metadata": {"labels": {"prefect.io/identifier": "0badcafe"}},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "flow", "image": "x"}]},
        }},
    });
    let created = world.kubernetes.create("jobs", "default", job);
    created.expect("a Job");
    let agent = world.start(&[]);
    agent.prints("which the API does not know").await;
    world.fails(run, &agent).await;
    let only_one = |api: &KubernetesApi| api.creation_count() == 2 && api.count("jobs") == 1;
    world.cluster(&agent, only_one).await;
    assert!(world.kubernetes.job("foreign").is_some());
    let named = agent
        .output()
        .matches("which the API does not know")
        .count();
    assert_eq!(named, 1, "{}", agent.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_without_the_label_of_a_run_is_named_and_left_alone() {
    let (world, run) = world(Course::exits_with(1, Duration::ZERO)).await;
    let job = json!({
        "metadata": {"name": "nobodys", "labels": {"prefect.io/identifier": "0badcafe"}},
        "spec": {"template": {
            "spec": {"restartPolicy": "Never", "containers": [{"name": "flow", "image": "x"}]},
        }},
    });
    let created = world.kubernetes.create("jobs", "default", job);
    created.expect("a Job");
    let agent = world.start(&[]);
    agent.prints("Cannot manage Job nobodys").await;
    world.fails(run, &agent).await;
    assert!(world.kubernetes.job("nobodys").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_being_failed_is_told_why_before_the_agent_ends() {
    let (world, run) = world(Course::exits_with(1, Duration::ZERO)).await;
    // The note on the Job stands between the failure and the words.
    let slow = Rule::new("get jobs", Fault::Latency(Duration::from_secs(1)));
    world.kubernetes.faults().add(slow);
    let agent = world.start(&[]);
    world.fails(run, &agent).await;
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    let (code, output) = agent.ended().await;
    assert_eq!(code, Some(0), "{output}");
    let told = world.told(run, "ERROR").await;
    assert_eq!(told.len(), 1, "{told:?}\n{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broken_watch_does_not_show_any_more_fails_no_run() {
    let course = Course::create_container_config_error("secret \"db\" not found");
    let (world, run) = world(course).await;
    let agent = world.start(&["--start-error-grace", "6s", "--log-level", "debug"]);
    // The pod is seen.
    world.told(run, "DEBUG").await;
    let faults = world.kubernetes.faults();
    faults.add(Rule::new("watch pods", Fault::Hang));
    let watched = world.kubernetes.request_count("watch pods");
    world.kubernetes.cut_watches();
    let again = |api: &KubernetesApi| api.request_count("watch pods") > watched;
    world.cluster(&agent, again).await;
    let pod = world.kubernetes.objects("pods")[0]["metadata"]["name"].clone();
    let pod = pod.as_str().expect("a name");
    let started = world.kubernetes.modify("pods", "default", pod, |pod| {
        pod["status"]["phase"] = json!("Running");
        pod["status"]["containerStatuses"][0]["state"] = json!({"running": {}});
    });
    assert!(started);
    agent.prints("has changed since it was seen").await;
    assert_eq!(world.log(run, "ERROR"), [""; 0]);
    assert_eq!(world.prefect.state(run).as_deref(), Some("Submitted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_loses_its_labels_is_not_taken_for_gone() {
    let (world, run) = world(Course::hangs()).await;
    let agent = world.start(&[]);
    world.cluster(&agent, |api| api.count("pods") == 1).await;
    let job = world.kubernetes.creations().remove(0).name;
    let changed = world.kubernetes.modify("jobs", "default", &job, |job| {
        let labels = job["metadata"]["labels"].as_object_mut();
        labels.expect("labels").remove("prefect.io/identifier");
    });
    assert!(changed);
    agent.prints("is there, but is not seen any more").await;
    assert_eq!(world.prefect.state(run).as_deref(), Some("Running"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_ends_well_and_is_gone_fails_a_run_that_never_reported() {
    let world = World::new().await;
    let run = world.prefect.seed(FlowRunSeed::new());
    let agent = world.start(&["--log-level", "debug"]);
    world.cluster(&agent, |api| api.creation_count() == 1).await;
    let job = world.kubernetes.creations().remove(0).name;
    let ended = world.kubernetes.modify("jobs", "default", &job, |job| {
        job["status"]["conditions"] = json!([{"type": "Complete", "status": "True"}]);
    });
    assert!(ended);
    agent.prints("has ended, but flow run").await;
    // As after `ttlSecondsAfterFinished`.
    assert!(world.kubernetes.remove("jobs", "default", &job));
    let message = world.fails(run, &agent).await;
    assert!(message.ends_with("its flow run never started"), "{message}");
    assert_eq!(world.told(run, "ERROR").await, [message]);
    assert_eq!(world.kubernetes.creation_count(), 1);
}
