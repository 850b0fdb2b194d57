//! What is asked, and what of the answers counts.

use futures::StreamExt;
use http::Method;
use serde_json::{Value, json};

use super::server::{Answer, Server};
use crate::support::SOON;

const JOBS: &str = "/apis/batch/v1/namespaces/NAMESPACE/jobs";
const PODS: &str = "/api/v1/namespaces/NAMESPACE/pods";
const EVENTS: &str = "/api/v1/namespaces/NAMESPACE/events";
const CONFIG_MAPS: &str = "/api/v1/namespaces/NAMESPACE/configmaps";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/NAMESPACE/leases";
const MERGE: &str = "application/merge-patch+json";

/// A Job that makes no pods before it is resumed.
fn suspended(name: &str) -> Value {
    let mut job = working(name, "true");
    job["spec"]["suspend"] = json!(true);
    job
}

/// A Job whose container runs a shell command.
fn working(name: &str, command: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"template": {"spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "flow",
                "image": "localhost/flow:e2e",
                "command": ["sh", "-c", command],
                "env": [{"name": "A", "value": "1"}],
            }],
        }}},
    })
}

fn config_map(name: &str, labels: Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels}, "data": {"a": "1"}})
}

pub(super) async fn creating(server: &mut Server) {
    let post = Method::POST;
    let created = server
        .step("a Job", post.clone(), JOBS, suspended("j"))
        .await;
    assert_eq!(created.status, 201);
    server
        .step("it again", post.clone(), JOBS, suspended("j"))
        .await;
    let dry = format!("{JOBS}?dryRun=All");
    server
        .step("a dry run", post.clone(), &dry, suspended("dry"))
        .await;
    let absent = server
        .ask(Method::GET, &format!("{JOBS}/dry"), Value::Null)
        .await;
    server.keep("of which nothing stays", &absent);
    let mut generated = suspended("j");
    generated["metadata"] = json!({"generateName": "etl-"});
    let generated = server.ask(post.clone(), JOBS, generated).await;
    let name = generated.body["metadata"]["name"]
        .as_str()
        .unwrap_or_default();
    server.note("the length of a generated name", json!(name.len()));
    let labels = json!({"metadata": {"labels": {"a": "b"}}});
    for (step, template, own) in [
        ("a Job whose pods have a label", &labels, &json!({})),
        ("a Job with a label", &json!({}), &labels),
    ] {
        let mut job = suspended("labelled");
        job["metadata"] = own["metadata"].clone();
        job["metadata"]["generateName"] = json!("labelled-");
        job["spec"]["template"]["metadata"] = template["metadata"].clone();
        let made = server.ask(post.clone(), JOBS, job).await;
        let labels = made.body["metadata"]["labels"].as_object();
        let names: Vec<&String> = labels.into_iter().flat_map(|all| all.keys()).collect();
        server.note(
            step,
            json!({"status": made.status, "labels of the Job": names}),
        );
    }
    server
        .step(
            "a config map",
            post,
            CONFIG_MAPS,
            config_map("c", json!({})),
        )
        .await;
}

