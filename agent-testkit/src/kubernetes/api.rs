//! The in-process handle of a running server.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::admission::{Admission, Quota, Verdict};
use super::cluster::{Access, Cluster, Creation, Creations, Options, WatchOrder};
use super::course::{Attempt, Course, PodEnd};
use super::endpoint;
use super::kinds::{EVENTS, JOBS, KINDS, KindId, NAMESPACES, PODS, by_plural};
use super::node::{Node, Script};
use super::object::{Key, Stored};
use super::operations::Mode;
use super::store::Store;
use crate::clock::Clock;
use crate::condition::{Changes, TimedOut};
use crate::faults::Faults;
use crate::requests::{RequestRecord, Requests};
use crate::serve::{LOOPBACK, Server};

/// A Kubernetes API on loopback; it stops when dropped.
#[derive(Debug)]
pub struct KubernetesApi {
    cluster: Arc<Cluster>,
    server: Server,
}

/// Chooses what kind of cluster to start.
#[derive(Debug)]
pub struct KubernetesApiBuilder {
    address: SocketAddr,
    seed: u64,
    history: usize,
    namespaces: Vec<String>,
    faults: Faults,
    clock: Clock,
    access: Access,
    admission: Admission,
    options: Options,
    script: Script,
    node_on: bool,
}

impl KubernetesApiBuilder {
    /// Listens at this address instead of a free port on loopback.
    pub fn address(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self
    }

    /// Seeds uids and generated names, so that they repeat.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Adds a namespace beside `default` and `kube-system`.
    pub fn namespace(mut self, name: impl Into<String>) -> Self {
        self.namespaces.push(name.into());
        self
    }

    /// Injects these faults.
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// Sets the server's clock ahead (or, negative, behind).
    pub fn clock_skew(self, skew: SignedDuration) -> Self {
        self.clock.set_skew(skew);
        self
    }

    /// Requires this bearer token.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.access.token = Some(token.into());
        self
    }

    /// Forbids a verb on a resource (`pods`, `pods/log`); `*` stands for any.
    pub fn deny(mut self, verb: &str, resource: &str) -> Self {
        self.access.denied.insert((verb.into(), resource.into()));
        self
    }

    /// Asks this admission webhook before a Job is created; the second argument tells whether it is
    /// a dry run.
    pub fn admission(
        mut self,
        webhook: impl Fn(&Value, bool) -> Verdict + Send + Sync + 'static,
    ) -> Self {
        self.admission.webhook = Some(Arc::new(webhook));
        self
    }

    /// Limits the number of Jobs in each namespace by a ResourceQuota of this name.
    pub fn quota(mut self, name: impl Into<String>, jobs: usize) -> Self {
        let name = name.into();
        self.admission.quota = Some(Quota { name, jobs });
        self
    }

    /// Remembers so many changes of each kind for watches; older resource versions are expired.
    pub fn history(mut self, changes: usize) -> Self {
        self.history = changes;
        self
    }

    /// Lets a watch begin with all objects and a bookmark, as servers with WatchList do.
    pub fn watch_list(mut self) -> Self {
        self.options.watch_list = true;
        self
    }

    /// How often watches that ask for bookmarks get one; every 10 s unless said otherwise.
    pub fn bookmark_every(mut self, interval: Duration) -> Self {
        self.options.bookmark_every = interval;
        self
    }

    /// How long a foreground deletion takes; 20 ms unless said otherwise.
    pub fn foreground_delay(mut self, delay: Duration) -> Self {
        self.options.foreground_delay = delay;
        self
    }

    /// Chooses the course of every attempt of every Job; without it, each succeeds after 20 ms.
    pub fn course(mut self, choose: impl Fn(&Attempt) -> Course + Send + Sync + 'static) -> Self {
        self.script.course = Arc::new(choose);
        self
    }

    /// Is called when a pod's containers have started.
    pub fn on_pod_started(mut self, hook: impl Fn(&Attempt) + Send + Sync + 'static) -> Self {
        self.script.on_started.push(Arc::new(hook));
        self
    }

    /// Is called just before a pod's containers exit, when a flow sets its run's last state.
    pub fn on_pod_finished(
        mut self,
        hook: impl Fn(&Attempt, &PodEnd) + Send + Sync + 'static,
    ) -> Self {
        self.script.on_finished.push(Arc::new(hook));
        self
    }

    /// How long the node waits at first before it tries something again; 100 ms unless said
    /// otherwise. Real clusters take 10 s.
    pub fn retry_pause(mut self, pause: Duration) -> Self {
        self.script.retry = pause;
        self
    }

    /// Starts with the node off: Jobs just sit there.
    pub fn node_off(mut self) -> Self {
        self.node_on = false;
        self
    }

    /// Starts the cluster on the ambient runtime.
    pub async fn start(self) -> io::Result<KubernetesApi> {
        let cluster = Arc::new(Cluster {
            store: Mutex::new(Store::new(self.seed, self.history)),
            clock: self.clock,
            faults: self.faults,
            requests: Requests::default(),
            changes: Changes::default(),
            access: Mutex::new(self.access),
            admission: Mutex::new(self.admission),
            creations: Mutex::new(Creations::default()),
            answers: Mutex::default(),
            watches: watch::Sender::new(WatchOrder::None),
            options: self.options,
            node: OnceLock::new(),
        });
        let node = Node::new(&cluster, self.script, self.node_on);
        let _ = cluster.node.set(node);
        let server = Server::bind(self.address, endpoint::router(cluster.clone())).await?;
        let api = KubernetesApi { cluster, server };
        for namespace in ["default".to_owned(), "kube-system".to_owned()]
            .into_iter()
            .chain(self.namespaces)
        {
            api.add_namespace(&namespace);
        }
        Ok(api)
    }
}

