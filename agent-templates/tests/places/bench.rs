//! One template at each kind of place, behind a proxy, and the store that reads it from there.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use agent_core::{Result, Template, TemplateOrigin, TemplateStore};
use agent_templates::{GcsTemplates, HttpTemplates, S3Templates, TemplateSettings};
use agent_testkit::stores::Store;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::{ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use google_cloud_auth::credentials::anonymous;
use google_cloud_storage::client::Storage;
use reqwest::{Body, Client, Method};

use crate::proxy::Proxy;
use crate::servers::stores;

/// A name with what URLs are built from: spaces, letters of other scripts, a plus and a percent
/// sign.
pub(crate) const NAME: &str = "dir/my job+ü 50%.yaml";
pub(crate) const JOB: &str = "apiVersion: batch/v1\nkind: Job\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Http,
    S3,
    Gcs,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Http, Self::S3, Self::Gcs];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::S3 => "s3",
            Self::Gcs => "gcs",
        }
    }
}

pub(crate) struct Bench {
    pub(crate) kind: Kind,
    pub(crate) proxy: Proxy,
    pub(crate) store: Arc<dyn TemplateStore>,
    pub(crate) location: String,
    server: SocketAddr,
    bucket: String,
}

/// Servers that all tests share; each test has a bucket of its own.
static SHARED: OnceLock<Mutex<HashMap<&str, Store>>> = OnceLock::new();

fn shared(kind: &'static str, start: impl FnOnce() -> Store) -> SocketAddr {
    let servers = SHARED.get_or_init(Mutex::default);
    let mut servers = servers.lock().expect("unpoisoned");
    servers.entry(kind).or_insert_with(start).address()
}

/// Ends what the tests shared.
pub(crate) fn stop() {
    if let Some(servers) = SHARED.get() {
        servers.lock().expect("unpoisoned").clear();
    }
}

pub(crate) fn shared_moto() -> SocketAddr {
    shared("moto", || stores().moto(&[]).expect("moto"))
}

pub(crate) fn shared_gcs() -> SocketAddr {
    shared("gcs", || stores().gcs().expect("a server"))
}

/// Every load asks the place, and none waits long.
pub(crate) fn impatient() -> TemplateSettings {
    TemplateSettings {
        fresh_for: Duration::ZERO,
        timeout: Duration::from_secs(5),
        ..TemplateSettings::default()
    }
}

impl Bench {
    pub(crate) async fn new(kind: Kind) -> Self {
        Self::with(kind, &impatient()).await
    }

    pub(crate) async fn with(kind: Kind, settings: &TemplateSettings) -> Self {
        let server = match kind {
            Kind::Http => web().await,
            Kind::S3 => shared_moto(),
            Kind::Gcs => shared_gcs(),
        };
        Self::on(kind, server, settings).await
    }

    /// With a template on a server that the test has for itself.
    pub(crate) async fn on(kind: Kind, server: SocketAddr, settings: &TemplateSettings) -> Self {
        let bench = Self::bare(kind, server, settings).await;
        bench.make_bucket().await;
        bench.put(JOB).await;
        bench
    }

    /// Without a template.
    pub(crate) async fn bare(kind: Kind, server: SocketAddr, settings: &TemplateSettings) -> Self {
        static BUCKETS: Mutex<usize> = Mutex::new(0);
        let bucket = {
            let mut count = BUCKETS.lock().expect("unpoisoned");
            *count += 1;
            format!("bucket-{count}")
        };
        let proxy = Proxy::before(server).await;
        let endpoint = format!("http://{}", proxy.address);
        let (store, location): (Arc<dyn TemplateStore>, _) = match kind {
            Kind::Http => (
                Arc::new(HttpTemplates::new(settings)),
                format!("{endpoint}/{bucket}/{NAME}").replace('%', "%25"),
            ),
            Kind::S3 => (
                Arc::new(S3Templates::with_config(settings, &aws(&endpoint))),
                format!("s3://{bucket}/{NAME}"),
            ),
            Kind::Gcs => (
                Arc::new(GcsTemplates::with_client(settings, google(&endpoint).await)),
                format!("gs://{bucket}/{NAME}"),
            ),
        };
        Self {
            kind,
            proxy,
            store,
            location,
            server,
            bucket,
        }
    }

    pub(crate) async fn load(&self) -> Result<Arc<Template>> {
        self.store.load(&self.location, TemplateOrigin::Agent).await
    }

