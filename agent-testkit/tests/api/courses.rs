//! What the scripted node does with Jobs.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_testkit::kubernetes::PodEnd;
use agent_testkit::{Attempt, Course, KubernetesApi};
use hyper::http::Method;
use serde_json::{Value, json};

use crate::support::{Client, JOBS, PODS, SOON, job};

const BRIEFLY: Duration = Duration::from_millis(5);

async fn cluster(choose: impl Fn(&Attempt) -> Course + Send + Sync + 'static) -> KubernetesApi {
    let builder = KubernetesApi::builder().retry_pause(Duration::from_millis(5));
    let started = builder.course(choose).start().await;
    started.expect("a free port")
}

fn with_limit(name: &str, limit: i64) -> Value {
    let mut body = job(name);
    body["spec"]["backoffLimit"] = json!(limit);
    body
}

fn condition(api: &KubernetesApi, name: &str) -> Option<(String, String)> {
    let conditions = api.job(name)?.status?.conditions?;
    let last = conditions.last()?;
    Some((last.type_.clone(), last.reason.clone().unwrap_or_default()))
}

async fn ends_with(api: &KubernetesApi, name: &str, kind: &str, reason: &str) {
    let wanted = Some((kind.to_owned(), reason.to_owned()));
    let met = api
        .wait_until(SOON, |api| condition(api, name) == wanted)
        .await;
    assert!(met.is_ok(), "{:?} is not {wanted:?}", condition(api, name));
}

fn waiting_reason(api: &KubernetesApi) -> String {
    let pods = api.objects("pods");
    let state = pods
        .first()
        .map(|pod| pod["status"]["containerStatuses"][0]["state"].clone());
    let reason = state.unwrap_or_default()["waiting"]["reason"].clone();
    reason.as_str().unwrap_or_default().to_owned()
}

fn reasons(api: &KubernetesApi, kind: &str) -> Vec<String> {
    let of_kind = |event: &Value| event["involvedObject"]["kind"] == kind;
    let events = api.objects("events").into_iter().filter(of_kind);
    events
        .map(|event| event["reason"].as_str().unwrap_or_default().to_owned())
        .collect()
}

fn has_event(api: &KubernetesApi, reason: &str, message: &str) -> bool {
    api.objects("events").iter().any(|event| {
        event["reason"] == reason
            && event["message"]
                .as_str()
                .is_some_and(|text| text.contains(message))
    })
}

fn terminated(api: &KubernetesApi) -> Value {
    api.objects("pods")[0]["status"]["containerStatuses"][0]["state"]["terminated"].clone()
}

#[tokio::test]
async fn a_job_succeeds_with_the_pods_and_events_of_a_real_one() {
    let api = cluster(|_| Course::succeeds_after(BRIEFLY).with_log("one\ntwo\n")).await;
    let mut client = Client::connect(&api.url()).await;
    client.send(Method::POST, JOBS, job("j")).await;
    ends_with(&api, "j", "Complete", "CompletionsReached").await;
    let status = api.job("j").unwrap().status.unwrap();
    assert_eq!(
        (status.succeeded, status.active, status.failed),
        (Some(1), None, None)
    );
    assert!(status.completion_time.is_some() && status.start_time.is_some());
    let pod = api.pods().remove(0);
    let name = pod.metadata.name.unwrap();
    assert!(name.starts_with("j-"));
    assert_eq!(pod.metadata.labels.unwrap()["job-name"], "j");
    assert_eq!(pod.status.unwrap().phase.as_deref(), Some("Succeeded"));
    assert_eq!(terminated(&api)["reason"], "Completed");
    let mut of_pod = reasons(&api, "Pod");
    of_pod.sort();
    assert_eq!(
        of_pod,
        ["Created", "Pulled", "Pulling", "Scheduled", "Started"]
    );
    assert!(has_event(
        &api,
        "SuccessfulCreate",
        &format!("Created pod: {name}")
    ));
    let scheduled = api
        .objects("events")
        .into_iter()
        .find(|event| event["reason"] == "Scheduled")
        .unwrap();
    assert!(scheduled["eventTime"].is_string() && scheduled.get("lastTimestamp").is_none());
    let log = client.get(&format!("{PODS}/{name}/log?tailLines=1")).await;
    assert_eq!(log.body, "two\n");
    assert!(
        api.events().len() >= 7,
        "all events are readable by their type"
    );
}

