//! Templates from Google Cloud Storage, with credentials found as every Google tool finds them.

use std::sync::Arc;
use std::time::Duration;

use agent_core::{
    Error, Result, Template, TemplateLocation, TemplateOrigin, TemplateStore, async_trait,
};
use google_cloud_auth::credentials::{self, anonymous};
use google_cloud_gax::exponential_backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use google_cloud_gax::retry_policy::RetryPolicyExt;
use google_cloud_gax::retry_throttler::CircuitBreaker;
use google_cloud_storage::builder::storage::ReadObject;
use google_cloud_storage::client::Storage;
use google_cloud_storage::model_ext::ReadRange;
use google_cloud_storage::read_resume_policy::NeverResume;
use google_cloud_storage::retry_policy::RetryableErrors;
use tokio::sync::OnceCell;

use crate::cache::Cached;
use crate::place::{Fetched, Place, unsupported};
use crate::remote::{Gathered, chain, check_provider};
use crate::shown::{printable, shown};
use crate::{Scheme, TemplateSettings};

/// Names a server that stands in for Google's and takes everybody, as for Google's own tools.
const EMULATOR: &str = "STORAGE_EMULATOR_HOST";
/// How often one request is sent.
const ATTEMPTS: u32 = 3;

type GcsError = google_cloud_storage::Error;

/// Reads templates from `gs://bucket/object` and `gcs://bucket/object`.
#[derive(Debug)]
pub struct GcsTemplates {
    cached: Cached<GcsPlace>,
}

impl GcsTemplates {
    /// Cloud Storage with the application default credentials: a file, or what the machine is.
    /// They are looked for when the first template is read. A rustls crypto provider must be
    /// installed by then.
    pub fn new(settings: &TemplateSettings) -> Self {
        Self::place(settings, OnceCell::new())
    }

    /// Cloud Storage through this client.
    pub fn with_client(settings: &TemplateSettings, client: Storage) -> Self {
        Self::place(settings, OnceCell::new_with(Some(client)))
    }

    fn place(settings: &TemplateSettings, client: OnceCell<Storage>) -> Self {
        Self {
            cached: Cached::new(GcsPlace { client }, settings),
        }
    }
}

#[async_trait]
impl TemplateStore for GcsTemplates {
    async fn load(&self, location: &str, origin: TemplateOrigin) -> Result<Arc<Template>> {
        self.cached.load(location, origin).await
    }
}

#[derive(Debug)]
struct GcsPlace {
    client: OnceCell<Storage>,
}

/// An object, and the location that named it.
#[derive(Debug, Clone, Copy)]
struct Object<'a> {
    location: &'a str,
    bucket: &'a str,
    name: &'a str,
}

#[async_trait]
impl Place for GcsPlace {
    async fn fetch(
        &self,
        location: &str,
        _: TemplateOrigin,
        known: Option<&str>,
    ) -> Result<Fetched> {
        let parts = TemplateLocation::parse(location);
        if Scheme::of(&parts) != Some(Scheme::Gcs) {
            return Err(unsupported(location));
        }
        let object = Object {
            location,
            bucket: parts.host,
            name: parts.path.trim_start_matches('/'),
        };
        if !is_bucket(object.bucket) || object.name.is_empty() {
            return Err(Error::permanent(format!(
                "the job template {} names no bucket or no object; write gs://bucket/object",
                shown(location)
            )));
        }
        let client = self.client.get_or_try_init(connect).await;
        let client = client.map_err(|why| {
            Error::permanent(format!(
                "cannot read the job template {}: {why}",
                shown(location)
            ))
        })?;
        if let Some(known) = known
            && is_generation(client, object, known).await?
        {
            return Ok(Fetched::NotModified);
        }
        found(client, object).await
    }
}

