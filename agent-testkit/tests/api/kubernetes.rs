//! The Kubernetes API over real HTTP.

use std::time::{Duration, Instant};

use agent_testkit::{Course, Fault, KubernetesApi, Rule, Verdict};
use hyper::http::Method;
use serde_json::{Value, json};

use crate::support::{Answer, Client, JOBS, PODS, SOON, job};

pub(crate) const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

pub(crate) async fn idle() -> (KubernetesApi, Client) {
    let started = KubernetesApi::builder().node_off().start().await;
    let api = started.expect("a free port");
    let client = Client::connect(&api.url()).await;
    (api, client)
}

pub(crate) fn message(answer: &Answer) -> String {
    answer.json()["message"].as_str().unwrap_or("").to_owned()
}

pub(crate) async fn create_job(client: &mut Client, body: Value) -> Answer {
    client.send(Method::POST, JOBS, body).await
}

pub(crate) async fn config_map(client: &mut Client, name: &str, labels: Value) -> Value {
    let body = json!({"metadata": {"name": name, "labels": labels}, "data": {"a": "1"}});
    client.send(Method::POST, CONFIG_MAPS, body).await.json()
}

fn names(list: &Answer) -> Vec<String> {
    let list = list.json();
    let items = list["items"].as_array().unwrap_or_else(|| panic!("{list}"));
    let name = |item: &Value| item["metadata"]["name"].as_str().unwrap_or("").to_owned();
    items.iter().map(name).collect()
}

#[tokio::test]
async fn a_created_job_has_what_a_real_server_fills_in() {
    let (api, mut client) = idle().await;
    let created = create_job(&mut client, job("j")).await;
    assert_eq!(created.status, 201);
    let created = created.json();
    let uid = created["metadata"]["uid"].as_str().unwrap();
    assert_eq!(created["kind"], "Job");
    assert_eq!(created["spec"]["backoffLimit"], 6);
    assert_eq!(created["spec"]["suspend"], false);
    assert_eq!(
        created["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"],
        uid
    );
    let labels = &created["spec"]["template"]["metadata"]["labels"];
    assert_eq!(
        (&labels["job-name"], &labels["controller-uid"]),
        (&json!("j"), &json!(uid))
    );
    let got = client.get(&format!("{JOBS}/j")).await.json();
    assert_eq!(got, created);
    assert_eq!(api.job("j").unwrap().metadata.uid.as_deref(), Some(uid));
}

#[tokio::test]
async fn refusals_are_status_objects_in_the_servers_words() {
    let (_api, mut client) = idle().await;
    create_job(&mut client, job("j")).await;
    let again = create_job(&mut client, job("j")).await;
    assert_eq!(again.status, 409);
    assert_eq!(
        again.json(),
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "jobs.batch \"j\" already exists", "reason": "AlreadyExists",
            "details": {"name": "j", "group": "batch", "kind": "jobs"}, "code": 409,
        })
    );
    let missing = client.get(&format!("{JOBS}/x")).await;
    assert_eq!(
        (missing.status, message(&missing)),
        (404, "jobs.batch \"x\" not found".into())
    );
    let missing = client.get(&format!("{PODS}/x")).await;
    assert_eq!(message(&missing), "pods \"x\" not found");
    let elsewhere = client
        .send(
            Method::POST,
            "/apis/batch/v1/namespaces/none/jobs",
            job("j"),
        )
        .await;
    assert_eq!(message(&elsewhere), "namespaces \"none\" not found");

    let mut nameless = job("j");
    nameless["metadata"] = json!({});
    let invalid = create_job(&mut client, nameless).await;
    assert_eq!(invalid.status, 422);
    assert_eq!(
        message(&invalid),
        "Job.batch \"\" is invalid: metadata.name: Required value: name or generateName is required"
    );
    assert_eq!(
        invalid.json()["details"]["causes"][0]["field"],
        "metadata.name"
    );

    let mut number = job("n");
    number["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = json!(1);
    let undecodable = create_job(&mut client, number).await;
    assert_eq!(
        (undecodable.status, undecodable.json()["reason"].as_str()),
        (400, Some("BadRequest"))
    );

    let mut elsewhere = job("n");
    elsewhere["metadata"]["namespace"] = json!("other");
    let mismatch = create_job(&mut client, elsewhere).await;
    assert_eq!(mismatch.status, 400);
    assert!(message(&mismatch).contains("does not match the namespace sent on the request"));
    assert_eq!(client.get("/apis/batch/v2/jobs").await.status, 404);
}

