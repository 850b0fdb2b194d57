//! The Prefect API over real HTTP.

use std::time::Duration;

use agent_testkit::prefect::{FlowRunSeed, PrefectApi};
use hyper::http::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::Client;

pub(crate) const SET_FLOW_RUN: &str = "mutation($input: set_flow_run_states_input!) {
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

pub(crate) fn set(id: Uuid, version: Value, kind: &str) -> Value {
    json!({"input": {"states": [{"flow_run_id": id, "version": version, "state": state(kind)}]}})
}

pub(crate) fn error_of(answer: &crate::support::Answer) -> String {
    answer.json()["errors"][0]["message"]
        .as_str()
        .unwrap_or("")
        .to_owned()
}

pub(crate) async fn queue(
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
