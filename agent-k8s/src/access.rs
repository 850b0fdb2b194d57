//! What the agent may do in the namespace of its Jobs: the least that it uses, as one list for the
//! Role that `install` prints, for whoever checks it, and for people.

use k8s_openapi::api::rbac::v1::{PolicyRule, Role};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// What the agent does to one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The API group; empty is the core group.
    pub group: &'static str,
    /// The resource as access rules know it: `jobs`, `pods/log`.
    pub resource: &'static str,
    /// The names of the only objects that it is done to; empty is all.
    pub names: Vec<String>,
    /// The verbs, in alphabetical order.
    pub verbs: Vec<&'static str>,
}

/// Everything that the agent does, with the Lease of this name.
pub fn rules(lease: &str) -> Vec<Rule> {
    let rule = |group, resource, verbs: &[&'static str]| Rule {
        group,
        resource,
        names: Vec::new(),
        verbs: verbs.to_vec(),
    };
    vec![
        // Runs become Jobs; what was told of a Job is noted on it; ended ones are deleted.
        rule(
            "batch",
            "jobs",
            &["create", "delete", "get", "list", "patch", "watch"],
        ),
        // What becomes of Jobs is seen in their pods and in events.
        rule("", "pods", &["list", "watch"]),
        rule("", "events", &["list", "watch"]),
        // The end of a failed pod's log is told to the run's owner.
        rule("", "pods/log", &["get"]),
        // One of several replicas supervises. What does not exist yet cannot be allowed by name.
        rule("coordination.k8s.io", "leases", &["create"]),
        Rule {
            names: vec![lease.to_owned()],
            ..rule("coordination.k8s.io", "leases", &["get", "update"])
        },
    ]
}

/// A Role that allows this much.
pub fn role(name: &str, namespace: &str, rules: &[Rule]) -> Role {
    let owned = |text: &str| text.to_owned();
    Role {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        rules: Some(
            rules
                .iter()
                .map(|rule| PolicyRule {
                    api_groups: Some(vec![owned(rule.group)]),
                    resources: Some(vec![owned(rule.resource)]),
                    resource_names: (!rule.names.is_empty()).then(|| rule.names.clone()),
                    verbs: rule.verbs.iter().map(|verb| owned(verb)).collect(),
                    ..PolicyRule::default()
                })
                .collect(),
        ),
    }
}
