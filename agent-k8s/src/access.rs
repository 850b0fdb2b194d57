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
    /// The verbs, in alphabetical order.
    pub verbs: Vec<&'static str>,
}

/// Everything that the agent does.
pub fn rules() -> Vec<Rule> {
    let rule = |group, resource, verbs: &[&'static str]| Rule {
        group,
        resource,
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
        // One of several replicas supervises.
        rule(
            "coordination.k8s.io",
            "leases",
            &["create", "get", "update"],
        ),
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
                    verbs: rule.verbs.iter().map(|verb| owned(verb)).collect(),
                    ..PolicyRule::default()
                })
                .collect(),
        ),
    }
}
