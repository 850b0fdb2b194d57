//! Refusals in the words of the real API server: `Status` objects.

use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::kinds::Kind;
use crate::faults::answer;

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Refused {
    pub(crate) code: u16,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) details: Option<Value>,
    /// How long the server takes to find that out, in milliseconds.
    pub(crate) after: u32,
}

pub(crate) type Outcome<T> = Result<T, Refused>;

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cause {
    pub(crate) field: String,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Cause {
    pub(crate) fn required(field: impl Into<String>, hint: &str) -> Self {
        let message = match hint {
            "" => "Required value".to_owned(),
            hint => format!("Required value: {hint}"),
        };
        Self {
            field: field.into(),
            reason: "FieldValueRequired",
            message,
        }
    }

    pub(crate) fn invalid(field: impl Into<String>, value: &str, why: &str) -> Self {
        Self {
            field: field.into(),
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {value:?}: {why}"),
        }
    }

    pub(crate) fn unsupported(field: impl Into<String>, value: &str, supported: &[&str]) -> Self {
        let supported: Vec<String> = supported.iter().map(|one| format!("{one:?}")).collect();
        Self {
            field: field.into(),
            reason: "FieldValueNotSupported",
            message: format!(
                "Unsupported value: {value:?}: supported values: {}",
                supported.join(", ")
            ),
        }
    }

    pub(crate) fn not_found(field: impl Into<String>, value: &str) -> Self {
        Self {
            field: field.into(),
            reason: "FieldValueNotFound",
            message: format!("Not found: {value:?}"),
        }
    }

    pub(crate) fn duplicate(field: impl Into<String>, value: &str) -> Self {
        Self {
            field: field.into(),
            reason: "FieldValueDuplicate",
            message: format!("Duplicate value: {value:?}"),
        }
    }

    pub(crate) fn forbidden(field: impl Into<String>, why: &str) -> Self {
        Self {
            field: field.into(),
            reason: "FieldValueForbidden",
            message: format!("Forbidden: {why}"),
        }
    }
}

impl Refused {
    fn about(code: u16, reason: &'static str, message: String, kind: &Kind, name: &str) -> Self {
        let mut details = json!({"kind": kind.plural});
        if !name.is_empty() {
            details["name"] = json!(name);
        }
        if !kind.group.is_empty() {
            details["group"] = json!(kind.group);
        }
        Self {
            code,
            reason,
            message,
            details: Some(details),
            after: 0,
        }
    }

    fn plain(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: None,
            after: 0,
        }
    }

    pub(crate) fn not_found(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} not found", kind.resource());
        Self::about(404, "NotFound", message, kind, name)
    }

    /// There is no such path.
    pub(crate) fn no_resource() -> Self {
        let mut refused = Self::plain(
            404,
            "NotFound",
            "the server could not find the requested resource",
        );
        refused.details = Some(json!({}));
        refused
    }

    pub(crate) fn already_exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", kind.resource());
        Self::about(409, "AlreadyExists", message, kind, name)
    }

    pub(crate) fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: {why}",
            kind.resource()
        );
        Self::about(409, "Conflict", message, kind, name)
    }

    /// A deletion was meant for another object; unlike elsewhere, the kind is named.
    pub(crate) fn precondition(kind: &Kind, name: &str, why: &str) -> Self {
        let mut refused = Self::conflict(kind, name, why);
        let resource = kind.resource();
        let named = resource.replacen(kind.plural, kind.kind, 1);
        refused.message = refused.message.replacen(&resource, &named, 1);
        if let Some(details) = &mut refused.details {
            details["kind"] = json!(kind.kind);
        }
        refused
    }

    pub(crate) fn modified(kind: &Kind, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(kind, name, why)
    }

    pub(crate) fn invalid(kind: &str, group: &str, name: &str, causes: &[Cause]) -> Self {
        // What is wrong in the same way at one place is told once.
        let mut once: Vec<&Cause> = Vec::new();
        for cause in causes {
            if !once.contains(&cause) {
                once.push(cause);
            }
        }
        let lines: Vec<String> = once
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect();
        let all = match lines.as_slice() {
            [one] => one.clone(),
            several => format!("[{}]", several.join(", ")),
        };
        let qualified = match group {
            "" => kind.to_owned(),
            group => format!("{kind}.{group}"),
        };
        let causes: Vec<Value> = once
            .iter()
            .map(|cause| json!({"reason": cause.reason, "message": cause.message, "field": cause.field}))
            .collect();
        let mut refused = Self::plain(
            422,
            "Invalid",
            format!("{qualified} {name:?} is invalid: {all}"),
        );
        let mut details = json!({"kind": kind, "causes": causes});
        for (member, text) in [("name", name), ("group", group)] {
            if !text.is_empty() {
                details[member] = json!(text);
            }
        }
        refused.details = Some(details);
        refused
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::plain(400, "BadRequest", message)
    }

    pub(crate) fn unauthorized() -> Self {
        Self::plain(401, "Unauthorized", "Unauthorized")
    }

    pub(crate) fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let what = match name {
            "" => kind.resource(),
            name => format!("{} {name:?}", kind.resource()),
        };
        Self::about(
            403,
            "Forbidden",
            format!("{what} is forbidden: {why}"),
            kind,
            name,
        )
    }

    /// The namespace takes no new objects.
    pub(crate) fn terminating(kind: &Kind, name: &str, namespace: &str) -> Self {
        let why = format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        );
        let mut refused = Self::forbidden(kind, name, &why);
        if let Some(details) = &mut refused.details {
            details["causes"] = json!([{
                "reason": "NamespaceTerminating",
                "message": format!("namespace {namespace} is being terminated"),
                "field": "metadata.namespace",
            }]);
        }
        refused
    }

    /// Another request has changed what is used of a quota at the same time.
    pub(crate) fn quota_modified(name: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on resourcequotas {name:?}: the object has been modified; please apply your changes to the latest version and try again"
        );
        let mut refused = Self::plain(409, "Conflict", message);
        refused.details = Some(json!({"name": name, "kind": "resourcequotas"}));
        refused
    }

    /// A webhook has refused the object.
    pub(crate) fn denied(code: u16, webhook: &str, why: &str) -> Self {
        let reason = match code {
            400 => "BadRequest",
            403 => "Forbidden",
            422 => "Invalid",
            _ => "",
        };
        let message = format!("admission webhook {webhook:?} denied the request: {why}");
        Self::plain(code, reason, message)
    }

    /// A webhook could not be asked.
    pub(crate) fn webhook_failed(webhook: &str, address: &str, why: &str) -> Self {
        let error = format!(
            "failed calling webhook {webhook:?}: failed to call webhook: Post {address:?}: {why}"
        );
        let message = format!("Internal error occurred: {error}");
        let mut refused = Self::plain(500, "InternalError", message);
        refused.details = Some(json!({"causes": [{"message": error}]}));
        refused
    }

    /// The body has more bytes than the server reads.
    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::plain(413, "RequestEntityTooLarge", message)
    }

    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::plain(410, "Expired", message)
    }

    pub(crate) fn method_not_allowed() -> Self {
        let mut refused = Self::plain(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        );
        refused.details = Some(json!({}));
        refused
    }

    pub(crate) fn unsupported_media_type(given: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: \
             application/json, application/json-patch+json, application/merge-patch+json, \
             application/strategic-merge-patch+json, application/apply-patch+yaml (got {given:?})"
        );
        Self::plain(415, "UnsupportedMediaType", message)
    }

    /// A patch of no known kind.
    pub(crate) fn unsupported_patch() -> Self {
        let message = "415: Unsupported Media Type";
        let mut refused = Self::plain(415, "UnsupportedMediaType", message);
        refused.details = Some(json!({}));
        refused
    }

    /// Parameters of a list or watch that do not go together.
    pub(crate) fn forbidden_option(name: &str, why: &str) -> Self {
        let cause = Cause::forbidden(name, why);
        Self::invalid("ListOptions", "meta.k8s.io", "", &[cause])
    }

    /// Something that the real server did not expect of a client.
    pub(crate) fn unexpected(message: impl Into<String>) -> Self {
        Self::plain(500, "", message)
    }

    /// The object that is sent.
    pub(crate) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = json!(self.reason);
        }
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }

    pub(crate) fn response(&self) -> Response {
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = answer(code, "application/json", self.status().to_string());
        if self.code == 429 {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(1));
        }
        response
    }
}

/// The body the real server sends with a status that has nothing to do with the request.
pub(crate) fn status_body(code: StatusCode) -> String {
    let (reason, message) = match code.as_u16() {
        401 => ("Unauthorized", "Unauthorized"),
        403 => ("Forbidden", "forbidden: User cannot do this"),
        404 => (
            "NotFound",
            "the server could not find the requested resource",
        ),
        409 => ("Conflict", "the object has been modified"),
        429 => (
            "TooManyRequests",
            "Too many requests, please try again later.",
        ),
        500 => ("InternalError", "Internal error occurred: injected"),
        503 => ("ServiceUnavailable", "apiserver not ready"),
        504 => (
            "Timeout",
            "Timeout: request did not complete within requested timeout",
        ),
        _ => ("", code.canonical_reason().unwrap_or("unknown")),
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    })
    .to_string()
}