/// The status, the message, the reason and the details of a refusal.
fn refusal(answer: &Answer) -> (u16, Value, Value, Value) {
    let status = answer.json();
    let member = |name: &str| status[name].clone();
    let members = (member("message"), member("reason"), member("details"));
    (answer.status, members.0, members.1, members.2)
}

#[tokio::test]
async fn a_resource_version_at_creation_is_the_storages_to_refuse() {
    let (_api, mut client) = idle().await;
    let mut exported = job("j");
    exported["metadata"]["resourceVersion"] = json!("12");
    let dry = format!("{JOBS}?dryRun=All");
    let dry = client.send(Method::POST, &dry, exported.clone()).await;
    assert_eq!(dry.status, 201);
    let refused = create_job(&mut client, exported).await;
    let message = "resourceVersion should not be set on objects to be created";
    let expected = (500, json!(message), Value::Null, Value::Null);
    assert_eq!(refusal(&refused), expected);
}

#[tokio::test]
async fn a_quota_limits_jobs_and_is_raced_for() {
    let api = KubernetesApi::builder().node_off().quota("few", 1).start();
    let api = api.await.expect("a free port");
    let mut client = Client::connect(&api.url()).await;
    api.race_for_quota(1);
    let raced = create_job(&mut client, job("a")).await;
    let message = "Operation cannot be fulfilled on resourcequotas \"few\": the object has been modified; please apply your changes to the latest version and try again";
    let details = json!({"name": "few", "kind": "resourcequotas"});
    let expected = (409, json!(message), json!("Conflict"), details);
    assert_eq!(refusal(&raced), expected);
    assert_eq!(create_job(&mut client, job("a")).await.status, 201);
    let message = "jobs.batch \"b\" is forbidden: exceeded quota: few, requested: count/jobs.batch=1, used: count/jobs.batch=1, limited: count/jobs.batch=1";
    let details = json!({"name": "b", "group": "batch", "kind": "jobs"});
    let expected = (403, json!(message), json!("Forbidden"), details);
    for query in ["", "?dryRun=All"] {
        let path = format!("{JOBS}{query}");
        let exceeded = client.send(Method::POST, &path, job("b")).await;
        assert_eq!(refusal(&exceeded), expected);
    }
    api.remove_quota();
    assert_eq!(create_job(&mut client, job("b")).await.status, 201);
}

#[tokio::test]
async fn an_admission_webhook_decides_on_jobs() {
    let (api, mut client) = idle().await;
    api.set_admission(|job, dry_run| match job["metadata"]["name"].as_str() {
        Some("denied") => Verdict::deny("no such team"),
        Some("down") => Verdict::Error,
        Some("slow") => Verdict::Timeout(Duration::from_millis(30)),
        Some("dry") if dry_run => Verdict::deny("not even dry"),
        _ => Verdict::Allow,
    });
    assert_eq!(create_job(&mut client, job("a")).await.status, 201);
    let denied = create_job(&mut client, job("denied")).await;
    let message =
        "admission webhook \"jobs.admission.testkit.example\" denied the request: no such team";
    let expected = (403, json!(message), json!("Forbidden"), Value::Null);
    assert_eq!(refusal(&denied), expected);
    let began = Instant::now();
    for (name, why, least) in [
        ("down", "connect: connection refused", 0),
        ("slow", "context deadline exceeded", 30),
    ] {
        let failed = create_job(&mut client, job(name)).await;
        assert!(began.elapsed() >= Duration::from_millis(least));
        let (code, message, reason, details) = refusal(&failed);
        assert_eq!((code, reason), (500, json!("InternalError")));
        let message = message.as_str().expect("a text");
        let error = message.strip_prefix("Internal error occurred: ");
        assert_eq!(details, json!({"causes": [{"message": error}]}));
        let begins = "failed calling webhook \"jobs.admission.testkit.example\": failed to call webhook: Post \"https://";
        let error = error.expect("an internal error");
        assert!(error.starts_with(begins) && error.ends_with(why), "{error}");
    }
    let dry = format!("{JOBS}?dryRun=All");
    let dry = client.send(Method::POST, &dry, job("dry")).await;
    assert_eq!(dry.status, 403);
}

