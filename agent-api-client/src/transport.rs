//! One GraphQL request over HTTP: headers, body, time limits, and what each answer means.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use agent_core::backoff::Backoff;
use agent_core::shown::address;
use agent_core::{LONGEST_MESSAGE, clip};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Client, ClientBuilder, Identity, Response, StatusCode};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use url::Url;

use crate::clock::{self, ApiClock};
use crate::error::{ApiError, Cause};
use crate::redirects::{self, Misled};
use crate::rows::{RawRows, Row, RowKind, read_rows};
use crate::state::CORE_VERSION;

/// The largest answer that is read.
const LARGEST_ANSWER: usize = 64 << 20;
/// The largest answer of rows that is read. One that is larger is asked for in halves.
const LARGEST_ROWS: usize = 16 << 20;
/// An answer that is larger has to wait while others are in memory.
const LARGE_ANSWER: usize = 256 << 10;
/// How many such answers may be in memory at the same time.
const LARGE_ANSWERS: usize = 2;
/// The longest pause that the API can ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How much of an unexpected body an error shows.
const SHOWN: usize = 200;

/// The way to the API.
#[derive(Debug)]
pub(crate) struct Transport {
    http: Client,
    url: Url,
    shown: String,
    key: Option<SecretString>,
    tenant: OnceLock<String>,
    agent: OnceLock<String>,
    large_answers: Semaphore,
    clock: Mutex<ApiClock>,
}

/// Who may vouch for the API, and how the agent shows who it is; both in PEM.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tls<'a> {
    pub(crate) ca: Option<&'a [u8]>,
    pub(crate) identity: Option<&'a SecretSlice<u8>>,
}

impl Tls<'_> {
    fn apply(self, mut builder: ClientBuilder) -> Result<ClientBuilder, String> {
        if let Some(pem) = self.ca {
            let certificates = Certificate::from_pem_bundle(pem)
                .ok()
                .filter(|certificates| !certificates.is_empty())
                .ok_or("the file with the API's CA holds no certificate in PEM; check --api-ca, REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE")?;
            builder = builder.tls_certs_only(certificates);
        }
        if let Some(pem) = self.identity {
            // The error might show a part of the key.
            let identity = Identity::from_pem(pem.expose_secret()).map_err(|_| {
                "the agent's client certificate cannot be used: the file must hold a certificate and its private key in PEM; check --api-client-cert"
            })?;
            builder = builder.identity(identity);
        }
        Ok(builder)
    }
}

#[derive(Serialize)]
struct Body<'a> {
    query: &'a str,
    /// JSON as text: the API takes nothing else.
    variables: &'a str,
}

#[derive(Deserialize)]
struct Answer<T> {
    data: Option<T>,
    errors: Option<Vec<Value>>,
}

