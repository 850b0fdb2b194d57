//! Templates from S3, with credentials, region and endpoint found as every AWS tool finds them.

mod refusal;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent_core::{
    Error, Result, Template, TemplateLocation, TemplateOrigin, TemplateStore, async_trait,
};
use aws_config::meta::region::RegionProviderChain;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::config::Builder;
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::get_object::{GetObjectError, GetObjectOutput};
use aws_types::service_config::ServiceConfigKey;
use tokio::sync::OnceCell;

use crate::cache::Cached;
use crate::place::{Fetched, Place, unsupported};
use crate::remote::{Gathered, chain};
use crate::shown::shown;
use crate::{Scheme, TemplateSettings};

/// Where buckets are looked for when no region is set.
const USUAL_REGION: &str = "us-east-1";
/// How many buckets' regions are remembered.
const MOST_REGIONS: usize = 1000;

type GetError = SdkError<GetObjectError>;

/// Reads templates from `s3://bucket/key`.
#[derive(Debug)]
pub struct S3Templates {
    cached: Cached<S3Place>,
}

impl S3Templates {
    /// S3 as the environment, the profile or the machine says. They are asked when the first
    /// template is read.
    pub fn new(settings: &TemplateSettings) -> Self {
        Self::place(settings, OnceCell::new())
    }

    /// S3 as this configuration says.
    pub fn with_config(settings: &TemplateSettings, config: &SdkConfig) -> Self {
        Self::place(settings, OnceCell::new_with(Some(Clients::new(config))))
    }

    fn place(settings: &TemplateSettings, clients: OnceCell<Clients>) -> Self {
        let place = S3Place {
            connect_timeout: settings.connect_timeout,
            clients,
            regions: Mutex::default(),
        };
        Self {
            cached: Cached::new(place, settings),
        }
    }
}

#[async_trait]
impl TemplateStore for S3Templates {
    async fn load(&self, location: &str, origin: TemplateOrigin) -> Result<Arc<Template>> {
        self.cached.load(location, origin).await
    }
}

#[derive(Debug)]
struct S3Place {
    connect_timeout: Duration,
    clients: OnceCell<Clients>,
    /// The regions of buckets that turned out to be elsewhere.
    regions: Mutex<HashMap<String, Region>>,
}

#[derive(Debug)]
struct Clients {
    s3: aws_sdk_s3::Client,
    /// Tells who we are, for messages.
    sts: aws_sdk_sts::Client,
}

impl Clients {
    fn new(config: &SdkConfig) -> Self {
        let s3 = Builder::from(config).force_path_style(has_endpoint(config));
        Self {
            s3: aws_sdk_s3::Client::from_conf(s3.build()),
            sts: aws_sdk_sts::Client::new(config),
        }
    }

    async fn found(connect_timeout: Duration) -> Self {
        let timeouts = TimeoutConfig::builder().connect_timeout(connect_timeout);
        let region = RegionProviderChain::default_provider().or_else(USUAL_REGION);
        let config = aws_config::defaults(BehaviorVersion::latest())
            .region(region)
            .timeout_config(timeouts.build())
            .load()
            .await;
        Self::new(&config)
    }
}

/// Whether S3 is at an address of its own, which seldom has a name for each bucket.
fn has_endpoint(config: &SdkConfig) -> bool {
    let key = ServiceConfigKey::builder()
        .service_id("S3")
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build();
    let of_service = config.service_config().zip(key.ok());
    config.endpoint_url().is_some()
        || of_service.is_some_and(|(config, key)| config.load_config(key).is_some())
}

/// An object, and the location that named it.
#[derive(Debug, Clone, Copy)]
struct Object<'a> {
    location: &'a str,
    bucket: &'a str,
    key: &'a str,
}

#[async_trait]
impl Place for S3Place {
    async fn fetch(
        &self,
        location: &str,
        _: TemplateOrigin,
        known: Option<&str>,
    ) -> Result<Fetched> {
        let parts = TemplateLocation::parse(location);
        if Scheme::of(&parts) != Some(Scheme::S3) {
            return Err(unsupported(location));
        }
        let object = Object {
            location,
            bucket: parts.host,
            key: parts.path.trim_start_matches('/'),
        };
        if object.bucket.is_empty() || object.key.is_empty() {
            return Err(Error::permanent(format!(
                "the job template {} names no bucket or no key; write s3://bucket/key",
                shown(location)
            )));
        }
        let clients = self
            .clients
            .get_or_init(|| Clients::found(self.connect_timeout))
            .await;
        match self.get(clients, object, known).await {
            Ok(output) => found(location, output).await,
            Err(error) if status(&error) == Some(304) => Ok(Fetched::NotModified),
            Err(error) => Err(refusal::explain(&error, object, &clients.sts).await),
        }
    }
}

impl S3Place {
    /// Asks the region of the bucket, once more if it is not the one that was thought.
    async fn get(
        &self,
        clients: &Clients,
        object: Object<'_>,
        known: Option<&str>,
    ) -> Result<GetObjectOutput, GetError> {
        let region = self.regions().get(object.bucket).cloned();
        let answer = get(clients, object, known, region.clone()).await;
        let other = match &answer {
            Err(error) => region_named_by(error).filter(|other| Some(other) != region.as_ref()),
            Ok(_) => None,
        };
        let Some(other) = other else { return answer };
        tracing::debug!("The bucket {} is in {other}", object.bucket);
        {
            let mut regions = self.regions();
            if regions.len() >= MOST_REGIONS {
                regions.clear();
            }
            regions.insert(object.bucket.to_owned(), other.clone());
        }
        get(clients, object, known, Some(other)).await
    }

    fn regions(&self) -> std::sync::MutexGuard<'_, HashMap<String, Region>> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn get(
    clients: &Clients,
    object: Object<'_>,
    known: Option<&str>,
    region: Option<Region>,
) -> Result<GetObjectOutput, GetError> {
    let request = clients
        .s3
        .get_object()
        .bucket(object.bucket)
        .key(object.key)
        .set_if_none_match(known.map(str::to_owned));
    match region {
        Some(region) => {
            let there = Builder::new().region(region);
            request.customize().config_override(there).send().await
        }
        None => request.send().await,
    }
}

async fn found(location: &str, mut output: GetObjectOutput) -> Result<Fetched> {
    let size = output.content_length().and_then(|n| u64::try_from(n).ok());
    let mut gathered = Gathered::announced(location, size)?;
    while let Some(part) = output.body.next().await {
        let part = part.map_err(|error| {
            Error::transient(format!(
                "cannot read the job template {} to its end: {}",
                shown(location),
                chain(&error)
            ))
        })?;
        gathered.push(location, &part)?;
    }
    Ok(Fetched::Found {
        bytes: gathered.into_bytes(),
        tag: output.e_tag,
    })
}

fn status(error: &GetError) -> Option<u16> {
    error
        .raw_response()
        .map(|response| response.status().as_u16())
}

/// Where the bucket is, when the answer is that it is not here.
fn region_named_by(error: &GetError) -> Option<Region> {
    if !matches!(status(error)?, 301 | 307 | 400) {
        return None;
    }
    let named = error.raw_response()?.headers().get("x-amz-bucket-region")?;
    Some(Region::new(named.to_owned()))
}
