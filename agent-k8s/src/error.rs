//! What errors of the Kubernetes API mean for a flow run.

use std::time::Duration;

use agent_core::Error;
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

/// Whether somebody may change what the API server refuses the request for: a quota that is used
/// up, a namespace that is not there or is just being deleted.
fn may_change(status: &Status) -> bool {
    let of_namespace = status
        .details
        .as_ref()
        .is_some_and(|details| details.kind == "namespaces");
    let says = |text: &str| status.message.contains(text);
    match status.code {
        403 => says("exceeded quota") || says("is being terminated"),
        404 => of_namespace || (says("namespaces") && says("not found")),
        _ => false,
    }
}

/// The error for the caller: what the API server refuses is final; overload, outages and broken
/// connections pass, and so does a token that is just being renewed.
pub(crate) fn classify(what: &str, error: &kube::Error) -> Error {
    let message = format!("{what}: {}", reason(error));
    match error {
        kube::Error::Api(status) if may_change(status) => Error::Refused(message),
        kube::Error::Api(status)
            if (400..500).contains(&status.code) && !matches!(status.code, 401 | 408 | 429) =>
        {
            Error::Permanent(message)
        }
        kube::Error::Api(status) => {
            let seconds = status
                .details
                .as_ref()
                .map_or(0, |details| details.retry_after_seconds);
            Error::Transient {
                message,
                retry_after: (seconds > 0)
                    .then(|| Duration::from_secs(seconds.into()).min(LONGEST_PAUSE)),
            }
        }
        _ => Error::Transient {
            message,
            retry_after: None,
        },
    }
}
