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
use tokio::time::{Instant, sleep, timeout};

/// The parts of a Lease's duration after which it is renewed; with which it ends for its holder
/// before it ends for others; and which pass before another look at one that somebody else holds.
const RENEW: f64 = 7.0 / 12.0;
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
                Some(until) => _ = timeout(until - Instant::now().min(until), sleep(pause)).await,
                None => sleep(pause).await,
            }
            let leads;
            (leads, pause) = self.step().await;
            if Some(leads) != before {
                return leads;
            }
        }
    }

    /// Renews the Lease or tries to get it; whether this process leads, and when to look again.
    async fn step(&self) -> (bool, Duration) {
        let mut state = self.state.lock().await;
        let asked = Instant::now();
        match self.attempt(&mut state).await {
            Ok(true) => {
                if state.held_until.is_none() {
                    let (name, namespace) = (&self.name, &self.namespace);
                    tracing::info!(
                        "Supervising Jobs: holding Lease {name} in namespace {namespace}"
                    );
                }
                state.refused = false;
                state.held_until = Some(asked + self.duration.mul_f64(1.0 - MARGIN));
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
        (holds || state.refused, self.duration.mul_f64(RETRY))
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
    timeout(REQUEST, request).await.unwrap_or_else(|_| {
        let error = std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time");
        Err(kube::Error::Service(Box::new(error)))
    })
}
