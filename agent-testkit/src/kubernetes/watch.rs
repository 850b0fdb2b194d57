//! Watches: streams of changes, with bookmarks, that end, break or expire as real ones do.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::stream;
use http::{HeaderValue, header};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, Interval};

use super::cluster::{Cluster, WatchOrder};
use super::kinds::{KINDS, KindId};
use super::object::{Object, Stored, text};
use super::refused::{Outcome, Refused};
use super::request::{Parameters, Target};
use super::selector::Selector;
use super::store::{Change, Happened};
use super::table::table;
use crate::condition::MarkOnDrop;
use crate::faults::Fault;

const BATCH: usize = 256;

struct Watch {
    cluster: Arc<Cluster>,
    kind: KindId,
    namespace: Option<String>,
    selector: Selector,
    as_table: bool,
    /// Everything up to this version was sent, or does not concern this watch.
    cursor: u64,
    /// What is sent before any change.
    first: Option<Bytes>,
    versions: watch::Receiver<u64>,
    orders: watch::Receiver<WatchOrder>,
    deadline: Instant,
    bookmarks: Option<Interval>,
    /// How many more events come through before the stream breaks.
    left: Option<u32>,
    ended: bool,
    /// The last member, so that the watch is no longer counted when its end is noticed.
    _end: MarkOnDrop,
}

/// Answers with a stream of changes.
pub(crate) fn respond(
    cluster: &Arc<Cluster>,
    target: &Target,
    parameters: &Parameters,
    as_table: bool,
    fault: Option<&Fault>,
) -> Outcome<Response> {
    let selector = parameters.selector(&KINDS[target.kind])?;
    let from = parameters.resource_version();
    let from = from.map_err(Refused::unexpected)?;
    let initial_events = parameters.flag("sendInitialEvents");
    if initial_events && !cluster.options.watch_list {
        let why =
            "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
        return Err(Refused::forbidden_option("sendInitialEvents", why));
    }
    if initial_events && parameters.text("resourceVersionMatch") != "NotOlderThan" {
        let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        return Err(Refused::forbidden_option("resourceVersionMatch", why));
    }
    let seconds = parameters
        .number("timeoutSeconds")?
        .unwrap_or(1800 + fastrand::u64(..1800));
    let bookmarks = parameters.flag("allowWatchBookmarks").then(|| {
        let every = cluster.options.bookmark_every;
        tokio::time::interval_at(Instant::now() + every, every)
    });
    let mut watch = Watch {
        kind: target.kind,
        namespace: target.namespace.clone(),
        selector,
        as_table,
        cursor: 0,
        first: None,
        versions: cluster.store().subscribe(target.kind),
        orders: cluster.watches.subscribe(),
        deadline: Instant::now() + Duration::from_secs(seconds),
        bookmarks,
        left: match fault {
            Some(Fault::WatchCut { after_events }) => Some(*after_events),
            Some(Fault::Truncate) => Some(1),
            _ => None,
        },
        ended: false,
        _end: MarkOnDrop(cluster.changes.clone()),
        cluster: cluster.clone(),
    };
    watch.begin(from, initial_events, fault == Some(&Fault::WatchExpired));
    let stream = stream::unfold(watch, async |mut watch| {
        let chunk = watch.next().await?;
        Some((Ok::<Bytes, std::io::Error>(chunk), watch))
    });
    let mut response = Response::new(Body::from_stream(stream));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    Ok(response)
}

