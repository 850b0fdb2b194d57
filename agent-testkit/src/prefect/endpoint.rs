//! The HTTP side: one POST endpoint at every path.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_graphql::parser::parse_query;
use async_graphql::parser::types::{ExecutableDocument, OperationDefinition, Selection};
use async_graphql::{Request, Variables};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::schema::{Api, is_invalid_query, variables};
use super::seed::spell_out;
use super::shared::{Auth, Caller, Shared};
use crate::faults::{answer, inject};
use crate::requests::RequestRecord;

const LARGEST_BODY: usize = 5_000_000;
const PARSED_QUERIES: usize = 256;

/// What every request needs.
pub(crate) struct Endpoint {
    shared: Arc<Shared>,
    api: Api,
    /// Clients send the same few texts again and again.
    parsed: Mutex<HashMap<String, Parsed>>,
}

#[derive(Clone)]
struct Parsed {
    document: ExecutableDocument,
    operations: Arc<[String]>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GraphqlBody {
    query: String,
    #[serde(default)]
    variables: Value,
    #[serde(default)]
    operation_name: Option<String>,
}

/// The router that serves the API at every path.
pub(crate) fn router(shared: Arc<Shared>, api: Api) -> Router {
    let endpoint = Endpoint {
        shared,
        api,
        parsed: Mutex::default(),
    };
    Router::new().fallback(serve).with_state(Arc::new(endpoint))
}

async fn serve(State(endpoint): State<Arc<Endpoint>>, request: axum::extract::Request) -> Response {
    let (parts, body) = request.into_parts();
    let shared = &endpoint.shared;
    let mut response = match read(body).await {
        Ok(body) => endpoint.respond(&parts, body).await,
        Err(refused) => refused,
    };
    if shared.clock.is_skewed()
        && let Ok(date) = HeaderValue::from_str(&shared.clock.http_date())
    {
        response.headers_mut().insert(header::DATE, date);
    }
    response
}

async fn read(body: Body) -> Result<Bytes, Response> {
    axum::body::to_bytes(body, LARGEST_BODY).await.map_err(|_| {
        let text = "request entity too large".to_owned();
        answer(StatusCode::PAYLOAD_TOO_LARGE, "text/plain", text)
    })
}

impl Endpoint {
    async fn respond(&self, parts: &http::request::Parts, body: Bytes) -> Response {
        if parts.method != Method::POST {
            return answer(StatusCode::NOT_FOUND, "text/plain", "not found".into());
        }
        let asked = self.understand(&body);
        let fallback = ["invalid".to_owned()];
        let operations: &[String] = match &asked {
            Ok((_, parsed)) => &parsed.operations,
            Err(_) => &fallback,
        };
        let first = operations.first().map_or("invalid", String::as_str);
        self.shared
            .requests
            .note(operations.iter().map(String::as_str), || RequestRecord {
                at: Instant::now(),
                operation: operations.join(" "),
                method: parts.method.clone(),
                uri: parts.uri.clone(),
                headers: parts.headers.clone(),
                body: body.clone(),
            });
        self.shared.changes.mark();
        let fault = self.shared.faults.decide(first);
        let handle = async {
            if let Some(refused) = self.check_key(&parts.headers) {
                return refused;
            }
            match asked {
                Ok((body, parsed)) => self.execute(&parts.headers, body, parsed.document).await,
                Err(message) => bad_request(&[json!({"message": message})]),
            }
        };
        inject(fault, status_body, handle).await
    }

    fn understand(&self, body: &[u8]) -> Result<(GraphqlBody, Parsed), String> {
        let mut body: GraphqlBody =
            serde_json::from_slice(body).map_err(|error| format!("invalid body: {error}"))?;
        body.variables = variables(std::mem::take(&mut body.variables))
            .ok_or("variables must be an object, or text that holds one")?;
        let mut cache = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(parsed) = cache.get(&body.query) {
            return Ok((body, parsed.clone()));
        }
        let document = parse_query(&body.query).map_err(|error| error.to_string())?;
        let parsed = Parsed {
            operations: operations(&document).into(),
            document,
        };
        if cache.len() >= PARSED_QUERIES {
            cache.clear();
        }
        cache.insert(body.query.clone(), parsed.clone());
        Ok((body, parsed))
    }

    async fn execute(
        &self,
        headers: &HeaderMap,
        body: GraphqlBody,
        document: ExecutableDocument,
    ) -> Response {
        let mut request = Request::new(body.query)
            .variables(Variables::from_json(body.variables))
            .data(caller(headers));
        request.operation_name = body.operation_name;
        request.set_parsed_query(document);
        let response = self.api.execute(request).await;
        if is_invalid_query(&response) {
            let messages = response.errors.iter();
            let errors: Vec<Value> = messages
                .map(|error| json!({"message": error.message, "locations": error.locations}))
                .collect();
            return bad_request(&errors);
        }
        let text = serde_json::to_string(&response).unwrap_or_default();
        let text = spell_out(text);
        answer(StatusCode::OK, "application/json; charset=utf-8", text)
    }

    fn check_key(&self, headers: &HeaderMap) -> Option<Response> {
        let auth = self.shared.auth();
        let sent = text(headers, "authorization");
        let key = sent
            .as_deref()
            .and_then(|value| value.strip_prefix("Bearer "));
        if auth.accepts(key) {
            return None;
        }
        Some(match *auth {
            Auth::CloudError(_) => answer(
                StatusCode::OK,
                "application/json",
                json!({"data": null, "errors": [{
                    "message": "AuthenticationError: not authenticated",
                    "extensions": {"code": "UNAUTHENTICATED"},
                }]})
                .to_string(),
            ),
            Auth::Open | Auth::Status401(_) => answer(
                StatusCode::UNAUTHORIZED,
                "text/plain",
                "unauthorized".into(),
            ),
        })
    }
}

fn status_body(code: StatusCode) -> String {
    json!({"errors": [{"message": code.canonical_reason().unwrap_or("error")}]}).to_string()
}

fn bad_request(errors: &[Value]) -> Response {
    let errors: Vec<Value> = errors
        .iter()
        .map(|error| {
            let mut error = error.clone();
            error["extensions"] = json!({"code": "GRAPHQL_VALIDATION_FAILED"});
            error
        })
        .collect();
    let body = json!({"errors": errors}).to_string();
    answer(
        StatusCode::BAD_REQUEST,
        "application/json; charset=utf-8",
        body,
    )
}

fn caller(headers: &HeaderMap) -> Caller {
    Caller {
        agent_id: text(headers, "x-prefect-agent-id").and_then(|id| id.parse().ok()),
        core_version: text(headers, "x-prefect-core-version"),
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// The names of the top-level fields, each once: what the document asks for.
fn operations(document: &ExecutableDocument) -> Vec<String> {
    let mut names = Vec::new();
    let mut seen = BTreeSet::new();
    for (_, operation) in document.operations.iter() {
        let OperationDefinition { selection_set, .. } = &operation.node;
        for selection in &selection_set.node.items {
            if let Selection::Field(field) = &selection.node {
                let name = field.node.name.node.to_string();
                if seen.insert(name.clone()) {
                    names.push(name);
                }
            }
        }
    }
    names
}