impl Transport {
    /// A way to the API at `url`, with one pool of kept connections.
    ///
    /// # Errors
    /// A sentence on what is wrong with the address, the key or the TLS set-up.
    pub(crate) fn new(
        url: &str,
        key: Option<SecretString>,
        timeout: Duration,
        tls: Tls<'_>,
    ) -> Result<Self, String> {
        let trimmed = url.trim_end_matches('/');
        let parsed = Url::parse(trimmed)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| {
                format!("the API address {:?} is not an http or https address; set it with --api or PREFECT__CLOUD__API", address(url))
            })?;
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            return Err("no crypto provider is installed; call rustls' CryptoProvider::install_default first".to_owned());
        }
        let mut headers = HeaderMap::new();
        headers.insert(
            HeaderName::from_static("x-prefect-core-version"),
            HeaderValue::from_static(CORE_VERSION),
        );
        let http = tls
            .apply(Client::builder())?
            .user_agent(concat!(
                "prefect-kubernetes-agent/",
                env!("CARGO_PKG_VERSION")
            ))
            .default_headers(headers)
            .timeout(timeout)
            .connect_timeout(timeout)
            .pool_idle_timeout(Duration::from_secs(60))
            .referer(false)
            .redirect(redirects::policy())
            .build()
            .map_err(|error| format!("cannot set up the HTTP client: {}", chain(&error)))?;
        if let Some(key) = &key {
            bearer(key).ok_or("the API key holds characters that no key can have; check --key or PREFECT__CLOUD__API_KEY")?;
        }
        Ok(Self {
            http,
            shown: address(parsed.as_str()).trim_end_matches('/').to_owned(),
            url: parsed,
            key,
            tenant: OnceLock::new(),
            agent: OnceLock::new(),
            large_answers: Semaphore::new(LARGE_ANSWERS),
            clock: Mutex::default(),
        })
    }

    /// The address, for messages.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    pub(crate) fn has_key(&self) -> bool {
        self.key.is_some()
    }

    pub(crate) fn tenant(&self) -> Option<&str> {
        self.tenant.get().map(String::as_str)
    }

    pub(crate) fn set_tenant(&self, id: String) {
        let _ = self.tenant.set(id);
    }

    pub(crate) fn agent(&self) -> Option<&str> {
        self.agent.get().map(String::as_str)
    }

    pub(crate) fn set_agent(&self, id: String) {
        let _ = self.agent.set(id);
    }

    /// The time by the API's clock, as far as it tells.
    pub(crate) fn now(&self) -> Timestamp {
        let now = Timestamp::now();
        now.saturating_add(self.ahead()).unwrap_or(now)
    }

    /// How far the API's clock is ahead of ours; zero when about equal.
    pub(crate) fn ahead(&self) -> SignedDuration {
        self.with_clock(|clock| clock.ahead())
    }

    /// How far the API's clock is ahead of ours, also where it is not followed.
    pub(crate) fn clock_differs(&self) -> SignedDuration {
        self.with_clock(|clock| clock.differs())
    }

    /// An error of this API.
    pub(crate) fn error(&self, operation: &'static str, cause: Cause) -> ApiError {
        ApiError {
            operation,
            url: self.shown.clone(),
            cause,
        }
    }

    /// Sends an operation once.
    pub(crate) async fn once<F, V>(
        &self,
        operation: &'static str,
        query: cynic::Operation<F, V>,
    ) -> Result<F, ApiError>
    where
        F: DeserializeOwned,
        V: Serialize,
    {
        let body = self.body(operation, &query)?;
        self.send(operation, body, LARGEST_ANSWER, &interpret).await
    }

    /// Sends an operation, again while it fails in passing, for at most about `budget`.
    pub(crate) async fn run<F, V>(
        &self,
        operation: &'static str,
        query: cynic::Operation<F, V>,
        budget: Duration,
    ) -> Result<F, ApiError>
    where
        F: DeserializeOwned,
        V: Serialize,
    {
        self.run_with(operation, query, budget, LARGEST_ANSWER, interpret)
            .await
    }

    /// The same for an answer of rows, each of which is read by itself.
    pub(crate) async fn run_rows<F, V, R>(
        &self,
        operation: &'static str,
        query: cynic::Operation<F, V>,
        budget: Duration,
    ) -> Result<Vec<Row<R>>, ApiError>
    where
        R: RowKind,
        V: Serialize,
    {
        self.run_with(operation, query, budget, LARGEST_ROWS, interpret_rows)
            .await
    }

    async fn run_with<F, V, T>(
        &self,
        operation: &'static str,
        query: cynic::Operation<F, V>,
        budget: Duration,
        largest: usize,
        decode: impl Fn(&[u8]) -> Result<T, Cause>,
    ) -> Result<T, ApiError>
    where
        V: Serialize,
    {
        let body = self.body(operation, &query)?;
        let until = Instant::now() + budget;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            let error = match self.send(operation, body.clone(), largest, &decode).await {
                Ok(data) => return Ok(data),
                Err(error) if !error.cause.is_transient() => return Err(error),
                Err(error) => error,
            };
            let pause = backoff.pause(error.cause.retry_after());
            if Instant::now() + pause > until {
                return Err(error);
            }
            tracing::debug!("{error}; trying again in {pause:?}");
            tokio::time::sleep(pause).await;
        }
    }

    fn body<F, V: Serialize>(
        &self,
        operation: &'static str,
        query: &cynic::Operation<F, V>,
    ) -> Result<Bytes, ApiError> {
        let body = serde_json::to_string(&query.variables).and_then(|variables| {
            serde_json::to_vec(&Body {
                query: &query.query,
                variables: &variables,
            })
        });
        body.map(Bytes::from)
            .map_err(|error| self.error(operation, Cause::Refused(error.to_string())))
    }

    async fn send<T>(
        &self,
        operation: &'static str,
        body: Bytes,
        largest: usize,
        decode: &impl Fn(&[u8]) -> Result<T, Cause>,
    ) -> Result<T, ApiError> {
        let answer = async {
            let mut request = self
                .http
                .post(self.url.clone())
                .header(header::CONTENT_TYPE, "application/json")
                .body(body);
            if let Some(key) = self.key.as_ref().and_then(bearer) {
                request = request.header(header::AUTHORIZATION, key);
                if let Some(tenant) = self.tenant() {
                    request = request.header("x-prefect-tenant-id", tenant);
                }
            }
            if let Some(agent) = self.agent() {
                request = request.header("x-prefect-agent-id", agent);
            }
            let response = request.send().await.map_err(broken)?;
            let (date, arrived) = (clock::date(response.headers()), Timestamp::now());
            let answer = self.read(response, largest, decode).await?;
            // Whatever stands before the API may answer as well, with a clock of its own.
            if let Some(date) = date {
                self.note_clock(date, arrived);
            }
            Ok(answer)
        };
        let began = Instant::now();
        let answer: Result<T, Cause> = answer.await;
        let outcome = answer.as_ref().map_or_else(Cause::kind, |_| "ok");
        metrics::counter!("prefect_agent_api_requests_total", "operation" => operation, "outcome" => outcome)
            .increment(1);
        metrics::histogram!("prefect_agent_api_request_seconds", "operation" => operation)
            .record(began.elapsed());
        answer.map_err(|cause| self.error(operation, cause))
    }

    /// Reads an answer. While it is large, few others of that kind are in memory.
    async fn read<T>(
        &self,
        mut response: Response,
        largest: usize,
        decode: &impl Fn(&[u8]) -> Result<T, Cause>,
    ) -> Result<T, Cause> {
        let status = response.status();
        let retry_after = retry_after(response.headers());
        let mut body = Vec::new();
        let mut _large: Option<SemaphorePermit<'_>> = None;
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() > largest => {
                    return Err(Cause::TooLarge(largest));
                }
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(error) => return Err(broken(error)),
            }
            if body.len() > LARGE_ANSWER && _large.is_none() {
                // The semaphore is never closed.
                _large = self.large_answers.acquire().await.ok();
            }
        }
        match status {
            _ if status.is_success() => decode(&body),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Cause::Unauthorized(format!(
                "HTTP status {}",
                status.as_u16()
            ))),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Err(Cause::Unavailable {
                    status: status.as_u16(),
                    retry_after,
                })
            }
            _ if status.is_server_error() => Err(Cause::Unavailable {
                status: status.as_u16(),
                retry_after,
            }),
            StatusCode::BAD_REQUEST => match errors(&body) {
                Some(errors) => Err(refusal(&errors)),
                None => Err(other_status(status, &body)),
            },
            _ => Err(other_status(status, &body)),
        }
    }

    /// Compares the clocks, so that a run is not started early by a clock that runs ahead.
    fn note_clock(&self, theirs: Timestamp, ours: Timestamp) {
        if let Some(notice) = self.with_clock(|clock| clock.note(theirs, ours)) {
            notice.log(&self.shown);
        }
    }

    fn with_clock<T>(&self, act: impl FnOnce(&mut ApiClock) -> T) -> T {
        act(&mut self.clock.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn bearer(key: &SecretString) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", key.expose_secret())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What a failed request means.
fn broken(error: reqwest::Error) -> Cause {
    if let Some(misled) = Misled::within(&error) {
        return Cause::Status {
            status: misled.status,
            message: misled.to_string(),
        };
    }
    if error.is_timeout() && !error.is_connect() {
        return Cause::Broken("no answer in time".to_owned());
    }
    let connect = error.is_connect();
    let why = chain(&error.without_url());
    if connect {
        Cause::Connect(why)
    } else {
        Cause::Broken(why)
    }
}

/// An error with its causes, which is where the reason is.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

fn other_status(status: StatusCode, body: &[u8]) -> Cause {
    let message = errors(body).map_or_else(|| excerpt(body), |errors| texts(&errors));
    Cause::Status {
        status: status.as_u16(),
        message,
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds).min(LONGEST_PAUSE));
    }
    let at = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    let pause = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
    Some(pause.min(LONGEST_PAUSE))
}