impl Watch {
    fn begin(&mut self, from: Option<u64>, initial_events: bool, expire: bool) {
        let cluster = self.cluster.clone();
        let store = cluster.store();
        let (oldest, current) = (store.oldest(self.kind), store.version());
        match from {
            Some(version) if expire || version < oldest => {
                drop(store);
                self.expire(version, oldest);
            }
            None if expire => {
                drop(store);
                self.expire(1, oldest);
            }
            Some(version) if !initial_events => self.cursor = version,
            _ => {
                let namespace = self.namespace.as_deref();
                let page = store.list(self.kind, namespace, &self.selector, usize::MAX, None);
                drop(store);
                self.cursor = current;
                let mut first = BytesMut::new();
                for object in &page.objects {
                    self.line(&mut first, "ADDED", object);
                }
                if initial_events {
                    first.extend_from_slice(&self.bookmark(true));
                }
                self.first = (!first.is_empty()).then(|| first.freeze());
            }
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(first) = self.first.take() {
                return Some(first);
            }
            if self.ended || self.left == Some(0) {
                return None;
            }
            self.versions.borrow_and_update();
            let (changes, current) = {
                let store = self.cluster.store();
                (
                    store.changes_after(self.kind, self.cursor, BATCH),
                    store.version(),
                )
            };
            let Some(changes) = changes else {
                let oldest = self.cluster.store().oldest(self.kind);
                self.expire(self.cursor, oldest);
                continue;
            };
            if changes.is_empty() {
                self.cursor = self.cursor.max(current);
                if let Some(chunk) = self.idle().await {
                    return Some(chunk);
                }
                continue;
            }
            let mut chunk = BytesMut::new();
            for change in &changes {
                self.cursor = change.version;
                self.event(&mut chunk, change);
                if self.left == Some(0) {
                    break;
                }
            }
            if !chunk.is_empty() {
                return Some(chunk.freeze());
            }
        }
    }

    /// Waits for something to happen; gives what is sent meanwhile.
    async fn idle(&mut self) -> Option<Bytes> {
        let tick = async {
            match &mut self.bookmarks {
                Some(interval) => interval.tick().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.versions.changed() => None,
            changed = self.orders.changed() => {
                let order = *self.orders.borrow_and_update();
                match order {
                    _ if changed.is_err() => self.ended = true,
                    WatchOrder::Cut => self.ended = true,
                    WatchOrder::Expire => self.expire(self.cursor, self.cursor + 1),
                    WatchOrder::None => {}
                }
                None
            }
            () = tokio::time::sleep_until(self.deadline) => {
                self.ended = true;
                self.bookmarks.is_some().then(|| self.bookmark(false))
            }
            _ = tick => Some(self.bookmark(false)),
        }
    }

    fn event(&mut self, chunk: &mut BytesMut, change: &Change) {
        let namespace = text(&change.object.value, "/metadata/namespace");
        if self
            .namespace
            .as_ref()
            .is_some_and(|wanted| wanted != namespace)
        {
            return;
        }
        let matched = change
            .before
            .as_ref()
            .is_some_and(|before| self.selector.matches(&before.value));
        let matches =
            change.happened != Happened::Deleted && self.selector.matches(&change.object.value);
        let kind = match (matched, matches) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return,
        };
        match &change.before {
            // What is no longer selected is shown as it was when it still was.
            Some(before) if kind == "DELETED" && change.happened != Happened::Deleted => {
                let mut last = before.value.clone();
                last["metadata"]["resourceVersion"] = json!(change.version.to_string());
                self.line(chunk, kind, &Object::new(last, change.version));
            }
            _ => self.line(chunk, kind, &change.object),
        }
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
    }

    fn line(&self, chunk: &mut BytesMut, kind: &str, object: &Stored) {
        let body = match self.as_table {
            false => object.text(),
            true => {
                let metadata = json!({"resourceVersion": object.version.to_string()});
                let now = self.cluster.clock.now();
                let one = table(self.kind, std::slice::from_ref(object), metadata, now);
                Bytes::from(one.to_string())
            }
        };
        chunk.extend_from_slice(b"{\"type\":\"");
        chunk.extend_from_slice(kind.as_bytes());
        chunk.extend_from_slice(b"\",\"object\":");
        chunk.extend_from_slice(&body);
        chunk.extend_from_slice(b"}\n");
    }

    fn bookmark(&self, initial_events_end: bool) -> Bytes {
        let kind = &KINDS[self.kind];
        let mut metadata =
            json!({"resourceVersion": self.cursor.to_string(), "creationTimestamp": null});
        if initial_events_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object =
            json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata});
        event_line("BOOKMARK", &object)
    }

    fn expire(&mut self, version: u64, oldest: u64) {
        let refused = Refused::expired(format!("too old resource version: {version} ({oldest})"));
        self.first = Some(event_line("ERROR", &refused.status()));
        self.ended = true;
    }
}

fn event_line(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({"type": kind, "object": object})))
}
