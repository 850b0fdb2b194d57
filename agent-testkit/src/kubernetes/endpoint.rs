//! The HTTP side: reads requests, applies access rules and faults, answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::kinds::{JOBS, KINDS, PODS};
use super::object::{Key, Stored, items, text};
use super::operations::{Deletion, Mode};
use super::refused::{Outcome, Refused, status_body};
use super::request::{Parameters, Route, Target, content_type, route, wants_table};
use super::table::table;
use super::{discovery, watch};
use crate::faults::{Fault, answer, inject};
use crate::requests::RequestRecord;
use crate::serve::DropConnection;

const LARGEST_BODY: usize = 3 * 1024 * 1024;

/// The router that serves the API.
pub(crate) fn router(cluster: Arc<Cluster>) -> Router {
    Router::new().fallback(serve).with_state(cluster)
}

async fn serve(State(cluster): State<Arc<Cluster>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, LARGEST_BODY).await else {
        return Refused::too_large(LARGEST_BODY).response();
    };
    let route = route(parts.uri.path());
    let parameters = Parameters::of(&parts.uri);
    let operation = match &route {
        Route::Objects(target) => {
            let verb = target.verb(&parts.method, parameters.flag("watch"));
            format!("{verb} {}", target.resource())
        }
        Route::AccessReview => "create selfsubjectaccessreviews".to_owned(),
        Route::Fixed => format!("get {}", parts.uri.path()),
    };
    cluster
        .requests
        .note([operation.as_str()], || RequestRecord {
            at: Instant::now(),
            operation: operation.clone(),
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            headers: parts.headers.clone(),
            body: body.clone(),
        });
    cluster.changes.mark();
    let is_watch = operation.starts_with("watch ");
    let fault = match cluster.faults.decide(&operation) {
        Some(Fault::GraphqlErrors(_)) => Some(Fault::status(500)),
        other => other,
    };
    let handle = async {
        let respond = respond(&cluster, &parts, body, &route, &parameters, fault.as_ref());
        match respond {
            Ok(response) => response,
            Err(refused) => {
                if refused.after > 0 {
                    tokio::time::sleep(Duration::from_millis(refused.after.into())).await;
                }
                refused.response()
            }
        }
    };
    // A watch has no half: it is cut by its own stream.
    let outer = fault
        .clone()
        .filter(|fault| !is_watch || *fault != Fault::Truncate);
    let mut response = inject(outer, status_body, handle).await;
    if response.extensions().get::<DropConnection>().is_none() {
        let mut answers = cluster.answers();
        *answers
            .entry((operation, response.status().as_u16()))
            .or_default() += 1;
    }
    if cluster.clock.is_skewed()
        && let Ok(date) = HeaderValue::from_str(&cluster.clock.http_date())
    {
        response.headers_mut().insert(header::DATE, date);
    }
    response
}

fn respond(
    cluster: &Arc<Cluster>,
    parts: &Parts,
    body: Bytes,
    route: &Route,
    parameters: &Parameters,
    fault: Option<&Fault>,
) -> Outcome<Response> {
    authenticate(cluster, parts)?;
    let sent = content_type(&parts.headers);
    if !body.is_empty() && sent.ends_with("protobuf") {
        return Err(Refused::unsupported_media_type(sent));
    }
    match route {
        Route::Fixed => match parts.uri.path() {
            "/healthz" | "/livez" | "/readyz" => Ok(answer(
                StatusCode::OK,
                "text/plain; charset=utf-8",
                "ok".into(),
            )),
            path => match discovery::answer(path) {
                Some(found) => Ok(json_answer(StatusCode::OK, found.to_string())),
                None => Err(Refused::no_resource()),
            },
        },
        Route::AccessReview => review(cluster, bearer(parts), &body),
        Route::Objects(target) => {
            authorize(cluster, parts, target, parameters)?;
            objects(cluster, parts, &body, target, parameters, fault)
        }
    }
}

fn authenticate(cluster: &Cluster, parts: &Parts) -> Outcome<()> {
    let access = cluster.access();
    let Some(token) = &access.token else {
        return Ok(());
    };
    match bearer(parts) == Some(token) {
        true => Ok(()),
        false => Err(Refused::unauthorized()),
    }
}

