//! The Prefect API over real HTTP.

use std::time::Duration;

use crate::support::{Client, SOON};
use agent_testkit::prefect::{Auth, FlowRunSeed, PrefectApi};
use agent_testkit::{Fault, Faults, Rule};
use hyper::http::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

const SET_FLOW_RUN: &str = "mutation($input: set_flow_run_states_input!) {
    set_flow_run_states(input: $input) { states { id status message } } }";
const SET_TASK_RUN: &str = "mutation($input: set_task_run_states_input!) {
    set_task_run_states(input: $input) { states { id status message } } }";
const QUEUE: &str = "mutation($input: get_runs_in_queue_input!) {
    get_runs_in_queue(input: $input) { flow_run_ids } }";
const REGISTER: &str =
    "mutation($input: register_agent_input!) { register_agent(input: $input) { id } }";

fn state(kind: &str) -> Value {
    json!({"type": kind, "message": "for a test", "context": {}})
}

fn set(id: Uuid, version: Value, kind: &str) -> Value {
    json!({"input": {"states": [{"flow_run_id": id, "version": version, "state": state(kind)}]}})
}

fn error_of(answer: &crate::support::Answer) -> String {
    answer.json()["errors"][0]["message"]
        .as_str()
        .unwrap_or("")
        .to_owned()
}

async fn queue(
    client: &mut Client,
    api: &PrefectApi,
    before: Timestamp,
    labels: &[&str],
) -> Vec<Uuid> {
    let input = json!({"input": {
        "before": before.to_string(), "labels": labels, "tenant_id": api.tenant_id(),
    }});
    let answer = client.graphql(QUEUE, input).await.json();
    let ids = answer["data"]["get_runs_in_queue"]["flow_run_ids"].clone();
    serde_json::from_value(ids).expect("ids")
}

#[tokio::test]
async fn variables_may_be_text_an_object_or_the_text_null() {
    let api = PrefectApi::start().await.unwrap();
    let mut client = Client::connect(&api.url()).await;
    for variables in [json!("null"), Value::Null, json!({}), json!("{}")] {
        let body = json!({"query": "query { hello }", "variables": variables});
        let answer = client.send(Method::POST, "/graphql", body).await;
        assert_eq!(answer.status, 200);
        assert!(answer.json()["data"]["hello"].is_string());
        assert!(answer.headers.contains_key("date"));
    }
    let tenant = client
        .graphql("{ tenant { id } }", Value::Null)
        .await
        .json();
    assert_eq!(tenant["data"]["tenant"][0]["id"], json!(api.tenant_id()));
    assert_eq!(api.request_count("hello"), 4);
    assert_eq!(client.get("/graphql").await.status, 404);
}

#[tokio::test]
async fn a_query_that_does_not_validate_is_a_bad_request() {
    let api = PrefectApi::start().await.unwrap();
    let mut client = Client::connect(&api.url()).await;
    for query in [
        "{ auth_info { tenant_id } }",
        "{ flow_run { colour } }",
        "{ hello",
    ] {
        let answer = client.graphql(query, Value::Null).await;
        assert_eq!(answer.status, 400, "{query}");
        let code = &answer.json()["errors"][0]["extensions"]["code"];
        assert_eq!(code, "GRAPHQL_VALIDATION_FAILED");
    }
    let wrong = client
        .graphql(SET_FLOW_RUN, json!({"input": {"states": 7}}))
        .await;
    assert_eq!(wrong.status, 400);
}

#[tokio::test]
async fn a_restarted_agent_gets_its_id_back() {
    let api = PrefectApi::start().await.unwrap();
    let mut client = Client::connect(&api.url())
        .await
        .header("X-PREFECT-CORE-VERSION", "1.4.1");
    let input = |labels: Value| {
        json!({"input": {"type": "KubernetesAgent", "name": "agent", "labels": labels,
            "tenant_id": api.tenant_id(), "agent_config_id": null}})
    };
    let first = client
        .graphql(REGISTER, input(json!(["a", "b"])))
        .await
        .json();
    let again = client
        .graphql(REGISTER, input(json!(["b", "a"])))
        .await
        .json();
    let other = client.graphql(REGISTER, input(json!(["c"]))).await.json();
    assert_eq!(first, again);
    assert_ne!(first, other);
    assert_eq!(api.agents().len(), 2);
}

