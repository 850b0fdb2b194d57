//! An HTTP server for an axum router with an accept loop of its own, which allows what a
//! well-behaved server does not: to drop a connection instead of answering, to go away in the
//! middle of things, and to come back at the same address.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// Put into a response's extensions, it closes the connection instead of sending the response.
#[derive(Clone, Copy, Debug)]
pub struct DropConnection;

/// Any free port on loopback.
pub const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[derive(Debug, Default)]
struct Connections {
    open: AtomicUsize,
    accepted: AtomicU64,
}

/// Counts a connection as open for as long as it lives.
struct Open(Arc<Connections>);

impl Open {
    fn new(connections: &Arc<Connections>) -> Self {
        connections.open.fetch_add(1, Ordering::Relaxed);
        connections.accepted.fetch_add(1, Ordering::Relaxed);
        Self(connections.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One period between start and stop.
#[derive(Clone, Debug)]
struct Period {
    graceful: CancellationToken,
    abrupt: CancellationToken,
    tasks: TaskTracker,
}

/// A server at a fixed address, running from `bind` until `stop` or drop.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    router: Router,
    connections: Arc<Connections>,
    period: Mutex<Option<Period>>,
}

impl Server {
    /// Binds `address` and serves `router` there on the ambient runtime.
    pub async fn bind(address: SocketAddr, router: Router) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let server = Self {
            address: listener.local_addr()?,
            router,
            connections: Arc::default(),
            period: Mutex::new(None),
        };
        server.run(listener);
        Ok(server)
    }

    /// The address that is served, with the actual port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address as a URL without a trailing slash.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many connections are open now.
    pub fn open_connections(&self) -> usize {
        self.connections.open.load(Ordering::Relaxed)
    }

    /// How many connections were ever accepted.
    pub fn accepted_connections(&self) -> u64 {
        self.connections.accepted.load(Ordering::Relaxed)
    }

    /// Closes the port and all connections at once, with requests under way left unanswered.
    pub async fn stop(&self) {
        if let Some(period) = self.take_period() {
            period.abrupt.cancel();
            period.tasks.wait().await;
        }
    }

    /// Closes the port, answers requests under way, and closes what is left after `at_most`.
    pub async fn stop_gracefully(&self, at_most: Duration) {
        if let Some(period) = self.take_period() {
            period.graceful.cancel();
            let _ = tokio::time::timeout(at_most, period.tasks.wait()).await;
            period.abrupt.cancel();
            period.tasks.wait().await;
        }
    }

    /// Serves again at the same address after a stop; does nothing while running.
    pub async fn restart(&self) -> io::Result<()> {
        if self.period().is_none() {
            let listener = TcpListener::bind(self.address).await?;
            self.run(listener);
        }
        Ok(())
    }

    fn period(&self) -> MutexGuard<'_, Option<Period>> {
        self.period.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_period(&self) -> Option<Period> {
        self.period().take()
    }

    fn run(&self, listener: TcpListener) {
        let period = Period {
            graceful: CancellationToken::new(),
            abrupt: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        period.tasks.spawn(accept(
            listener,
            self.router.clone(),
            self.connections.clone(),
            period.clone(),
        ));
        period.tasks.close();
        *self.period() = Some(period);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(period) = self.take_period() {
            period.abrupt.cancel();
        }
    }
}

async fn accept(
    listener: TcpListener,
    router: Router,
    connections: Arc<Connections>,
    period: Period,
) {
    loop {
        let stream = tokio::select! {
            biased;
            () = period.abrupt.cancelled() => return,
            () = period.graceful.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "accepting a connection failed");
                    tokio::task::yield_now().await;
                    continue;
                }
            },
        };
        let open = Open::new(&connections);
        let connection = serve_connection(stream, router.clone(), period.clone());
        period.tasks.spawn(async move {
            connection.await;
            drop(open);
        });
    }
}

async fn serve_connection(stream: TcpStream, router: Router, period: Period) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: http::Request<Incoming>| {
        let router = router.clone();
        async move {
            let answered: Result<Response, Infallible> =
                router.oneshot(request.map(Body::new)).await;
            let Ok(response) = answered;
            match response.extensions().get::<DropConnection>() {
                Some(DropConnection) => Err(io::Error::from(io::ErrorKind::ConnectionAborted)),
                None => Ok(response),
            }
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        () = period.abrupt.cancelled() => return,
        _ = connection.as_mut() => return,
        () = period.graceful.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        biased;
        () = period.abrupt.cancelled() => {}
        _ = connection => {}
    }
}
