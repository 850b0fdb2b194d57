//! What a request asks for, read from its method, path and query.

use std::collections::HashMap;

use axum::extract::Query;
use http::{HeaderMap, Method, Uri, header};

use super::kinds::{self, KINDS, Kind, KindId};
use super::object::Key;
use super::refused::{Cause, Outcome, Refused};
use super::selector::Selector;

/// What a path means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// One object or all of a kind.
    Objects(Target),
    /// A question about one's own permissions.
    AccessReview,
    /// A path of its own, such as `/version` and those of discovery.
    Fixed,
}

/// An object or several of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) kind: KindId,
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
}

impl Target {
    pub(crate) fn key(&self) -> Key {
        Key::new(
            self.namespace.clone().unwrap_or_default(),
            self.name.clone().unwrap_or_default(),
        )
    }

    /// The verb as access rules know it.
    pub(crate) fn verb(&self, method: &Method, watch: bool) -> &'static str {
        match (method.as_str(), &self.name) {
            ("GET" | "HEAD", Some(_)) => "get",
            ("GET" | "HEAD", None) if watch => "watch",
            ("GET" | "HEAD", None) => "list",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", Some(_)) => "delete",
            ("DELETE", None) => "deletecollection",
            _ => "options",
        }
    }

    /// The resource as access rules know it: `pods`, `pods/log`.
    pub(crate) fn resource(&self) -> String {
        match &self.subresource {
            Some(sub) => format!("{}/{sub}", KINDS[self.kind].plural),
            None => KINDS[self.kind].plural.to_owned(),
        }
    }
}

/// Reads a path.
pub(crate) fn route(path: &str) -> Route {
    let segments: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (group, version, rest) = match segments.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Route::Fixed,
    };
    if (group, rest) == ("authorization.k8s.io", &["selfsubjectaccessreviews"]) {
        return Route::AccessReview;
    }
    let (namespace, plural, rest) = match rest {
        ["namespaces"] => (None, "namespaces", &[][..]),
        ["namespaces", name] => (None, "namespaces", std::slice::from_ref(name)),
        ["namespaces", name, sub @ ("status" | "finalize")] => {
            return objects(group, version, "namespaces", None, &[name, sub]);
        }
        ["namespaces", namespace, plural, rest @ ..] => (Some(*namespace), *plural, rest),
        [plural, rest @ ..] => (None, *plural, rest),
        [] => return Route::Fixed,
    };
    objects(group, version, plural, namespace, rest)
}

fn objects(
    group: &str,
    version: &str,
    plural: &str,
    namespace: Option<&str>,
    rest: &[&str],
) -> Route {
    let Some(kind) = kinds::find(group, version, plural) else {
        return Route::Fixed;
    };
    let owned = |text: &&str| (*text).to_owned();
    Route::Objects(Target {
        kind,
        namespace: namespace.map(str::to_owned),
        name: rest.first().map(owned),
        subresource: rest.get(1).map(owned),
    })
}

/// The parameters of a query.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parameters {
    values: HashMap<String, String>,
}

impl Parameters {
    pub(crate) fn of(uri: &Uri) -> Self {
        let values = Query::<HashMap<String, String>>::try_from_uri(uri);
        Self {
            values: values.map(|query| query.0).unwrap_or_default(),
        }
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        self.values
            .get(name)
            .map(String::as_str)
            .unwrap_or_default()
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.text(name), "true" | "1" | "True")
    }

    pub(crate) fn number(&self, name: &str) -> Outcome<Option<u64>> {
        match self.text(name) {
            "" => Ok(None),
            given => given.parse().map(Some).map_err(|_| {
                Refused::bad_request(format!(
                    "strconv.ParseInt: parsing {given:?}: invalid syntax"
                ))
            }),
        }
    }

    pub(crate) fn selector(&self, kind: &Kind) -> Outcome<Selector> {
        let (labels, fields) = (self.text("labelSelector"), self.text("fieldSelector"));
        Selector::parse(labels, fields, kind.kind).map_err(Refused::bad_request)
    }

    /// Whether nothing is to take effect.
    pub(crate) fn dry_run(&self) -> Outcome<bool> {
        match self.text("dryRun") {
            "" => Ok(false),
            "All" => Ok(true),
            other => {
                let cause = Cause::unsupported("dryRun", other, &["All"]);
                Err(Refused::invalid("Options", "meta.k8s.io", "", &[cause]))
            }
        }
    }

    /// Whether unknown members are refused.
    pub(crate) fn strict(&self) -> bool {
        self.text("fieldValidation") == "Strict"
    }

    /// A resource version to begin from; none or zero is any. What is wrong with it otherwise.
    pub(crate) fn resource_version(&self) -> Result<Option<u64>, String> {
        match self.text("resourceVersion") {
            "" | "0" => Ok(None),
            given => given.parse().map(Some).map_err(|_| {
                format!(
                    "resourceVersion: Invalid value: {given:?}: strconv.ParseUint: parsing \
                     {given:?}: invalid syntax"
                )
            }),
        }
    }
}

/// The content type without its parameters.
pub(crate) fn content_type(headers: &HeaderMap) -> &str {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let value = value.unwrap_or("application/json");
    value.split(';').next().unwrap_or(value).trim()
}

/// Whether the client prefers a table, as `kubectl get` does.
pub(crate) fn wants_table(headers: &HeaderMap) -> bool {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| {
        accept.contains("as=Table") && (accept.contains("v=v1;") || accept.contains("v=v1,"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::kinds::{JOBS, NAMESPACES, PODS};
    use super::*;

    fn target(path: &str) -> Target {
        match route(path) {
            Route::Objects(target) => target,
            other => panic!("{path} is {other:?}"),
        }
    }

    #[test]
    fn paths_name_objects_with_and_without_a_namespace() {
        let job = target("/apis/batch/v1/namespaces/n/jobs/j/status");
        assert_eq!((job.kind, job.key()), (JOBS, Key::new("n", "j")));
        assert_eq!(job.resource(), "jobs/status");
        assert_eq!(target("/api/v1/pods").namespace, None);
        assert_eq!(
            target("/api/v1/namespaces/n/pods/p/log").resource(),
            "pods/log"
        );
        let namespace = target("/api/v1/namespaces/n");
        assert_eq!(
            (namespace.kind, namespace.key()),
            (NAMESPACES, Key::new("", "n"))
        );
        assert_eq!(target("/api/v1/pods").kind, PODS);
        assert_eq!(route("/apis/batch/v1beta1/jobs"), Route::Fixed);
        assert_eq!(route("/apis/batch/v1"), Route::Fixed);
    }

    #[test]
    fn a_listing_with_watch_is_a_watch() {
        let pods = target("/api/v1/pods");
        assert_eq!(pods.verb(&Method::GET, true), "watch");
        assert_eq!(pods.verb(&Method::GET, false), "list");
        assert_eq!(pods.verb(&Method::DELETE, false), "deletecollection");
    }
}
