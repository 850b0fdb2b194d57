//! Which of several replicas supervises: the one that holds a Lease.
//!
//! As Kubernetes' own leader election does it, the age of a Lease is measured from when this
//! process saw it change last, so that clocks need not agree.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};

/// The parts of a Lease's duration after which it is renewed; which pass before that is tried again;
/// with which it ends for its holder before it ends for others; and which pass before another look at
/// one that somebody else holds.
const RENEW: f64 = 7.0 / 12.0;
const AGAIN: f64 = 0.5 / 12.0;
const MARGIN: f64 = 2.0 / 12.0;
const RETRY: f64 = 2.5 / 12.0;
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(3);
/// How often to ask again whether the agent may use Leases.
const REFUSED: Duration = Duration::from_secs(60);

/// A Lease that this process holds, or wants.
pub(crate) struct Lease {
    leases: Api<Object>,
    namespace: String,
    name: String,
    identity: String,
    /// How long it holds when it is not renewed.
    duration: Duration,
    state: Mutex<State>,
}

/// What is known of the Lease.
#[derive(Default)]
struct State {
    /// As it was seen last, and when it was seen to be so first.
    seen: Option<(Object, Instant)>,
    /// Until when it is ours.
    held_until: Option<Instant>,
    /// The API server does not let the agent use Leases.
    refused: bool,
}

