//! Templates from web servers. What flows name is kept away from the agent's own surroundings.

mod guard;

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use agent_core::{
    Error, Result, Template, TemplateLocation, TemplateOrigin, TemplateStore, async_trait,
};
use reqwest::header::{self, HeaderMap, HeaderName};
use reqwest::{Client, Response, StatusCode, Url, redirect};

use crate::cache::Cached;
use crate::place::{Fetched, Place, unsupported};
use crate::remote::{Gathered, causes, chain, check_provider};
use crate::shown::shown;
use crate::{Scheme, TemplateSettings};
use guard::{Guard, Refused, check_redirect};

/// How many redirects are followed.
const MOST_REDIRECTS: usize = 5;

/// Reads templates from `http:` and `https:` addresses.
#[derive(Debug)]
pub struct HttpTemplates {
    cached: Cached<HttpPlace>,
}

impl HttpTemplates {
    /// Web servers as these settings want them. A rustls crypto provider must be installed before
    /// the first template is read.
    pub fn new(settings: &TemplateSettings) -> Self {
        let guard = (!settings.flow_private_http).then(|| Guard {
            open: settings.flow_nets.clone(),
            ..Guard::default()
        });
        Self::guarded(settings, guard)
    }

    /// Flows reach nothing that has a name.
    #[cfg(test)]
    pub(crate) fn without_names(settings: &TemplateSettings) -> Self {
        let lookup = |_| -> futures::future::BoxFuture<'static, std::io::Result<_>> {
            Box::pin(async { Err(std::io::Error::other("no such name")) })
        };
        let guard = Guard {
            judge: |_| {
                Some(guard::Closed {
                    kind: "out of reach",
                    opened_within: None,
                })
            },
            open: Vec::new(),
            lookup: Arc::new(lookup),
        };
        Self::guarded(settings, Some(guard))
    }

    fn guarded(settings: &TemplateSettings, guard: Option<Guard>) -> Self {
        let web = |schemes: &BTreeSet<Scheme>, guard| Web {
            schemes: schemes.clone(),
            guard,
            connect_timeout: settings.connect_timeout,
            client: OnceLock::new(),
        };
        let place = HttpPlace {
            agent: web(&settings.agent_schemes, None),
            flow: web(&settings.flow_schemes, guard),
        };
        Self {
            cached: Cached::new(place, settings),
        }
    }
}

#[async_trait]
impl TemplateStore for HttpTemplates {
    async fn load(&self, location: &str, origin: TemplateOrigin) -> Result<Arc<Template>> {
        self.cached.load(location, origin).await
    }
}

#[derive(Debug)]
struct HttpPlace {
    agent: Web,
    flow: Web,
}

/// The web as those see it who may go to some of it.
#[derive(Debug)]
struct Web {
    schemes: BTreeSet<Scheme>,
    guard: Option<Guard>,
    connect_timeout: Duration,
    client: OnceLock<Client>,
}

#[async_trait]
impl Place for HttpPlace {
    async fn fetch(
        &self,
        location: &str,
        origin: TemplateOrigin,
        known: Option<&str>,
    ) -> Result<Fetched> {
        let scheme = Scheme::of(&TemplateLocation::parse(location));
        if !matches!(scheme, Some(Scheme::Http | Scheme::Https)) {
            return Err(unsupported(location));
        }
        let web = match origin {
            TemplateOrigin::Agent => &self.agent,
            TemplateOrigin::Flow => &self.flow,
        };
        let response = web.get(location, known).await?;
        match response.status() {
            StatusCode::NOT_MODIFIED => Ok(Fetched::NotModified),
            status if status.is_success() => found(location, response).await,
            status => Err(answered(location, status, response.headers())),
        }
    }
}

impl Web {
    async fn get(&self, location: &str, known: Option<&str>) -> Result<Response> {
        let url = Url::parse(location).map_err(|error| {
            Error::permanent(format!(
                "the job template {} has no valid address: {error}",
                shown(location)
            ))
        })?;
        if let Some(guard) = &self.guard {
            guard
                .check(&url)
                .map_err(|refused| not_asked(location, &refused))?;
        }
        let mut request = self.client(location)?.get(url);
        if let Some((name, value)) = known.and_then(condition) {
            request = request.header(name, value);
        }
        let sent = request.send().await;
        sent.map_err(|error| failed(location, error))
    }

