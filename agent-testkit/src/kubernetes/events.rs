//! Events about Jobs and pods, in the two styles in which clusters hold them.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Value, json};

use super::cluster::Cluster;
use super::kinds::EVENTS;
use super::object::{Key, text};
use super::store::Store;
use crate::clock::rfc3339_seconds;

/// One event to record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Note<'a> {
    pub(crate) warning: bool,
    pub(crate) reason: &'a str,
    pub(crate) message: &'a str,
    /// Who reports it. The scheduler uses the newer style, which has `eventTime` only.
    pub(crate) component: &'static str,
    /// The container it is about.
    pub(crate) container: Option<&'a str>,
}

impl Cluster {
    /// Records an event about `object`; the same event again raises its count.
    pub(crate) fn record(&self, object: &Value, note: Note<'_>) {
        let now = self.clock.now();
        let namespace = text(object, "/metadata/namespace");
        let uid = text(object, "/metadata/uid");
        let name = text(object, "/metadata/name");
        let mut hasher = DefaultHasher::new();
        (uid, note.reason, note.message).hash(&mut hasher);
        let key = Key::new(namespace, format!("{name}.{:016x}", hasher.finish()));
        let mut store = self.store();
        if let Some(value) = seen_again(&store, &key, &rfc3339_seconds(now)) {
            store.put(EVENTS, value);
            drop(store);
            self.changes.mark();
            return;
        }
        let mut about = json!({
            "apiVersion": object["apiVersion"], "kind": object["kind"], "namespace": namespace,
            "name": name, "uid": uid, "resourceVersion": object["metadata"]["resourceVersion"],
        });
        if let Some(container) = note.container {
            about["fieldPath"] = json!(format!("spec.containers{{{container}}}"));
        }
        let seconds = rfc3339_seconds(now);
        let mut event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {
                "name": key.name, "namespace": namespace, "uid": store.new_uid(),
                "creationTimestamp": seconds,
            },
            "involvedObject": about,
            "type": if note.warning { "Warning" } else { "Normal" },
            "reason": note.reason, "message": note.message,
            "reportingComponent": note.component, "reportingInstance": "",
        });
        if note.component == "default-scheduler" {
            event["eventTime"] = json!(now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string());
            event["action"] = json!("Binding");
            event["reportingInstance"] = json!("default-scheduler-testkit");
            event["source"] = json!({});
        } else {
            event["firstTimestamp"] = json!(seconds);
            event["lastTimestamp"] = json!(seconds);
            event["count"] = json!(1);
            event["source"] = match note.component {
                "kubelet" => json!({"component": "kubelet", "host": super::kubelet::NODE_NAME}),
                component => json!({"component": component}),
            };
        }
        store.put(EVENTS, event);
        drop(store);
        self.changes.mark();
    }
}

fn seen_again(store: &Store, key: &Key, now: &str) -> Option<Value> {
    let mut event = store.get(EVENTS, key)?.value.clone();
    if event["eventTime"].is_string() {
        let count = event["series"]["count"].as_i64().unwrap_or(1);
        let last = format!("{}.000000Z", now.trim_end_matches('Z'));
        event["series"] = json!({"count": count + 1, "lastObservedTime": last});
    } else {
        event["count"] = json!(event["count"].as_i64().unwrap_or(1) + 1);
        event["lastTimestamp"] = json!(now);
    }
    Some(event)
}
