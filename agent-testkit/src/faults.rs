//! Faults on demand: rules that say which operations go wrong, how, how often and for how long.
//!
//! A decision depends on the seed, the rule and how many requests the rule has seen, so the same
//! seed repeats the same faults whatever other operations do in between.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::serve::DropConnection;

/// What goes wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// The answer comes late.
    Latency(Duration),
    /// An HTTP status instead of an answer; nothing took effect.
    Status {
        /// The status code.
        code: u16,
        /// The seconds of a `Retry-After` header.
        retry_after: Option<u64>,
        /// The body, if not the server's usual one for such a status.
        body: Option<String>,
    },
    /// The connection is closed without an answer and nothing took effect.
    DropBefore,
    /// The request took effect, then the connection is closed without an answer.
    DropAfter,
    /// No answer ever comes and nothing took effect.
    Hang,
    /// Status 200 with a page of HTML, as a proxy in between might send; nothing took effect.
    Garbage,
    /// Prefect only: status 200 with these `errors`; nothing took effect.
    GraphqlErrors(Value),
    /// The request took effect; half of the answer arrives, then the connection is closed.
    Truncate,
    /// Kubernetes watches only: the stream ends without a word after so many events.
    WatchCut {
        /// How many events come through.
        after_events: u32,
    },
    /// Kubernetes watches only: the resource version is answered to be too old.
    WatchExpired,
}

impl Fault {
    /// An HTTP status with nothing special about it.
    pub fn status(code: u16) -> Self {
        Self::Status {
            code,
            retry_after: None,
            body: None,
        }
    }

    /// Too many requests, come back in `seconds`.
    pub fn too_many_requests(seconds: u64) -> Self {
        Self::Status {
            code: 429,
            retry_after: Some(seconds),
            body: None,
        }
    }

    /// A short name of the kind of fault, used in counts.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Latency(_) => "latency",
            Self::Status { .. } => "status",
            Self::DropBefore => "drop before",
            Self::DropAfter => "drop after",
            Self::Hang => "hang",
            Self::Garbage => "garbage",
            Self::GraphqlErrors(_) => "graphql errors",
            Self::Truncate => "truncate",
            Self::WatchCut { .. } => "watch cut",
            Self::WatchExpired => "watch expired",
        }
    }
}

/// Which requests get a fault.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// An operation's exact name, a prefix followed by `*`, or `*` alone.
    pub operation: String,
    /// The share of requests that get the fault, from 0 to 1.
    pub probability: f64,
    /// After so many faults the rule is spent.
    pub times: Option<u32>,
    /// So many matching requests pass before the rule takes effect.
    pub skip: u32,
    /// The fault.
    pub fault: Fault,
}

impl Rule {
    /// Gives `fault` to every request for `operation`.
    pub fn new(operation: impl Into<String>, fault: Fault) -> Self {
        Self {
            operation: operation.into(),
            probability: 1.0,
            times: None,
            skip: 0,
            fault,
        }
    }

    /// Gives the fault to a share of the requests only.
    pub fn probability(mut self, probability: f64) -> Self {
        self.probability = probability;
        self
    }

    /// Ends the rule after so many faults.
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Lets so many matching requests through first.
    pub fn skip(mut self, skip: u32) -> Self {
        self.skip = skip;
        self
    }

    fn matches(&self, operation: &str) -> bool {
        match self.operation.strip_suffix('*') {
            Some(prefix) => operation.starts_with(prefix),
            None => self.operation == operation,
        }
    }
}

/// Names a rule that was added, to remove it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(u64);

#[derive(Debug)]
struct ActiveRule {
    id: RuleId,
    rule: Rule,
    seen: u64,
    given: u32,
}

impl ActiveRule {
    fn decide(&mut self, seed: u64) -> bool {
        let nth = self.seen;
        self.seen += 1;
        if nth < u64::from(self.rule.skip) || self.rule.times.is_some_and(|most| self.given >= most)
        {
            return false;
        }
        let mixed = seed
            ^ self.id.0.wrapping_mul(0x9E37_79B9_7F4A_7C15)
            ^ nth.wrapping_mul(0xD1B5_4A32_D192_ED03);
        let chosen = fastrand::Rng::with_seed(mixed).f64() < self.rule.probability;
        if chosen {
            self.given += 1;
        }
        chosen
    }
}

