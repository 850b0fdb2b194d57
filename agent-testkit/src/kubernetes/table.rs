//! Tables, which `kubectl get` prints.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::kinds::{EVENTS, JOBS, KindId, NAMESPACES, PODS};
use super::object::{Stored, items, number, text};
use crate::clock::parse_time;

/// Name and priority; 0 is always shown, 1 with `-o wide` only.
type Column = (&'static str, u8);

fn columns(kind: KindId) -> &'static [Column] {
    match kind {
        JOBS => &[
            ("Name", 0),
            ("Status", 0),
            ("Completions", 0),
            ("Duration", 0),
            ("Age", 0),
            ("Containers", 1),
            ("Images", 1),
        ],
        PODS => &[
            ("Name", 0),
            ("Ready", 0),
            ("Status", 0),
            ("Restarts", 0),
            ("Age", 0),
            ("Node", 1),
        ],
        EVENTS => &[
            ("Last Seen", 0),
            ("Type", 0),
            ("Reason", 0),
            ("Object", 0),
            ("Message", 0),
            ("Name", 1),
        ],
        NAMESPACES => &[("Name", 0), ("Status", 0), ("Age", 0)],
        _ => &[("Name", 0), ("Age", 0)],
    }
}

/// A table of `objects`.
pub(crate) fn table(kind: KindId, objects: &[Stored], metadata: Value, now: Timestamp) -> Value {
    let columns: Vec<Value> = columns(kind)
        .iter()
        .map(|(name, priority)| {
            let format = if *name == "Name" { "name" } else { "" };
            json!({"name": name, "type": "string", "format": format, "description": name, "priority": priority})
        })
        .collect();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let partial = json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                "metadata": object.value["metadata"],
            });
            json!({"cells": cells(kind, &object.value, now), "object": partial})
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": columns, "rows": rows,
    })
}

fn cells(kind: KindId, value: &Value, now: Timestamp) -> Vec<Value> {
    let name = json!(text(value, "/metadata/name"));
    let age = json!(since(text(value, "/metadata/creationTimestamp"), now));
    match kind {
        JOBS => {
            let pod = "/spec/template/spec/containers";
            vec![
                name,
                json!(job_status(value)),
                json!(completions(value)),
                json!(job_duration(value, now)),
                age,
                json!(joined(value, pod, "name")),
                json!(joined(value, pod, "image")),
            ]
        }
        PODS => {
            let statuses = || items(value, "/status/containerStatuses");
            let ready = statuses().filter(|one| one["ready"] == true).count();
            let restarts: i64 = statuses()
                .filter_map(|one| one["restartCount"].as_i64())
                .sum();
            let all = items(value, "/spec/containers").count();
            vec![
                name,
                json!(format!("{ready}/{all}")),
                json!(pod_status(value)),
                json!(restarts.to_string()),
                age,
                json!(text(value, "/spec/nodeName")),
            ]
        }
        EVENTS => {
            let object = &value["involvedObject"];
            let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
            let last = [
                "/lastTimestamp",
                "/eventTime",
                "/metadata/creationTimestamp",
            ];
            let last = last
                .iter()
                .map(|place| text(value, place))
                .find(|time| !time.is_empty());
            vec![
                json!(since(last.unwrap_or_default(), now)),
                json!(text(value, "/type")),
                json!(text(value, "/reason")),
                json!(format!(
                    "{kind}/{}",
                    object["name"].as_str().unwrap_or_default()
                )),
                json!(text(value, "/message")),
                name,
            ]
        }
        NAMESPACES => vec![name, json!(text(value, "/status/phase")), age],
        _ => vec![name, age],
    }
}

fn joined(value: &Value, list: &str, member: &str) -> String {
    let parts: Vec<&str> = items(value, list)
        .filter_map(|one| one[member].as_str())
        .collect();
    parts.join(",")
}

fn has_condition(value: &Value, kind: &str) -> bool {
    items(value, "/status/conditions").any(|one| one["type"] == kind && one["status"] == "True")
}

fn job_status(job: &Value) -> &'static str {
    if has_condition(job, "Complete") {
        "Complete"
    } else if has_condition(job, "Failed") {
        "Failed"
    } else if super::object::is_deleting(job) {
        "Terminating"
    } else if job["spec"]["suspend"] == true {
        "Suspended"
    } else {
        "Running"
    }
}

fn completions(job: &Value) -> String {
    let done = number(job, "/status/succeeded").unwrap_or(0);
    format!("{done}/{}", number(job, "/spec/completions").unwrap_or(1))
}

fn job_duration(job: &Value, now: Timestamp) -> String {
    let Some(start) = parse_time(text(job, "/status/startTime")) else {
        return String::new();
    };
    let end = parse_time(text(job, "/status/completionTime")).unwrap_or(now);
    human(end.duration_since(start).as_secs())
}

fn pod_status(pod: &Value) -> String {
    if super::object::is_deleting(pod) {
        return "Terminating".into();
    }
    let reason = text(pod, "/status/reason");
    let of_container = items(pod, "/status/containerStatuses").find_map(|one| {
        let state = &one["state"];
        let reasons = [&state["waiting"]["reason"], &state["terminated"]["reason"]];
        reasons.into_iter().find_map(Value::as_str)
    });
    let phase = text(pod, "/status/phase");
    match (reason, of_container) {
        ("", Some(reason)) => reason.to_owned(),
        ("", None) => phase.to_owned(),
        (reason, _) => reason.to_owned(),
    }
}

fn since(time: &str, now: Timestamp) -> String {
    match parse_time(time) {
        Some(time) => human(now.duration_since(time).as_secs()),
        None => "<unknown>".into(),
    }
}

/// A duration as short as kubectl shows it.
fn human(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        i64::MIN..=0 => "0s".into(),
        1..=119 => format!("{seconds}s"),
        120..=599 if seconds % 60 > 0 => format!("{minutes}m{}s", seconds % 60),
        120..=10_799 => format!("{minutes}m"),
        10_800..=28_799 if minutes % 60 > 0 => format!("{hours}h{}m", minutes % 60),
        10_800..=172_799 => format!("{hours}h"),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        let shown: Vec<String> = [0, 90, 150, 900, 11_000, 90_000, 200_000].map(human).into();
        assert_eq!(shown, ["0s", "90s", "2m30s", "15m", "3h3m", "25h", "2d"]);
    }
}