impl KubernetesApi {
    /// Chooses what kind of cluster to start.
    pub fn builder() -> KubernetesApiBuilder {
        let quickly = |_: &Attempt| Course::succeeds_after(Duration::from_millis(20));
        KubernetesApiBuilder {
            address: LOOPBACK,
            seed: fastrand::u64(..),
            history: 20_000,
            namespaces: Vec::new(),
            faults: Faults::default(),
            clock: Clock::default(),
            access: Access::default(),
            admission: Admission::default(),
            options: Options {
                watch_list: false,
                bookmark_every: Duration::from_secs(10),
                foreground_delay: Duration::from_millis(20),
                user: "system:serviceaccount:default:prefect-agent".into(),
            },
            script: Script {
                course: Arc::new(quickly),
                on_started: Vec::new(),
                on_finished: Vec::new(),
                retry: Duration::from_millis(100),
            },
            node_on: true,
        }
    }

    /// A cluster whose Jobs succeed at once.
    pub async fn start() -> io::Result<Self> {
        Self::builder().start().await
    }

    /// The address of the API.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The HTTP server: stop it, restart it, count its connections.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// A kubeconfig file for this cluster, with `default` as its namespace.
    pub fn kubeconfig_yaml(&self) -> String {
        self.kubeconfig_with(self.cluster.access().token.as_deref())
    }

    /// The same for a user of this name, to a cluster that takes any token; see [`Self::deny_user`].
    pub fn kubeconfig_yaml_of(&self, user: &str) -> String {
        self.kubeconfig_with(Some(user))
    }

