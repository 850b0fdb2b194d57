//! From the bytes of an answer to what the agent works with.

use agent_api_client::decode;
use serde_json::{Value, json};

fn main() {
    divan::main();
}

fn id(n: usize) -> String {
    format!("c0ffee00-0000-4000-8000-{n:012x}")
}

fn answer(runs: usize, row: impl Fn(usize) -> Value) -> Vec<u8> {
    let rows: Vec<Value> = (0..runs).map(row).collect();
    json!({"data": {"flow_run": rows}}).to_string().into_bytes()
}

/// A queued run of a flow in an image of its own, as the API describes it.
fn row(n: usize) -> Value {
    json!({
        "id": id(n),
        "version": 2,
        "name": format!("busy-bee-{n}"),
        "scheduled_start_time": "2030-01-01T12:00:00.000000+00:00",
        "serialized_state": {
            "type": "Scheduled", "message": "Flow run scheduled.", "result": null, "context": {},
            "cached_inputs": {}, "start_time": "2030-01-01T12:00:00.000000+00:00",
            "_result": {"type": "NoResultType", "__version__": "1.4.1"}, "__version__": "1.4.1",
        },
        "run_config": {
            "type": "KubernetesRun", "labels": ["etl"], "env": {"STAGE": "production"},
            "image": "registry.example.com/flows/etl:2030.1", "cpu_request": "500m",
            "memory_limit": "2Gi", "image_pull_secrets": ["registry"], "job_template": null,
            "job_template_path": null, "service_account_name": "etl", "__version__": "1.4.1",
        },
        "flow": {
            "id": id(n % 10), "name": "etl", "environment": null, "core_version": "1.4.1",
            "storage": {
                "type": "Docker", "prefect_version": "1.4.1", "image_name": "flows/etl",
                "image_tag": "2030.1", "registry_url": "registry.example.com",
                "flows": {"etl": "/opt/prefect/flows/etl.prefect"}, "__version__": "1.4.1",
            },
        },
        "task_runs": [],
    })
}

#[divan::bench(args = [100])]
fn ready(bencher: divan::Bencher<'_, '_>, runs: usize) {
    let answer = answer(runs, row);
    let decode = || decode::ready(divan::black_box(&answer));
    assert!(decode().is_ok_and(|decoded| decoded.len() == runs));
    bencher
        .counter(divan::counter::ItemsCount::new(runs))
        .bench(decode);
}

#[divan::bench(args = [500])]
fn states(bencher: divan::Bencher<'_, '_>, runs: usize) {
    let state = json!({
        "type": "Running", "message": "Running flow.", "result": null, "context": {},
        "cached_inputs": {}, "__version__": "1.4.1",
    });
    let row =
        |n| json!({"id": id(n), "state": "Running", "agent_id": id(0), "serialized_state": state});
    let answer = answer(runs, row);
    let decode = || decode::states(divan::black_box(&answer));
    assert!(decode().is_ok_and(|decoded| decoded.len() == runs));
    bencher
        .counter(divan::counter::ItemsCount::new(runs))
        .bench(decode);
}