/// The token of a request, which names its user where any token will do.
fn bearer(parts: &Parts) -> Option<&str> {
    let sent = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    sent.strip_prefix("Bearer ")
}

fn authorize(
    cluster: &Cluster,
    parts: &Parts,
    target: &Target,
    parameters: &Parameters,
) -> Outcome<()> {
    let verb = target.verb(&parts.method, parameters.flag("watch"));
    let resource = target.resource();
    let user = bearer(parts);
    if cluster.access().allows(user, verb, &resource) {
        return Ok(());
    }
    let kind = &KINDS[target.kind];
    let place = match &target.namespace {
        Some(namespace) => format!("in the namespace {namespace:?}"),
        None => "at the cluster scope".to_owned(),
    };
    let why = format!(
        "User {:?} cannot {verb} resource {resource:?} in API group {:?} {place}",
        user.unwrap_or(&cluster.options.user),
        kind.group
    );
    Err(Refused::forbidden(
        kind,
        target.name.as_deref().unwrap_or_default(),
        &why,
    ))
}

fn review(cluster: &Cluster, user: Option<&str>, body: &Bytes) -> Outcome<Response> {
    let mut review = parse(body)?;
    let asked = &review["spec"]["resourceAttributes"];
    let resource = match asked["subresource"].as_str().filter(|sub| !sub.is_empty()) {
        Some(sub) => format!("{}/{sub}", asked["resource"].as_str().unwrap_or_default()),
        None => asked["resource"].as_str().unwrap_or_default().to_owned(),
    };
    let verb = asked["verb"].as_str().unwrap_or_default();
    let allowed = cluster.access().allows(user, verb, &resource);
    review["kind"] = json!("SelfSubjectAccessReview");
    review["apiVersion"] = json!("authorization.k8s.io/v1");
    review["status"] = json!({"allowed": allowed});
    if allowed {
        review["status"]["reason"] = json!("allowed by the test cluster");
    }
    Ok(json_answer(StatusCode::CREATED, review.to_string()))
}

fn objects(
    cluster: &Arc<Cluster>,
    parts: &Parts,
    body: &Bytes,
    target: &Target,
    parameters: &Parameters,
    fault: Option<&Fault>,
) -> Outcome<Response> {
    let as_table = wants_table(&parts.headers);
    let kind = target.kind;
    let key = target.key();
    match target.subresource.as_deref() {
        None => {}
        Some("status") if KINDS[kind].has_status => {}
        Some("log") if kind == PODS && parts.method == Method::GET => {
            return pod_log(cluster, &key, parameters);
        }
        Some(_) => return Err(Refused::no_resource()),
    }
    let mode = Mode {
        dry_run: parameters.dry_run()?,
        strict: parameters.strict(),
        status_only: target.subresource.is_some(),
    };
    match target.verb(&parts.method, parameters.flag("watch")) {
        "get" => {
            let found = cluster.store().get(kind, &key).cloned();
            let found = found.ok_or_else(|| Refused::not_found(&KINDS[kind], &key.name))?;
            Ok(one(cluster, kind, StatusCode::OK, &found, as_table))
        }
        "list" => list(cluster, target, parameters, as_table),
        "watch" => watch::respond(cluster, target, parameters, as_table, fault),
        "create" if target.name.is_none() => {
            if target.namespace.is_none() && KINDS[kind].namespaced {
                return Err(Refused::method_not_allowed());
            }
            only_json(parts)?;
            let created = cluster.create(kind, target.namespace.as_deref(), parse(body)?, mode)?;
            Ok(one(cluster, kind, StatusCode::CREATED, &created, as_table))
        }
        "update" => {
            only_json(parts)?;
            let replaced = cluster.replace(kind, &key, parse(body)?, mode)?;
            Ok(one(cluster, kind, StatusCode::OK, &replaced, as_table))
        }
        "patch" => {
            let content_type = content_type(&parts.headers);
            if !content_type.contains("patch") {
                return Err(Refused::unsupported_patch());
            }
            let patched = cluster.patch(kind, &key, content_type, &parse(body)?, mode)?;
            Ok(one(cluster, kind, StatusCode::OK, &patched, as_table))
        }
        "delete" => {
            let mut options = delete_options(body, parameters)?;
            options["orphanDependents"] = match parameters.text("orphanDependents") {
                "" => options["orphanDependents"].clone(),
                given => json!(given == "true"),
            };
            let unsaid =
                options["propagationPolicy"].is_null() && options["orphanDependents"].is_null();
            let deletion = cluster.delete(kind, &key, &options, mode.dry_run)?;
            let mut response = deleted(target, deletion);
            if kind == JOBS && unsaid {
                let warning = HeaderValue::from_static(ORPHANED);
                response.headers_mut().insert(header::WARNING, warning);
            }
            Ok(response)
        }
        "deletecollection" => delete_all(cluster, body, target, parameters, mode.dry_run),
        _ => Err(Refused::method_not_allowed()),
    }
}