pub(super) async fn refusing(server: &mut Server) {
    let post = Method::POST;
    let spec = "/spec/template/spec";
    let changed = |pointer: &str, value: Value| {
        let mut job = suspended("j");
        let (above, name) = pointer.rsplit_once('/').expect("a pointer");
        let above = job.pointer_mut(above).expect("there");
        match above {
            Value::Array(list) => list[name.parse::<usize>().expect("an index")] = value,
            above => above[name] = value,
        }
        job
    };
    for (step, job) in [
        ("no name", changed("/metadata", json!({}))),
        (
            "a name in capitals",
            changed("/metadata/name", json!("Capital")),
        ),
        (
            "a name that is too long",
            changed("/metadata/name", json!("a".repeat(64))),
        ),
        (
            "no containers",
            changed(&format!("{spec}/containers"), json!([])),
        ),
        (
            "no image",
            changed(&format!("{spec}/containers/0/image"), Value::Null),
        ),
        (
            "a number in the environment",
            changed(&format!("{spec}/containers/0/env/0/value"), json!(1)),
        ),
        (
            "a variable without a name",
            changed(&format!("{spec}/containers/0/env/0/name"), json!("")),
        ),
        (
            "a policy that Jobs may not have",
            changed(&format!("{spec}/restartPolicy"), json!("Always")),
        ),
        (
            "a mount of no volume",
            changed(
                &format!("{spec}/containers/0/volumeMounts"),
                json!([{"name": "v", "mountPath": "/v"}]),
            ),
        ),
        (
            "no quantity",
            changed(
                &format!("{spec}/containers/0/resources"),
                json!({"requests": {"cpu": "lots"}}),
            ),
        ),
        (
            "a request above the limit",
            changed(
                &format!("{spec}/containers/0/resources"),
                json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}),
            ),
        ),
        (
            "a label that is none",
            changed("/metadata/labels", json!({"a": "no spaces"})),
        ),
        (
            "another namespace",
            changed("/metadata/namespace", json!("other")),
        ),
        ("another kind", changed("/kind", json!("Pod"))),
        ("a negative limit", changed("/spec/backoffLimit", json!(-1))),
        ("a list for an object", changed("/spec", json!([]))),
        (
            "a resource version",
            changed("/metadata/resourceVersion", json!("1")),
        ),
    ] {
        server.step(step, post.clone(), JOBS, job).await;
    }
    let elsewhere = "/apis/batch/v1/namespaces/none/jobs";
    server
        .step("no such namespace", post.clone(), elsewhere, suspended("j"))
        .await;
    let mut unknown = suspended("j");
    unknown["spec"]["colour"] = json!("red");
    let strict = format!("{JOBS}?fieldValidation=Strict");
    server
        .step("an unknown field, strictly", post.clone(), &strict, unknown)
        .await;
    server
        .step(
            "no such Job",
            Method::GET,
            &format!("{JOBS}/none"),
            Value::Null,
        )
        .await;
    server
        .step(
            "no such pod",
            Method::GET,
            &format!("{PODS}/none"),
            Value::Null,
        )
        .await;
    server
        .step(
            "deleting no such Job",
            Method::DELETE,
            &format!("{JOBS}/none"),
            Value::Null,
        )
        .await;
    let text = server
        .send(post.clone(), JOBS, "text/plain", b"hello".to_vec())
        .await;
    server.note("plain text", json!(text.status));
    let broken = server
        .send(post, JOBS, "application/json", b"{".to_vec())
        .await;
    server.note(
        "half an object",
        json!({"status": broken.status, "reason": broken.body["reason"]}),
    );
}

pub(super) async fn patching(server: &mut Server) {
    let first = server.ask(Method::POST, JOBS, suspended("j")).await;
    let path = format!("{JOBS}/j");
    let patch = async |server: &mut Server, step: &str, path: &str, kind: &str, patch: Value| {
        let bytes = patch.to_string().into_bytes();
        let answer = server.send(Method::PATCH, path, kind, bytes).await;
        // The controller writes a status whenever it likes.
        let seen = match answer.status {
            200 => server.plain(&json!({"metadata": answer.body["metadata"], "suspend": answer.body["spec"]["suspend"]})),
            _ => server.plain(&answer.body),
        };
        let mut seen = seen;
        if let Some(metadata) = seen["metadata"].as_object_mut() {
            metadata.remove("generation");
        }
        server.note(step, json!({"status": answer.status, "body": seen}));
    };
    let note = json!({"metadata": {"annotations": {"a": "1", "b": "2"}}});
    patch(server, "annotations", &path, MERGE, note).await;
    let removed = json!({"metadata": {"annotations": {"a": null}}});
    patch(server, "one annotation less", &path, MERGE, removed).await;
    let json_patch = "application/json-patch+json";
    let replaced = json!([{"op": "replace", "path": "/metadata/annotations/b", "value": "3"}]);
    patch(server, "a JSON patch", &path, json_patch, replaced).await;
    let failing = json!([{"op": "test", "path": "/metadata/annotations/b", "value": "9"}]);
    patch(
        server,
        "a JSON patch whose test fails",
        &path,
        json_patch,
        failing,
    )
    .await;
    let old = &first.body["metadata"]["resourceVersion"];
    let late = json!({"metadata": {"resourceVersion": old, "annotations": {"c": "1"}}});
    patch(server, "an outdated version", &path, MERGE, late).await;
    let template = json!({"spec": {"template": {"spec": {"priority": 7, "dnsPolicy": "Default"}}}});
    patch(server, "an immutable template", &path, MERGE, template).await;
    let status = json!({"status": {"succeeded": 1}});
    patch(
        server,
        "a status, where it has no effect",
        &path,
        MERGE,
        status,
    )
    .await;
    let resumed = json!({"spec": {"parallelism": 0, "suspend": false}});
    patch(server, "resumed", &path, MERGE, resumed).await;
    patch(
        server,
        "no such Job",
        &format!("{JOBS}/none"),
        MERGE,
        json!({}),
    )
    .await;
    patch(
        server,
        "no such kind of patch",
        &path,
        "text/plain",
        json!({}),
    )
    .await;
}