impl Lease {
    pub(crate) fn new(
        client: Client,
        namespace: &str,
        name: impl Into<String>,
        identity: impl Into<String>,
        duration: Duration,
    ) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.into(),
            identity: identity.into(),
            duration,
            state: Mutex::default(),
        }
    }

    /// Whether this process leads; it takes part for as long as the stream is polled.
    pub(crate) fn leadership(self: Arc<Self>) -> BoxStream<'static, bool> {
        stream::unfold((self, None), async |(lease, before)| {
            let now = lease.change(before).await;
            Some((now, (lease, Some(now))))
        })
        .boxed()
    }

    /// Lets others have the Lease at once.
    pub(crate) async fn release(&self) {
        let mut state = self.state.lock().await;
        let Some((object, _)) = state.seen.take().filter(|_| state.held_until.is_some()) else {
            return;
        };
        state.held_until = None;
        let mut spec = self.spec(&object);
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        let object = Object {
            spec: Some(spec),
            ..object
        };
        if let Err(error) = self.replace(&object).await {
            tracing::debug!("Cannot release the Lease {}: {error}", self.name);
        }
    }

    /// Waits until the answer to whether this process leads is not the one it was.
    async fn change(&self, before: Option<bool>) -> bool {
        let mut pause = Duration::ZERO;
        loop {
            let wait = self.state.lock().await.held_until;
            // A lease that ends while this waits has ended.
            match wait {
                Some(until) => _ = timeout_at(until, sleep(pause)).await,
                None => sleep(pause).await,
            }
            let leads;
            (leads, pause) = self.step().await;
            if Some(leads) != before {
                return leads;
            }
        }
    }

    /// Renews the Lease or tries to get it; whether this process leads, and when to look again. What
    /// takes longer than the Lease holds has failed.
    async fn step(&self) -> (bool, Duration) {
        let mut state = self.state.lock().await;
        let until = Instant::now() + self.duration.mul_f64(1.0 - MARGIN);
        let deadline = state.held_until.unwrap_or(until);
        match in_time(deadline, self.attempt(&mut state)).await {
            Ok(true) => {
                if state.held_until.is_none() {
                    let (name, namespace) = (&self.name, &self.namespace);
                    tracing::info!(
                        "Supervising Jobs: holding Lease {name} in namespace {namespace}"
                    );
                }
                state.refused = false;
                state.held_until = Some(until);
                return (true, self.duration.mul_f64(RENEW));
            }
            Ok(false) => {
                state.refused = false;
                state.held_until = None;
                return (false, self.duration.mul_f64(RETRY));
            }
            Err(kube::Error::Api(status)) if is_final(status.code) => {
                if !state.refused {
                    tracing::warn!(
                        "Leases cannot be used, so this agent supervises as if it were the only replica: {}",
                        status.message
                    );
                }
                state.refused = true;
                state.held_until = None;
                return (true, REFUSED);
            }
            Err(error) => {
                let reason = crate::error::reason(&error);
                tracing::warn!("Cannot use the Lease {}: {reason}", self.name);
            }
        }
        state.seen = state.seen.take().filter(|_| state.held_until.is_none());
        let holds = state.held_until.is_some_and(|until| Instant::now() < until);
        if !holds {
            state.held_until = None;
        }
        let pause = if holds { AGAIN } else { RETRY };
        (holds || state.refused, self.duration.mul_f64(pause))
    }

    /// One attempt; whether the Lease is ours.
    async fn attempt(&self, state: &mut State) -> kube::Result<bool> {
        if let Some((object, _)) = &state.seen
            && state.held_until.is_some()
        {
            let renewed = self.replace(&self.ours(object)).await;
            match renewed {
                Ok(object) => {
                    state.seen = Some((object, Instant::now()));
                    return Ok(true);
                }
                Err(error) if !has_changed(&error) => return Err(error),
                Err(_) => {}
            }
        }
        let found = bounded(self.leases.get_opt(&self.name)).await?;
        let Some(found) = found else {
            if let Some((seen, since)) = &state.seen
                && !self.is_free(seen, *since)
            {
                // Its holder does not know yet that somebody has deleted it, and makes it again.
                return Ok(false);
            }
            let new = Object {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    labels: Some(BTreeMap::from([(
                        "app.kubernetes.io/managed-by".to_owned(),
                        "prefect-kubernetes-agent".to_owned(),
                    )])),
                    ..ObjectMeta::default()
                },
                spec: None,
            };
            let new = self.ours(&new);
            let created = bounded(self.leases.create(&PostParams::default(), &new)).await;
            return match created {
                // The namespace, or the kind of object: nobody was faster.
                Err(error) if is_missing(&error) => Err(error),
                created => self.took(state, created),
            };
        };
        let same = state
            .seen
            .take()
            .filter(|(seen, _)| seen.resource_version() == found.resource_version());
        let since = same.map_or_else(Instant::now, |(_, since)| since);
        if self.is_free(&found, since) {
            let replaced = self.replace(&self.ours(&found)).await;
            return self.took(state, replaced);
        }
        state.seen = Some((found, since));
        Ok(false)
    }

    /// What came of taking the Lease: on a conflict, somebody else was faster.
    fn took(&self, state: &mut State, object: kube::Result<Object>) -> kube::Result<bool> {
        match object {
            Ok(object) => {
                state.seen = Some((object, Instant::now()));
                Ok(true)
            }
            Err(error) if has_changed(&error) => {
                state.seen = None;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a Lease that was seen unchanged since a time may be taken.
    fn is_free(&self, object: &Object, since: Instant) -> bool {
        let Some(spec) = &object.spec else {
            return true;
        };
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let seconds = spec.lease_duration_seconds.unwrap_or_default();
        let duration = Duration::from_secs(seconds.try_into().unwrap_or_default());
        holder.is_empty() || holder == self.identity || since.elapsed() >= duration
    }

    async fn replace(&self, object: &Object) -> kube::Result<Object> {
        bounded(
            self.leases
                .replace(&self.name, &PostParams::default(), object),
        )
        .await
    }

    fn ours(&self, object: &Object) -> Object {
        Object {
            spec: Some(self.spec(object)),
            ..object.clone()
        }
    }

    /// The Lease's content when it is ours from now on.
    fn spec(&self, before: &Object) -> LeaseSpec {
        let old = before.spec.clone().unwrap_or_default();
        let now = Some(MicroTime(Timestamp::now()));
        let stays = old.holder_identity.as_deref() == Some(&self.identity);
        let transitions = old.lease_transitions.unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.duration.as_secs().max(1)).ok(),
            acquire_time: if stays {
                old.acquire_time.clone()
            } else {
                now.clone()
            },
            renew_time: now,
            lease_transitions: Some(if stays { transitions } else { transitions + 1 }),
            ..old
        }
    }
}

