//! Watches over real HTTP.

use std::time::Duration;

use agent_testkit::{Fault, KubernetesApi, Rule};
use hyper::http::Method;
use serde_json::{Value, json};

use crate::kubernetes::{CONFIG_MAPS, config_map, create_job, idle, message};
use crate::support::{Client, JOBS, SOON, job};

#[tokio::test]
async fn a_watch_tells_what_enters_changes_and_leaves_its_selection() {
    let (api, mut client) = idle().await;
    let first = config_map(&mut client, "a", json!({"app": "x"})).await;
    let version = first["metadata"]["resourceVersion"].as_str().unwrap();
    let path = format!("{CONFIG_MAPS}?watch=true&labelSelector=app%3Dx&resourceVersion={version}");
    let mut watch = Client::connect(&api.url()).await.watch(&path).await;
    config_map(&mut client, "b", json!({"app": "y"})).await;
    let merge = "application/merge-patch+json";
    let label = |value: &str| json!({"metadata": {"labels": {"app": value}}});
    client
        .patch(&format!("{CONFIG_MAPS}/b"), merge, label("x"))
        .await;
    client
        .patch(
            &format!("{CONFIG_MAPS}/a"),
            merge,
            json!({"data": {"a": "2"}}),
        )
        .await;
    client
        .patch(&format!("{CONFIG_MAPS}/b"), merge, label("z"))
        .await;
    client
        .send(Method::DELETE, &format!("{CONFIG_MAPS}/a"), Value::Null)
        .await;
    for (kind, name) in [
        ("ADDED", "b"),
        ("MODIFIED", "a"),
        ("DELETED", "b"),
        ("DELETED", "a"),
    ] {
        assert_eq!(watch.next_name().await, Some((kind.into(), name.into())));
    }
    let mut from_nothing = Client::connect(&api.url())
        .await
        .watch("/api/v1/namespaces?watch=1")
        .await;
    assert_eq!(
        from_nothing.next_name().await,
        Some(("ADDED".into(), "default".into()))
    );
}

#[tokio::test]
async fn a_watch_gets_bookmarks_and_ends_in_time() {
    let api = KubernetesApi::builder()
        .node_off()
        .bookmark_every(Duration::from_millis(5))
        .start()
        .await
        .unwrap();
    let mut client = Client::connect(&api.url()).await;
    let list = client.get(JOBS).await.json();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    config_map(&mut client, "unrelated", json!({})).await;
    let path = format!(
        "{JOBS}?watch=true&resourceVersion={version}&allowWatchBookmarks=true&timeoutSeconds=1"
    );
    let mut watch = Client::connect(&api.url()).await.watch(&path).await;
    let bookmark = watch.next().await.unwrap();
    assert_eq!(
        (&bookmark["type"], &bookmark["object"]["kind"]),
        (&json!("BOOKMARK"), &json!("Job"))
    );
    let newer: u64 = bookmark["object"]["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(newer > version.parse().unwrap());
    while watch.next().await.is_some() {}
    assert!(
        api.wait_until(SOON, |api| api.open_watches() == 0)
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn old_resource_versions_expire_but_open_watches_go_on() {
    let (api, mut client) = idle().await;
    let first = config_map(&mut client, "a", json!({})).await;
    let version = first["metadata"]["resourceVersion"].as_str().unwrap();
    let path = format!("{CONFIG_MAPS}?watch=true&resourceVersion={version}");
    let mut open = Client::connect(&api.url()).await.watch(&path).await;
    create_job(&mut client, job("j")).await;
    api.compact();
    let mut late = Client::connect(&api.url()).await.watch(&path).await;
    let error = late.next().await.unwrap();
    assert_eq!(
        (&error["type"], &error["object"]["code"]),
        (&json!("ERROR"), &json!(410))
    );
    assert_eq!(error["object"]["reason"], "Expired");
    assert!(late.next().await.is_none());
    config_map(&mut client, "b", json!({})).await;
    assert_eq!(open.next_name().await, Some(("ADDED".into(), "b".into())));
    api.expire_watches();
    assert_eq!(open.next().await.unwrap()["object"]["code"], 410);
}

#[tokio::test]
async fn watch_faults_cut_and_expire() {
    let (api, mut client) = idle().await;
    api.faults()
        .add(Rule::new("watch configmaps", Fault::WatchCut { after_events: 1 }).times(1));
    api.faults()
        .add(Rule::new("watch configmaps", Fault::WatchExpired));
    let list = client.get(CONFIG_MAPS).await.json();
    let path = format!(
        "{CONFIG_MAPS}?watch=true&resourceVersion={}",
        list["metadata"]["resourceVersion"].as_str().unwrap()
    );
    let mut cut = Client::connect(&api.url()).await.watch(&path).await;
    config_map(&mut client, "a", json!({})).await;
    config_map(&mut client, "b", json!({})).await;
    assert_eq!(cut.next_name().await.unwrap().1, "a");
    assert!(cut.next().await.is_none());
    let mut expired = Client::connect(&api.url()).await.watch(&path).await;
    assert_eq!(expired.next().await.unwrap()["object"]["code"], 410);
    let mut open = Client::connect(&api.url())
        .await
        .watch("/api/v1/pods?watch=true")
        .await;
    api.cut_watches();
    assert!(open.next().await.is_none());
}

#[tokio::test]
async fn initial_events_are_refused_unless_the_server_can() {
    let (_api, mut client) = idle().await;
    let path = format!(
        "{JOBS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    let refused = client.get(&path).await;
    assert_eq!(refused.status, 422);
    assert!(
        message(&refused)
            .contains("sendInitialEvents is forbidden for watch unless the WatchList feature gate")
    );
    let api = KubernetesApi::builder()
        .node_off()
        .watch_list()
        .start()
        .await
        .unwrap();
    let mut client = Client::connect(&api.url()).await;
    create_job(&mut client, job("j")).await;
    let mut watch = client.watch(&path).await;
    assert_eq!(watch.next_name().await, Some(("ADDED".into(), "j".into())));
    let end = watch.next().await.unwrap();
    assert_eq!(
        end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
}
