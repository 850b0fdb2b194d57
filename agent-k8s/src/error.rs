//! What errors of the Kubernetes API mean for a flow run.

use std::time::Duration;

use agent_core::{Error, LONGEST_MESSAGE, clip};
use kube::core::Status;

/// The longest pause that is made because the API server asks for one, or an admission webhook.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Why a request failed, in the API server's own words where it has spoken.
pub(crate) fn reason(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => {
            format!("{} {}: {}", status.code, status.reason, status.message)
        }
        other => explain(other),
    }
}

/// An error with its causes, which is where the reason is.
pub(crate) fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Whether the request may have taken effect although it failed here.
pub(crate) fn is_ambiguous(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code >= 500,
        _ => true,
    }
}

/// Whose words an answer of status 403 or the like is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// Of the API server's access rules, or of something in front of it: it concerns this agent.
    Access,
    /// Of the namespace, which is not there or about to go: it concerns this agent, which is told where
    /// Jobs belong.
    Namespace,
    /// Of a quota, which others may leave room in.
    Quota,
    /// Of an admission webhook or policy, about this object.
    Admission,
    /// Of the API server itself, about this object.
    Object,
}

/// Returns who has refused a request. `creates` says that it was for an object that is not there yet:
/// access rules do not know its name then, and admission does.
fn refusal(status: &Status, creates: bool) -> Refusal {
    let says = |text: &str| status.message.contains(text);
    let details = status.details.as_ref();
    let is_about = |kind: &str| details.is_some_and(|details| details.kind == kind);
    let has_name = details.is_some_and(|details| !details.name.is_empty());
    if says("admission webhook") || says("ValidatingAdmissionPolicy") {
        Refusal::Admission
    } else if says("exceeded quota") || says("status unknown for quota") {
        Refusal::Quota
    } else if says("is being terminated") || is_about("namespaces") && status.code == 404 {
        Refusal::Namespace
    } else if says("User \"") && says(" cannot ") {
        Refusal::Access
    } else if status.code == 403 {
        match creates && has_name {
            true => Refusal::Admission,
            false => Refusal::Access,
        }
    } else if status.code == 404 && creates {
        match says("namespaces") && says("not found") {
            true => Refusal::Namespace,
            // No such resource at that address.
            false => Refusal::Access,
        }
    } else {
        Refusal::Object
    }
}

/// Whether the API server's database is at fault, whatever the object.
fn is_of_database(message: &str) -> bool {
    let of_database = message.contains("etcdserver:") || message.contains("rpc error: code =");
    of_database && !message.contains("too large")
}

/// Whether no connection came about, so that the request cannot have had an effect.
fn is_connect(error: &kube::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(one) = cause {
        if let Some(error) = one.downcast_ref::<hyper_util::client::legacy::Error>() {
            return error.is_connect();
        }
        cause = one.source();
    }
    false
}

/// Returns the error of a request about a Job that is to be created. What may be the fault of the Job
/// as well as of the side, as a webhook that does not answer is, is [`Error::Unclear`].
pub(crate) fn classify_creation(what: &str, error: &kube::Error) -> Error {
    let message = message(what, error);
    let kube::Error::Api(status) = error else {
        return match is_connect(error) {
            true => Error::transient(message),
            false => Error::unclear(message),
        };
    };
    let retry_after = retry_after(status);
    let refusal = refusal(status, true);
    match (status.code, refusal) {
        (400..500, Refusal::Admission) if !matches!(status.code, 408 | 429) => {
            Error::Permanent(message)
        }
        (_, Refusal::Admission | Refusal::Quota) => Error::Refused(message),
        (401, _) | (_, Refusal::Access | Refusal::Namespace) => Error::Agent(message),
        // Creations that race for a quota's counter.
        (409, _) if status.reason == "Conflict" => Error::unclear(message),
        (429, _) => Error::Transient {
            message,
            retry_after,
        },
        (400..500, _) if status.code != 408 => Error::Permanent(message),
        _ if is_of_database(&status.message) => Error::transient(message),
        _ if status.message.contains("request is too large") => Error::Permanent(message),
        _ => Error::Unclear {
            message,
            retry_after,
        },
    }
}

/// Returns the error of any other request: what the API server refuses this agent concerns this agent,
/// what it refuses of the object is final, overload, outages and broken connections pass.
pub(crate) fn classify(what: &str, error: &kube::Error) -> Error {
    let message = message(what, error);
    let kube::Error::Api(status) = error else {
        return Error::transient(message);
    };
    match (status.code, refusal(status, false)) {
        (400..500, Refusal::Admission) => Error::Permanent(message),
        (401 | 403, _) | (_, Refusal::Access | Refusal::Namespace) => Error::Agent(message),
        (400..500, _) if !matches!(status.code, 408 | 429) => Error::Permanent(message),
        _ => Error::Transient {
            message,
            retry_after: retry_after(status),
        },
    }
}