/// Whether the API server would say the same again.
fn is_final(code: u16) -> bool {
    (400..500).contains(&code) && !matches!(code, 401 | 408 | 409 | 429)
}

/// Whether a Lease is not any more what it was, or has been deleted.
fn has_changed(error: &kube::Error) -> bool {
    is_missing(error) || matches!(error, kube::Error::Api(status) if status.code == 409)
}

fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

async fn bounded<T>(request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    in_time(Instant::now() + REQUEST, request).await
}

async fn in_time<T>(
    deadline: Instant,
    attempt: impl Future<Output = kube::Result<T>>,
) -> kube::Result<T> {
    timeout_at(deadline, attempt).await.unwrap_or_else(|_| {
        let error = std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time");
        Err(kube::Error::Service(Box::new(error)))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http::{Method, Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    const DURATION: Duration = Duration::from_secs(12);

    /// What becomes of a request.
    #[derive(Debug, Clone, Copy)]
    enum Fate {
        /// It is answered after this time.
        Answered(Duration),
        Broken,
    }

    /// An API server that has one Lease, or none.
    #[derive(Debug, Default)]
    struct Server {
        lease: Mutex<Option<Value>>,
        fates: Mutex<Vec<Fate>>,
    }

    impl Server {
        /// A lease of 12 seconds on a server that deals with the first requests like this, and answers
        /// the others at once.
        fn with(fates: &[Fate]) -> Arc<Lease> {
            let server = Arc::new(Self::default());
            *server.fates.lock().expect("no panics") = fates.iter().rev().copied().collect();
            let service = tower::service_fn(move |request| server.clone().answer(request));
            let client = Client::new(service, "default");
            Arc::new(Lease::new(client, "default", "agent", "me", DURATION))
        }

        async fn answer(
            self: Arc<Self>,
            request: Request<Body>,
        ) -> std::io::Result<Response<Body>> {
            let fate = self.fates.lock().expect("no panics").pop();
            match fate.unwrap_or(Fate::Answered(Duration::ZERO)) {
                Fate::Answered(after) => sleep(after).await,
                Fate::Broken => return Err(std::io::ErrorKind::ConnectionReset.into()),
            }
            let reads = request.method() == Method::GET;
            let body = request.into_body().collect_bytes().await;
            let mut lease = self.lease.lock().expect("no panics");
            if !reads {
                *lease = serde_json::from_slice(&body.expect("a body")).expect("JSON");
            }
            let missing =
                json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404});
            let code = if lease.is_some() { 200 } else { 404 };
            let body = lease.as_ref().unwrap_or(&missing).to_string();
            let answer = Response::builder()
                .status(code)
                .body(body.into_bytes().into());
            Ok(answer.expect("valid"))
        }
    }

    /// The leadership of who has made the Lease and renewed it once; what becomes of its next
    /// requests.
    async fn leading(then: [Fate; 3]) -> BoxStream<'static, bool> {
        // The Lease is looked for, made and renewed.
        let at_once = [Fate::Answered(Duration::ZERO); 3];
        let mut leadership = Server::with(&[at_once, then].concat()).leadership();
        assert_eq!(leadership.next().await, Some(true));
        leadership
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_cannot_renew_the_lease_in_time_leads_no_longer_than_it_holds() {
        let slowly = Fate::Answered(Duration::from_millis(2_900));
        // It is renewed again, looked for and taken.
        let mut leadership = leading([Fate::Broken, slowly, slowly]).await;
        let end = timeout_at(Instant::now() + DURATION, leadership.next()).await;
        assert_eq!(end, Ok(Some(false)), "others may lead by now");
        assert_eq!(leadership.next().await, Some(true));
    }

    #[tokio::test(start_paused = true)]
    async fn one_renewal_that_fails_ends_no_leadership() {
        let later = Fate::Answered(Duration::from_millis(300));
        let mut leadership = leading([Fate::Broken, later, later]).await;
        let end = timeout_at(Instant::now() + DURATION * 5, leadership.next()).await;
        assert!(end.is_err(), "{end:?}");
    }
}