    async fn make_bucket(&self) {
        match self.kind {
            Kind::Http => {}
            Kind::S3 => {
                let made = self.s3().create_bucket().bucket(&self.bucket).send().await;
                made.expect("a bucket");
            }
            Kind::Gcs => {
                let body = format!("{{\"name\": \"{}\"}}", self.bucket);
                self.send(Method::POST, "storage/v1/b?project=p", body)
                    .await;
            }
        }
    }

    /// Writes the template, past the proxy.
    pub(crate) async fn put(&self, content: impl Into<Vec<u8>>) {
        let (bucket, name, content) = (&self.bucket, escaped(NAME), content.into());
        match self.kind {
            Kind::Http => {
                let path = format!("{bucket}/{name}");
                self.send(Method::PUT, &path, content).await;
            }
            Kind::S3 => {
                let put = self.s3().put_object().bucket(bucket).key(NAME);
                put.body(content.into()).send().await.expect("written");
            }
            Kind::Gcs => {
                let path = format!("upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}");
                self.send(Method::POST, &path, content).await;
            }
        }
    }

    /// Removes the template.
    pub(crate) async fn delete(&self) {
        let (bucket, name) = (&self.bucket, escaped(NAME));
        match self.kind {
            Kind::Http => {
                let path = format!("{bucket}/{name}");
                self.send(Method::DELETE, &path, "").await;
            }
            Kind::S3 => {
                let delete = self.s3().delete_object().bucket(bucket).key(NAME);
                delete.send().await.expect("deleted");
            }
            Kind::Gcs => {
                let path = format!("storage/v1/b/{bucket}/o/{name}");
                self.send(Method::DELETE, &path, "").await;
            }
        }
    }

    fn s3(&self) -> aws_sdk_s3::Client {
        let config = aws(&format!("http://{}", self.server));
        let config = aws_sdk_s3::config::Builder::from(&config).force_path_style(true);
        aws_sdk_s3::Client::from_conf(config.build())
    }

    async fn send(&self, method: Method, path: &str, body: impl Into<Body>) {
        let url = format!("http://{}/{path}", self.server);
        let request = Client::new().request(method, url).body(body);
        let answer = request.send().await.expect("an answer");
        assert!(answer.status().is_success(), "{answer:?}");
    }

    /// How a place of this kind says that the agent may not read.
    pub(crate) fn denial(&self) -> String {
        let body = match self.kind {
            Kind::Http => "no",
            Kind::S3 => {
                "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>User: arn:aws:iam::1:user/agent is not authorized</Message></Error>"
            }
            Kind::Gcs => {
                r#"{"error": {"code": 403, "message": "agent@example.test does not have storage.objects.get access", "status": "PERMISSION_DENIED"}}"#
            }
        };
        self.answer(403, body)
    }

    pub(crate) fn answer(&self, status: u16, body: &str) -> String {
        format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    }
}

/// A part of a URL.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'.' => escaped.push(byte.into()),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

pub(crate) fn aws(endpoint: &str) -> SdkConfig {
    let credentials = Credentials::new("AKIATEST", "secret-of-the-test", None, None, "test");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .region(Region::from_static("us-east-1"))
        .endpoint_url(endpoint)
        .build()
}

pub(crate) async fn google(endpoint: &str) -> Storage {
    let builder = Storage::builder()
        .with_endpoint(endpoint)
        .with_credentials(anonymous::Builder::new().build());
    builder.build().await.expect("a client")
}

type Files = Arc<Mutex<HashMap<String, Vec<u8>>>>;

/// A web server that takes files, and tells by an ETag whether they have changed.
async fn web() -> SocketAddr {
    let app = Router::new()
        .route("/{*path}", get(read).put(write).delete(remove))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(Files::default());
    serve(app).await
}

/// Serves an app on a port of its own while the test lasts.
pub(crate) async fn serve(app: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

async fn write(State(files): State<Files>, Path(path): Path<String>, body: axum::body::Bytes) {
    files
        .lock()
        .expect("unpoisoned")
        .insert(path, body.to_vec());
}

async fn remove(State(files): State<Files>, Path(path): Path<String>) {
    files.lock().expect("unpoisoned").remove(&path);
}

async fn read(State(files): State<Files>, Path(path): Path<String>, asked: HeaderMap) -> Response {
    let Some(bytes) = files.lock().expect("unpoisoned").get(&path).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let sum: u64 = bytes
        .iter()
        .zip(1..)
        .map(|(b, n): (&u8, u64)| u64::from(*b) * n)
        .sum();
    let tag = format!("\"{sum:x}\"");
    if asked.get(IF_NONE_MATCH).is_some_and(|known| *known == *tag) {
        return (StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response();
    }
    ([(ETAG, tag)], bytes).into_response()
}