#[tokio::test]
async fn a_namespace_that_goes_takes_no_jobs_and_one_that_is_not_there_is_named() {
    let (api, mut client) = idle().await;
    api.terminate_namespace("default");
    let refused = create_job(&mut client, job("j")).await;
    let message = "jobs.batch \"j\" is forbidden: unable to create new content in namespace default because it is being terminated";
    let details = json!({"name": "j", "group": "batch", "kind": "jobs", "causes": [{
        "reason": "NamespaceTerminating", "message": "namespace default is being terminated",
        "field": "metadata.namespace"}]});
    let expected = (403, json!(message), json!("Forbidden"), details);
    assert_eq!(refusal(&refused), expected);
    // What is wrong with the Job itself is found out later.
    let path = "/apis/batch/v1/namespaces/none/jobs";
    let refused = client.send(Method::POST, path, json!({})).await;
    let details = json!({"name": "none", "kind": "namespaces"});
    let message = json!("namespaces \"none\" not found");
    let expected = (404, message, json!("NotFound"), details);
    assert_eq!(refusal(&refused), expected);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_not_read() {
    let (_api, mut client) = idle().await;
    let mut large = job("j");
    large["metadata"]["annotations"] = json!({"a": "x".repeat(3 << 20)});
    let refused = create_job(&mut client, large).await;
    let message = json!("Request entity too large: limit is 3145728");
    let expected = (413, message, json!("RequestEntityTooLarge"), Value::Null);
    assert_eq!(refusal(&refused), expected);
}

#[tokio::test]
async fn a_dry_run_checks_and_changes_nothing() {
    let (api, mut client) = idle().await;
    let tried = client
        .send(Method::POST, &format!("{JOBS}?dryRun=All"), job("j"))
        .await;
    assert_eq!(tried.status, 201);
    assert_eq!((api.count("jobs"), api.creation_count()), (0, 0));
    let strict = format!("{JOBS}?fieldValidation=Strict");
    let mut unknown = job("j");
    unknown["spec"]["colour"] = json!("red");
    assert!(
        message(&client.send(Method::POST, &strict, unknown).await)
            .contains("unknown field \"spec.colour\"")
    );
}

#[tokio::test]
async fn generated_names_differ() {
    let (_api, mut client) = idle().await;
    let mut body = job("j");
    body["metadata"] = json!({"generateName": "etl-"});
    let one = create_job(&mut client, body.clone()).await.json();
    let two = create_job(&mut client, body).await.json();
    let name = |job: &Value| job["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(name(&one).starts_with("etl-") && name(&one).len() == 9);
    assert_ne!(name(&one), name(&two));
}

#[tokio::test]
async fn an_outdated_resource_version_is_a_conflict() {
    let (_api, mut client) = idle().await;
    let first = config_map(&mut client, "c", json!({})).await;
    let path = format!("{CONFIG_MAPS}/c");
    let mut second = first.clone();
    second["data"]["a"] = json!("2");
    let updated = client.send(Method::PUT, &path, second).await;
    assert_eq!(updated.status, 200);
    assert_ne!(
        updated.json()["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let stale = client.send(Method::PUT, &path, first.clone()).await;
    assert_eq!(stale.status, 409);
    assert_eq!(
        message(&stale),
        "Operation cannot be fulfilled on configmaps \"c\": the object has been \
        modified; please apply your changes to the latest version and try again"
    );
    let patch = json!({"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}, "data": {"a": "3"}});
    let stale = client
        .patch(&path, "application/merge-patch+json", patch)
        .await;
    assert_eq!(stale.status, 409);
}

#[tokio::test]
async fn patches_come_in_four_kinds() {
    let (_api, mut client) = idle().await;
    config_map(&mut client, "c", json!({"x": "1"})).await;
    let path = format!("{CONFIG_MAPS}/c");
    let merged = client
        .patch(
            &path,
            "application/merge-patch+json",
            json!({"metadata": {"labels": {"x": null, "y": "2"}}}),
        )
        .await;
    assert_eq!(merged.json()["metadata"]["labels"], json!({"y": "2"}));
    let merged = client
        .patch(
            &path,
            "application/strategic-merge-patch+json",
            json!({"data": {"b": "2"}}),
        )
        .await;
    assert_eq!(merged.json()["data"], json!({"a": "1", "b": "2"}));
    let json_patch = json!([{"op": "replace", "path": "/data/a", "value": "9"}]);
    let patched = client
        .patch(&path, "application/json-patch+json", json_patch)
        .await;
    assert_eq!(patched.json()["data"]["a"], "9");
    let applied = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "d"}, "data": {"a": "1"}});
    let path = format!("{CONFIG_MAPS}/d?fieldManager=agent");
    let created = client
        .patch(&path, "application/apply-patch+yaml", applied)
        .await;
    assert_eq!(created.json()["data"]["a"], "1");
    let other = client.patch(&path, "text/plain", json!({})).await;
    assert_eq!(other.status, 415);
}

#[tokio::test]
async fn the_status_changes_only_through_its_subresource() {
    let (_api, mut client) = idle().await;
    create_job(&mut client, job("j")).await;
    let patch = json!({"metadata": {"annotations": {"a": "b"}}, "status": {"succeeded": 1}});
    let main = client
        .patch(
            &format!("{JOBS}/j"),
            "application/merge-patch+json",
            patch.clone(),
        )
        .await
        .json();
    assert_eq!(
        (&main["metadata"]["annotations"]["a"], &main["status"]),
        (&json!("b"), &json!({}))
    );
    let status = client
        .patch(
            &format!("{JOBS}/j/status"),
            "application/merge-patch+json",
            patch,
        )
        .await
        .json();
    assert_eq!(status["status"]["succeeded"], 1);
    let template = json!({"spec": {"template": {"spec": {"priority": 7}}}});
    let immutable = client
        .patch(
            &format!("{JOBS}/j"),
            "application/merge-patch+json",
            template,
        )
        .await;
    assert_eq!(immutable.status, 422);
    assert!(message(&immutable).ends_with("field is immutable"));
}

#[tokio::test]
async fn lists_are_selected_and_come_in_pages() {
    let (api, mut client) = idle().await;
    for n in 0..5 {
        config_map(
            &mut client,
            &format!("c{n}"),
            json!({"n": n.to_string(), "even": (n % 2 == 0).to_string()}),
        )
        .await;
    }
    let even = client
        .get(&format!(
            "{CONFIG_MAPS}?labelSelector=even%3Dtrue,n%20notin%20(4)"
        ))
        .await;
    assert_eq!(names(&even), ["c0", "c2"]);
    let named = client
        .get(&format!("{CONFIG_MAPS}?fieldSelector=metadata.name%3Dc3"))
        .await;
    assert_eq!(names(&named), ["c3"]);
    let everywhere = client.get("/api/v1/configmaps?labelSelector=n").await;
    assert_eq!(names(&everywhere).len(), 5);
    assert_eq!(everywhere.json()["kind"], "ConfigMapList");

    let first = client.get(&format!("{CONFIG_MAPS}?limit=2")).await;
    assert_eq!(names(&first), ["c0", "c1"]);
    let metadata = first.json()["metadata"].clone();
    assert_eq!(metadata["remainingItemCount"], 3);
    let next = format!(
        "{CONFIG_MAPS}?limit=2&continue={}",
        metadata["continue"].as_str().unwrap()
    );
    assert_eq!(names(&client.get(&next).await), ["c2", "c3"]);
    config_map(&mut client, "c9", json!({})).await;
    api.compact();
    let expired = client.get(&next).await;
    assert_eq!(
        (expired.status, expired.json()["reason"].as_str()),
        (410, Some("Expired"))
    );
}

#[tokio::test]
async fn a_deleted_job_takes_its_pods_along_unless_they_are_orphaned() {
    let api = KubernetesApi::builder()
        .course(|_| Course::hangs())
        .start()
        .await
        .unwrap();
    let mut client = Client::connect(&api.url()).await;
    for name in ["back", "fore", "orphan", "unsaid"] {
        create_job(&mut client, job(name)).await;
    }
    api.wait_until(SOON, |api| api.count("pods") == 4)
        .await
        .unwrap();
    let mut watch = Client::connect(&api.url())
        .await
        .watch(&format!(
            "{JOBS}?watch=true&fieldSelector=metadata.name%3Dfore"
        ))
        .await;
    assert_eq!(watch.next_name().await.unwrap().0, "ADDED");
    let delete = |policy: Value| json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy});
    let deleted = client
        .send(
            Method::DELETE,
            &format!("{JOBS}/back"),
            delete(json!("Background")),
        )
        .await
        .json();
    assert_eq!(
        (&deleted["status"], &deleted["details"]["name"]),
        (&json!("Success"), &json!("back"))
    );
    assert_eq!(api.count("pods"), 3);
    let pending = client
        .send(
            Method::DELETE,
            &format!("{JOBS}/fore"),
            delete(json!("Foreground")),
        )
        .await
        .json();
    assert_eq!(
        pending["metadata"]["finalizers"],
        json!(["foregroundDeletion"])
    );
    let going = loop {
        let event = watch.next().await.unwrap();
        if event["object"]["metadata"]["deletionTimestamp"].is_string() {
            break event;
        }
    };
    assert_eq!(going["type"], "MODIFIED");
    api.wait_until(SOON, |api| {
        api.job("fore").is_none() && api.count("pods") == 2
    })
    .await
    .unwrap();
    client
        .send(
            Method::DELETE,
            &format!("{JOBS}/orphan"),
            delete(json!("Orphan")),
        )
        .await;
    let unsaid = client
        .send(Method::DELETE, &format!("{JOBS}/unsaid"), Value::Null)
        .await;
    assert!(
        unsaid.headers["warning"]
            .to_str()
            .unwrap()
            .contains("child pods are preserved")
    );
    assert_eq!((api.count("jobs"), api.count("pods")), (0, 2));
    assert!(api.pods().iter().all(|pod| {
        pod.metadata
            .owner_references
            .as_deref()
            .unwrap_or_default()
            .is_empty()
    }));
    assert_eq!(
        client
            .send(Method::DELETE, &format!("{JOBS}/back"), Value::Null)
            .await
            .status,
        404
    );
}

#[tokio::test]
async fn finalizers_and_preconditions_hold_a_deletion_up() {
    let (api, mut client) = idle().await;
    let body = json!({"metadata": {"name": "c", "finalizers": ["test/hold"]}});
    let created = client.send(Method::POST, CONFIG_MAPS, body).await.json();
    let path = format!("{CONFIG_MAPS}/c");
    let wrong = json!({"preconditions": {"uid": "other"}});
    assert_eq!(client.send(Method::DELETE, &path, wrong).await.status, 409);
    let right = json!({"preconditions": {"uid": created["metadata"]["uid"]}});
    assert_eq!(client.send(Method::DELETE, &path, right).await.status, 200);
    assert_eq!(api.count("configmaps"), 1);
    client
        .patch(
            &path,
            "application/merge-patch+json",
            json!({"metadata": {"finalizers": null}}),
        )
        .await;
    assert_eq!(api.count("configmaps"), 0);
}

#[tokio::test]
async fn denied_verbs_are_forbidden_and_reviews_know_it() {
    let api = KubernetesApi::builder()
        .node_off()
        .deny("list", "pods")
        .deny("*", "secrets")
        .start()
        .await
        .unwrap();
    let mut client = Client::connect(&api.url()).await;
    let forbidden = client.get(PODS).await;
    assert_eq!((forbidden.status, message(&forbidden)), (403, "pods is forbidden: User \
        \"system:serviceaccount:default:prefect-agent\" cannot list resource \"pods\" in API group \"\" in \
        the namespace \"default\"".into()));
    let review = |verb: &str, resource: &str| {
        json!({"spec": {"resourceAttributes":
        {"verb": verb, "resource": resource, "namespace": "default", "group": ""}}})
    };
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    for (verb, resource, allowed) in [
        ("list", "pods", false),
        ("get", "pods", true),
        ("get", "secrets", false),
    ] {
        let answer = client
            .send(Method::POST, path, review(verb, resource))
            .await
            .json();
        assert_eq!(answer["status"]["allowed"], allowed, "{verb} {resource}");
    }
    api.allow("list", "pods");
    assert_eq!(client.get(PODS).await.status, 200);
}

#[tokio::test]
async fn a_token_can_be_required() {
    let api = KubernetesApi::builder()
        .token("secret")
        .start()
        .await
        .unwrap();
    let mut stranger = Client::connect(&api.url()).await;
    assert_eq!(stranger.get("/version").await.status, 401);
    let mut known = Client::connect(&api.url())
        .await
        .header("Authorization", "Bearer secret");
    assert_eq!(known.get("/version").await.json()["minor"], "33");
    assert!(api.kubeconfig_yaml().contains("token: \"secret\""));
}

#[tokio::test]
async fn faults_and_counts_go_by_verb_and_resource() {
    let (api, mut client) = idle().await;
    api.faults()
        .add(Rule::new("create jobs", Fault::too_many_requests(3)).times(1));
    api.faults()
        .add(Rule::new("create jobs", Fault::DropAfter).times(1));
    let busy = create_job(&mut client, job("j")).await;
    assert_eq!(
        (busy.status, busy.headers["retry-after"].to_str().unwrap()),
        (429, "3")
    );
    assert_eq!(busy.json()["reason"], "TooManyRequests");
    let lost = client
        .try_send(Method::POST, JOBS, job("j").to_string())
        .await;
    assert!(lost.is_err());
    let mut client = Client::connect(&api.url()).await;
    assert_eq!(create_job(&mut client, job("j")).await.status, 409);
    assert_eq!(api.creations_by_run(), [("run-j".to_owned(), 1)].into());
    client
        .send(Method::DELETE, &format!("{JOBS}/j"), Value::Null)
        .await;
    create_job(&mut client, job("j")).await;
    let creations = api.creations();
    assert_eq!(
        (creations.len(), creations[1].flow_run_id()),
        (2, Some("run-j"))
    );
    assert!(creations[0].instant < creations[1].instant);
    assert_eq!(api.request_count("create jobs"), 4);
    assert_eq!(api.answers()[&("create jobs".to_owned(), 201)], 1);
    assert_eq!(api.request_count("delete jobs"), 1);
}

#[tokio::test]
async fn the_server_tells_what_it_has() {
    let (_api, mut client) = idle().await;
    assert_eq!(client.get("/readyz").await.body, "ok");
    let groups = client.get("/apis").await.json();
    assert_eq!(
        groups["groups"][0]["preferredVersion"]["groupVersion"],
        "batch/v1"
    );
    let resources = client.get("/apis/batch/v1").await.json();
    assert_eq!(resources["resources"][0]["name"], "jobs");
    assert_eq!(client.get("/openapi/v3").await.status, 404);
}

/// Prints how fast the server is; run it by name to compare machines or changes.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a test"]
async fn jobs_per_second() {
    const COUNT: usize = 2000;
    for on in [false, true] {
        let builder = KubernetesApi::builder();
        let builder = if on { builder } else { builder.node_off() };
        let api = builder.start().await.unwrap();
        let mut client = Client::connect(&api.url()).await;
        let start = std::time::Instant::now();
        let rate = |start: std::time::Instant| COUNT as f64 / start.elapsed().as_secs_f64();
        for n in 0..COUNT {
            create_job(&mut client, job(&format!("j{n}"))).await;
        }
        println!("node {on}: {:.0} Jobs created/s", rate(start));
        let start = std::time::Instant::now();
        for n in 0..COUNT {
            client.get(&format!("{JOBS}/j{n}")).await;
        }
        println!("node {on}: {:.0} Jobs got/s", rate(start));
        let start = std::time::Instant::now();
        let list = client.get(JOBS).await;
        println!("list of {} bytes in {:?}", list.body.len(), start.elapsed());
    }
}
