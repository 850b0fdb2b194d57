//! Bounds the answers of the Kubernetes API: whatever answers at its address, memory is not filled.

use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::Limited;
use tower::{Layer, Service};

use crate::counted::is_watch;

/// The largest answer that is read, in bytes. It is in memory up to three times while it is. Lists come
/// in pages, smaller ones where these are too large, and a single object has 1.5 MiB at most as
/// Kubernetes stores it.
pub(crate) const LARGEST: usize = 8 << 20;

/// A [`tower`] layer that ends answers which are too large. A watch, which is read line by line, may
/// go on for ever.
pub(crate) struct Bounded;

/// The service under a [`Bounded`] layer.
#[derive(Clone)]
pub(crate) struct BoundedService<S>(S);

impl<S> Layer<S> for Bounded {
    type Service = BoundedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        BoundedService(inner)
    }
}

impl<S, A, B> Service<Request<A>> for BoundedService<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<Limited<B>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let bound = match is_watch(request.uri()) {
            true => usize::MAX,
            false => LARGEST,
        };
        let answer = self.0.call(request);
        async move {
            let answer = answer.await?;
            Ok(answer.map(|body| Limited::new(body, bound)))
        }
        .boxed()
    }
}
