//! States of Prefect 1: reading what the API returns, writing what it is sent.

use agent_core::{Phase, State};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::time;

/// The version of Prefect whose protocol this client speaks. The server keeps it with the
/// agent's registration; an agent gets its earlier id back only with the same version.
pub(crate) const CORE_VERSION: &str = "1.4.1";

/// The state types of runs that have ended.
pub(crate) const FINISHED: [&str; 11] = [
    "Cached",
    "Cancelled",
    "Failed",
    "Finished",
    "Looped",
    "Mapped",
    "Skipped",
    "Success",
    "TimedOut",
    "TriggerFailed",
    "ValidationFailed",
];

/// What a state type means for an agent.
pub(crate) fn phase(name: &str) -> Phase {
    match name {
        "Scheduled" | "Paused" | "Resume" | "Retrying" | "Queued" => Phase::Scheduled,
        "Submitted" => Phase::Submitted,
        "Running" | "Cancelling" => Phase::Running,
        name if FINISHED.contains(&name) => Phase::Finished,
        _ => Phase::Other,
    }
}

/// The [`State`] with this name.
pub(crate) fn state(name: &str) -> State {
    State {
        name: name.to_owned(),
        phase: phase(name),
        message: None,
    }
}

/// Whether a serialized state counts as scheduled: only such a state is claimed.
pub(crate) fn is_scheduled(state: &Value) -> bool {
    phase(kind(state)) == Phase::Scheduled
}

/// The type of a serialized state; empty when it has none.
pub(crate) fn kind(state: &Value) -> &str {
    state["type"].as_str().unwrap_or_default()
}

/// What a state that wraps another one holds, all the way in.
fn unwrapped(mut state: &Value) -> &Value {
    while matches!(kind(state), "Submitted" | "Queued" | "ClientFailed") {
        state = &state["state"];
    }
    state
}

/// What a serialized state says for people, if anything.
pub(crate) fn message(state: &Value) -> Option<&str> {
    state["message"].as_str()
}

/// The time for which a state is scheduled: its own, or that of the state it wraps.
pub(crate) fn start_time(state: &Value) -> Option<Timestamp> {
    let own = |state: &Value| state["start_time"].as_str().and_then(time::parse);
    own(state).or_else(|| own(unwrapped(state)))
}

/// The time for which a state, or the one that it wraps, was scheduled at first: neither a claim nor a
/// limit that keeps it in the queue changes that.
pub(crate) fn wanted_time(state: &Value) -> Option<Timestamp> {
    let first = unwrapped(state)["start_time"].as_str();
    first.and_then(time::parse).or_else(|| start_time(state))
}

/// The member of a claim's context that says for which place it was made.
const PLACE: &str = "kubernetes";

/// For which place a run or a task run was claimed, if its claim says so.
pub(crate) fn place(state: &Value) -> Option<&str> {
    state["context"][PLACE].as_str()
}

/// Submitted around a state, as this client claims a run or a task run for a place.
pub(crate) fn submitted(state: &Value, message: &str, place: Option<&str>) -> Value {
    let mut submitted = common("Submitted", message);
    if let Some(place) = place {
        submitted.insert("context".to_owned(), json!({PLACE: place}));
    }
    submitted.insert("state".to_owned(), rewritten(unwrapped(state)));
    Value::Object(submitted)
}

/// Returns of a scheduled state no more than its type and its time.
pub(crate) fn bare(state: &Value) -> Value {
    let time = wanted_time(state).map_or(Value::Null, |at| time::format(at).into());
    json!({"type": kind(state), "start_time": time})
}

/// Failed, with a message for the run's owner.
pub(crate) fn failed(message: &str) -> Value {
    Value::Object(common("Failed", message))
}