#[tokio::test]
async fn the_queue_goes_by_labels_time_and_its_two_limits() {
    let api = PrefectApi::start().await.unwrap();
    let mut client = Client::connect(&api.url()).await;
    let now = Timestamp::now();
    let at = |seconds| now + SignedDuration::from_secs(seconds);
    let late = api.seed(FlowRunSeed::new().labels(["a"]).start_time(at(-5)));
    let early = api.seed(FlowRunSeed::new().labels(["a"]).start_time(at(-50)));
    let future = api.seed(FlowRunSeed::new().labels(["a"]).start_time(at(60)));
    let retry = api.seed_retry(FlowRunSeed::new().labels(["a"]), [at(-500), at(-400)]);
    let _waiting = api.seed_retry(FlowRunSeed::new().labels(["a"]), [at(60)]);
    let bare = api.seed(FlowRunSeed::new());
    assert_eq!(
        queue(&mut client, &api, now, &["a", "b"]).await,
        [early, late, retry]
    );
    assert_eq!(
        queue(&mut client, &api, now + SignedDuration::from_secs(1), &[]).await,
        [bare]
    );
    assert!(
        queue(&mut client, &api, at(70), &["a"])
            .await
            .contains(&future)
    );

    for _ in 0..80 {
        api.seed(FlowRunSeed::new().labels(["nobody"]).start_time(at(-100)));
    }
    assert!(
        queue(&mut client, &api, now, &["a"]).await.is_empty(),
        "75 others come first"
    );
    assert_eq!(queue(&mut client, &api, now, &["nobody"]).await.len(), 25);
}

#[tokio::test]
async fn a_second_submitted_within_thirty_seconds_is_refused() {
    let api = PrefectApi::start().await.unwrap();
    let mut client = Client::connect(&api.url()).await;
    let id = api.seed(FlowRunSeed::new());
    let first = client
        .graphql(SET_FLOW_RUN, set(id, json!(1), "Submitted"))
        .await
        .json();
    assert_eq!(
        first["data"]["set_flow_run_states"]["states"][0]["status"],
        "SUCCESS"
    );
    let second = client
        .graphql(SET_FLOW_RUN, set(id, json!(2), "Submitted"))
        .await;
    assert_eq!(second.status, 200);
    assert_eq!(
        error_of(&second),
        "State update failed: this run has already been submitted."
    );
    assert!(second.json()["data"]["set_flow_run_states"].is_null());
    api.clock().advance(Duration::from_secs(31));
    let third = client
        .graphql(SET_FLOW_RUN, set(id, json!(-9), "Submitted"))
        .await
        .json();
    assert!(third.get("errors").is_none(), "{third}");
    assert_eq!(api.run(id).unwrap().version, 3);
    api.forget_submitted_locks();
    let fourth = client
        .graphql(SET_FLOW_RUN, set(id, Value::Null, "Submitted"))
        .await
        .json();
    assert!(fourth.get("errors").is_none());
    let names = api.run(id).unwrap().history.len();
    assert_eq!(names, 4);
}

