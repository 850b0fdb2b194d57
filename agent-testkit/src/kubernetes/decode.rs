//! Reading objects as strictly as the real server does: by their types.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Pod, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::kinds::Kind;
use super::refused::{Outcome, Refused};

/// The place in the real server's source that its refusals name.
const SCHEME: &str = "pkg/runtime/scheme.go:111";

/// Reads `value` as an object of `kind`: members the type does not have are dropped, values of the
/// wrong type refused. With `strict`, unknown members are refused as well.
pub(crate) fn decode(kind: &Kind, mut value: Value, strict: bool) -> Outcome<Value> {
    check_type(kind, &value)?;
    quantities_to_text(&mut value);
    let original = strict.then(|| value.clone());
    let decoded = match kind.kind {
        "Job" => round_trip::<Job>(value),
        "Pod" => round_trip::<Pod>(value),
        "Event" => round_trip::<Event>(value),
        "Lease" => round_trip::<Lease>(value),
        "Secret" => round_trip::<Secret>(value),
        "ServiceAccount" => round_trip::<ServiceAccount>(value),
        "ConfigMap" => round_trip::<ConfigMap>(value),
        "Namespace" => round_trip::<Namespace>(value),
        "Deployment" => round_trip::<Deployment>(value),
        "Role" => round_trip::<Role>(value),
        "RoleBinding" => round_trip::<RoleBinding>(value),
        _ => Ok(value),
    };
    let decoded = decoded.map_err(|mismatch| {
        Refused::bad_request(format!(
            "{kind} in version \"v1\" cannot be handled as a {kind}: {}",
            mismatch.in_go_words(kind.kind),
            kind = kind.kind,
        ))
    })?;
    if let Some(original) = original {
        let mut unknown = Vec::new();
        unknown_members(&original, &decoded, "", &mut unknown);
        if !unknown.is_empty() {
            return Err(Refused::bad_request(format!(
                "{kind} in version \"v1\" cannot be handled as a {kind}: strict decoding error: {}",
                unknown.join(", "),
                kind = kind.kind,
            )));
        }
    }
    Ok(without_empty(decoded))
}

/// Drops members of the metadata that say nothing.
fn without_empty(mut value: Value) -> Value {
    let places = ["/metadata", "/spec/template/metadata"];
    for place in places {
        if let Some(Value::Object(metadata)) = value.pointer_mut(place) {
            metadata.retain(|_, member| match member {
                Value::Object(members) => !members.is_empty(),
                Value::Array(members) => !members.is_empty(),
                _ => true,
            });
        }
    }
    value
}

fn check_type(kind: &Kind, value: &Value) -> Outcome<()> {
    if !value.is_object() {
        return Err(Refused::bad_request(
            "the object provided is unrecognized (must be of type object)",
        ));
    }
    let expected = kind.api_version();
    match value["apiVersion"].as_str() {
        Some(given) if given != expected => {
            return Err(Refused::bad_request(format!(
                "the API version in the data ({given}) does not match the expected API version ({expected})"
            )));
        }
        _ => {}
    }
    match value["kind"].as_str() {
        Some(given) if given != kind.kind => Err(Refused::bad_request(format!(
            "{given} in version {:?} cannot be handled as a {}: no kind {given:?} is registered \
             for version {expected:?} in scheme {SCHEME:?}",
            kind.version, kind.kind
        ))),
        _ => Ok(()),
    }
}

/// What does not fit, and where.
struct Mismatch {
    path: String,
    problem: String,
}