pub(super) async fn listing(server: &mut Server) {
    for (name, labels) in [
        ("a", json!({"app": "x", "tier": "1"})),
        ("b", json!({"app": "y"})),
        ("c", json!({"app": "x"})),
        ("d", json!({})),
    ] {
        server
            .ask(Method::POST, CONFIG_MAPS, config_map(name, labels))
            .await;
    }
    for (step, query) in [
        ("equal", "labelSelector=app%3Dx"),
        ("twice equal", "labelSelector=app%3D%3Dx"),
        ("unequal", "labelSelector=app%21%3Dx"),
        ("in", "labelSelector=app+in+%28x%2Cy%29"),
        ("not in", "labelSelector=app+notin+%28x%29"),
        ("there", "labelSelector=tier"),
        ("not there", "labelSelector=%21app"),
        ("both", "labelSelector=app%3Dx%2Ctier"),
        ("by name", "fieldSelector=metadata.name%3Db"),
        ("not by name", "fieldSelector=metadata.name%21%3Db"),
        ("no selector", "labelSelector=app%3D%3D%3D"),
        ("no such field", "fieldSelector=spec.colour%3Dred"),
        ("no version", "resourceVersion=abc"),
        ("any version", "resourceVersion=0"),
        ("a match without a version", "resourceVersionMatch=Exact"),
        ("no number", "limit=abc"),
    ] {
        let answer = server
            .ask(Method::GET, &format!("{CONFIG_MAPS}?{query}"), Value::Null)
            .await;
        names(server, step, &answer);
    }
    let first = format!("{CONFIG_MAPS}?limit=2&labelSelector=app");
    let page = server.ask(Method::GET, &first, Value::Null).await;
    names(server, "a selected page", &page);
    let token = page.body["metadata"]["continue"]
        .as_str()
        .unwrap_or_default();
    let rest = format!("{first}&continue={token}");
    let page = server.ask(Method::GET, &rest, Value::Null).await;
    names(server, "the next page", &page);
    let wrong = format!("{CONFIG_MAPS}?limit=2&continue=nonsense");
    let page = server.ask(Method::GET, &wrong, Value::Null).await;
    names(server, "after nonsense", &page);
}

/// Keeps the names in a list, or the refusal.
fn names(server: &mut Server, step: &str, list: &Answer) {
    let Some(items) = list.body["items"].as_array() else {
        return server.keep(step, list);
    };
    let names: Vec<&Value> = items
        .iter()
        .map(|item| &item["metadata"]["name"])
        // Made by a controller in every namespace.
        .filter(|name| *name != "kube-root-ca.crt")
        .collect();
    let seen = json!({"names": names, "kind": list.body["kind"], "metadata": server.plain(&list.body["metadata"])});
    let mut seen = seen;
    if let Some(metadata) = seen["metadata"].as_object_mut() {
        metadata.remove("remainingItemCount");
    }
    server.note(step, seen);
}

