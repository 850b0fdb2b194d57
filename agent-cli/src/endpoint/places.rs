//! Room for so many connections. Whoever comes is let in: when all places are taken, a connection
//! goes that does least, of the peer that holds most.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// The places of connections. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    by: HashMap<u64, Holder>,
}

/// Who holds a place.
#[derive(Debug)]
struct Holder {
    peer: IpAddr,
    /// When bytes last went over the connection.
    moved: Arc<Mutex<Instant>>,
    leave: Arc<Notify>,
}

/// A place that is taken until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    id: u64,
    places: Places,
    moved: Arc<Mutex<Instant>>,
    leave: Arc<Notify>,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    pub(super) fn new(count: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(count)),
            taken: Arc::default(),
        }
    }

    /// Takes a place for a peer; somebody else's, if none is free.
    pub(super) async fn take(&self, peer: IpAddr) -> Place {
        let permit = match self.free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                self.with(Taken::clear_one);
                let permit = self.free.clone().acquire_owned().await;
                permit.expect("the semaphore is never closed")
            }
        };
        let moved = Arc::new(Mutex::new(Instant::now()));
        let leave = Arc::new(Notify::new());
        let holder = Holder {
            peer,
            moved: moved.clone(),
            leave: leave.clone(),
        };
        let id = self.with(|taken| {
            taken.next += 1;
            taken.by.insert(taken.next, holder);
            taken.next
        });
        Place {
            id,
            places: self.clone(),
            moved,
            leave,
            _permit: permit,
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Taken) -> T) -> T {
        act(&mut self.taken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Taken {
    /// Tells the connection to go over which nothing has moved for longest, of those of the peer that
    /// has most.
    fn clear_one(&mut self) {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for holder in self.by.values() {
            *counts.entry(holder.peer.to_canonical()).or_default() += 1;
        }
        let most = counts.values().copied().max().unwrap_or(0);
        let least = self
            .by
            .iter()
            .filter(|(_, holder)| counts[&holder.peer.to_canonical()] == most)
            .min_by_key(|(_, holder)| *holder.moved.lock().unwrap_or_else(PoisonError::into_inner))
            .map(|(id, _)| *id);
        if let Some(holder) = least.and_then(|id| self.by.remove(&id)) {
            holder.leave.notify_one();
        }
    }
}

impl Place {
    /// Completes when the place is needed by somebody else.
    pub(super) async fn needed(&self) {
        self.leave.notified().await;
    }

    /// A connection whose bytes count as a sign that it does something.
    pub(super) fn watched<S>(&self, stream: S) -> Watched<S> {
        Watched {
            stream,
            moved: self.moved.clone(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.with(|taken| taken.by.remove(&self.id));
    }
}

/// A stream that notes when bytes go over it.
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    moved: Arc<Mutex<Instant>>,
}

impl<S> Watched<S> {
    fn note(&self) {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.note();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.note();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn peer(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    async fn is_needed(place: &Place) -> bool {
        tokio::select! {
            biased;
            () = place.needed() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_peer_with_most_connections_loses_the_one_that_does_least() {
        let places = Places::new(4);
        let mut held = Vec::new();
        for last in [1, 2, 2, 2] {
            held.push(places.take(peer(last)).await);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        held[1].watched(tokio::io::empty()).note();
        let other = places.clone();
        let next = tokio::spawn(async move { other.take(peer(3)).await });
        held[2].needed().await;
        for nth in [0, 1, 3] {
            assert!(!is_needed(&held[nth]).await, "{nth}");
        }
        assert!(!next.is_finished(), "the place is not free yet");
        drop(held.remove(2));
        let _next = next.await.expect("no panics");
        assert_eq!(places.free.available_permits(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn places_that_are_left_are_free_again() {
        let places = Places::new(1);
        for _ in 0..3 {
            drop(places.take(peer(1)).await);
        }
        assert_eq!(places.free.available_permits(), 1);
        assert!(places.with(|taken| taken.by.is_empty()));
    }
}
