//! What surrounds the Prefect API: Cloud's ways, faults, outages, limits and measurements.

use std::time::Duration;

use agent_testkit::prefect::{Auth, FlowRunSeed, PrefectApi};
use agent_testkit::{Fault, Faults, Rule};
use hyper::http::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::prefect::{SET_FLOW_RUN, error_of, queue, set};
use crate::support::{Client, SOON};

#[tokio::test]
async fn a_large_state_and_a_large_body_are_refused() {
    let api = PrefectApi::start().await.unwrap();
    let mut client = Client::connect(&api.url()).await;
    let id = api.seed(FlowRunSeed::new());
    let mut large = set(id, Value::Null, "Failed");
    large["input"]["states"][0]["state"]["message"] = json!("x".repeat(1_000_001));
    let answer = client.graphql(SET_FLOW_RUN, large).await;
    assert_eq!(error_of(&answer), "State payload is too large.");
    let body = "x".repeat(5_000_001);
    let answer = client.try_send(Method::POST, "/", body).await.unwrap();
    assert_eq!(answer.status, 413);
}

#[tokio::test]
async fn cloud_checks_versions_and_keys() {
    let api = PrefectApi::builder()
        .cloud()
        .auth(Auth::CloudError("good".into()))
        .start()
        .await
        .unwrap();
    let mut client = Client::connect(&api.url())
        .await
        .header("Authorization", "Bearer good");
    let id = api.seed(FlowRunSeed::new().version(4));
    let info = client
        .graphql("{ auth_info { tenant_id } }", Value::Null)
        .await
        .json();
    assert_eq!(
        info["data"]["auth_info"]["tenant_id"],
        json!(api.tenant_id())
    );
    let stale = client
        .graphql(SET_FLOW_RUN, set(id, json!(3), "Submitted"))
        .await
        .json();
    assert_eq!(
        stale["errors"][0]["extensions"]["code"],
        "VERSION_LOCKING_ERROR"
    );
    let any = client
        .graphql(SET_FLOW_RUN, set(id, Value::Null, "Submitted"))
        .await
        .json();
    assert!(any.get("errors").is_none());
    let mut stranger = Client::connect(&api.url()).await;
    let refused = stranger.graphql("{ hello }", Value::Null).await;
    assert_eq!(refused.status, 200);
    assert_eq!(
        refused.json()["errors"][0]["extensions"]["code"],
        "UNAUTHENTICATED"
    );
    api.set_auth(Auth::Status401("good".into()));
    assert_eq!(stranger.graphql("{ hello }", Value::Null).await.status, 401);
}

#[tokio::test]
async fn lazarus_reschedules_a_silent_run_three_times() {
    let api = PrefectApi::start().await.unwrap();
    let id = api.seed(FlowRunSeed::new());
    for round in 1..=4 {
        api.set_state_named(id, "Submitted", "");
        assert!(api.lazarus().is_empty(), "its heartbeat is fresh");
        api.clock().advance(Duration::from_secs(601));
        assert_eq!(api.lazarus().len(), usize::from(round <= 3));
    }
    let run = api.run(id).unwrap();
    assert_eq!(run.times_resurrected, 3);
    assert!(
        run.history
            .iter()
            .any(|state| state.message() == "Rescheduled by a Lazarus process.")
    );
}

#[tokio::test]
async fn faults_hit_the_operation_they_name() {
    let faults = Faults::new(1);
    let api = PrefectApi::builder()
        .faults(faults.clone())
        .start()
        .await
        .unwrap();
    let id = api.seed(FlowRunSeed::new());
    let mutation = set(id, Value::Null, "Pending");
    let body = json!({"query": SET_FLOW_RUN, "variables": mutation}).to_string();
    let send = async |fault: Fault| {
        faults.clear();
        faults.add(Rule::new("set_flow_run_states", fault));
        let mut client = Client::connect(&api.url()).await;
        client.try_send(Method::POST, "/", body.clone()).await
    };
    assert!(send(Fault::DropBefore).await.is_err());
    assert_eq!(api.run(id).unwrap().version, 1);
    assert!(send(Fault::DropAfter).await.is_err());
    assert_eq!(api.run(id).unwrap().version, 2);
    assert!(send(Fault::Truncate).await.is_err());
    assert_eq!(api.run(id).unwrap().version, 3);
    let busy = send(Fault::too_many_requests(7)).await.unwrap();
    assert_eq!(
        (busy.status, busy.headers["retry-after"].to_str().unwrap()),
        (429, "7")
    );
    assert!(
        send(Fault::Garbage)
            .await
            .unwrap()
            .body
            .starts_with(b"<html>")
    );
    let errors = send(Fault::GraphqlErrors(json!([{"message": "API_ERROR"}])))
        .await
        .unwrap();
    assert_eq!(errors.json()["errors"][0]["message"], "API_ERROR");
    let hanging = send(Fault::Hang);
    assert!(
        tokio::time::timeout(Duration::from_millis(50), hanging)
            .await
            .is_err()
    );
    assert_eq!(api.run(id).unwrap().version, 3);
    let mut client = Client::connect(&api.url()).await;
    assert_eq!(client.graphql("{ hello }", Value::Null).await.status, 200);
    assert_eq!(faults.total(), 7);
}

