//! Each object of every combination is what Kubernetes takes, and fits the others.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Container, PodSpec, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::Role;
use serde::de::DeserializeOwned;

use super::*;

fn plain() -> Install {
    Install {
        name: NAME.to_owned(),
        agent_namespace: "agents".to_owned(),
        namespace: "flows".to_owned(),
        image: "agent:1".to_owned(),
        args: Vec::new(),
        env: vec![("NAMESPACE".to_owned(), "flows".to_owned())],
        key: None,
        image_pull_secrets: Vec::new(),
        service_account: None,
        rbac: false,
        lease: "prefect-agent-x".to_owned(),
        replicas: 1,
        job_template: None,
        pod_disruption_budget: false,
        network_policy: None,
        service_monitor: false,
    }
}

fn full() -> Install {
    Install {
        key: Some(Key::Own(SecretString::from("hush"))),
        image_pull_secrets: vec!["pull".to_owned()],
        rbac: true,
        replicas: 3,
        job_template: Some(ConfigMapKey {
            name: "templates".to_owned(),
            key: "job.yaml".to_owned(),
        }),
        pod_disruption_budget: true,
        network_policy: Some(vec![443, 4200]),
        service_monitor: true,
        ..plain()
    }
}

fn kinds(objects: &[Value]) -> Vec<&str> {
    let kinds = objects.iter().map(|object| object["kind"].as_str());
    kinds.map(|kind| kind.expect("a kind")).collect()
}

fn find<T: DeserializeOwned>(objects: &[Value], kind: &str) -> T {
    let found = objects.iter().find(|object| object["kind"] == kind);
    serde_json::from_value(found.expect(kind).clone()).expect("of its type")
}

fn pod(objects: &[Value]) -> (PodSpec, Container) {
    let deployment: Deployment = find(objects, "Deployment");
    let spec = deployment.spec.expect("a spec").template.spec;
    let spec = spec.expect("a pod");
    let container = spec.containers[0].clone();
    (spec, container)
}

#[test]
fn a_plain_agent_is_a_service_account_and_a_deployment() {
    let objects = plain().objects().expect("fine");
    assert_eq!(kinds(&objects), ["ServiceAccount", "Deployment"]);
    for object in &objects {
        assert_eq!(object["metadata"]["namespace"], "agents");
        assert_eq!(object["metadata"]["name"], "prefect-agent");
    }
}

#[test]
fn every_choice_adds_its_objects_in_an_order_that_can_be_applied() {
    let objects = full().objects().expect("fine");
    let all = [
        "ServiceAccount",
        "Secret",
        "Role",
        "RoleBinding",
        "Deployment",
        "PodDisruptionBudget",
        "NetworkPolicy",
        "Service",
        "ServiceMonitor",
    ];
    assert_eq!(kinds(&objects), all);
    assert_eq!(objects, full().objects().expect("fine"), "deterministic");
}

#[test]
fn the_key_is_in_the_secret_and_nowhere_else() {
    let objects = full().objects().expect("fine");
    for object in &objects {
        let tells = object.to_string().contains("hush");
        assert_eq!(tells, object["kind"] == "Secret", "{object}");
    }
    let existing = KeySecret {
        name: "mine".to_owned(),
        key: "token".to_owned(),
    };
    for (key, name, member) in [
        (Key::Own(SecretString::from("hush")), NAME, API_KEY),
        (Key::Existing(existing), "mine", "token"),
    ] {
        let install = Install {
            key: Some(key),
            ..plain()
        };
        let (_, container) = pod(&install.objects().expect("fine"));
        let env = container.env.expect("some");
        let entry = env.iter().find(|entry| entry.name == API_KEY);
        let source = entry.and_then(|entry| entry.value_from.clone());
        let source = source.expect("from elsewhere").secret_key_ref;
        let source = source.expect("a Secret");
        assert_eq!((source.name.as_str(), source.key.as_str()), (name, member));
    }
}