#[tokio::test]
async fn submitted_stores_the_agent_only_if_it_exists() {
    let api = PrefectApi::start().await.unwrap();
    let mut client = Client::connect(&api.url()).await;
    let input = json!({"input": {"type": "KubernetesAgent", "name": "a", "labels": []}});
    let agent = client.graphql(REGISTER, input).await.json();
    let agent = agent["data"]["register_agent"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let (known, unknown) = (api.seed(FlowRunSeed::new()), api.seed(FlowRunSeed::new()));
    let mut as_agent = Client::connect(&api.url())
        .await
        .header("X-PREFECT-AGENT-ID", &agent);
    let stranger = Uuid::from_u128(9).to_string();
    let mut as_stranger = Client::connect(&api.url())
        .await
        .header("X-PREFECT-AGENT-ID", &stranger);
    as_agent
        .graphql(SET_FLOW_RUN, set(known, json!(1), "Submitted"))
        .await;
    as_stranger
        .graphql(SET_FLOW_RUN, set(unknown, json!(1), "Submitted"))
        .await;
    assert_eq!(
        api.run(known).unwrap().agent_id.map(|id| id.to_string()),
        Some(agent.clone())
    );
    assert_eq!(api.run(unknown).unwrap().agent_id, None);
    assert!(api.run(known).unwrap().heartbeat.is_some());

    let mine = "query($agent: uuid!) { flow_run(where: {state: {_eq: \"Submitted\"},
        agent_id: {_eq: $agent}}) { id agent { name } } }";
    let found = client.graphql(mine, json!({"agent": agent})).await.json();
    assert_eq!(
        found["data"]["flow_run"],
        json!([{"id": known, "agent": {"name": "a"}}])
    );
}

#[tokio::test]
async fn one_refused_state_makes_the_field_an_error_but_the_others_take_effect() {
    let api = PrefectApi::start().await.unwrap();
    let mut client = Client::connect(&api.url()).await;
    let (one, two, three) = (
        api.seed(FlowRunSeed::new()),
        api.seed(FlowRunSeed::new()),
        api.seed(FlowRunSeed::new()),
    );
    let unknown = Uuid::from_u128(1);
    let input = json!({"input": {"states": [
        {"flow_run_id": one, "state": state("Failed")},
        {"flow_run_id": unknown, "state": state("Failed")},
        {"flow_run_id": two, "state": state("Failed")},
    ]}});
    let answer = client.graphql(SET_FLOW_RUN, input).await;
    assert_eq!(
        error_of(&answer),
        format!("State update failed for flow run ID {unknown}")
    );
    assert_eq!(api.count_in_state("Failed"), 2);

    let aliased = "mutation($a: set_flow_run_states_input!, $b: set_flow_run_states_input!) {
        a: set_flow_run_states(input: $a) { states { id } }
        b: set_flow_run_states(input: $b) { states { id } } }";
    let both = json!({"a": set(unknown, Value::Null, "Failed")["input"],
        "b": set(three, Value::Null, "Failed")["input"]});
    let answer = client.graphql(aliased, both).await.json();
    assert!(answer["data"]["a"].is_null());
    assert_eq!(answer["data"]["b"]["states"][0]["id"], json!(three));
    assert_eq!(answer["errors"].as_array().unwrap().len(), 1);
    assert_eq!(answer["errors"][0]["path"], json!(["a"]));
}

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
async fn a_task_run_cannot_run_in_a_flow_run_that_does_not() {
    let api = PrefectApi::start().await.unwrap();
    let mut client = Client::connect(&api.url()).await;
    let run = api.seed_retry(FlowRunSeed::new(), [Timestamp::now()]);
    let task = api.task_runs(run)[0].id;
    let set = |kind| json!({"input": {"states": [{"task_run_id": task, "version": 3, "state": state(kind)}]}});
    api.set_state_named(run, "Submitted", "");
    let refused = client.graphql(SET_TASK_RUN, set("Running")).await;
    assert!(error_of(&refused).contains("is not in a running state"));
    let submitted = client.graphql(SET_TASK_RUN, set("Submitted")).await.json();
    assert_eq!(
        submitted["data"]["set_task_run_states"]["states"][0]["status"],
        "SUCCESS"
    );
    assert!(
        error_of(&client.graphql(SET_TASK_RUN, set("Submitted")).await)
            .contains("already been submitted")
    );
    api.set_state_named(run, "Running", "");
    let running = client.graphql(SET_TASK_RUN, set("Running")).await.json();
    assert!(running.get("errors").is_none(), "{running}");
    assert_eq!(api.task_runs(run)[0].version, 5);
}