#[derive(Default)]
struct State {
    next_id: u64,
    rules: Vec<ActiveRule>,
    injected: BTreeMap<(String, &'static str), u64>,
}

/// The faults of one server: clones share the rules and counts.
#[derive(Clone)]
pub struct Faults {
    seed: u64,
    state: Arc<Mutex<State>>,
}

impl Default for Faults {
    fn default() -> Self {
        Self::new(0)
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Faults")
            .field("seed", &self.seed)
            .field("rules", &state.rules)
            .field("injected", &state.injected)
            .finish()
    }
}

impl Faults {
    /// No rules yet; decisions by probability follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            state: Arc::default(),
        }
    }

    /// Every kind of fault, on all operations, at `rate` faults per request in all. Watches are cut
    /// or expired at the same rate where no other fault was given. Hanging requests are a tenth as
    /// frequent as the others, because each costs its client a whole timeout.
    pub fn mixed(seed: u64, rate: f64) -> Self {
        let api_error =
            json!([{"message": "upstream is busy", "extensions": {"code": "API_ERROR"}}]);
        let kinds = [
            (1.0, Fault::Latency(Duration::from_millis(100))),
            (1.0, Fault::status(500)),
            (1.0, Fault::status(503)),
            (1.0, Fault::too_many_requests(1)),
            (1.0, Fault::DropBefore),
            (1.0, Fault::DropAfter),
            (1.0, Fault::Garbage),
            (1.0, Fault::GraphqlErrors(api_error)),
            (1.0, Fault::Truncate),
            (0.1, Fault::Hang),
        ];
        let whole: f64 = kinds.iter().map(|(weight, _)| weight).sum();
        let faults = Self::new(seed);
        let mut left = 1.0;
        for (weight, fault) in kinds {
            // A rule is asked only when those before it passed, hence a share of what is left.
            let share = rate * weight / whole;
            faults.add(Rule::new("*", fault).probability(share / left));
            left -= share;
        }
        faults
            .add(Rule::new("watch*", Fault::WatchCut { after_events: 3 }).probability(rate / 2.0));
        faults.add(Rule::new("watch*", Fault::WatchExpired).probability(rate / 2.0));
        faults
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a rule; earlier rules go first.
    pub fn add(&self, rule: Rule) -> RuleId {
        let mut state = self.state();
        let id = RuleId(state.next_id);
        state.next_id += 1;
        state.rules.push(ActiveRule {
            id,
            rule,
            seen: 0,
            given: 0,
        });
        id
    }

    /// Removes one rule; false if it was not there.
    pub fn remove(&self, id: RuleId) -> bool {
        let mut state = self.state();
        let before = state.rules.len();
        state.rules.retain(|active| active.id != id);
        state.rules.len() < before
    }

    /// Removes all rules; counts stay.
    pub fn clear(&self) {
        self.state().rules.clear();
    }

    /// The fault for a request that just arrived, if any; it is counted as injected.
    pub fn decide(&self, operation: &str) -> Option<Fault> {
        let mut state = self.state();
        let fault = state
            .rules
            .iter_mut()
            .filter(|active| active.rule.matches(operation))
            .find_map(|active| active.decide(self.seed).then(|| active.rule.fault.clone()))?;
        *state
            .injected
            .entry((operation.to_owned(), fault.kind()))
            .or_default() += 1;
        Some(fault)
    }

    /// How many faults were injected, by operation and kind.
    pub fn injected(&self) -> BTreeMap<(String, &'static str), u64> {
        self.state().injected.clone()
    }

    /// How many faults were injected in all.
    pub fn total(&self) -> u64 {
        self.state().injected.values().sum()
    }
}