/// Refuses bodies of other kinds.
fn only_json(parts: &Parts) -> Outcome<()> {
    match content_type(&parts.headers) {
        "application/json" => Ok(()),
        other => Err(Refused::unsupported_media_type(other)),
    }
}

const ORPHANED: &str = "299 - \"child pods are preserved by default when jobs are deleted; set \
    propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning\"";

fn list(
    cluster: &Cluster,
    target: &Target,
    parameters: &Parameters,
    as_table: bool,
) -> Outcome<Response> {
    let kind = &KINDS[target.kind];
    let selector = parameters.selector(&KINDS[target.kind])?;
    let limit = match parameters.number("limit")? {
        None | Some(0) => usize::MAX,
        Some(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
    };
    let exact = parameters.resource_version();
    let exact =
        exact.map_err(|why| Refused::bad_request(format!("invalid resource version: {why}")))?;
    if !parameters.text("resourceVersionMatch").is_empty()
        && parameters.text("resourceVersion").is_empty()
    {
        let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
        return Err(Refused::forbidden_option("resourceVersionMatch", why));
    }
    let token = parameters.text("continue");
    let after = (!token.is_empty())
        .then(|| Continue::parse(token))
        .transpose()?;
    let store = cluster.store();
    let version = match &after {
        Some(after) if after.version < store.oldest(target.kind) => {
            return Err(Refused::expired(CONTINUE_EXPIRED));
        }
        Some(after) => after.version,
        None => store.version(),
    };
    if parameters.text("resourceVersionMatch") == "Exact"
        && let Some(exact) = exact
        && exact < store.oldest(target.kind)
    {
        return Err(Refused::expired(
            "The resourceVersion for the provided list is too old.",
        ));
    }
    let after = after.map(|after| after.key);
    let page = store.list(
        target.kind,
        target.namespace.as_deref(),
        &selector,
        limit,
        after.as_ref(),
    );
    drop(store);
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let Some((key, left)) = page.next {
        metadata["continue"] = json!(Continue { version, key }.text());
        if let Some(left) = left {
            metadata["remainingItemCount"] = json!(left);
        }
    }
    if as_table {
        let table = table(target.kind, &page.objects, metadata, cluster.clock.now());
        return Ok(json_answer(StatusCode::OK, table.to_string()));
    }
    let head = format!(
        "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
        kind.kind,
        kind.api_version()
    );
    let mut text = BytesMut::from(head.as_bytes());
    for (n, object) in page.objects.iter().enumerate() {
        if n > 0 {
            text.extend_from_slice(b",");
        }
        text.extend_from_slice(&object.text());
    }
    text.extend_from_slice(b"]}");
    Ok(json_answer(StatusCode::OK, text.freeze()))
}

const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent \
    list result. You can start a new list without the continue parameter.";

/// Where a list goes on.
struct Continue {
    version: u64,
    key: Key,
}

impl Continue {
    fn text(&self) -> String {
        let Key { namespace, name } = &self.key;
        format!("{}/{namespace}/{name}", self.version)
    }

    fn parse(text: &str) -> Outcome<Self> {
        let mut parts = text.splitn(3, '/');
        let parsed = (|| {
            let version = parts.next()?.parse().ok()?;
            Some((version, parts.next()?, parts.next()?))
        })();
        let (version, namespace, name) = parsed.ok_or_else(|| {
            Refused::bad_request("invalid continue token: continue key is not valid")
        })?;
        Ok(Self {
            version,
            key: Key::new(namespace, name),
        })
    }
}

fn delete_options(body: &Bytes, parameters: &Parameters) -> Outcome<Value> {
    let mut options = match body.is_empty() {
        true => json!({}),
        false => parse(body)?,
    };
    let policy = parameters.text("propagationPolicy");
    if !policy.is_empty() {
        options["propagationPolicy"] = json!(policy);
    }
    Ok(options)
}

fn deleted(target: &Target, deletion: Deletion) -> Response {
    let kind = &KINDS[target.kind];
    match deletion {
        Deletion::Pending(object) => json_answer(StatusCode::OK, object.text()),
        Deletion::Done(object) if target.kind == PODS => json_answer(StatusCode::OK, object.text()),
        Deletion::Done(object) => {
            let mut details = json!({
                "name": text(&object.value, "/metadata/name"), "kind": kind.plural,
                "uid": text(&object.value, "/metadata/uid"),
            });
            if !kind.group.is_empty() {
                details["group"] = json!(kind.group);
            }
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": details,
            });
            json_answer(StatusCode::OK, status.to_string())
        }
    }
}

