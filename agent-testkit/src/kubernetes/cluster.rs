//! The cluster: its objects and everything that requests, the node and the handle share.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::watch;

use super::admission::Admission;
use super::kinds::KindId;
use super::node::Node;
use super::object::{self, Key, Stored, text};
use super::store::Store;
use crate::clock::{Clock, rfc3339_seconds};
use crate::condition::Changes;
use crate::faults::Faults;
use crate::requests::Requests;

/// The label by which the Jobs of one flow run are found.
pub const FLOW_RUN_LABEL: &str = "prefect.io/flow_run_id";

/// A Job creation that was accepted, kept even when the Job is long gone.
#[derive(Clone, Debug)]
pub struct Creation {
    /// The Job's name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// When it was created, on the server's clock.
    pub at: Timestamp,
    /// When it was created, for measurements.
    pub instant: Instant,
}

impl Creation {
    /// The flow run that the Job's label names.
    pub fn flow_run_id(&self) -> Option<&str> {
        self.labels.get(FLOW_RUN_LABEL).map(String::as_str)
    }
}

/// All accepted Job creations.
#[derive(Debug, Default)]
pub(crate) struct Creations {
    pub(crate) all: Vec<Creation>,
    pub(crate) by_run: HashMap<String, usize>,
}

/// What happens to the watches that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WatchOrder {
    None,
    Cut,
    Expire,
}

/// Choices made when the server is started.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Whether a watch may begin with all objects and a bookmark.
    pub(crate) watch_list: bool,
    /// How often a watch gets a bookmark.
    pub(crate) bookmark_every: Duration,
    /// How long a foreground deletion takes.
    pub(crate) foreground_delay: Duration,
    /// The user in refusals.
    pub(crate) user: String,
}

/// Who may do what.
#[derive(Debug, Default)]
pub(crate) struct Access {
    /// Pairs of verb and resource; `*` stands for any.
    pub(crate) denied: BTreeSet<(String, String)>,
    /// The same for single users.
    pub(crate) denied_users: BTreeMap<String, BTreeSet<(String, String)>>,
    pub(crate) token: Option<String>,
}

impl Access {
    pub(crate) fn allows(&self, user: Option<&str>, verb: &str, resource: &str) -> bool {
        let any = |one: &str, wanted: &str| one == "*" || one == wanted;
        let of_user = user.and_then(|user| self.denied_users.get(user));
        !self
            .denied
            .iter()
            .chain(of_user.into_iter().flatten())
            .any(|(denied, from)| any(denied, verb) && any(from, resource))
    }
}

#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) store: Mutex<Store>,
    pub(crate) clock: Clock,
    pub(crate) faults: Faults,
    pub(crate) requests: Requests,
    pub(crate) changes: Changes,
    pub(crate) access: Mutex<Access>,
    pub(crate) admission: Mutex<Admission>,
    pub(crate) creations: Mutex<Creations>,
    pub(crate) answers: Mutex<BTreeMap<(String, u16), u64>>,
    pub(crate) watches: watch::Sender<WatchOrder>,
    pub(crate) options: Options,
    pub(crate) node: OnceLock<Arc<Node>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster {
    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    pub(crate) fn access(&self) -> MutexGuard<'_, Access> {
        lock(&self.access)
    }

    /// Not to be held while the webhook is asked, nor while the store is waited for.
    pub(crate) fn admission(&self) -> MutexGuard<'_, Admission> {
        lock(&self.admission)
    }

    pub(crate) fn creations(&self) -> MutexGuard<'_, Creations> {
        lock(&self.creations)
    }

    pub(crate) fn answers(&self) -> MutexGuard<'_, BTreeMap<(String, u16), u64>> {
        lock(&self.answers)
    }

    /// The time as objects show it.
    pub(crate) fn now_text(&self) -> String {
        rfc3339_seconds(self.clock.now())
    }

    /// Changes an object without any check; `None` if it is not there.
    pub(crate) fn update(
        &self,
        kind: KindId,
        key: &Key,
        change: impl FnOnce(&mut Value),
    ) -> Option<Stored> {
        let mut store = self.store();
        let mut value = store.get(kind, key)?.value.clone();
        change(&mut value);
        let stored = store.put(kind, value);
        drop(store);
        self.changes.mark();
        Some(stored)
    }

    /// Adds an object without any check but for its name.
    pub(crate) fn insert(&self, kind: KindId, value: Value) -> Option<Stored> {
        let mut store = self.store();
        if store.get(kind, &Key::of(&value)).is_some() {
            return None;
        }
        let stored = store.put(kind, value);
        drop(store);
        self.changes.mark();
        Some(stored)
    }

    /// Takes note of a Job that was created and hands it to the node.
    pub(crate) fn job_created(&self, job: &Stored) {
        let labels = object::members(&job.value, "/metadata/labels")
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect();
        let creation = Creation {
            name: text(&job.value, "/metadata/name").to_owned(),
            namespace: text(&job.value, "/metadata/namespace").to_owned(),
            uid: text(&job.value, "/metadata/uid").to_owned(),
            labels,
            at: self.clock.now(),
            instant: Instant::now(),
        };
        let mut creations = self.creations();
        if let Some(run) = creation.flow_run_id().map(str::to_owned) {
            *creations.by_run.entry(run).or_default() += 1;
        }
        creations.all.push(creation);
        drop(creations);
        if let Some(node) = self.node.get() {
            node.adopt(job);
        }
    }

    /// Removes an object and, unless they are to be orphaned, all that it owns.
    pub(crate) fn remove(&self, kind: KindId, key: &Key, orphan: bool) -> Option<Stored> {
        let mut store = self.store();
        let removed = remove_all(&mut store, kind, key, orphan);
        drop(store);
        self.changes.mark();
        removed
    }
}

fn remove_all(store: &mut Store, kind: KindId, key: &Key, orphan: bool) -> Option<Stored> {
    let removed = store.remove(kind, key)?;
    let uid = text(&removed.value, "/metadata/uid").to_owned();
    for (kind, key) in store.owned_by(&uid) {
        if orphan {
            let dependent = store.get(kind, &key).map(|object| object.value.clone());
            if let Some(mut value) = dependent {
                if let Some(owners) = value["metadata"]["ownerReferences"].as_array_mut() {
                    owners.retain(|owner| owner["uid"] != *uid);
                }
                store.put(kind, value);
            }
        } else {
            remove_all(store, kind, &key, false);
        }
    }
    Some(removed)
}
