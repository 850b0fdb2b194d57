//! Remembers templates: a place is asked whether a template has changed, at most once in a while,
//! once for all who wait, and a copy serves for some time when the place is down.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_core::{Error, Result, Template, TemplateOrigin};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::time::{Instant, timeout};

use crate::TemplateSettings;
use crate::place::{Fetched, Place, check};
use crate::shown::shown;

/// How many templates one place's cache holds at most.
const MOST_COPIES: usize = 256;
/// How many bytes they have together at most.
const MOST_BYTES: usize = 8 << 20;
/// How many times longer than usual a copy serves after its place could not be reached.
const PATIENCE: u32 = 10;

/// A place with a memory.
pub(crate) struct Cached<P> {
    inner: Arc<Inner<P>>,
}

struct Inner<P> {
    place: P,
    fresh_for: Duration,
    stale_ok: Duration,
    timeout: Duration,
    memory: Mutex<Memory>,
}

/// Who asks is part of the key: what the agent may read, a flow perhaps may not.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    location: String,
    origin: TemplateOrigin,
}

type Flight = BoxFuture<'static, Result<Arc<Template>>>;

#[derive(Default)]
struct Memory {
    copies: HashMap<Key, Held>,
    /// Questions under way. Who waits for one keeps it going; nobody else does.
    flights: HashMap<Key, WeakShared<Flight>>,
}

#[derive(Debug, Clone)]
struct Held {
    template: Arc<Template>,
    tag: Option<String>,
    /// When the place last said that this is the template.
    confirmed: Instant,
    /// When the place was last asked, and how long it is left alone since then.
    asked: Instant,
    rest: Duration,
    used: Instant,
}

impl<P: Place> Cached<P> {
    pub(crate) fn new(place: P, settings: &TemplateSettings) -> Self {
        Self {
            inner: Arc::new(Inner {
                place,
                fresh_for: settings.fresh_for,
                stale_ok: settings.stale_ok,
                timeout: settings.timeout,
                memory: Mutex::default(),
            }),
        }
    }

    /// The template at `location`: the same [`Arc`] as before when it has not changed.
    pub(crate) async fn load(
        &self,
        location: &str,
        origin: TemplateOrigin,
    ) -> Result<Arc<Template>> {
        let key = Key {
            location: location.to_owned(),
            origin,
        };
        let flight = {
            let mut memory = self.inner.memory();
            if let Some(template) = memory.fresh(&key) {
                return Ok(template);
            }
            match memory.flights.get(&key).and_then(WeakShared::upgrade) {
                Some(flight) => flight,
                None => memory.start(key.clone(), self.inner.clone().ask(key).boxed()),
            }
        };
        flight.await
    }
}

impl<P: Place> Inner<P> {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(self: Arc<Self>, key: Key) -> Result<Arc<Template>> {
        let copy = self.memory().copies.get(&key).cloned();
        let known = copy.as_ref().and_then(|copy| copy.tag.as_deref());
        let fetch = self.place.fetch(&key.location, key.origin, known);
        let answer = match timeout(self.timeout, fetch).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::transient(format!(
                "the job template {} did not arrive within {:?}; check that its place can be reached from here",
                shown(&key.location),
                self.timeout
            ))),
        };
        let outcome = self.judge(&key, copy, answer);
        let mut memory = self.memory();
        memory.flights.remove(&key);
        match outcome {
            Ok(copy) => {
                let template = copy.template.clone();
                memory.keep(key, copy);
                Ok(template)
            }
            Err(error) => {
                if !error.is_transient() {
                    memory.copies.remove(&key);
                }
                Err(error)
            }
        }
    }

    fn judge(&self, key: &Key, copy: Option<Held>, answer: Result<Fetched>) -> Result<Held> {
        let now = Instant::now();
        match (answer, copy) {
            (Ok(Fetched::NotModified), Some(copy)) => Ok(Held {
                confirmed: now,
                asked: now,
                rest: self.fresh_for,
                ..copy
            }),
            (Ok(Fetched::NotModified), None) => Err(Error::permanent(format!(
                "the place of the job template {} says that it has not changed, though it was not asked that",
                shown(&key.location)
            ))),
            (Ok(Fetched::Found { bytes, tag }), copy) => {
                check(&key.location, &bytes)?;
                let template = match copy {
                    Some(copy) if copy.template.bytes == bytes => copy.template,
                    _ => Arc::new(Template {
                        location: shown(&key.location),
                        bytes,
                    }),
                };
                Ok(Held {
                    template,
                    tag,
                    confirmed: now,
                    asked: now,
                    rest: self.fresh_for,
                    used: now,
                })
            }
            (Err(error), Some(copy))
                if error.is_transient() && now - copy.confirmed <= self.stale_ok =>
            {
                let age = now - copy.confirmed;
                tracing::warn!("Using the copy of {} s ago: {error}", age.as_secs());
                Ok(Held {
                    asked: now,
                    rest: (self.fresh_for.saturating_mul(PATIENCE)).min(self.stale_ok - age),
                    ..copy
                })
            }
            (Err(error), _) => Err(error),
        }
    }
}

impl Memory {
    fn fresh(&mut self, key: &Key) -> Option<Arc<Template>> {
        let now = Instant::now();
        let copy = self.copies.get_mut(key)?;
        copy.used = now;
        (now - copy.asked < copy.rest).then(|| copy.template.clone())
    }

    fn start(&mut self, key: Key, flight: Flight) -> Shared<Flight> {
        // Those that everybody gave up waiting for never came to remove themselves.
        self.flights.retain(|_, flight| flight.upgrade().is_some());
        let flight = flight.shared();
        if let Some(weak) = flight.downgrade() {
            self.flights.insert(key, weak);
        }
        flight
    }

    /// Keeps a copy, and forgets those that were not used for the longest time if there are too
    /// many.
    fn keep(&mut self, key: Key, mut copy: Held) {
        copy.used = Instant::now();
        self.copies.insert(key, copy);
        let size = |(key, copy): (&Key, &Held)| key.location.len() + copy.template.bytes.len();
        let mut bytes: usize = self.copies.iter().map(size).sum();
        while self.copies.len() > MOST_COPIES || bytes > MOST_BYTES {
            let oldest = self.copies.iter().min_by_key(|(_, copy)| copy.used);
            let Some((key, copy)) = oldest else { break };
            bytes -= size((key, copy));
            let key = key.clone();
            self.copies.remove(&key);
        }
    }
}

impl<P: fmt::Debug> fmt::Debug for Cached<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cached").field(&self.inner.place).finish()
    }
}

#[cfg(test)]
mod tests;