#[tokio::test]
async fn a_failing_job_is_retried_up_to_its_limit() {
    let api = cluster(|_| Course::exits_with(3, BRIEFLY)).await;
    let mut client = Client::connect(&api.url()).await;
    client.send(Method::POST, JOBS, with_limit("j", 2)).await;
    ends_with(&api, "j", "Failed", "BackoffLimitExceeded").await;
    assert_eq!(api.job("j").unwrap().status.unwrap().failed, Some(3));
    assert_eq!(api.count("pods"), 3);
    assert_eq!(
        (&terminated(&api)["exitCode"], &terminated(&api)["reason"]),
        (&json!(3), &json!("Error"))
    );
    assert!(has_event(
        &api,
        "BackoffLimitExceeded",
        "Job has reached the specified backoff limit"
    ));
}

#[tokio::test]
async fn a_course_may_differ_from_attempt_to_attempt() {
    let api = cluster(|attempt| match attempt.number {
        0 => Course::oom_killed(BRIEFLY),
        _ => Course::succeeds_after(BRIEFLY),
    })
    .await;
    let mut client = Client::connect(&api.url()).await;
    client.send(Method::POST, JOBS, job("j")).await;
    ends_with(&api, "j", "Complete", "CompletionsReached").await;
    let status = api.job("j").unwrap().status.unwrap();
    assert_eq!((status.failed, status.succeeded), (Some(1), Some(1)));
    let killed = |pod: &Value| {
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] == "OOMKilled"
    };
    assert_eq!(
        api.objects("pods").iter().filter(|pod| killed(pod)).count(),
        1
    );
}

#[tokio::test]
async fn an_image_that_cannot_be_pulled_alternates_between_two_reasons() {
    let api = cluster(|_| Course::image_pull_failure("not found")).await;
    let mut client = Client::connect(&api.url()).await;
    client.send(Method::POST, JOBS, job("j")).await;
    for reason in ["ErrImagePull", "ImagePullBackOff", "ErrImagePull"] {
        api.wait_until(SOON, |api| waiting_reason(api) == reason)
            .await
            .unwrap();
    }
    assert!(has_event(
        &api,
        "Failed",
        "Failed to pull image \"prefecthq/prefect:1.4.1\": not found"
    ));
    assert!(has_event(&api, "BackOff", "Back-off pulling image"));
    let name = api.pods()[0].metadata.name.clone().unwrap();
    let log = client.get(&format!("{PODS}/{name}/log")).await;
    assert_eq!(log.status, 400);
    assert!(
        log.json()["message"]
            .as_str()
            .unwrap()
            .contains("is waiting to start")
    );
}

#[tokio::test]
async fn an_image_pull_can_recover() {
    let api = cluster(|_| Course::image_pull_recovers("registry is down", BRIEFLY)).await;
    let mut client = Client::connect(&api.url()).await;
    client.send(Method::POST, JOBS, job("j")).await;
    ends_with(&api, "j", "Complete", "CompletionsReached").await;
    assert!(has_event(&api, "Failed", "registry is down"));
    assert_eq!(api.count("pods"), 1);
}

#[tokio::test]
async fn pods_that_never_run_say_why() {
    let unschedulable =
        cluster(|_| Course::unschedulable("0/3 nodes are available: 3 Insufficient cpu.")).await;
    let misconfigured =
        cluster(|_| Course::create_container_config_error("secret \"x\" not found")).await;
    let stuck = cluster(|_| Course::never_starts()).await;
    let quota = cluster(|_| Course::failed_create("exceeded quota: compute")).await;
    for api in [&unschedulable, &misconfigured, &stuck, &quota] {
        Client::connect(&api.url())
            .await
            .send(Method::POST, JOBS, job("j"))
            .await;
    }
    unschedulable
        .wait_until(SOON, |api| {
            has_event(api, "FailedScheduling", "Insufficient cpu")
        })
        .await
        .unwrap();
    let pod = unschedulable.objects("pods").remove(0);
    assert_eq!(pod["status"]["conditions"][0]["reason"], "Unschedulable");
    assert_eq!(pod["status"]["phase"], "Pending");
    misconfigured
        .wait_until(SOON, |api| {
            has_event(api, "Failed", "Error: secret \"x\" not found")
        })
        .await
        .unwrap();
    assert_eq!(waiting_reason(&misconfigured), "CreateContainerConfigError");
    stuck
        .wait_until(SOON, |api| waiting_reason(api) == "ContainerCreating")
        .await
        .unwrap();
    quota
        .wait_until(SOON, |api| {
            has_event(api, "FailedCreate", "exceeded quota: compute")
        })
        .await
        .unwrap();
    assert_eq!(quota.count("pods"), 0);
}

#[tokio::test]
async fn an_evicted_pod_says_so_in_its_status() {
    let api = cluster(|_| Course::evicted(BRIEFLY)).await;
    let mut client = Client::connect(&api.url()).await;
    client.send(Method::POST, JOBS, with_limit("j", 0)).await;
    ends_with(&api, "j", "Failed", "BackoffLimitExceeded").await;
    let status = api.pods().remove(0).status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    assert!(has_event(
        &api,
        "Evicted",
        "The node was low on resource: memory"
    ));
}