/// Answers a request under `fault`. `usual` is the body this kind of server sends with a status.
pub(crate) async fn inject(
    fault: Option<Fault>,
    usual: fn(StatusCode) -> String,
    handle: impl Future<Output = Response>,
) -> Response {
    match fault {
        None | Some(Fault::WatchCut { .. } | Fault::WatchExpired) => handle.await,
        Some(Fault::Latency(pause)) => {
            tokio::time::sleep(pause).await;
            handle.await
        }
        Some(Fault::Status {
            code,
            retry_after,
            body,
        }) => {
            let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let body = body.unwrap_or_else(|| usual(code));
            let mut response = answer(code, "application/json", body);
            if let Some(seconds) = retry_after {
                response
                    .headers_mut()
                    .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
            response
        }
        Some(Fault::DropBefore) => dropped(),
        Some(Fault::DropAfter) => {
            handle.await;
            dropped()
        }
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Garbage) => answer(
            StatusCode::OK,
            "text/html",
            "<html><head><title>Sign in</title></head><body>Please sign in.</body></html>".into(),
        ),
        Some(Fault::GraphqlErrors(errors)) => answer(
            StatusCode::OK,
            "application/json",
            json!({"data": null, "errors": errors}).to_string(),
        ),
        Some(Fault::Truncate) => truncated(handle.await).await,
    }
}

/// A response with a text body.
pub(crate) fn answer(code: StatusCode, content_type: &'static str, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn dropped() -> Response {
    let mut response = Response::new(Body::empty());
    response.extensions_mut().insert(DropConnection);
    response
}

/// The same answer, of which only the first half arrives before the connection breaks.
async fn truncated(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let whole = axum::body::to_bytes(body, usize::MAX)
        .await
        .unwrap_or_default();
    parts
        .headers
        .insert(header::CONTENT_LENGTH, HeaderValue::from(whole.len()));
    let half = whole.slice(..whole.len() / 2);
    let broken = std::io::Error::new(std::io::ErrorKind::ConnectionReset, "cut short on purpose");
    let stream = futures::stream::iter([Ok::<Bytes, std::io::Error>(half), Err(broken)]);
    Response::from_parts(parts, Body::from_stream(stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(faults: &Faults, operation: &str) -> Vec<bool> {
        (0..200)
            .map(|_| faults.decide(operation).is_some())
            .collect()
    }

    #[test]
    fn the_same_seed_repeats_the_same_decisions() {
        let rule = || Rule::new("*", Fault::DropBefore).probability(0.3);
        let (one, same, other) = (Faults::new(7), Faults::new(7), Faults::new(8));
        for faults in [&one, &same, &other] {
            faults.add(rule());
        }
        let first = pattern(&one, "hello");
        assert_eq!(first, pattern(&same, "hello"));
        assert_ne!(first, pattern(&other, "hello"));
        let hits = first.iter().filter(|hit| **hit).count();
        assert!((30..90).contains(&hits), "{hits} of 200 at 0.3");
    }

    #[test]
    fn a_rule_skips_the_first_requests_and_is_spent_after_its_times() {
        let faults = Faults::default();
        faults.add(Rule::new("hello", Fault::Hang).skip(2).times(1));
        let seen: Vec<bool> = (0..4).map(|_| faults.decide("hello").is_some()).collect();
        assert_eq!(seen, [false, false, true, false]);
        assert_eq!(faults.decide("tenant"), None);
    }

    #[test]
    fn a_prefix_matches_all_operations_that_begin_with_it() {
        let faults = Faults::default();
        let id = faults.add(Rule::new("set_*", Fault::Garbage));
        assert_eq!(faults.decide("set_flow_run_states"), Some(Fault::Garbage));
        assert_eq!(faults.decide("hello"), None);
        assert!(faults.remove(id));
        assert_eq!(faults.decide("set_flow_run_states"), None);
        let counted = faults.injected();
        assert_eq!(counted[&("set_flow_run_states".to_owned(), "garbage")], 1);
    }

    #[test]
    fn a_mixture_keeps_to_its_total_rate_and_uses_every_kind() {
        let faults = Faults::mixed(1, 0.2);
        for _ in 0..20_000 {
            faults.decide("list pods");
        }
        let total = faults.total();
        assert!((3600..4400).contains(&total), "{total} of 20,000 at 0.2");
        let kinds: std::collections::BTreeSet<_> = faults
            .injected()
            .into_keys()
            .map(|(_, kind)| kind)
            .collect();
        assert_eq!(kinds.len(), 8, "{kinds:?}");
    }
}