#[tokio::test]
async fn a_stopped_server_comes_back_at_the_same_address_with_what_it_knew() {
    let api = PrefectApi::start().await.unwrap();
    let id = api.seed(FlowRunSeed::new());
    let mut client = Client::connect(&api.url()).await;
    client.graphql("{ hello }", Value::Null).await;
    assert_eq!(api.server().open_connections(), 1);
    api.server().stop().await;
    assert_eq!(api.server().open_connections(), 0);
    assert!(client.try_send(Method::POST, "/", "{}").await.is_err());
    assert!(
        tokio::net::TcpStream::connect(api.server().address())
            .await
            .is_err()
    );
    api.server().restart().await.unwrap();
    let mut client = Client::connect(&api.url()).await;
    let answer = client
        .graphql("{ flow_run { id } }", Value::Null)
        .await
        .json();
    assert_eq!(answer["data"]["flow_run"][0]["id"], json!(id));
}

#[tokio::test]
async fn a_condition_is_met_as_soon_as_the_change_happens() {
    let api = PrefectApi::start().await.unwrap();
    let id = api.seed(FlowRunSeed::new());
    let failed = |api: &PrefectApi| api.state(id).as_deref() == Some("Failed");
    let (met, ()) = tokio::join!(api.wait_until(SOON, failed), async {
        let mut client = Client::connect(&api.url()).await;
        client
            .graphql(SET_FLOW_RUN, set(id, Value::Null, "Failed"))
            .await;
    });
    met.unwrap();
    let never = api
        .wait_until(Duration::from_millis(10), |api| api.runs().is_empty())
        .await;
    assert!(never.is_err());
}

#[tokio::test]
async fn requests_are_kept_word_for_word_when_asked() {
    let api = PrefectApi::builder()
        .clock_skew(SignedDuration::from_hours(-1))
        .start()
        .await
        .unwrap();
    api.keep_requests(1);
    let mut client = Client::connect(&api.url()).await.header("X-Mark", "yes");
    client.graphql("{ hello }", Value::Null).await;
    let answer = client.graphql("{ tenant { id } }", Value::Null).await;
    let kept = api.last_requests();
    assert_eq!(kept.len(), 1);
    assert_eq!(
        (
            kept[0].operation.as_str(),
            kept[0].headers["x-mark"].to_str().unwrap()
        ),
        ("tenant", "yes")
    );
    let date = answer.headers["date"].to_str().unwrap();
    let hour_ago = (Timestamp::now() - SignedDuration::from_hours(1))
        .strftime("%d %b %Y %H:")
        .to_string();
    assert!(date.contains(&hour_ago), "{date}");
}

#[tokio::test]
async fn a_graceful_stop_answers_what_is_under_way_and_cuts_what_hangs() {
    let api = PrefectApi::start().await.unwrap();
    let slow = Fault::Latency(Duration::from_millis(50));
    api.faults().add(Rule::new("hello", slow));
    api.faults().add(Rule::new("tenant", Fault::Hang));
    let mut patient = Client::connect(&api.url()).await;
    let mut hanging = Client::connect(&api.url()).await;
    let body = |query: &str| json!({"query": query}).to_string();
    let stop = async {
        let both = |api: &PrefectApi| api.request_log().total() == 2;
        api.wait_until(SOON, both).await.unwrap();
        api.server()
            .stop_gracefully(Duration::from_millis(300))
            .await;
    };
    let (answered, cut, ()) = tokio::join!(
        patient.try_send(Method::POST, "/", body("{ hello }")),
        hanging.try_send(Method::POST, "/", body("{ tenant { id } }")),
        stop,
    );
    assert_eq!(answered.unwrap().status, 200);
    assert!(cut.is_err());
    assert_eq!(api.server().open_connections(), 0);
}

/// Prints how fast the server is; run it by name to compare machines or changes.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a test"]
async fn requests_per_second() {
    let api = PrefectApi::start().await.unwrap();
    let now = Timestamp::now();
    for _ in 0..1000 {
        api.seed(FlowRunSeed::new().labels(["a"]).start_time(now));
    }
    let mut client = Client::connect(&api.url()).await;
    for (name, times) in [
        ("hello", 2000),
        ("queue", 500),
        ("states of 1,000 runs", 10),
    ] {
        let start = std::time::Instant::now();
        for _ in 0..times {
            match name {
                "hello" => drop(client.graphql("{ hello }", Value::Null).await),
                "queue" => drop(queue(&mut client, &api, now, &["a"]).await),
                _ => drop(
                    client
                        .graphql("{ flow_run { id state } }", Value::Null)
                        .await,
                ),
            }
        }
        println!(
            "{name}: {:.0}/s",
            f64::from(times) / start.elapsed().as_secs_f64()
        );
    }
}