fn common(kind: &str, message: &str) -> Map<String, Value> {
    let state = json!({
        "type": kind,
        "message": message,
        "__version__": CORE_VERSION,
        "context": {},
        "cached_inputs": {},
        "_result": no_result(),
    });
    match state {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn no_result() -> Value {
    json!({"type": "NoResultType", "__version__": CORE_VERSION})
}

/// A state read and written again: known members only, with this client's version.
fn rewritten(state: &Value) -> Value {
    let Value::Object(read) = state else {
        return Value::Null;
    };
    let kind = kind(state);
    let mut written = Map::new();
    for (member, value) in read {
        let known = match member.as_str() {
            "type" | "message" | "context" | "cached_inputs" => true,
            "_result" => kind != "Mapped",
            "start_time" => phase(kind) == Phase::Scheduled,
            "run_count" => kind == "Retrying",
            "loop_count" => kind == "Looped",
            "n_map_states" => kind == "Mapped",
            "cached_parameters" | "cached_result_expiration" | "hashed_inputs" => kind == "Cached",
            _ => false,
        };
        if known {
            let value = match member.as_str() {
                "_result" => result(value),
                "start_time" => value
                    .as_str()
                    .and_then(time::parse)
                    .map_or(Value::Null, |at| time::format(at).into()),
                _ => value.clone(),
            };
            written.insert(member.clone(), value);
        }
    }
    for (member, default) in [
        ("message", Value::Null),
        ("context", json!({})),
        ("cached_inputs", json!({})),
    ] {
        written.entry(member).or_insert(default);
    }
    if kind != "Mapped" {
        written.entry("_result").or_insert_with(no_result);
    }
    written.insert("__version__".to_owned(), CORE_VERSION.into());
    Value::Object(written)
}

/// A result of any kind keeps its members but carries this client's version.
fn result(result: &Value) -> Value {
    match result {
        Value::Object(members) => {
            let mut members = members.clone();
            members.insert("__version__".to_owned(), CORE_VERSION.into());
            Value::Object(members)
        }
        _ => no_result(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduled() -> Value {
        json!({"type": "Scheduled", "message": "Flow run scheduled.", "start_time": "2023-01-05T10:00:05+00:00",
            "context": {"tags": []}, "cached_inputs": {}, "_result": {"type": "NoResultType", "__version__": "0.15.0"},
            "__version__": "0.15.0", "color": "yellow"})
    }

    fn scheduled_again() -> Value {
        json!({"type": "Scheduled", "message": "Flow run scheduled.", "start_time": "2023-01-05T10:00:05+00:00",
            "context": {"tags": []}, "cached_inputs": {}, "_result": {"type": "NoResultType", "__version__": "1.4.1"},
            "__version__": "1.4.1"})
    }

    #[test]
    fn submitted_wraps_the_scheduled_state_read_and_written_again() {
        let submitted = submitted(&scheduled(), "Submitted for execution", None);
        let expected = json!({"type": "Submitted", "message": "Submitted for execution", "__version__": "1.4.1",
            "context": {}, "cached_inputs": {}, "_result": {"type": "NoResultType", "__version__": "1.4.1"},
            "state": scheduled_again()});
        assert_eq!(submitted, expected);
    }

    #[test]
    fn wrapping_removes_wrappers() {
        let queued = json!({"type": "Queued", "start_time": "2023-01-05T10:00:35+00:00", "state": scheduled()});
        assert_eq!(submitted(&queued, "", None)["state"], scheduled_again());
        let empty = json!({"type": "Queued", "state": null});
        assert_eq!(submitted(&empty, "", None)["state"], Value::Null);
    }

    #[test]
    fn the_start_time_is_the_same_before_and_after_the_claim() {
        let before = scheduled();
        let after = submitted(
            &before,
            "Submitted for execution",
            Some("flows in a-cluster"),
        );
        assert_eq!(place(&after), Some("flows in a-cluster"));
        assert_eq!(place(&before), None);
        assert_eq!(start_time(&before), start_time(&after));
        assert!(start_time(&before).is_some());
        assert_eq!(start_time(&json!({"type": "Running"})), None);
    }

    #[test]
    fn only_scheduled_states_are_claimed() {
        for (kind, scheduled) in [
            ("Scheduled", true),
            ("Retrying", true),
            ("Running", false),
            ("Submitted", false),
            ("Success", false),
            ("New", false),
        ] {
            assert_eq!(is_scheduled(&json!({"type": kind})), scheduled, "{kind}");
        }
        assert!(!is_scheduled(&Value::Null));
    }
}
