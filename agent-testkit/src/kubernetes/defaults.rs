//! What the real server fills in when an object is created.

use serde_json::{Map, Value, json};

use super::object::{child, default, text};

/// Fills in the fields of a Job, whose name and uid are set.
pub(crate) fn job(value: &mut Value) {
    let uid = text(value, "/metadata/uid").to_owned();
    let name = text(value, "/metadata/name").to_owned();
    default(child(value, "metadata"), "generation", json!(1));
    job_labels(value);
    let spec = child(value, "spec");
    let counted = [spec.get("completions"), spec.get("parallelism")];
    if counted.iter().all(|count| count.is_none_or(Value::is_null)) {
        default(spec, "completions", json!(1));
    }
    for (field, preset) in [
        ("parallelism", json!(1)),
        ("backoffLimit", json!(6)),
        ("completionMode", json!("NonIndexed")),
        ("manualSelector", json!(false)),
        ("suspend", json!(false)),
        ("podReplacementPolicy", json!("TerminatingOrFailed")),
    ] {
        default(spec, field, preset);
    }
    if spec.get("manualSelector") != Some(&Value::Bool(true)) {
        let selector = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
        spec.insert("selector".into(), selector);
        let template = child(&mut value["spec"], "template");
        let metadata = template.entry("metadata").or_insert_with(|| json!({}));
        let labels = child(metadata, "labels");
        for (label, text) in [
            ("batch.kubernetes.io/controller-uid", &uid),
            ("batch.kubernetes.io/job-name", &name),
            ("controller-uid", &uid),
            ("job-name", &name),
        ] {
            labels.insert(label.into(), json!(text));
        }
    }
    pod_spec(child(&mut value["spec"]["template"], "spec"));
    value["status"] = json!({});
}

/// Gives a Job without labels those of its pods. The real server does so twice: when it reads the
/// Job, and when it has stored it with the labels that it gives to the pods.
pub(crate) fn job_labels(value: &mut Value) {
    let labels = value["spec"]["template"]["metadata"]["labels"].clone();
    if labels.is_object() {
        default(child(value, "metadata"), "labels", labels);
    }
}

/// Fills in the fields of a pod.
pub(crate) fn pod(value: &mut Value) {
    pod_spec(child(value, "spec"));
    default(child(value, "spec"), "enableServiceLinks", json!(true));
    value["status"] = json!({"phase": "Pending", "qosClass": "BestEffort"});
}

fn pod_spec(spec: &mut Map<String, Value>) {
    for (field, preset) in [
        ("restartPolicy", json!("Always")),
        ("dnsPolicy", json!("ClusterFirst")),
        ("schedulerName", json!("default-scheduler")),
        ("securityContext", json!({})),
        ("terminationGracePeriodSeconds", json!(30)),
    ] {
        default(spec, field, preset);
    }
    if let Some(account) = spec.get("serviceAccountName").cloned() {
        default(spec, "serviceAccount", account);
    }
    for list in ["containers", "initContainers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers
            .into_iter()
            .flatten()
            .filter_map(Value::as_object_mut)
        {
            let image = container
                .get("image")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let policy = match is_latest(image) {
                true => "Always",
                false => "IfNotPresent",
            };
            default(container, "imagePullPolicy", json!(policy));
            default(container, "resources", json!({}));
            default(
                container,
                "terminationMessagePath",
                json!("/dev/termination-log"),
            );
            default(container, "terminationMessagePolicy", json!("File"));
        }
    }
}

fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_job_gets_what_a_real_one_has() {
        let mut value = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "host:5000/x"}]}}}});
        job(&mut value);
        job_labels(&mut value);
        assert_eq!(value["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!(value["spec"]["backoffLimit"], 6);
        assert_eq!(value["spec"]["completions"], 1);
        assert_eq!(
            value["spec"]["template"]["metadata"]["labels"]["job-name"],
            "j"
        );
        let container = &value["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["imagePullPolicy"], "Always");
    }
}
