//! Tokens that change: of a credential plugin, or in a file. They are renewed in the background, by
//! one task, so that a plugin that hangs holds up nobody and is never run twice at a time.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response, StatusCode};
use jiff::Timestamp;
use kube::config::AuthInfo;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Notify;
use tower::{Layer, Service};

use crate::plugin::Plugin;

/// How long before its end a token is renewed.
const EARLY: Duration = Duration::from_secs(60);
/// How often a file is read again.
const FILE: Duration = Duration::from_secs(60);
/// The shortest time between two attempts to renew a token.
const PAUSE: Duration = Duration::from_secs(10);

/// Where a token comes from.
#[derive(Debug)]
enum Source {
    Plugin(Plugin),
    File(PathBuf),
}

/// A [`tower`] layer that sends the token of the time with each request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Credentials(Option<Arc<Current>>);

#[derive(Debug)]
struct Current {
    header: RwLock<HeaderValue>,
    /// A token was refused.
    refused: Notify,
}

impl Credentials {
    /// Takes over from `user` what changes, and reads it for the first time.
    ///
    /// # Errors
    /// A sentence on what is wrong with the token, or with where it comes from.
    pub(crate) async fn take(user: &mut AuthInfo) -> Result<Self, String> {
        // The order is that of kubectl.
        if user.auth_provider.is_some()
            || user.token.is_some()
            || (user.username.is_some() && user.password.is_some())
        {
            return Ok(Self::default());
        }
        let source = if let Some(path) = user.token_file.take() {
            Source::File(path.into())
        } else if let Some(exec) = user.exec.take() {
            Source::Plugin(Plugin::new(exec))
        } else {
            return Ok(Self::default());
        };
        let (token, expires) = match &source {
            Source::File(path) => (Some(read(path)?), None),
            Source::Plugin(plugin) => {
                let printed = plugin.run().await?;
                if let Some((certificate, key)) = printed.identity {
                    user.client_certificate_data = Some(base64(&certificate));
                    user.client_key_data = Some(base64(key.expose_secret()).into());
                }
                (printed.token, printed.expires)
            }
        };
        let Some(token) = token else {
            return Ok(Self::default());
        };
        let current = Arc::new(Current {
            header: RwLock::new(header(&token, &source.name())?),
            refused: Notify::new(),
        });
        tokio::spawn(renew(source, expires, Arc::downgrade(&current)));
        Ok(Self(Some(current)))
    }
}

impl Source {
    fn name(&self) -> String {
        match self {
            Self::Plugin(plugin) => plugin.to_string(),
            Self::File(path) => format!("the token file {}", path.display()),
        }
    }

    async fn token(&self) -> Result<(SecretString, Option<Timestamp>), String> {
        match self {
            Self::File(path) => Ok((read(path)?, None)),
            Self::Plugin(plugin) => {
                let printed = plugin.run().await?;
                let token = printed
                    .token
                    .ok_or_else(|| format!("{plugin} has printed no token"))?;
                Ok((token, printed.expires))
            }
        }
    }
}

fn read(path: &PathBuf) -> Result<SecretString, String> {
    let read = std::fs::read_to_string(path);
    read.map(SecretString::from)
        .map_err(|error| format!("the token file {} cannot be read: {error}", path.display()))
}

/// Renews a token until nobody uses it.
async fn renew(source: Source, mut expires: Option<Timestamp>, current: Weak<Current>) {
    loop {
        let pause = match (&source, expires) {
            (Source::File(_), _) => Some(FILE),
            (Source::Plugin(_), Some(expires)) => {
                let left = Duration::try_from(expires.duration_since(Timestamp::now()));
                Some(left.unwrap_or_default().saturating_sub(EARLY).max(PAUSE))
            }
            (Source::Plugin(_), None) => None,
        };
        let Some(refused) = current.upgrade() else {
            return;
        };
        let refused = async move { refused.refused.notified().await };
        match pause {
            Some(pause) => {
                let _ = tokio::time::timeout(pause, refused).await;
            }
            None => refused.await,
        }
        let renewed = source.token().await;
        let Some(current) = current.upgrade() else {
            return;
        };
        let renewed =
            renewed.and_then(|(token, expires)| Ok((header(&token, &source.name())?, expires)));
        match renewed {
            Ok((header, ends)) => {
                *current
                    .header
                    .write()
                    .unwrap_or_else(PoisonError::into_inner) = header;
                expires = ends;
            }
            // A file may be gone on purpose, so that nobody else reads it.
            Err(_) if matches!(source, Source::File(_)) => {}
            Err(error) => {
                tracing::warn!("The credentials for the cluster are not renewed: {error}");
                expires = expires.or(Some(Timestamp::now()));
            }
        }
        drop(current);
        tokio::time::sleep(PAUSE).await;
    }
}