    fn kubeconfig_with(&self, token: Option<&str>) -> String {
        let user = match token {
            Some(token) => format!("{{token: {}}}", json!(token)),
            None => "{}".to_owned(),
        };
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: testkit\n\
             clusters:\n- name: testkit\n  cluster:\n    server: {url}\n\
             contexts:\n- name: testkit\n  context:\n    cluster: testkit\n    namespace: default\n    user: testkit\n\
             users:\n- name: testkit\n  user: {user}\n",
            url = self.url(),
        )
    }

    /// The faults that are injected.
    pub fn faults(&self) -> &Faults {
        &self.cluster.faults
    }

    /// The server's clock.
    pub fn clock(&self) -> &Clock {
        &self.cluster.clock
    }

    /// Forbids a verb on a resource from now on; `*` stands for any.
    pub fn deny(&self, verb: &str, resource: &str) {
        self.cluster
            .access()
            .denied
            .insert((verb.into(), resource.into()));
    }

    /// Takes back [`Self::deny`].
    pub fn allow(&self, verb: &str, resource: &str) {
        self.cluster
            .access()
            .denied
            .remove(&(verb.into(), resource.into()));
    }

    /// Forbids one user a verb on a resource from now on; `*` stands for any. Users are told apart
    /// by the tokens in their [kubeconfigs](Self::kubeconfig_yaml_of).
    pub fn deny_user(&self, user: &str, verb: &str, resource: &str) {
        let mut access = self.cluster.access();
        let denied = access.denied_users.entry(user.into()).or_default();
        denied.insert((verb.into(), resource.into()));
    }

    /// Takes back [`Self::deny_user`].
    pub fn allow_user(&self, user: &str, verb: &str, resource: &str) {
        if let Some(denied) = self.cluster.access().denied_users.get_mut(user) {
            denied.remove(&(verb.into(), resource.into()));
        }
    }

    /// Asks this admission webhook from now on; see [`KubernetesApiBuilder::admission`].
    pub fn set_admission(&self, webhook: impl Fn(&Value, bool) -> Verdict + Send + Sync + 'static) {
        self.cluster.admission().webhook = Some(Arc::new(webhook));
    }

    /// Limits the number of Jobs in each namespace from now on; see [`KubernetesApiBuilder::quota`].
    pub fn set_quota(&self, name: impl Into<String>, jobs: usize) {
        let name = name.into();
        self.cluster.admission().quota = Some(Quota { name, jobs });
    }

    /// Takes the limit away again.
    pub fn remove_quota(&self) {
        self.cluster.admission().quota = None;
    }

    /// Lets the next creations of Jobs, so many, lose the race for a quota against others: they are
    /// answered with a conflict of the ResourceQuota.
    pub fn race_for_quota(&self, creations: u32) {
        self.cluster.admission().races = creations;
    }

    /// Lets a namespace be terminated without an end: what is in it stays, and nothing new comes.
    pub fn terminate_namespace(&self, name: &str) {
        let now = self.cluster.now_text();
        self.modify("namespaces", "", name, |namespace| {
            namespace["metadata"]["deletionTimestamp"] = json!(now);
            namespace["status"] = json!({"phase": "Terminating"});
        });
    }

    /// Adds a namespace.
    pub fn add_namespace(&self, name: &str) {
        let namespace =
            json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}});
        // One that is already there will do.
        let _ = self
            .cluster
            .create(NAMESPACES, None, namespace, Mode::default());
    }

    /// Lets the node stop where it is: no new pods. Pods under way go on.
    pub fn pause_node(&self) {
        self.set_node(false);
    }

    /// Lets the node work again.
    pub fn resume_node(&self) {
        self.set_node(true);
    }

    fn set_node(&self, on: bool) {
        if let Some(node) = self.cluster.node.get() {
            node.set_on(on);
        }
    }

    /// All Jobs.
    pub fn jobs(&self) -> Vec<Job> {
        self.typed(JOBS)
    }

    /// A Job of namespace `default`.
    pub fn job(&self, name: &str) -> Option<Job> {
        self.job_in("default", name)
    }

    /// A Job of any namespace.
    pub fn job_in(&self, namespace: &str, name: &str) -> Option<Job> {
        let found = self
            .cluster
            .store()
            .get(JOBS, &Key::new(namespace, name))
            .cloned()?;
        typed(&found)
    }

    /// All pods.
    pub fn pods(&self) -> Vec<Pod> {
        self.typed(PODS)
    }

    /// All events.
    pub fn events(&self) -> Vec<Event> {
        self.typed(EVENTS)
    }

    /// All objects of a resource, by its plural name, as JSON.
    pub fn objects(&self, plural: &str) -> Vec<Value> {
        let Some(kind) = by_plural(plural) else {
            return Vec::new();
        };
        self.stored(kind)
            .iter()
            .map(|object| object.value.clone())
            .collect()
    }

    /// How many objects of a resource there are; cheap.
    pub fn count(&self, plural: &str) -> usize {
        by_plural(plural).map_or(0, |kind| self.cluster.store().count(kind))
    }

    /// Creates an object as a client would, in `namespace` if its kind has namespaces. The error is
    /// the message of the refusal.
    pub fn create(&self, plural: &str, namespace: &str, object: Value) -> Result<Value, String> {
        let kind = by_plural(plural).ok_or_else(|| format!("no resource {plural:?}"))?;
        let namespace = KINDS[kind].namespaced.then_some(namespace);
        let created = self
            .cluster
            .create(kind, namespace, object, Mode::default());
        created
            .map(|object| object.value.clone())
            .map_err(|refused| refused.message)
    }

    /// Changes an object without any check, status included; false if it is not there.
    pub fn modify(
        &self,
        plural: &str,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> bool {
        let Some(kind) = by_plural(plural) else {
            return false;
        };
        self.cluster
            .update(kind, &Key::new(namespace, name), change)
            .is_some()
    }

    /// Removes an object and what it owns; false if it is not there.
    pub fn remove(&self, plural: &str, namespace: &str, name: &str) -> bool {
        let Some(kind) = by_plural(plural) else {
            return false;
        };
        self.cluster
            .remove(kind, &Key::new(namespace, name), false)
            .is_some()
    }

    fn stored(&self, kind: KindId) -> Vec<Stored> {
        self.cluster.store().all(kind).cloned().collect()
    }

    fn typed<T: DeserializeOwned>(&self, kind: KindId) -> Vec<T> {
        self.stored(kind).iter().filter_map(typed).collect()
    }

    /// Every Job creation that was accepted, in order, also of Jobs that are gone.
    pub fn creations(&self) -> Vec<Creation> {
        self.cluster.creations().all.clone()
    }

    /// How many Jobs were created; cheap.
    pub fn creation_count(&self) -> usize {
        self.cluster.creations().all.len()
    }

    /// How many Jobs were created for each flow run.
    pub fn creations_by_run(&self) -> HashMap<String, usize> {
        self.cluster.creations().by_run.clone()
    }

    /// Forgets the history of all objects: older resource versions and continue tokens are expired.
    pub fn compact(&self) {
        self.cluster.store().compact();
    }

    /// Ends all open watches without a word.
    pub fn cut_watches(&self) {
        self.cluster.watches.send_replace(WatchOrder::Cut);
    }

    /// Ends all open watches with `410 Expired`.
    pub fn expire_watches(&self) {
        self.cluster.watches.send_replace(WatchOrder::Expire);
    }

    /// How many watches are open.
    pub fn open_watches(&self) -> usize {
        self.cluster.watches.receiver_count()
    }

    /// The number of requests by operation, such as `create jobs`, `watch pods`, `get pods/log`.
    pub fn requests(&self) -> BTreeMap<String, u64> {
        self.cluster.requests.counts()
    }

    /// The number of requests for one operation.
    pub fn request_count(&self, operation: &str) -> u64 {
        self.cluster.requests.count(operation)
    }

    /// The number of answers by operation and status code.
    pub fn answers(&self) -> BTreeMap<(String, u16), u64> {
        self.cluster.answers().clone()
    }

    /// Counts and records of requests, to reset them or keep more.
    pub fn request_log(&self) -> &Requests {
        &self.cluster.requests
    }

    /// Keeps the last `count` requests from now on; see [`Self::last_requests`].
    pub fn keep_requests(&self, count: usize) {
        self.cluster.requests.keep(count);
    }

    /// The requests that were kept, oldest first.
    pub fn last_requests(&self) -> Vec<RequestRecord> {
        self.cluster.requests.last()
    }

    /// A receiver that sees every request and every change of what the cluster holds.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.cluster.changes.subscribe()
    }

    /// Returns as soon as `met` is true of this cluster. It is looked at after every request and
    /// every change, so it should be cheap.
    pub async fn wait_until(
        &self,
        timeout: Duration,
        mut met: impl FnMut(&Self) -> bool,
    ) -> Result<(), TimedOut> {
        self.cluster.changes.wait_until(timeout, || met(self)).await
    }
}

impl Drop for KubernetesApi {
    fn drop(&mut self) {
        if let Some(node) = self.cluster.node.get() {
            node.stop();
        }
    }
}

fn typed<T: DeserializeOwned>(object: &Stored) -> Option<T> {
    T::deserialize(&object.value).ok()
}