/// What the body of an answer holds.
pub(crate) fn interpret<F: DeserializeOwned>(body: &[u8]) -> Result<F, Cause> {
    match serde_json::from_slice::<Answer<F>>(body) {
        Ok(Answer {
            errors: Some(errors),
            ..
        }) if !errors.is_empty() => Err(refusal(&errors)),
        Ok(Answer {
            data: Some(data), ..
        }) => Ok(data),
        Ok(_) => Err(Cause::Malformed(format!("no data in {}", excerpt(body)))),
        // A field that must not be null is, because of an error that is told beside it.
        Err(error) => Err(match errors(body) {
            Some(errors) if !errors.is_empty() => refusal(&errors),
            _ => Cause::Malformed(format!("{error} in {}", excerpt(body))),
        }),
    }
}

/// What the rows in the body of an answer hold, each by itself.
pub(crate) fn interpret_rows<R: RowKind>(body: &[u8]) -> Result<Vec<Row<R>>, Cause> {
    #[derive(Deserialize)]
    struct RawAnswer<'a> {
        #[serde(borrow)]
        data: Option<RawRows<'a>>,
        #[serde(borrow)]
        errors: Option<&'a RawValue>,
    }
    let none = |raw: Option<&RawValue>| raw.is_none_or(|raw| matches!(raw.get(), "null" | "[]"));
    match serde_json::from_slice::<RawAnswer<'_>>(body) {
        Ok(RawAnswer {
            data: Some(rows),
            errors,
        }) if none(errors) => Ok(read_rows(&rows.flow_run)),
        // What else it is, and says.
        _ => interpret::<serde::de::IgnoredAny>(body).and_then(|_| {
            let why = format!("no rows in {}", excerpt(body));
            Err(Cause::Malformed(why))
        }),
    }
}

