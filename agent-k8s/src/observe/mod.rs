//! Watches over Jobs, their pods and events, brought together Job by Job.

mod diagnose;
mod index;
mod notes;
mod read;
mod view;

use std::collections::HashSet;
use std::time::Duration;

use agent_core::{Finding, Sighting};
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use kube::api::{Api, ListParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher as watch};
use kube::{Client, Resource, ResourceExt};

pub use self::diagnose::Graces;
use self::index::{Change, Index, Seen};
pub(crate) use self::notes::{Notes, REPORTED};
use self::read::Event;
use self::view::{EventView, JobView, PodView};
use crate::error::explain;
use crate::manifest::{FLOW_RUN_ID, IDENTIFIER};
use crate::pages::{PAGE, is_too_large, list_all};

/// How long the events may take to be listed before the rest is told without them.
const EVENTS: Duration = Duration::from_secs(5);

/// What is seen of the Jobs in a namespace; a watch that breaks begins again by itself. `labels`
/// are those of the agent, as its Jobs tell them.
pub(crate) fn sightings(
    client: &Client,
    namespace: &str,
    labels: &str,
    graces: Graces,
) -> BoxStream<'static, Sighting> {
    let ours = watcher::Config::default().labels(IDENTIFIER);
    let jobs = Api::namespaced(client.clone(), namespace);
    let labels = labels.to_owned();
    let mut unlabelled = HashSet::new();
    let jobs = changes(jobs, ours.clone(), move |job| {
        let view = JobView::of(job, &labels);
        if view.is_none() && unlabelled.insert(job.name_any()) {
            tracing::warn!(
                "Cannot manage Job {}: it has no flow run id in the label {}",
                job.name_any(),
                FLOW_RUN_ID
            );
        }
        view
    });
    let pods = Api::namespaced(client.clone(), namespace);
    let pods = changes(pods, ours, PodView::of);
    let events = Api::namespaced(client.clone(), namespace);
    let events = changes(events, watcher::Config::default(), |event: &Event| {
        Some((event.name_any(), EventView::of(event)?))
    });
    let mut index = Index::new(graces);
    let late = stream::once(tokio::time::sleep(EVENTS)).map(|()| Seen::EventsLate);
    stream::select_all([
        jobs.map(Seen::Job).boxed(),
        pods.map(Seen::Pod).boxed(),
        events.map(Seen::Event).boxed(),
        late.boxed(),
    ])
    .flat_map(move |seen| stream::iter(index.take_in(seen)))
    .boxed()
}

/// Whether a finding that ends a Job stands, by what the API server says now.
pub(crate) async fn stands(
    client: &Client,
    namespace: &str,
    job: &str,
    key: &str,
) -> kube::Result<bool> {
    if !diagnose::may_pass(key) {
        return Ok(true);
    }
    let jobs: Api<read::Job> = Api::namespaced(client.clone(), namespace);
    let job = jobs.get_opt(job).await?;
    if key == Finding::GONE {
        return Ok(job.is_none_or(|job| job.metadata.deletion_timestamp.is_some()));
    }
    let Some(job) = job.and_then(|job| JobView::of(&job, "")) else {
        return Ok(false);
    };
    let pods: Api<read::Pod> = Api::namespaced(client.clone(), namespace);
    let own = ListParams::default().labels(&format!("{IDENTIFIER}={}", job.identifier));
    let mut views = Vec::new();
    list_all(&pods, &own, |pod| views.extend(PodView::of(&pod))).await?;
    Ok(diagnose::stands(key, &job, &views))
}

fn changes<K, V: Send + 'static>(
    api: Api<K>,
    config: watcher::Config,
    mut view: impl FnMut(&K) -> Option<V> + Send + 'static,
) -> impl Stream<Item = Change<V>> + Send
where
    K: Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    patient(in_pages(api, config, PAGE)).filter_map(move |change| {
        let change = match change {
            Ok(watcher::Event::Init) => Some(Change::Listing),
            Ok(watcher::Event::InitDone) => Some(Change::Listed),
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                view(&object).map(Change::Is)
            }
            Ok(watcher::Event::Delete(object)) => Some(Change::IsNot(object.name_any())),
            Err(error) => Some(Change::Broken {
                forbidden: is_forbidden(&error),
                reason: explain(&error),
            }),
        };
        std::future::ready(change)
    })
}

/// A watch that lists in pages, of which it takes smaller ones for good where they are too large: the
/// listing begins again.
fn in_pages<K>(
    api: Api<K>,
    config: watcher::Config,
    page: u32,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send
where
    K: Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let begin = move |page| watch(api.clone(), config.clone().page_size(page)).boxed();
    let watching = begin(page);
    stream::unfold(
        (begin, watching, page),
        |(begin, mut watching, mut page)| async move {
            loop {
                match watching.next().await? {
                    Err(watcher::Error::InitialListFailed(error))
                        if is_too_large(&error) && page > 1 =>
                    {
                        page /= 2;
                        tracing::warn!("A page of a listing is too large; now {page} objects each");
                        watching = begin(page);
                    }
                    change => return Some((change, (begin, watching, page))),
                }
            }
        },
    )
}

/// A watch that pauses longer from failure to failure. That a listing begins is told with its first
/// answer: by itself it would count as a success, after which the next failure is the first again.
fn patient<K: Send>(
    watch: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send {
    let mut begins = None;
    let answered = watch.flat_map(move |change| {
        let before = match change {
            Ok(watcher::Event::Init) => {
                begins = Some(change);
                return stream::iter([None, None]);
            }
            Ok(_) => begins.take(),
            Err(_) => {
                begins = None;
                None
            }
        };
        stream::iter([before, Some(change)])
    });
    answered.filter_map(std::future::ready).default_backoff()
}

/// Whether a watch cannot begin because this agent may not list, or not watch.
fn is_forbidden(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => {
            matches!(error, kube::Error::Api(status) if status.code == 403)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listing_goes_on_with_smaller_pages_where_objects_are_large() {
        let (client, asked) = crate::pages::tests::server(30, crate::bounded::LARGEST / 20);
        let jobs: Api<read::Job> = Api::namespaced(client, "default");
        let mut names = Vec::new();
        let mut watching = std::pin::pin!(in_pages(jobs, watcher::Config::default(), PAGE));
        while let Some(change) = watching.next().await {
            match change.expect("no failure") {
                watcher::Event::InitApply(job) => names.push(job.name_any()),
                watcher::Event::InitDone => break,
                _ => {}
            }
        }
        assert_eq!(names.len(), 30);
        let asked = asked.lock().expect("no panic").clone();
        assert_eq!(asked, [200, 100, 50, 25, 12, 12, 12]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_listing_that_always_fails_is_tried_less_and_less_often() {
        let began = tokio::time::Instant::now();
        let fails = || watcher::Error::NoResourceVersion;
        let tries = stream::iter(0..10)
            .flat_map(|_| stream::iter([Ok(watcher::Event::<Event>::Init), Err(fails())]));
        let end = stream::iter([Ok(watcher::Event::Init), Ok(watcher::Event::InitDone)]);
        let told: Vec<_> = patient(tries.chain(end)).collect().await;
        // The first pauses alone, ten times, would be over within 16 s.
        assert!(
            began.elapsed() > Duration::from_secs(90),
            "{:?}",
            began.elapsed()
        );
        let begun = told
            .iter()
            .filter(|one| matches!(one, Ok(watcher::Event::Init)));
        assert_eq!(begun.count(), 1, "a listing that fails has not begun");
        assert!(matches!(told.last(), Some(Ok(watcher::Event::InitDone))));
    }
}
