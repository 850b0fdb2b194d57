//! What only Google Cloud Storage has: the emulator's variable, and where credentials come from.

use std::sync::{Arc, Mutex};

use agent_core::TemplateOrigin::Agent;
use axum::Router;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::IntoResponse;

use crate::bench::{Bench, JOB, Kind, impatient, serve};
use crate::child;
use crate::proxy::{Fault, Proxy};
use crate::servers::stores;

tests![
    reads_from_an_emulator_as_anybody,
    takes_the_identity_of_the_machine,
    takes_a_users_credentials_from_a_file,
    takes_a_service_account_from_a_file,
    says_when_the_file_is_missing,
    says_where_it_looked_for_credentials,
    reads_a_template_again_only_when_its_generation_differs,
];

/// What every source of tokens answers.
const TOKEN: &str =
    r#"{"access_token": "secret-of-the-test", "expires_in": 3600, "token_type": "Bearer"}"#;

async fn reads_from_an_emulator_as_anybody() {
    let bench = Bench::new(Kind::Gcs).await;
    let host = bench.proxy.address.to_string();
    let url = format!("http://{host}");
    for emulator in [&host, &url] {
        let environment = [("STORAGE_EMULATOR_HOST", emulator.as_str())];
        let location = bench.location.replace("gs://", "gcs://");
        let found = child::read(&location, Agent, &environment).await;
        assert_eq!(found.found(), JOB);
    }
}

/// A server that gives tokens, and what it was asked.
async fn tokens() -> (String, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let app = Router::new().fallback(move |uri: Uri, headers: HeaderMap| async move {
        let flavor = headers.get("metadata-flavor").map(|value| value.to_str());
        let flavor = flavor.transpose().expect("text").unwrap_or_default();
        seen.lock()
            .expect("unpoisoned")
            .push(format!("{flavor} {}", uri.path()));
        match uri.path().ends_with("/token") {
            true => ([("content-type", "application/json")], TOKEN).into_response(),
            false => StatusCode::NOT_FOUND.into_response(),
        }
    });
    (serve(app).await.to_string(), asked)
}

/// A way out that leads nowhere: what is asked of Google shows there, and gets no answer.
async fn way_out() -> (String, Proxy) {
    let proxy = Proxy::before(([127, 0, 0, 1], 1).into()).await;
    proxy.set(Fault::Answer(
        "HTTP/1.1 502 No\r\nconnection: close\r\n\r\n".to_owned(),
    ));
    (format!("http://{}", proxy.address), proxy)
}

async fn takes_the_identity_of_the_machine() {
    let (machine, asked) = tokens().await;
    let (out, proxy) = way_out().await;
    let environment = [
        ("GCE_METADATA_HOST", machine.as_str()),
        ("HTTPS_PROXY", &out),
    ];
    let error = child::read("gs://bucket/job.yaml", Agent, &environment).await;
    let error = error.transient();
    assert!(error.contains("Cloud Storage cannot be reached"), "{error}");
    let asked = asked.lock().expect("unpoisoned");
    let path = "/computeMetadata/v1/instance/service-accounts/default/token";
    assert!(asked.contains(&format!("Google {path}")), "{asked:?}");
    let requests = proxy.take().requests;
    assert_eq!(requests[0], "CONNECT storage.googleapis.com:443 HTTP/1.1");
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("written");
    file
}

async fn takes_a_users_credentials_from_a_file() {
    let (server, asked) = tokens().await;
    let (out, proxy) = way_out().await;
    let file = file(&format!(
        r#"{{"type": "authorized_user", "client_id": "c", "client_secret": "secret-of-the-test", "refresh_token": "secret-of-the-test", "token_uri": "http://{server}/token"}}"#
    ));
    let path = file.path().display().to_string();
    let environment = [
        ("GOOGLE_APPLICATION_CREDENTIALS", path.as_str()),
        ("HTTPS_PROXY", &out),
    ];
    let error = child::read("gs://bucket/job.yaml", Agent, &environment).await;
    let error = error.transient();
    assert!(!error.contains("secret-of-the-test"), "{error}");
    assert_eq!(*asked.lock().expect("unpoisoned"), [" /token"]);
    assert!(!proxy.take().requests.is_empty(), "Google is asked");
}

async fn takes_a_service_account_from_a_file() {
    let (out, proxy) = way_out().await;
    let key = stores().private_key().expect("a key");
    let key = key.replace('\n', "\\n");
    let file = file(&format!(
        r#"{{"type": "service_account", "client_email": "agent@example.test", "private_key_id": "1", "private_key": "{key}", "project_id": "p"}}"#
    ));
    let path = file.path().display().to_string();
    let environment = [
        ("GOOGLE_APPLICATION_CREDENTIALS", path.as_str()),
        ("HTTPS_PROXY", &out),
    ];
    let error = child::read("gs://bucket/job.yaml", Agent, &environment).await;
    error.transient();
    assert!(!proxy.take().requests.is_empty(), "Google is asked");
}

async fn says_when_the_file_is_missing() {
    let environment = [("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/file")];
    let error = child::read("gs://bucket/job.yaml", Agent, &environment).await;
    let error = error.permanent();
    assert!(error.contains("/no/such/file"), "{error}");
    assert!(
        error.contains("check GOOGLE_APPLICATION_CREDENTIALS"),
        "{error}"
    );
}

async fn says_where_it_looked_for_credentials() {
    // Nothing listens there.
    let environment = [("GCE_METADATA_HOST", "127.0.0.1:1")];
    let error = child::read("gs://bucket/job.yaml", Agent, &environment).await;
    let error = error.transient();
    for tried in [
        "no Google credentials",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "application_default_credentials.json",
        "metadata server",
    ] {
        assert!(error.contains(tried), "{tried}: {error}");
    }
}

async fn reads_a_template_again_only_when_its_generation_differs() {
    let bench = Bench::with(Kind::Gcs, &impatient()).await;
    bench.load().await.expect("there");
    bench.load().await.expect("there");
    assert_eq!(bench.proxy.take().statuses, [200, 206]);
    bench.put("kind: Pod").await;
    bench.load().await.expect("there");
    assert_eq!(bench.proxy.take().statuses, [206, 200]);
}