/// A token as requests carry it; space around it does not count.
///
/// # Errors
/// That it cannot be one, with the name of where it comes from.
pub(crate) fn header(token: &SecretString, source: &str) -> Result<HeaderValue, String> {
    let token = token.expose_secret().trim();
    if token.is_empty() || token.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err(format!(
            "the token of {source} cannot be one: it is empty, or it holds spaces, line breaks or characters that are not ASCII"
        ));
    }
    let value = HeaderValue::try_from(format!("Bearer {token}"));
    let mut value = value.map_err(|_| format!("the token of {source} cannot be one"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn base64(pem: &str) -> String {
    let bytes = k8s_openapi::ByteString(pem.as_bytes().to_vec());
    let encoded = serde_json::to_value(bytes).unwrap_or_default();
    encoded.as_str().unwrap_or_default().to_owned()
}

impl<S> Layer<S> for Credentials {
    type Service = WithCredentials<S>;

    fn layer(&self, inner: S) -> Self::Service {
        WithCredentials {
            inner,
            current: self.0.clone(),
        }
    }
}

/// The service under a [`Credentials`] layer.
#[derive(Clone)]
pub(crate) struct WithCredentials<S> {
    inner: S,
    current: Option<Arc<Current>>,
}

impl<S, A, B> Service<Request<A>> for WithCredentials<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let current = self.current.clone();
        if let Some(current) = &current {
            let header = current
                .header
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            request.headers_mut().insert(AUTHORIZATION, header.clone());
        }
        let answer = self.inner.call(request);
        async move {
            let answer = answer.await?;
            if let Some(current) = current
                && answer.status() == StatusCode::UNAUTHORIZED
            {
                current.refused.notify_one();
            }
            Ok(answer)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_around_a_token_does_not_count_and_within_it_is_refused() {
        let header = |token: &str| header(&token.into(), "the user me");
        for good in ["token", "token\n", " token\r\n"] {
            let value = header(good).expect("fine");
            assert_eq!(value.to_str().ok(), Some("Bearer token"));
            assert!(value.is_sensitive());
        }
        for bad in ["", "\n", "hu\nsh", "hu sh", "hü"] {
            let error = header(bad).expect_err("refused");
            assert!(error.contains("the user me") && !error.contains("hu"));
        }
    }

    #[tokio::test]
    async fn a_token_that_is_refused_is_renewed_and_one_plugin_runs_at_a_time() {
        let dir = std::env::temp_dir().join(format!("plugin-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let count = dir.join("count");
        let script = "printf x >> \"$COUNT\"; n=$(wc -c < \"$COUNT\"); echo \"{\\\"status\\\": {\\\"token\\\": \\\"t$((n))\\\"}}\"";
        let exec = serde_json::json!({
            "command": "sh", "args": ["-c", script], "interactiveMode": "Never",
            "env": [{"name": "COUNT", "value": count}],
        });
        let mut user = AuthInfo {
            exec: Some(serde_json::from_value(exec).expect("a plugin")),
            ..AuthInfo::default()
        };
        let credentials = Credentials::take(&mut user).await.expect("a token");
        let current = credentials.0.expect("it changes");
        let token = || {
            let header = current.header.read().expect("no panics");
            header.to_str().expect("text").to_owned()
        };
        assert_eq!(token(), "Bearer t1");
        for _ in 0..50 {
            current.refused.notify_one();
        }
        let renewed = async {
            while token() != "Bearer t2" {
                tokio::task::yield_now().await;
            }
        };
        let renewed = tokio::time::timeout(Duration::from_secs(30), renewed).await;
        assert!(renewed.is_ok(), "{}", token());
        assert_eq!(std::fs::read(&count).expect("written").len(), 2);
        std::fs::remove_dir_all(&dir).expect("removed");
    }
}