#[tokio::test]
async fn a_signal_shows_in_the_container_status() {
    let api = cluster(|_| Course::killed_by(15, BRIEFLY)).await;
    let mut client = Client::connect(&api.url()).await;
    client.send(Method::POST, JOBS, with_limit("j", 0)).await;
    ends_with(&api, "j", "Failed", "BackoffLimitExceeded").await;
    assert_eq!(
        (&terminated(&api)["exitCode"], &terminated(&api)["signal"]),
        (&json!(143), &json!(15))
    );
}

#[tokio::test]
async fn a_job_out_of_time_fails_and_loses_its_pod() {
    let api = cluster(|_| Course::hangs()).await;
    let mut client = Client::connect(&api.url()).await;
    let mut body = job("j");
    body["spec"]["activeDeadlineSeconds"] = json!(1);
    client.send(Method::POST, JOBS, body).await;
    ends_with(&api, "j", "Failed", "DeadlineExceeded").await;
    assert_eq!(api.count("pods"), 0);
}

#[tokio::test]
async fn a_finished_job_with_no_time_to_live_is_gone() {
    let api = cluster(|_| Course::succeeds_after(BRIEFLY)).await;
    let mut client = Client::connect(&api.url()).await;
    let mut body = job("j");
    body["spec"]["ttlSecondsAfterFinished"] = json!(0);
    client.send(Method::POST, JOBS, body).await;
    api.wait_until(SOON, |api| {
        api.creation_count() == 1 && api.count("jobs") + api.count("pods") == 0
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_suspended_job_has_no_pod_until_it_is_resumed() {
    let api = cluster(|_| Course::hangs()).await;
    let mut client = Client::connect(&api.url()).await;
    client.send(Method::POST, JOBS, job("j")).await;
    api.wait_until(SOON, |api| api.count("pods") == 1)
        .await
        .unwrap();
    let suspend = |suspend: bool| json!({"spec": {"suspend": suspend}});
    let path = format!("{JOBS}/j");
    client
        .patch(&path, "application/merge-patch+json", suspend(true))
        .await;
    api.wait_until(SOON, |api| api.count("pods") == 0)
        .await
        .unwrap();
    client
        .patch(&path, "application/merge-patch+json", suspend(false))
        .await;
    api.wait_until(SOON, |api| api.count("pods") == 1)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_deleted_pod_counts_as_a_failure_and_is_replaced() {
    let api = cluster(|attempt| match attempt.number {
        0 => Course::hangs(),
        _ => Course::succeeds_after(BRIEFLY),
    })
    .await;
    let mut client = Client::connect(&api.url()).await;
    client.send(Method::POST, JOBS, job("j")).await;
    api.wait_until(SOON, |api| api.count("pods") == 1)
        .await
        .unwrap();
    let name = api.pods()[0].metadata.name.clone().unwrap();
    client
        .send(Method::DELETE, &format!("{PODS}/{name}"), Value::Null)
        .await;
    ends_with(&api, "j", "Complete", "CompletionsReached").await;
}

#[tokio::test]
async fn hooks_see_the_start_and_the_end_of_each_pod_before_the_cluster_shows_it() {
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let (starts, ends) = (seen.clone(), seen.clone());
    let api = KubernetesApi::builder()
        .course(|_| Course::exits_with(1, BRIEFLY))
        .on_pod_started(move |attempt| {
            let run = attempt.flow_run_id().unwrap().to_owned();
            let variable = attempt.env["PREFECT__CONTEXT__FLOW_RUN_ID"].clone();
            starts
                .lock()
                .unwrap()
                .push(format!("{run} {variable} starts"));
        })
        .on_pod_finished(move |attempt, end| {
            assert_eq!(*end, PodEnd::Exited(1));
            ends.lock().unwrap().push(format!("{} ends", attempt.job));
        })
        .start()
        .await
        .unwrap();
    let mut client = Client::connect(&api.url()).await;
    client.send(Method::POST, JOBS, with_limit("j", 0)).await;
    ends_with(&api, "j", "Failed", "BackoffLimitExceeded").await;
    assert_eq!(*seen.lock().unwrap(), ["run-j r starts", "j ends"]);
}

#[tokio::test]
async fn a_paused_node_leaves_jobs_alone_until_it_is_resumed() {
    let api = KubernetesApi::builder().node_off().start().await.unwrap();
    let mut client = Client::connect(&api.url()).await;
    client.send(Method::POST, JOBS, job("j")).await;
    assert_eq!(api.count("pods"), 0);
    api.resume_node();
    ends_with(&api, "j", "Complete", "CompletionsReached").await;
}