pub(super) async fn deleting(server: &mut Server) {
    let delete = |policy: &str| json!({"propagationPolicy": policy});
    for name in ["back", "fore", "orphan"] {
        server.ask(Method::POST, JOBS, suspended(name)).await;
    }
    let wrong = json!({"preconditions": {"uid": "00000000-0000-4000-8000-000000000000"}});
    let path = format!("{JOBS}/back");
    let refused = server.ask(Method::DELETE, &path, wrong).await;
    let message = refused.body["message"].as_str().unwrap_or_default();
    let message = message.split("UID in record").next();
    server.note(
        "another uid",
        json!({"status": refused.status, "reason": refused.body["reason"], "message": message}),
    );
    server
        .step(
            "in the background",
            Method::DELETE,
            &path,
            delete("Background"),
        )
        .await;
    server
        .step("it is gone", Method::GET, &path, Value::Null)
        .await;
    let path = format!("{JOBS}/fore");
    let going = server
        .ask(Method::DELETE, &path, delete("Foreground"))
        .await;
    let metadata = server.plain(&going.body["metadata"]);
    server.note("in the foreground", json!({
        "status": going.status, "kind": going.body["kind"],
        "finalizers": metadata["finalizers"], "deletionTimestamp": metadata["deletionTimestamp"],
        "deletionGracePeriodSeconds": metadata["deletionGracePeriodSeconds"],
    }));
    server.until(&path, |answer| answer.status == 404).await;
    server
        .step(
            "no such policy",
            Method::DELETE,
            &format!("{JOBS}/orphan"),
            delete("Sideways"),
        )
        .await;
    let held = json!({"metadata": {"name": "held", "finalizers": ["test.example/hold"]}});
    server.ask(Method::POST, CONFIG_MAPS, held).await;
    let path = format!("{CONFIG_MAPS}/held");
    server
        .step("held up", Method::DELETE, &path, Value::Null)
        .await;
    let released = json!({"metadata": {"finalizers": null}})
        .to_string()
        .into_bytes();
    let released = server.send(Method::PATCH, &path, MERGE, released).await;
    server.note("released", json!(released.status));
    server.until(&path, |answer| answer.status == 404).await;
}