impl Mismatch {
    /// As the real server, which is written in Go, tells it.
    fn in_go_words(&self, kind: &str) -> String {
        let segments: Vec<&str> = self
            .path
            .split('.')
            .map(|segment| segment.split('[').next().unwrap_or(segment))
            .collect();
        let holder = match segments.iter().rev().nth(1).copied() {
            Some("env") => "EnvVar",
            Some("containers" | "initContainers") => "Container",
            Some("metadata") => "ObjectMeta",
            Some("resources") => "ResourceRequirements",
            Some("spec") if segments.len() > 2 => "PodSpec",
            Some("spec") if kind == "Job" => "JobSpec",
            _ => kind,
        };
        let spec = format!("v1.{kind}Spec");
        let found = match &self.problem {
            problem if problem.contains("invalid type: string") => "string",
            problem if problem.contains("invalid type: boolean") => "bool",
            problem if problem.contains("invalid type: sequence") => "array",
            problem if problem.contains("invalid type: map") => "object",
            _ => "number",
        };
        let wanted = match self.problem.rsplit("expected ").next() {
            Some("a string" | "str") => "string",
            Some("a boolean") => "bool",
            Some(other) if other.starts_with('i') && other.len() < 4 => "int32",
            Some(other) if other.contains("sequence") => "[]",
            Some(other) if other.contains("map") => "map[string]string",
            _ if segments == ["spec"] => &spec,
            _ => holder,
        };
        format!(
            "json: cannot unmarshal {found} into Go struct field {holder}.{} of type {wanted}",
            segments.join(".")
        )
    }
}

fn round_trip<T: DeserializeOwned + Serialize>(value: Value) -> Result<Value, Mismatch> {
    let typed: T = serde_path_to_error::deserialize(value).map_err(|error| Mismatch {
        path: error.path().to_string(),
        problem: error.inner().to_string(),
    })?;
    serde_json::to_value(typed).map_err(|error| Mismatch {
        path: String::new(),
        problem: error.to_string(),
    })
}

/// Quantities may be written as numbers.
fn quantities_to_text(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match (name.as_str(), &mut *member) {
                    ("requests" | "limits", Value::Object(quantities)) => {
                        for quantity in quantities.values_mut().filter(|one| one.is_number()) {
                            *quantity = Value::String(quantity.to_string());
                        }
                    }
                    _ => quantities_to_text(member),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(quantities_to_text),
        _ => {}
    }
}

fn unknown_members(original: &Value, decoded: &Value, path: &str, unknown: &mut Vec<String>) {
    match (original, decoded) {
        (Value::Object(members), Value::Object(kept)) => {
            for (name, member) in members.iter().filter(|(_, member)| !member.is_null()) {
                let path = match path {
                    "" => name.clone(),
                    path => format!("{path}.{name}"),
                };
                match kept.get(name) {
                    Some(kept) => unknown_members(member, kept, &path, unknown),
                    None => unknown.push(format!("unknown field {path:?}")),
                }
            }
        }
        (Value::Array(items), Value::Array(kept)) => {
            for (n, (item, kept)) in items.iter().zip(kept).enumerate() {
                unknown_members(item, kept, &format!("{path}[{n}]"), unknown);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::kinds::{JOBS, KINDS};
    use super::*;

    fn job(env_value: Value) -> Value {
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": {
            "colour": "red",
            "template": {"spec": {"containers": [{"name": "c", "env": [{"name": "A", "value": env_value}],
                "resources": {"limits": {"cpu": 1}}}]}}}})
    }

    #[test]
    fn a_number_where_text_belongs_is_refused_with_its_place() {
        let refused = decode(&KINDS[JOBS], job(json!(1)), false).unwrap_err();
        assert_eq!((refused.code, refused.reason), (400, "BadRequest"));
        assert_eq!(
            refused.message,
            "Job in version \"v1\" cannot be handled as a Job: json: cannot unmarshal number into \
             Go struct field EnvVar.spec.template.spec.containers.env.value of type string"
        );
    }

    #[test]
    fn unknown_members_are_dropped_or_refused_if_strict() {
        let decoded = decode(&KINDS[JOBS], job(json!("1")), false).unwrap();
        assert_eq!(decoded["spec"].get("colour"), None);
        let limits = &decoded["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"];
        assert_eq!(limits["cpu"], "1");
        let refused = decode(&KINDS[JOBS], job(json!("1")), true).unwrap_err();
        assert!(
            refused
                .message
                .ends_with("strict decoding error: unknown field \"spec.colour\"")
        );
    }
}