fn errors(body: &[u8]) -> Option<Vec<Value>> {
    serde_json::from_slice::<Answer<serde::de::IgnoredAny>>(body)
        .ok()?
        .errors
}

/// What errors in a GraphQL answer mean.
fn refusal(errors: &[Value]) -> Cause {
    let all = Value::from(errors).to_string();
    let first = errors.first().map(|error| &error["extensions"]["code"]);
    if all.contains("UNAUTHENTICATED") || all.contains("Malformed Authorization header") {
        Cause::Unauthorized(texts(errors))
    } else if first.and_then(Value::as_str) == Some("VERSION_LOCKING_ERROR") {
        Cause::VersionConflict
    } else if all.contains("API_ERROR") || is_inner_outage(&all) {
        Cause::Internal(texts(errors))
    } else {
        Cause::Refused(texts(errors))
    }
}

/// Whether the server's front could not reach a service behind it, as while that is restarted.
fn is_inner_outage(errors: &str) -> bool {
    (errors.contains("request to http") && errors.contains("failed, reason:"))
        || errors.contains("invalid json response body at")
}

/// The messages of GraphQL errors.
fn texts(errors: &[Value]) -> String {
    let texts: Vec<&str> = errors
        .iter()
        .map(|error| {
            error["message"]
                .as_str()
                .unwrap_or("an error without a message")
        })
        .collect();
    clip(&texts.join("; "), LONGEST_MESSAGE).into_owned()
}

