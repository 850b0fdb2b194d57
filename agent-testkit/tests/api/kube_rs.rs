//! The client library that the agent is built on, against the server.

use std::collections::BTreeMap;
use std::time::Duration;

use agent_testkit::{Course, Faults, KubernetesApi};
use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Api, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Config};
use serde_json::json;

use crate::support::{SOON, job};

async fn client(api: &KubernetesApi) -> Client {
    let mut config = Config::new(api.url().parse().expect("a URL"));
    config.default_namespace = "default".into();
    Client::try_from(config).expect("a client")
}

fn typed(name: &str) -> Job {
    serde_json::from_value(job(name)).expect("a Job")
}

fn refusal(error: kube::Error) -> (u16, String) {
    match error {
        kube::Error::Api(status) => (status.code, status.reason),
        other => panic!("{other:?}"),
    }
}

/// Follows a watcher until it has shown all of these names.
async fn sees<S>(events: &mut S, names: &[&str])
where
    S: Stream<Item = Result<watcher::Event<Job>, watcher::Error>> + Unpin,
{
    let mut left: Vec<&str> = names.to_vec();
    let look = async {
        while !left.is_empty() {
            let event = events.next().await.expect("the watcher ended");
            if let Ok(watcher::Event::Apply(job) | watcher::Event::InitApply(job)) = event {
                let name = job.metadata.name.unwrap_or_default();
                left.retain(|wanted| *wanted != name);
            }
        }
    };
    let looked = tokio::time::timeout(SOON, look).await;
    assert!(looked.is_ok(), "{left:?} did not show up");
}

#[tokio::test]
async fn jobs_are_created_once_read_patched_and_deleted() {
    let api = KubernetesApi::builder()
        .course(|_| Course::hangs().with_log("hi\n"))
        .start()
        .await
        .unwrap();
    let client = client(&api).await;
    let jobs: Api<Job> = Api::default_namespaced(client.clone());
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let create = PostParams::default();
    jobs.create(&create, &typed("j")).await.unwrap();
    let again = jobs.create(&create, &typed("j")).await.unwrap_err();
    assert_eq!(refusal(again), (409, "AlreadyExists".into()));
    let mut invalid = typed("k");
    invalid
        .spec
        .as_mut()
        .unwrap()
        .template
        .spec
        .as_mut()
        .unwrap()
        .containers
        .clear();
    assert_eq!(
        refusal(jobs.create(&create, &invalid).await.unwrap_err()).0,
        422
    );
    let annotate = json!({"metadata": {"annotations": {"seen": "yes"}}});
    let patched = jobs
        .patch("j", &PatchParams::default(), &Patch::Merge(annotate))
        .await
        .unwrap();
    assert_eq!(patched.metadata.annotations.unwrap()["seen"], "yes");

    let running = |api: &KubernetesApi| {
        api.objects("pods")
            .iter()
            .any(|pod| pod["status"]["phase"] == "Running")
    };
    api.wait_until(SOON, running).await.unwrap();
    let listed = pods
        .list(&ListParams::default().labels("job-name=j"))
        .await
        .unwrap();
    let name = listed.items[0].metadata.name.clone().unwrap();
    assert_eq!(
        pods.logs(&name, &LogParams::default()).await.unwrap(),
        "hi\n"
    );
    let events: Api<Event> = Api::default_namespaced(client.clone());
    let of_pod = ListParams::default().fields(&format!("involvedObject.name={name}"));
    assert!(events.list(&of_pod).await.unwrap().items.len() >= 5);

    jobs.delete("j", &DeleteParams::background()).await.unwrap();
    assert_eq!(
        refusal(jobs.get("j").await.unwrap_err()),
        (404, "NotFound".into())
    );
    assert_eq!(api.count("pods"), 0);
}

