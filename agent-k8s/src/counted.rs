//! Counts the requests to the Kubernetes API, by verb, resource and outcome.

use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Method, Request, Response, Uri};
use tower::{Layer, Service};

/// Resources that the agent uses; any other is counted as `other`.
const RESOURCES: [&str; 7] = [
    "jobs",
    "pods",
    "events",
    "leases",
    "log",
    "version",
    "selfsubjectaccessreviews",
];

/// A [`tower`] layer that counts.
pub(crate) struct Counted;

/// The service under a [`Counted`] layer.
#[derive(Clone)]
pub(crate) struct CountedService<S>(S);

impl<S> Layer<S> for Counted {
    type Service = CountedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CountedService(inner)
    }
}

impl<S, A, B> Service<Request<A>> for CountedService<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let (verb, resource) = operation(request.method(), request.uri());
        let answer = self.0.call(request);
        async move {
            let answer = answer.await;
            let outcome = match answer.as_ref().map(|answer| answer.status().as_u16()) {
                Ok(200..400) => "ok",
                Ok(409) => "conflict",
                Ok(429) => "throttled",
                Ok(400..500) => "refused",
                Ok(_) => "failed",
                Err(_) => "broken",
            };
            metrics::counter!(
                "prefect_agent_kubernetes_requests_total",
                "verb" => verb, "resource" => resource, "outcome" => outcome
            )
            .increment(1);
            answer
        }
        .boxed()
    }
}

/// Whether a request begins a watch.
pub(crate) fn is_watch(uri: &Uri) -> bool {
    uri.query()
        .is_some_and(|query| query.contains("watch=true"))
}

/// Whether a request is only tried.
fn is_dry_run(uri: &Uri) -> bool {
    uri.query().is_some_and(|query| query.contains("dryRun="))
}

/// The verb and the resource of a request, as access rules name them.
fn operation(method: &Method, uri: &Uri) -> (&'static str, &'static str) {
    let mut parts = uri.path().rsplit('/');
    let last = parts.next().unwrap_or_default();
    let before = parts.next().unwrap_or_default();
    let find = |part: &str| RESOURCES.into_iter().find(|name| *name == part);
    let (resource, named) = match (find(last), find(before)) {
        (Some(resource), _) => (resource, false),
        (None, Some(resource)) => (resource, true),
        (None, None) => ("other", false),
    };
    let verb = match *method {
        Method::GET if is_watch(uri) => "watch",
        Method::GET if named || matches!(resource, "log" | "version" | "other") => "get",
        Method::GET => "list",
        // Nothing is created by that.
        Method::POST if is_dry_run(uri) => "dry_run",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    };
    (verb, resource)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_named_as_access_rules_name_them() {
        let named = |method, uri: &'static str| operation(&method, &Uri::from_static(uri));
        let jobs = "/apis/batch/v1/namespaces/jobs/jobs";
        assert_eq!(named(Method::POST, jobs), ("create", "jobs"));
        let tried = "/apis/batch/v1/namespaces/jobs/jobs?dryRun=All";
        assert_eq!(named(Method::POST, tried), ("dry_run", "jobs"));
        assert_eq!(named(Method::GET, jobs), ("list", "jobs"));
        let watch = "/api/v1/namespaces/x/pods?watch=true&timeoutSeconds=290";
        assert_eq!(named(Method::GET, watch), ("watch", "pods"));
        let log = "/api/v1/namespaces/x/pods/p/log?container=flow";
        assert_eq!(named(Method::GET, log), ("get", "log"));
        let lease = "/apis/coordination.k8s.io/v1/namespaces/x/leases/agent";
        assert_eq!(named(Method::PUT, lease), ("update", "leases"));
        assert_eq!(named(Method::GET, "/version"), ("get", "version"));
    }
}