#[tokio::test]
async fn metadata_of_ready_runs_comes_in_one_query() {
    let api = PrefectApi::start().await.unwrap();
    let mut client = Client::connect(&api.url()).await;
    let now = Timestamp::now();
    let scheduled = api.seed(FlowRunSeed::new().flow_name("etl").labels(["prod"]));
    let retry = api.seed_retry(FlowRunSeed::new(), [now - SignedDuration::from_secs(5)]);
    let alive = api.seed_retry(FlowRunSeed::new(), [now + SignedDuration::from_secs(5)]);
    let due = (now - SignedDuration::from_secs(3)).to_string();
    let query = format!("query {{ flow_run(where: {{ id: {{ _in: [{scheduled:?}, {retry:?}, {alive:?}] }},
        _or: [{{ state: {{ _eq: \"Scheduled\" }} }}, {{ state: {{ _eq: \"Running\" }},
        task_runs: {{ state_start_time: {{ _lte: \"{due}\" }} }} }}] }}) {{
        id version state serialized_state parameters scheduled_start_time run_config name
        flow {{ id name environment storage version core_version }}
        task_runs(where: {{ state_start_time: {{ _lte: \"{due}\" }} }}) {{ id version task_id serialized_state }}
    }} }}", scheduled = scheduled.to_string(), retry = retry.to_string(), alive = alive.to_string());
    let answer = client.graphql(&query, Value::Null).await.json();
    let rows = answer["data"]["flow_run"]
        .as_array()
        .unwrap_or_else(|| panic!("{answer}"));
    assert_eq!(rows.len(), 2);
    let row = rows
        .iter()
        .find(|row| row["id"] == json!(scheduled))
        .unwrap();
    assert_eq!(row["serialized_state"]["type"], "Scheduled");
    assert_eq!(row["run_config"]["labels"], json!(["prod"]));
    assert_eq!(row["flow"]["storage"]["type"], "Local");
    assert_eq!(row["flow"]["environment"], Value::Null);
    assert_eq!(row["task_runs"], json!([]));
    let row = rows.iter().find(|row| row["id"] == json!(retry)).unwrap();
    assert_eq!(row["task_runs"][0]["version"], 3);
}

#[tokio::test]
async fn filters_orders_and_pages_follow_the_columns() {
    let api = PrefectApi::start().await.unwrap();
    let mut client = Client::connect(&api.url()).await;
    let now = Timestamp::now();
    let ids: Vec<Uuid> = (0..5)
        .map(|n| {
            api.seed(
                FlowRunSeed::new()
                    .name(format!("r{n}"))
                    .start_time(now + SignedDuration::from_secs(n)),
            )
        })
        .collect();
    api.set_state_named(ids[4], "Failed", "");
    let names = async |client: &mut Client, arguments: &str| -> Vec<String> {
        let query = format!("{{ flow_run({arguments}) {{ name }} }}");
        let answer = client.graphql(&query, Value::Null).await.json();
        let rows = answer["data"]["flow_run"]
            .as_array()
            .unwrap_or_else(|| panic!("{answer}"))
            .clone();
        rows.iter()
            .map(|row| row["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let where_of = async |client: &mut Client, filter: &str| {
        names(
            client,
            &format!("where: {{{filter}}}, order_by: [{{name: asc}}]"),
        )
        .await
    };
    assert_eq!(
        where_of(&mut client, "state: {_nin: [\"Scheduled\"]}").await,
        ["r4"]
    );
    assert_eq!(
        where_of(&mut client, "state: {_neq: \"Failed\"}")
            .await
            .len(),
        4
    );
    assert_eq!(
        where_of(&mut client, "_not: {state: {_eq: \"Scheduled\"}}").await,
        ["r4"]
    );
    assert_eq!(
        where_of(&mut client, "heartbeat: {_is_null: false}")
            .await
            .len(),
        0
    );
    assert_eq!(
        where_of(&mut client, "state_start_time: {_is_null: true}").await,
        ["r4"]
    );
    assert_eq!(
        where_of(
            &mut client,
            "agent_id: {_neq: \"00000000-0000-0000-0000-000000000001\"}"
        )
        .await
        .len(),
        0
    );
    let time = now + SignedDuration::from_secs(1);
    assert_eq!(
        where_of(
            &mut client,
            &format!("scheduled_start_time: {{_gt: \"{time}\"}}")
        )
        .await,
        ["r2", "r3", "r4"]
    );
    assert_eq!(where_of(&mut client, &format!("_and: [{{scheduled_start_time: {{_gte: \"{time}\"}}}}, {{state: {{_eq: \"Scheduled\"}}}}]")).await, ["r1", "r2", "r3"]);
    assert_eq!(
        names(
            &mut client,
            "order_by: [{scheduled_start_time: desc}], limit: 2, offset: 1"
        )
        .await,
        ["r3", "r2"]
    );
    let one = client
        .graphql(
            "query($id: uuid!) { flow_run_by_pk(id: $id) { state states { state } } }",
            json!({"id": ids[4]}),
        )
        .await
        .json();
    assert_eq!(
        one["data"]["flow_run_by_pk"]["states"],
        json!([{"state": "Scheduled"}, {"state": "Failed"}])
    );
    let none = client
        .graphql(
            "{ flow_run_by_pk(id: \"00000000-0000-4000-8000-000000000001\") { serialized_state } }",
            Value::Null,
        )
        .await
        .json();
    assert_eq!(none, json!({"data": {"flow_run_by_pk": null}}));
}

#[tokio::test]
async fn logs_keep_the_time_they_came_with() {
    let api = PrefectApi::start().await.unwrap();
    let mut client = Client::connect(&api.url()).await;
    let id = api.seed(FlowRunSeed::new());
    let query =
        "mutation($input: write_run_logs_input!) { write_run_logs(input: $input) { success } }";
    let logs = json!({"input": {"logs": [
        {"flow_run_id": id, "name": "agent", "message": "one", "level": "INFO"},
        {"flow_run_id": id, "name": "k8s-infra", "message": "two", "level": "ERROR", "timestamp": "2023-01-05T10:00:00+00:00"},
    ]}});
    let answer = client.graphql(query, logs).await.json();
    assert_eq!(answer["data"]["write_run_logs"]["success"], true);
    let logs = api.logs(id);
    assert_eq!(logs.len(), 2);
    assert_eq!(logs[0].timestamp, logs[0].arrived);
    assert_eq!(logs[1].timestamp, "2023-01-05T10:00:00Z".parse().unwrap());
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
async fn a_full_concurrency_limit_answers_queued() {
    let api = PrefectApi::start().await.unwrap();
    let mut client = Client::connect(&api.url()).await;
    let id = api.seed(FlowRunSeed::new());
    api.queue_run(id);
    let queued = client
        .graphql(SET_FLOW_RUN, set(id, json!(1), "Submitted"))
        .await
        .json();
    assert_eq!(
        queued["data"]["set_flow_run_states"]["states"][0]["status"],
        "QUEUED"
    );
    assert_eq!(api.state(id).unwrap(), "Scheduled");
    api.release_run(id);
    client
        .graphql(SET_FLOW_RUN, set(id, json!(1), "Submitted"))
        .await;
    assert_eq!(api.state(id).unwrap(), "Submitted");
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

#[test]
fn the_schema_names_its_types_as_hasura_does() {
    let sdl = PrefectApi::sdl();
    for name in [
        "scalar uuid",
        "scalar timestamptz",
        "scalar JSON",
        "input set_flow_run_states_input",
        "input get_runs_in_queue_input",
        "input flow_run_bool_exp",
        "input uuid_comparison_exp",
        "input String_comparison_exp",
        "input timestamptz_comparison_exp",
        "type query_root",
        "auth_info",
    ] {
        assert!(sdl.contains(name), "{name} in {sdl}");
    }
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