#[tokio::test]
async fn a_lease_changes_hands_with_optimistic_locking() {
    let api = KubernetesApi::builder().node_off().start().await.unwrap();
    let leases: Api<Lease> = Api::default_namespaced(client(&api).await);
    let lease: Lease = serde_json::from_value(json!({
        "metadata": {"name": "agent"}, "spec": {"holderIdentity": "a", "leaseDurationSeconds": 15},
    }))
    .unwrap();
    let first = leases.create(&PostParams::default(), &lease).await.unwrap();
    let mut taken = first.clone();
    taken.spec.as_mut().unwrap().holder_identity = Some("b".into());
    leases
        .replace("agent", &PostParams::default(), &taken)
        .await
        .unwrap();
    let late = leases
        .replace("agent", &PostParams::default(), &first)
        .await
        .unwrap_err();
    assert_eq!(refusal(late), (409, "Conflict".into()));
    let applied = leases
        .patch("agent", &PatchParams::apply("test"), &Patch::Apply(json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "agent"},
            "spec": {"holderIdentity": "c"},
        })))
        .await
        .unwrap();
    assert_eq!(applied.spec.unwrap().holder_identity.as_deref(), Some("c"));
}

#[tokio::test]
async fn a_watcher_survives_cuts_expiry_and_a_restart() {
    let api = KubernetesApi::builder()
        .node_off()
        .watch_list()
        .start()
        .await
        .unwrap();
    let client = client(&api).await;
    for strategy in [
        watcher::Config::default().page_size(2),
        watcher::Config::default().streaming_lists(),
    ] {
        let jobs: Api<Job> = Api::default_namespaced(client.clone());
        let create = async |name: &str| {
            jobs.create(&PostParams::default(), &typed(name))
                .await
                .unwrap()
        };
        for name in ["a", "b", "c"] {
            create(name).await;
        }
        let mut events = watcher(jobs.clone(), strategy).default_backoff().boxed();
        sees(&mut events, &["a", "b", "c"]).await;
        create("d").await;
        sees(&mut events, &["d"]).await;
        api.cut_watches();
        create("e").await;
        sees(&mut events, &["e"]).await;
        api.compact();
        api.expire_watches();
        create("f").await;
        sees(&mut events, &["a", "b", "c", "d", "e", "f"]).await;
        api.server().stop().await;
        api.server().restart().await.unwrap();
        create("g").await;
        sees(&mut events, &["g"]).await;
        for name in ["a", "b", "c", "d", "e", "f", "g"] {
            jobs.delete(name, &DeleteParams::background())
                .await
                .unwrap();
        }
    }
}

#[tokio::test]
async fn a_selective_watcher_hears_of_its_own_jobs_only() {
    let api = KubernetesApi::builder().node_off().start().await.unwrap();
    let jobs: Api<Job> = Api::all(client(&api).await);
    let labelled = |name: &str, app: &str| {
        let mut job = typed(name);
        job.metadata.labels = Some(BTreeMap::from([("app".into(), app.into())]));
        serde_json::to_value(job).unwrap()
    };
    let config = watcher::Config::default().labels("app=mine");
    let mut names = watcher(jobs, config)
        .applied_objects()
        .map_ok(|job| job.metadata.name.unwrap())
        .boxed();
    for (name, app) in [("a", "other"), ("b", "mine"), ("c", "other"), ("d", "mine")] {
        api.create("jobs", "default", labelled(name, app)).unwrap();
    }
    for name in ["b", "d"] {
        let next = tokio::time::timeout(SOON, names.next()).await.unwrap();
        assert_eq!(next.unwrap().unwrap(), name);
    }
}

#[tokio::test]
async fn jobs_get_created_exactly_once_in_the_end_whatever_goes_wrong() {
    let faults = Faults::mixed(3, 0.3);
    let api = KubernetesApi::builder()
        .node_off()
        .faults(faults.clone())
        .start()
        .await
        .unwrap();
    let jobs: Api<Job> = Api::default_namespaced(client(&api).await);
    for n in 0..30 {
        let job = typed(&format!("j{n}"));
        loop {
            let params = PostParams::default();
            let created =
                tokio::time::timeout(Duration::from_millis(500), jobs.create(&params, &job)).await;
            match created {
                Ok(Ok(_)) => break,
                Ok(Err(kube::Error::Api(status))) if status.is_already_exists() => break,
                _ => {}
            }
        }
    }
    assert_eq!((api.creation_count(), api.count("jobs")), (30, 30));
    assert!(faults.total() > 3, "{:?}", faults.injected());
    faults.clear();
    let left = jobs.list(&ListParams::default()).await.unwrap();
    assert_eq!(left.items.len(), 30);
}