/// Whether a text can be a bucket's name; others could lead elsewhere in the server's API.
fn is_bucket(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

async fn connect() -> Result<Storage, String> {
    check_provider()?;
    let mut builder = Storage::builder();
    if let Some(host) = std::env::var(EMULATOR).ok().filter(|host| !host.is_empty()) {
        let endpoint = match host.contains("://") {
            true => host,
            false => format!("http://{host}"),
        };
        builder = builder
            .with_endpoint(endpoint)
            .with_credentials(anonymous::Builder::new().build());
    } else {
        let found = credentials::Builder::default().build();
        builder = builder.with_credentials(found.map_err(|error| {
            format!(
                "the Google credentials are not usable: {}; check GOOGLE_APPLICATION_CREDENTIALS",
                chain(&error)
            )
        })?);
    }
    let built = builder.build().await;
    built.map_err(|error| format!("cannot set up Cloud Storage: {}", chain(&error)))
}

fn read(client: &Storage, object: Object<'_>) -> ReadObject {
    client
        .read_object(format!("projects/_/buckets/{}", object.bucket), object.name)
        .with_retry_policy(RetryableErrors.with_attempt_limit(ATTEMPTS))
        .with_retry_throttler(unthrottled())
        .with_backoff_policy(pauses())
        .with_read_resume_policy(NeverResume)
}

/// Leaves every request its attempts: the usual throttle counts none while it holds one back, and
/// so waits for as long as a server has trouble.
fn unthrottled() -> CircuitBreaker {
    CircuitBreaker::clamp(1, 0, 0)
}

fn pauses() -> ExponentialBackoff {
    ExponentialBackoffBuilder::new()
        .with_initial_delay(Duration::from_millis(200))
        .with_maximum_delay(Duration::from_secs(2))
        .clamp()
}

/// Whether the object still is of this generation, told by reading one byte of it: that an object
/// is gone or denied is told apart then, whatever the server makes of preconditions.
async fn is_generation(client: &Storage, object: Object<'_>, known: &str) -> Result<bool> {
    let request = read(client, object).set_read_range(ReadRange::head(1));
    match request.send().await {
        Ok(mut response) => {
            let generation = response.object().generation;
            // What was read to its end leaves a connection for the next request.
            let _ = response.next().await;
            Ok(generation.to_string() == known)
        }
        // An empty object has no first byte.
        Err(error) if error.http_status_code() == Some(416) => Ok(false),
        Err(error) => Err(explain(&error, object)),
    }
}

async fn found(client: &Storage, object: Object<'_>) -> Result<Fetched> {
    let request = read(client, object).with_automatic_decompression(true);
    let sent = request.send().await;
    let mut response = sent.map_err(|error| explain(&error, object))?;
    let about = response.object();
    let mut gathered = Gathered::announced(object.location, u64::try_from(about.size).ok())?;
    while let Some(part) = response.next().await {
        let part = part.map_err(|error| explain(&error, object))?;
        gathered.push(object.location, &part)?;
    }
    Ok(Fetched::Found {
        bytes: gathered.into_bytes(),
        tag: Some(about.generation.to_string()),
    })
}

/// An error for why an object is not there to be read.
fn explain(error: &GcsError, object: Object<'_>) -> Error {
    let cannot = format!("cannot read the job template {}", shown(object.location));
    if error.is_authentication() {
        return no_credentials(&cannot, error);
    }
    let Some(status) = error.http_status_code() else {
        return Error::transient(format!(
            "{cannot}: Cloud Storage cannot be reached: {}",
            chain(error)
        ));
    };
    let said = said(error);
    let Object { bucket, name, .. } = object;
    let message = match status {
        408 | 429 | 500.. => {
            return Error::transient(format!("{cannot}: Cloud Storage answered {status}: {said}"));
        }
        404 if said.contains("bucket does not exist") => {
            format!("{cannot}: there is no bucket {bucket:?}; check its name")
        }
        404 => format!(
            "{cannot}: there is no object {name:?} in the bucket {bucket:?}, or no such bucket; check both names, letter case included"
        ),
        401 => format!(
            "{cannot}: Cloud Storage does not accept the agent's credentials: {said}; check GOOGLE_APPLICATION_CREDENTIALS or the workload identity"
        ),
        403 => format!(
            "{cannot}: access denied: {said}; grant the role Storage Object Viewer on the bucket"
        ),
        _ => format!("{cannot}: Cloud Storage answered {status}: {said}"),
    };
    Error::Permanent(message)
}

/// What Cloud Storage said, as far as it is for people.
fn said(error: &GcsError) -> String {
    if let Some(status) = error.status() {
        return printable(&status.message);
    }
    let payload = error.http_payload();
    let text = payload.map(|payload| String::from_utf8_lossy(payload));
    printable(text.unwrap_or_default().trim())
}

fn no_credentials(cannot: &str, error: &GcsError) -> Error {
    let message = format!(
        "{cannot}: no Google credentials to be had; tried the file of GOOGLE_APPLICATION_CREDENTIALS, else that of gcloud (~/.config/gcloud/application_default_credentials.json), else the machine's metadata server: {}",
        chain(error)
    );
    match error.is_transient_and_before_rpc() {
        true => Error::transient(message),
        false => Error::Permanent(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_buckets_are_taken_as_such() {
        for good in ["bucket", "a.b-c_d9", "9b"] {
            assert!(is_bucket(good), "{good}");
        }
        for bad in ["", ".", "..", "%2e%2e", "a b", "a\\b", "a:b", "ü", "a%2fb"] {
            assert!(!is_bucket(bad), "{bad}");
        }
    }
}