    fn client(&self, location: &str) -> Result<&Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = self.build().map_err(|why| {
            Error::permanent(format!(
                "cannot read the job template {}: cannot set up the HTTP client: {why}",
                shown(location)
            ))
        })?;
        Ok(self.client.get_or_init(|| client))
    }

    fn build(&self) -> Result<Client, String> {
        check_provider()?;
        let (schemes, guard) = (self.schemes.clone(), self.guard.clone());
        let follow = redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > MOST_REDIRECTS {
                return attempt.error(Refused::Redirects(MOST_REDIRECTS));
            }
            match check_redirect(attempt.url(), &schemes, guard.as_ref()) {
                Ok(()) => attempt.follow(),
                Err(refused) => attempt.error(refused),
            }
        });
        let mut builder = Client::builder()
            .user_agent(concat!(
                "prefect-kubernetes-agent/",
                env!("CARGO_PKG_VERSION")
            ))
            .connect_timeout(self.connect_timeout)
            // An address may hold a signature.
            .referer(false)
            .redirect(follow);
        if let Some(guard) = &self.guard {
            // A proxy would look the names up itself, and reach what only it can.
            builder = builder.no_proxy().dns_resolver(guard.clone());
        }
        builder.build().map_err(|error| chain(&error))
    }
}

async fn found(location: &str, mut response: Response) -> Result<Fetched> {
    let tag = tag(response.headers());
    let mut gathered = Gathered::announced(location, response.content_length())?;
    loop {
        let part = response.chunk().await;
        match part.map_err(|error| failed(location, error))? {
            Some(part) => gathered.push(location, &part)?,
            None => break,
        }
    }
    Ok(Fetched::Found {
        bytes: gathered.into_bytes(),
        tag,
    })
}

/// What the server can be asked about later: an ETag, or a date if nothing can have changed since
/// within the same second.
fn tag(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name)?.to_str().ok();
    if let Some(etag) = text(header::ETAG) {
        return Some(format!("etag:{etag}"));
    }
    let changed = text(header::LAST_MODIFIED)?;
    let now = text(header::DATE)?;
    (changed != now).then(|| format!("date:{changed}"))
}

fn condition(tag: &str) -> Option<(HeaderName, &str)> {
    match tag.split_once(':')? {
        ("etag", etag) => Some((header::IF_NONE_MATCH, etag)),
        ("date", date) => Some((header::IF_MODIFIED_SINCE, date)),
        _ => None,
    }
}

/// What an answer without a template means.
fn answered(location: &str, status: StatusCode, headers: &HeaderMap) -> Error {
    let remedy = match status.as_u16() {
        401 | 403 => {
            "check that it may be read from here, and whether a signed address has expired"
        }
        404 | 410 => "check the address",
        300..=399 => "name the address where it is now",
        408 | 425 | 429 | 500.. => "it may be better later",
        _ => "check the address and the server",
    };
    let message = format!(
        "cannot read the job template {}: the server answered {status}; {remedy}",
        shown(location)
    );
    if !matches!(status.as_u16(), 408 | 425 | 429 | 500..) {
        return Error::Permanent(message);
    }
    let after = headers.get(header::RETRY_AFTER);
    let seconds = after.and_then(|after| after.to_str().ok()?.parse().ok());
    Error::Transient {
        message,
        retry_after: seconds.map(Duration::from_secs),
    }
}

/// What it means that no answer came, or not all of it.
fn failed(location: &str, error: reqwest::Error) -> Error {
    if let Some(refused) = causes(&error).find_map(|cause| cause.downcast_ref()) {
        return not_asked(location, refused);
    }
    let unusable = error.is_builder();
    let message = format!(
        "cannot read the job template {}: {}",
        shown(location),
        chain(&error.without_url())
    );
    match unusable {
        true => Error::Permanent(message),
        false => Error::transient(message),
    }
}

fn not_asked(location: &str, refused: &Refused) -> Error {
    Error::permanent(format!(
        "the job template {} is not read: {refused}",
        shown(location)
    ))
}

#[cfg(test)]
mod tests;
