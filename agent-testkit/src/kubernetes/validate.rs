//! What the real server finds invalid, in its words.

use std::collections::BTreeSet;

use serde_json::Value;

use super::kinds::Kind;
use super::object::{items, members, text};
use super::refused::{Cause, Outcome, Refused};

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
    characters, '-' or '.', and must start and end with an alphanumeric character (e.g. \
    'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters \
    or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', \
    regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric \
    characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. \
    'MyValue',  or 'my_value',  or '12345', regex used for validation is \
    '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const LABEL_KEY: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and \
    must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or \
    '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const ENV_NAME: &str = "a valid environment variable name must consist only of printable ASCII \
    characters other than '='";

/// Refuses an object that the real server would refuse.
pub(crate) fn validate(kind: &Kind, value: &Value) -> Outcome<()> {
    let mut causes = Vec::new();
    metadata(kind, value, &mut causes);
    match kind.kind {
        "Job" => job(value, &mut causes),
        "Pod" => pod_spec(value, "/spec", "spec", &mut causes),
        "Lease" => lease(value, &mut causes),
        _ => {}
    }
    match causes.is_empty() {
        true => Ok(()),
        false => Err(Refused::invalid(
            kind.kind,
            kind.group,
            text(value, "/metadata/name"),
            &causes,
        )),
    }
}

/// Refuses changes of what cannot change.
pub(crate) fn validate_update(kind: &Kind, old: &Value, new: &Value) -> Outcome<()> {
    if kind.kind != "Job" {
        return Ok(());
    }
    let immutable = [
        "selector",
        "completions",
        "completionMode",
        "template/metadata",
        "template/spec",
    ];
    let causes: Vec<Cause> = immutable
        .iter()
        .filter_map(|path| {
            let pointer = format!("/spec/{path}");
            let (old, new) = (old.pointer(&pointer), new.pointer(&pointer));
            (old != new).then(|| Cause {
                field: format!("spec.{}", path.replace('/', ".")),
                reason: "FieldValueInvalid",
                message: format!(
                    "Invalid value: {}: field is immutable",
                    new.unwrap_or(&Value::Null)
                ),
            })
        })
        .collect();
    match causes.is_empty() {
        true => Ok(()),
        false => Err(Refused::invalid(
            kind.kind,
            kind.group,
            text(new, "/metadata/name"),
            &causes,
        )),
    }
}

fn metadata(kind: &Kind, value: &Value, causes: &mut Vec<Cause>) {
    let name = text(value, "/metadata/name");
    let is_label = kind.kind == "Namespace";
    let needs_dns = kind.group != "rbac.authorization.k8s.io";
    if name.is_empty() {
        causes.push(Cause::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else if name.len() > if is_label { 63 } else { 253 } {
        let most = if is_label { 63 } else { 253 };
        causes.push(Cause::invalid(
            "metadata.name",
            name,
            &format!("must be no more than {most} characters"),
        ));
    } else if is_label && !is_dns_label(name) {
        causes.push(Cause::invalid("metadata.name", name, LABEL));
    } else if needs_dns && !name.split('.').all(is_dns_label) {
        causes.push(Cause::invalid("metadata.name", name, SUBDOMAIN));
    }
    labels(value, "/metadata/labels", "metadata.labels", causes);
    for (key, _) in members(value, "/metadata/annotations") {
        if !is_label_key(&key.to_lowercase()) {
            causes.push(Cause::invalid("metadata.annotations", key, LABEL_KEY));
        }
    }
}

fn job(value: &Value, causes: &mut Vec<Cause>) {
    labels(
        value,
        "/spec/template/metadata/labels",
        "spec.template.labels",
        causes,
    );
    for name in [
        "parallelism",
        "completions",
        "backoffLimit",
        "activeDeadlineSeconds",
        "ttlSecondsAfterFinished",
    ] {
        if let Some(number) = value["spec"][name].as_i64().filter(|number| *number < 0) {
            causes.push(Cause {
                field: format!("spec.{name}"),
                reason: "FieldValueInvalid",
                message: format!("Invalid value: {number}: must be greater than or equal to 0"),
            });
        }
    }
    pod_spec(value, "/spec/template/spec", "spec.template.spec", causes);
    let policy = text(value, "/spec/template/spec/restartPolicy");
    if !["Never", "OnFailure"].contains(&policy) {
        let hint = "valid values: \"OnFailure\", \"Never\"";
        causes.push(Cause::required("spec.template.spec.restartPolicy", hint));
    }
}

fn lease(value: &Value, causes: &mut Vec<Cause>) {
    for (name, least, bound) in [
        ("leaseDurationSeconds", 1, "greater than 0"),
        ("leaseTransitions", 0, "greater than or equal to 0"),
    ] {
        if let Some(number) = value["spec"][name]
            .as_i64()
            .filter(|number| *number < least)
        {
            causes.push(Cause {
                field: format!("spec.{name}"),
                reason: "FieldValueInvalid",
                message: format!("Invalid value: {number}: must be {bound}"),
            });
        }
    }
}

fn pod_spec(value: &Value, pointer: &str, field: &str, causes: &mut Vec<Cause>) {
    let before = causes.len();
    let volumes: BTreeSet<&str> = items(value, &format!("{pointer}/volumes"))
        .filter_map(|volume| volume["name"].as_str())
        .collect();
    let mut names = BTreeSet::new();
    let mut count = 0;
    for (list, required) in [("containers", true), ("initContainers", false)] {
        for (n, one) in items(value, &format!("{pointer}/{list}")).enumerate() {
            count += usize::from(required);
            let field = format!("{field}.{list}[{n}]");
            container(one, &field, causes);
            for (n, mount) in items(one, "/volumeMounts").enumerate() {
                let name = text(mount, "/name");
                if !volumes.contains(name) {
                    let field = format!("{field}.volumeMounts[{n}].name");
                    causes.push(Cause::not_found(field, name));
                }
            }
            let name = one["name"].as_str().unwrap_or_default();
            if !name.is_empty() && !names.insert(name) {
                causes.push(Cause::duplicate(format!("{field}.name"), name));
            }
        }
    }
    if count == 0 {
        causes.insert(before, Cause::required(format!("{field}.containers"), ""));
    }
    let account = text(value, &format!("{pointer}/serviceAccountName"));
    if !account.is_empty() && !account.split('.').all(is_dns_label) {
        causes.push(Cause::invalid(
            format!("{field}.serviceAccountName"),
            account,
            SUBDOMAIN,
        ));
    }
    let policy = text(value, &format!("{pointer}/restartPolicy"));
    if !["", "Always", "OnFailure", "Never"].contains(&policy) {
        let supported = ["Always", "OnFailure", "Never"];
        causes.push(Cause::unsupported(
            format!("{field}.restartPolicy"),
            policy,
            &supported,
        ));
    }
}

fn container(value: &Value, field: &str, causes: &mut Vec<Cause>) {
    let name = value["name"].as_str().unwrap_or_default();
    match name {
        "" => causes.push(Cause::required(format!("{field}.name"), "")),
        name if name.len() > 63 || !is_dns_label(name) => {
            causes.push(Cause::invalid(format!("{field}.name"), name, LABEL));
        }
        _ => {}
    }
    let image = value["image"].as_str().unwrap_or_default();
    match image {
        "" => causes.push(Cause::required(format!("{field}.image"), "")),
        image if image.trim() != image => {
            let why = "must not have leading or trailing whitespace";
            causes.push(Cause::invalid(format!("{field}.image"), image, why));
        }
        _ => {}
    }
    let policy = value["imagePullPolicy"].as_str().unwrap_or_default();
    if !["", "Always", "IfNotPresent", "Never"].contains(&policy) {
        let supported = ["Always", "IfNotPresent", "Never"];
        causes.push(Cause::unsupported(
            format!("{field}.imagePullPolicy"),
            policy,
            &supported,
        ));
    }
    for (n, env) in items(value, "/env").enumerate() {
        let name = env["name"].as_str().unwrap_or_default();
        let field = format!("{field}.env[{n}]");
        if name.is_empty() {
            causes.push(Cause::required(format!("{field}.name"), ""));
        } else if !name
            .bytes()
            .all(|b| (b' '..=b'~').contains(&b) && b != b'=')
        {
            causes.push(Cause::invalid(format!("{field}.name"), name, ENV_NAME));
        }
        if env["value"].as_str().is_some_and(|value| !value.is_empty())
            && env["valueFrom"].is_object()
        {
            let why = "may not be specified when `value` is not empty";
            causes.push(Cause::invalid(format!("{field}.valueFrom"), "", why));
        }
    }
    resources(value, field, causes);
}

fn resources(value: &Value, field: &str, causes: &mut Vec<Cause>) {
    for (resource, request) in members(value, "/resources/requests") {
        let limit = value["resources"]["limits"][resource].as_str();
        let (Some(limit), Some(request)) = (limit, request.as_str()) else {
            continue;
        };
        if let (Some(most), Some(wanted)) = (quantity(limit), quantity(request))
            && wanted > most
        {
            let why = format!("must be less than or equal to {resource} limit of {limit}");
            let field = format!("{field}.resources.requests");
            causes.push(Cause::invalid(field, request, &why));
        }
    }
}

/// Refuses quantities that are none; the real server does so while it reads the object.
pub(crate) fn check_quantities(kind: &Kind, value: &Value) -> Outcome<()> {
    let lists = [
        "/spec/template/spec/containers",
        "/spec/template/spec/initContainers",
        "/spec/containers",
    ];
    let containers = lists.iter().flat_map(|list| items(value, list));
    for container in containers {
        for part in ["/resources/requests", "/resources/limits"] {
            for (_, amount) in members(container, part) {
                if amount.as_str().and_then(quantity).is_none() {
                    return Err(Refused::bad_request(format!(
                        "{kind} in version \"v1\" cannot be handled as a {kind}: quantities must match \
                         the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
                        kind = kind.kind,
                    )));
                }
            }
        }
    }
    Ok(())
}

fn quantity(text: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 15] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    let plain = |text: &str| {
        let number = text
            .bytes()
            .all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
        number.then(|| text.parse::<f64>().ok()).flatten()
    };
    if let Some(number) = plain(text) {
        return Some(number);
    }
    SUFFIXES.iter().find_map(|(suffix, factor)| {
        let number = plain(text.strip_suffix(suffix)?)?;
        Some(number * factor)
    })
}

fn labels(value: &Value, pointer: &str, field: &str, causes: &mut Vec<Cause>) {
    for (key, label) in members(value, pointer) {
        if !is_label_key(key) {
            causes.push(Cause::invalid(field, key, LABEL_KEY));
        }
        let label = label.as_str().unwrap_or_default();
        if label.len() > 63 {
            causes.push(Cause::invalid(
                field,
                label,
                "must be no more than 63 bytes",
            ));
        } else if !label.is_empty() && !is_qualified(label) {
            causes.push(Cause::invalid(field, label, LABEL_VALUE));
        }
    }
}

/// Lower case letters, digits and dashes, with no dash at the ends.
fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn is_qualified(text: &str) -> bool {
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    ends(text.bytes().next()) && ends(text.bytes().last()) && text.bytes().all(inner)
}

fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => {
            prefix.split('.').all(is_dns_label) && name.len() <= 63 && is_qualified(name)
        }
        None => key.len() <= 63 && is_qualified(key),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::kinds::{JOBS, KINDS};
    use super::*;

    fn refusal(job: Value) -> String {
        validate(&KINDS[JOBS], &job).unwrap_err().message
    }

    fn job_with(name: &str, spec: Value) -> Value {
        json!({"metadata": {"name": name}, "spec": {"template": {"spec": spec}}})
    }

    #[test]
    fn one_cause_stands_alone_and_several_in_brackets() {
        let empty = job_with("j", json!({"restartPolicy": "Never"}));
        assert_eq!(
            refusal(empty),
            "Job.batch \"j\" is invalid: spec.template.spec.containers: Required value"
        );
        let always = job_with(
            "j",
            json!({"restartPolicy": "Always", "containers": [{"name": "c"}]}),
        );
        assert_eq!(
            refusal(always),
            "Job.batch \"j\" is invalid: [spec.template.spec.containers[0].image: Required value, \
             spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"]"
        );
    }

    #[test]
    fn names_must_be_dns_names() {
        let spec = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]});
        for name in ["Upper", "under_score", "ends-", "dot.-x"] {
            assert!(
                refusal(job_with(name, spec.clone())).contains("RFC 1123 subdomain"),
                "{name}"
            );
        }
        assert!(validate(&KINDS[JOBS], &job_with("a.b-1", spec)).is_ok());
    }

    #[test]
    fn quantities_are_compared_by_amount() {
        assert_eq!(quantity("1Ki"), Some(1024.0));
        assert_eq!(quantity("500m"), Some(0.5));
        assert_eq!(quantity("1e3"), Some(1000.0));
        assert_eq!(quantity("two"), None);
        assert_eq!(quantity("1 Gi"), None);
        assert_eq!(quantity(""), None);
        let resources = json!({"requests": {"cpu": "2"}, "limits": {"cpu": "500m"}});
        let spec = json!({"restartPolicy": "Never",
            "containers": [{"name": "c", "image": "i", "resources": resources}]});
        assert!(
            refusal(job_with("j", spec))
                .contains("must be less than or equal to cpu limit of 500m")
        );
    }
}