fn delete_all(
    cluster: &Arc<Cluster>,
    body: &Bytes,
    target: &Target,
    parameters: &Parameters,
    dry_run: bool,
) -> Outcome<Response> {
    let selector = parameters.selector(&KINDS[target.kind])?;
    let options = delete_options(body, parameters)?;
    let namespace = target.namespace.as_deref();
    let page = cluster
        .store()
        .list(target.kind, namespace, &selector, usize::MAX, None);
    for object in &page.objects {
        // An object that somebody else deleted meanwhile is as good as deleted.
        match cluster.delete(target.kind, &Key::of(&object.value), &options, dry_run) {
            Err(refused) if refused.code != 404 => return Err(refused),
            _ => {}
        }
    }
    list(cluster, target, parameters, false)
}

fn pod_log(cluster: &Cluster, key: &Key, parameters: &Parameters) -> Outcome<Response> {
    let pod = cluster.store().get(PODS, key).cloned();
    let pod = pod.ok_or_else(|| Refused::not_found(&KINDS[PODS], &key.name))?;
    let waiting = items(&pod.value, "/status/containerStatuses")
        .find(|one| one["state"]["waiting"].is_object());
    let reason = match waiting {
        Some(status) => text(status, "/state/waiting/reason").to_owned(),
        None if text(&pod.value, "/spec/nodeName").is_empty() => String::new(),
        None => {
            let log = cluster
                .node
                .get()
                .and_then(|node| node.log(key))
                .unwrap_or_default();
            let log = match parameters
                .number("tailLines")?
                .and_then(|n| usize::try_from(n).ok())
            {
                Some(count) => last_lines(&log, count),
                None => log,
            };
            return Ok(answer(StatusCode::OK, "text/plain", log));
        }
    };
    let container = text(&pod.value, "/spec/containers/0/name");
    let waits = match reason.as_str() {
        "" => String::new(),
        reason => format!(": {reason}"),
    };
    Err(Refused::bad_request(format!(
        "container {container:?} in pod {:?} is waiting to start{waits}",
        key.name
    )))
}

fn last_lines(log: &str, count: usize) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let tail = &lines[lines.len().saturating_sub(count)..];
    tail.iter().flat_map(|line| [*line, "\n"]).collect()
}

fn one(
    cluster: &Cluster,
    kind: usize,
    code: StatusCode,
    object: &Stored,
    as_table: bool,
) -> Response {
    if !as_table {
        return json_answer(code, object.text());
    }
    let metadata = json!({"resourceVersion": object.version.to_string()});
    let table = table(
        kind,
        std::slice::from_ref(object),
        metadata,
        cluster.clock.now(),
    );
    json_answer(code, table.to_string())
}

fn json_answer(code: StatusCode, body: impl Into<axum::body::Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

fn parse(body: &Bytes) -> Outcome<Value> {
    serde_json::from_slice(body).map_err(|error| {
        Refused::bad_request(format!("the object provided is unrecognized: {error}"))
    })
}
