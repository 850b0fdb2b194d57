//! What the server tells about itself.

use serde_json::{Value, json};

use super::kinds::{KINDS, Kind};

const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// The answer at a fixed path, if there is one.
pub(crate) fn answer(path: &str) -> Option<Value> {
    let segments: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match segments.as_slice() {
        ["version"] => Some(version()),
        ["api"] => Some(json!({
            "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [],
        })),
        ["apis"] => {
            let groups: Vec<Value> = groups().into_iter().map(group).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["api", "v1"] => Some(resources("", "v1")),
        ["apis", name] => groups().contains(name).then(|| {
            let mut found = group(name);
            found["kind"] = json!("APIGroup");
            found["apiVersion"] = json!("v1");
            found
        }),
        ["apis", name, "v1"] => groups()
            .contains(name)
            .then(|| resources(name, &format!("{name}/v1"))),
        _ => None,
    }
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "33", "gitVersion": "v1.33.0", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "2025-04-23T13:00:00Z", "goVersion": "go1.24", "compiler": "gc",
        "platform": "linux/amd64",
    })
}

fn groups() -> Vec<&'static str> {
    let mut groups: Vec<&str> = KINDS.iter().map(|kind| kind.group).collect();
    groups.push("authorization.k8s.io");
    groups.retain(|group| !group.is_empty());
    groups.dedup();
    groups
}

fn group(name: &str) -> Value {
    let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
    json!({"name": name, "versions": [version], "preferredVersion": version})
}

fn resources(group: &str, group_version: &str) -> Value {
    let of_group = KINDS.iter().filter(|kind| kind.group == group);
    let mut resources: Vec<Value> = of_group.flat_map(resource).collect();
    if group == "authorization.k8s.io" {
        resources.push(json!({
            "name": "selfsubjectaccessreviews", "singularName": "selfsubjectaccessreview",
            "namespaced": false, "kind": "SelfSubjectAccessReview", "verbs": ["create"],
        }));
    }
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version,
        "resources": resources,
    })
}

fn resource(kind: &Kind) -> Vec<Value> {
    let mut main = json!({
        "name": kind.plural, "singularName": kind.kind.to_lowercase(), "namespaced": kind.namespaced,
        "kind": kind.kind, "verbs": VERBS, "shortNames": kind.short,
    });
    if matches!(kind.kind, "Pod" | "Job" | "Deployment") {
        main["categories"] = json!(["all"]);
    }
    let mut found = vec![main];
    let mut sub = |name: &str, verbs: &[&str]| {
        found.push(json!({
            "name": format!("{}/{name}", kind.plural), "singularName": "",
            "namespaced": kind.namespaced, "kind": kind.kind, "verbs": verbs,
        }));
    };
    if kind.has_status {
        sub("status", &["get", "patch", "update"]);
    }
    if kind.kind == "Pod" {
        sub("log", &["get"]);
    }
    found
}