#[test]
fn the_role_is_where_the_jobs_are_and_bound_to_the_agents_own_account() {
    let objects = full().objects().expect("fine");
    let role: Role = find(&objects, "Role");
    assert_eq!(role.metadata.namespace.as_deref(), Some("flows"));
    for rule in role.rules.expect("some") {
        let groups = rule.api_groups.expect("some");
        let nothing_broad = |text: &String| text != "*" && text != "extensions";
        assert!(rule.verbs.iter().chain(&groups).all(nothing_broad));
        assert!(rule.verbs.is_sorted());
    }
    let binding: RoleBinding = find(&objects, "RoleBinding");
    assert_eq!(binding.metadata.namespace.as_deref(), Some("flows"));
    let subject = &binding.subjects.expect("one")[0];
    assert_eq!(subject.namespace.as_deref(), Some("agents"));
    assert_eq!((&*subject.kind, &*subject.name), ("ServiceAccount", NAME));
    let (pod, _) = pod(&objects);
    assert_eq!(pod.service_account_name.as_deref(), Some(NAME));

    let existing = Install {
        service_account: Some("irsa".to_owned()),
        ..full()
    };
    let objects = existing.objects().expect("fine");
    assert!(!kinds(&objects).contains(&"ServiceAccount"));
    let binding: RoleBinding = find(&objects, "RoleBinding");
    assert_eq!(binding.subjects.expect("one")[0].name, "irsa");
}

#[test]
fn the_pod_passes_the_restricted_security_standard() {
    let (pod, container) = pod(&plain().objects().expect("fine"));
    let of_pod = pod.security_context.expect("one");
    assert_eq!(of_pod.run_as_non_root, Some(true));
    assert_ne!(of_pod.run_as_user, Some(0));
    assert_eq!(of_pod.seccomp_profile.expect("one").type_, "RuntimeDefault");
    let own = container.security_context.expect("one");
    assert_eq!(own.allow_privilege_escalation, Some(false));
    assert_eq!(own.read_only_root_filesystem, Some(true));
    let dropped = own.capabilities.expect("some").drop;
    assert_eq!(dropped, Some(vec!["ALL".to_owned()]));
    assert_eq!(own.privileged, None);
}

#[test]
fn everything_that_selects_pods_selects_the_agents() {
    let objects = full().objects().expect("fine");
    let deployment: Deployment = find(&objects, "Deployment");
    let spec = deployment.spec.expect("a spec");
    let labels = spec.template.metadata.expect("some").labels.expect("some");
    let selector = BTreeMap::from([("app".to_owned(), NAME.to_owned())]);
    let selects = |found: Option<BTreeMap<String, String>>| {
        assert_eq!(found.as_ref(), Some(&selector));
        assert!(
            selector
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
        );
    };
    selects(spec.selector.match_labels);
    let budget: PodDisruptionBudget = find(&objects, "PodDisruptionBudget");
    let budget = budget.spec.expect("a spec");
    selects(budget.selector.and_then(|selector| selector.match_labels));
    let policy: NetworkPolicy = find(&objects, "NetworkPolicy");
    let policy = policy.spec.expect("a spec").pod_selector;
    selects(policy.and_then(|selector| selector.match_labels));
    let service: Service = find(&objects, "Service");
    let service = service.spec.expect("a spec");
    selects(service.selector);
    let ports = spec.template.spec.expect("a pod").containers[0]
        .ports
        .clone();
    assert_eq!(
        service.ports.expect("one")[0].name,
        ports.expect("one")[0].name
    );
}

#[test]
fn dollars_reach_the_agent_as_they_are() {
    // The kubelet takes $(NAME) for a reference and $$ for one $.
    let install = Install {
        env: vec![("A".to_owned(), "$(B) $$ $C".to_owned())],
        args: vec!["--name=$(A)".to_owned()],
        ..plain()
    };
    let (_, container) = pod(&install.objects().expect("fine"));
    let value = container.env.expect("some")[0].value.clone();
    assert_eq!(value.as_deref(), Some("$$(B) $$$$ $$C"));
    assert_eq!(container.args.expect("some")[1], "--name=$$(A)");
}

#[test]
fn a_name_that_cannot_be_is_told_with_its_rule() {
    for (install, part) in [
        (
            Install {
                namespace: "My_Flows".to_owned(),
                ..plain()
            },
            "the namespace of the Jobs is \"My_Flows\"",
        ),
        (
            Install {
                name: "a".repeat(64),
                ..plain()
            },
            "at most 63",
        ),
        (
            Install {
                service_account: Some("-x".to_owned()),
                ..plain()
            },
            "the agent's service account is \"-x\"",
        ),
    ] {
        let error = install.objects().expect_err("refused");
        assert!(error.contains(part), "{error}");
    }
}