/// Returns what failed and why, cut to a few KB: admission may repeat the whole object.
fn message(what: &str, error: &kube::Error) -> String {
    format!("{what}: {}", clip(&reason(error), LONGEST_MESSAGE))
}

fn retry_after(status: &Status) -> Option<Duration> {
    let details = status.details.as_ref();
    let seconds = details.map_or(0, |details| details.retry_after_seconds);
    (seconds > 0).then(|| Duration::from_secs(seconds.into()).min(LONGEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn answer(code: u16, message: &str, details: Value) -> kube::Error {
        let status = json!({"kind": "Status", "status": "Failure", "code": code,
            "message": message, "details": details});
        kube::Error::Api(serde_json::from_value(status).expect("a status"))
    }

    /// Whom the refusal of a creation concerns.
    fn concern(code: u16, message: &str, details: Value) -> &'static str {
        match classify_creation("Creating", &answer(code, message, details)) {
            Error::Permanent(_) => "the run, for good",
            Error::Refused(_) => "the run, for now",
            Error::Unclear { .. } => "the run or the side",
            Error::Agent(_) => "the agent",
            _ => "the side",
        }
    }

    #[test]
    fn a_refused_creation_says_whom_it_concerns() {
        let job = json!({"name": "etl-1", "group": "batch", "kind": "jobs"});
        let jobs = json!({"group": "batch", "kind": "jobs"});
        let namespace = json!({"name": "x", "kind": "namespaces"});
        let none = Value::Null;
        let cases = [
            (
                403,
                r#"jobs.batch is forbidden: User "system:serviceaccount:a:b" cannot create resource "jobs" in API group "batch" in the namespace "x""#,
                &jobs,
                "the agent",
            ),
            (403, "<html>Forbidden</html>", &none, "the agent"),
            (401, "Unauthorized", &none, "the agent"),
            (404, "namespaces \"x\" not found", &namespace, "the agent"),
            (404, "404 page not found", &none, "the agent"),
            (
                403,
                "jobs.batch \"etl-1\" is forbidden: unable to create new content in namespace x because it is being terminated",
                &job,
                "the agent",
            ),
            (
                403,
                "jobs.batch \"etl-1\" is forbidden: exceeded quota: q, requested: count/jobs.batch=1",
                &job,
                "the run, for now",
            ),
            (
                403,
                "jobs.batch \"etl-1\" is forbidden: cannot set blockOwnerDeletion",
                &job,
                "the run, for good",
            ),
            (
                403,
                "admission webhook \"w\" denied the request: no",
                &none,
                "the run, for good",
            ),
            (
                503,
                "admission webhook \"w\" denied the request: later",
                &none,
                "the run, for now",
            ),
            (
                401,
                "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no",
                &job,
                "the run, for good",
            ),
            (
                400,
                "the namespace of the provided object does not match",
                &none,
                "the run, for good",
            ),
            (
                422,
                "Job.batch \"etl-1\" is invalid",
                &job,
                "the run, for good",
            ),
            (
                413,
                "Request entity too large: limit is 3145728",
                &none,
                "the run, for good",
            ),
            (
                500,
                "etcdserver: request is too large",
                &none,
                "the run, for good",
            ),
            (
                500,
                "resourceVersion should not be set on objects to be created",
                &none,
                "the run or the side",
            ),
            (
                500,
                "Internal error occurred: failed calling webhook \"w\"",
                &none,
                "the run or the side",
            ),
            (
                504,
                "Timeout: request did not complete",
                &none,
                "the run or the side",
            ),
            (500, "etcdserver: no leader", &none, "the side"),
            (429, "too many requests", &none, "the side"),
        ];
        for (code, message, details, expected) in cases {
            assert_eq!(
                concern(code, message, details.clone()),
                expected,
                "{message}"
            );
        }
    }

    #[test]
    fn creations_that_race_for_a_quota_are_tried_again() {
        let mut status = Status::failure("the object has been modified", "Conflict");
        status.code = 409;
        let error = classify_creation("Creating", &kube::Error::Api(status.boxed()));
        assert!(matches!(error, Error::Unclear { .. }), "{error:?}");
    }

    #[test]
    fn an_answer_that_repeats_the_object_is_cut() {
        let error = answer(422, &"x".repeat(1 << 20), Value::Null);
        assert!(classify_creation("Creating", &error).to_string().len() < 5000);
        assert!(classify("Reading", &error).to_string().len() < 5000);
    }
}