pub(super) async fn watching(server: &mut Server) {
    let first = server
        .ask(
            Method::POST,
            CONFIG_MAPS,
            config_map("a", json!({"app": "x"})),
        )
        .await;
    let version = first.body["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let path = format!("{CONFIG_MAPS}?watch=true&labelSelector=app%3Dx&resourceVersion={version}");
    let mut events = server.watch(&path).await;
    server
        .ask(
            Method::POST,
            CONFIG_MAPS,
            config_map("b", json!({"app": "y"})),
        )
        .await;
    let label = |value: &str| {
        json!({"metadata": {"labels": {"app": value}}})
            .to_string()
            .into_bytes()
    };
    for (name, value) in [("b", "x"), ("a", "x2"), ("a", "x"), ("b", "z")] {
        let path = format!("{CONFIG_MAPS}/{name}");
        server.send(Method::PATCH, &path, MERGE, label(value)).await;
    }
    server
        .ask(Method::DELETE, &format!("{CONFIG_MAPS}/a"), Value::Null)
        .await;
    for step in 0..5 {
        let event = tokio::time::timeout(SOON, events.next()).await;
        let event = event.expect("an event in time").expect("an event");
        let seen = server.plain(&event);
        server.note(&format!("event {step}"), seen);
    }
    let path = format!("{CONFIG_MAPS}?watch=true&resourceVersion=abc");
    server
        .step("from no version", Method::GET, &path, Value::Null)
        .await;
    let path = format!("{CONFIG_MAPS}?watch=true&timeoutSeconds=abc");
    server
        .step("for no time", Method::GET, &path, Value::Null)
        .await;
    let path = format!("{CONFIG_MAPS}?watch=true&sendInitialEvents=true");
    server
        .step(
            "initial events without a match",
            Method::GET,
            &path,
            Value::Null,
        )
        .await;
}

pub(super) async fn leasing(server: &mut Server) {
    let lease = json!({
        "metadata": {"name": "agent"},
        "spec": {"holderIdentity": "a", "leaseDurationSeconds": 15, "renewTime": "2026-01-02T03:04:05.123456Z"},
    });
    let path = format!("{LEASES}/agent");
    let first = server
        .step("made", Method::POST, LEASES, lease.clone())
        .await;
    server
        .step("made twice", Method::POST, LEASES, lease.clone())
        .await;
    let mut taken = first.body.clone();
    taken["spec"]["holderIdentity"] = json!("b");
    server
        .step("taken over", Method::PUT, &path, taken.clone())
        .await;
    server
        .step("taken over too late", Method::PUT, &path, taken)
        .await;
    let mut wrong = lease;
    wrong["spec"]["leaseDurationSeconds"] = json!(0);
    wrong["metadata"]["name"] = json!("other");
    server
        .step("for no time", Method::POST, LEASES, wrong)
        .await;
}

/// Waits until a Job has a condition; keeps its status.
async fn ends(server: &mut Server, name: &str, condition: &str) {
    let path = format!("{JOBS}/{name}");
    let job = server
        .until(&path, |answer| {
            let conditions = answer.body["status"]["conditions"].as_array();
            conditions.is_some_and(|all| all.iter().any(|one| one["type"] == condition))
        })
        .await;
    let status = server.plain(&job.body["status"]);
    server.note("the Job's status", status);
}

/// Keeps what the pods of a Job came to, and the events about Job and pods.
async fn aftermath(server: &mut Server, name: &str, last_event: &str) {
    let pods = format!("{PODS}?labelSelector=job-name%3D{name}");
    let pods = server
        .until(&pods, |answer| {
            let items = answer.body["items"].as_array();
            items.is_some_and(|pods| {
                pods.iter()
                    .all(|pod| pod["metadata"]["finalizers"].is_null() && sandbox_is_gone(pod))
            })
        })
        .await;
    for pod in pods.body["items"].as_array().into_iter().flatten() {
        let pod = server.plain(pod);
        let container = &pod["status"]["containerStatuses"][0];
        let mut ended = container["state"]["terminated"].clone();
        if let Some(ended) = ended.as_object_mut() {
            ended.remove("containerID");
        }
        let owner = &pod["metadata"]["ownerReferences"][0];
        let seen = json!({
            "phase": pod["status"]["phase"], "state": ended, "labels": pod["metadata"]["labels"],
            "owner": owner, "restartCount": container["restartCount"], "ready": container["ready"],
            "conditions": conditions(&pod["status"]["conditions"]),
        });
        server.note("a pod", seen);
    }
    let path =
        format!("{EVENTS}?fieldSelector=involvedObject.kind%3DJob%2CinvolvedObject.name%3D{name}");
    let events = server
        .until(&path, |answer| {
            let items = answer.body["items"].as_array();
            items.is_some_and(|events| events.iter().any(|event| event["reason"] == last_event))
        })
        .await;
    // Lists are in the order of names, which are made by chance.
    let mut all = Vec::new();
    for event in events.body["items"].as_array().into_iter().flatten() {
        let event = server.plain(event);
        let object = &event["involvedObject"];
        let message = event["message"].as_str().unwrap_or_default();
        let seen = json!({
            "reason": event["reason"], "type": event["type"], "source": event["source"],
            "kind": object["kind"], "apiVersion": object["apiVersion"],
            "reportingComponent": event["reportingComponent"],
            // A pod's name ends in characters by chance.
            "message": message.split(&format!("{name}-")).next(),
        });
        all.push(seen);
    }
    all.sort_by_key(|event| event["reason"].to_string());
    for event in all {
        server.note("an event of the Job", event);
    }
}

/// Whether the kubelet has told the last thing about a pod.
fn sandbox_is_gone(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| {
        condition["type"] == "PodReadyToStartContainers" && condition["status"] == "False"
    })
}

fn conditions(conditions: &Value) -> Value {
    let mut seen: Vec<Value> = conditions
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| json!({"type": one["type"], "status": one["status"], "reason": one["reason"]}))
        .collect();
    seen.sort_by_key(|one| one["type"].to_string());
    seen.into()
}

pub(super) async fn succeeding(server: &mut Server) {
    server
        .ask(Method::POST, JOBS, working("works", "true"))
        .await;
    ends(server, "works", "Complete").await;
    aftermath(server, "works", "Completed").await;
}

pub(super) async fn failing(server: &mut Server) {
    let mut job = working("exits", "exit 3");
    job["spec"]["backoffLimit"] = json!(0);
    server.ask(Method::POST, JOBS, job).await;
    ends(server, "exits", "Failed").await;
    aftermath(server, "exits", "BackoffLimitExceeded").await;
}

pub(super) async fn backing_off(server: &mut Server) {
    let mut job = working("exits", "exit 3");
    job["spec"]["backoffLimit"] = json!(1);
    server.ask(Method::POST, JOBS, job).await;
    ends(server, "exits", "Failed").await;
    aftermath(server, "exits", "BackoffLimitExceeded").await;
}