/// The beginning of a body, on one line.
fn excerpt(body: &[u8]) -> String {
    if body.is_empty() {
        return "an empty body".to_owned();
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(4 * SHOWN)]);
    let mut words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if words.chars().count() > SHOWN {
        words = words.chars().take(SHOWN).collect::<String>() + "…";
    }
    format!("{words:?}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cause(body: &Value) -> Cause {
        interpret::<Value>(body.to_string().as_bytes()).expect_err("an error")
    }

    #[test]
    fn answers_mean_what_the_protocol_says() {
        let ok = interpret::<Value>(br#"{"data": {"hello": "x"}, "errors": null}"#);
        assert_eq!(ok, Ok(json!({"hello": "x"})));
        let error = |message: &str, code: &str| json!({"data": null, "errors": [{"message": message, "extensions": {"code": code}}]});
        assert_eq!(
            cause(&error("stale", "VERSION_LOCKING_ERROR")),
            Cause::VersionConflict
        );
        assert!(matches!(
            cause(&error("who", "UNAUTHENTICATED")),
            Cause::Unauthorized(_)
        ));
        assert!(matches!(
            cause(&error("oops", "API_ERROR")),
            Cause::Internal(_)
        ));
        assert_eq!(
            cause(&error("no such run", "X")),
            Cause::Refused("no such run".to_owned())
        );
        assert!(matches!(
            interpret::<Value>(b"<html>"),
            Err(Cause::Malformed(_))
        ));
        assert!(matches!(interpret::<Value>(b""), Err(Cause::Malformed(_))));
        assert!(matches!(
            interpret::<Value>(b"{}"),
            Err(Cause::Malformed(_))
        ));
    }

    #[test]
    fn an_address_without_scheme_is_refused_and_credentials_in_it_are_not_shown() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let timeout = Duration::from_secs(1);
        let error =
            Transport::new("localhost:4200", None, timeout, Tls::default()).expect_err("refused");
        assert!(error.contains("localhost:4200"), "{error}");
        let transport = Transport::new(
            "http://me:hush@host:1/graphql//",
            None,
            timeout,
            Tls::default(),
        )
        .expect("fine");
        assert_eq!(transport.shown(), "http://…@host:1/graphql");
        let key = SecretString::from("two\nlines");
        let error =
            Transport::new("http://host", Some(key), timeout, Tls::default()).expect_err("refused");
        assert!(
            !error.contains("lines") && error.contains("PREFECT__CLOUD__API_KEY"),
            "{error}"
        );
    }

    #[test]
    fn an_outage_behind_the_servers_front_passes() {
        for message in [
            "request to http://graphql:4201/graphql/ failed, reason: connect ECONNREFUSED",
            "invalid json response body at http://hasura:3000/v1alpha1/graphql",
        ] {
            let errors = [serde_json::json!({"message": message})];
            assert!(refusal(&errors).is_transient(), "{message}");
        }
        let errors = [serde_json::json!({"message": "State update failed"})];
        assert!(!refusal(&errors).is_transient());
    }

    #[test]
    fn no_pause_is_longer_than_a_person_would_wait() {
        let mut headers = HeaderMap::new();
        let ages = HeaderValue::from_static("18446744073709551615");
        headers.insert(header::RETRY_AFTER, ages);
        assert_eq!(retry_after(&headers), Some(LONGEST_PAUSE));
    }

    proptest::proptest! {
        #[test]
        fn any_answer_is_data_or_a_cause(body: Vec<u8>, text in "[\\[\\]{}\":,a-e0-9 ]{0,40}") {
            for body in [body, text.clone().into_bytes(), format!("{{\"data\": {text}}}").into()] {
                let _ = interpret::<Value>(&body);
                let _ = errors(&body).map(|errors| refusal(&errors));
                let _ = excerpt(&body);
            }
        }
    }
}
