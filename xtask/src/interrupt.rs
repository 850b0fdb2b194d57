//! Ctrl-C and SIGTERM end a chore as an error would, so that whatever it has started is ended with it:
//! processes, temporary files, clusters.

use anyhow::{Result, bail};
use tokio::signal::unix::{SignalKind, signal};

/// Does the work, or drops it and returns an error when somebody stops this process meanwhile. Work
/// that blocks its thread is not dropped before it awaits something, so builds come before.
pub(crate) async fn unless_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done,
        stopped = interrupted() => bail!(stopped?),
    }
}

/// Waits until somebody stops this process; what has happened, in a word. What happens from the call
/// on counts, whenever the future is polled.
pub(crate) fn interrupted() -> impl Future<Output = Result<&'static str>> {
    let signals = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
    async {
        let [interrupted, terminated] = signals;
        let (mut interrupted, mut terminated) = (interrupted?, terminated?);
        tokio::select! {
            _ = interrupted.recv() => Ok("interrupted"),
            _ = terminated.recv() => Ok("terminated"),
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, raise};

    use super::*;

    #[tokio::test]
    async fn a_signal_that_comes_before_the_future_is_polled_counts() {
        // Without a handler, this signal would be the end of this process.
        let stopped = interrupted();
        raise(Signal::SIGTERM).expect("raised");
        assert_eq!(stopped.await.expect("a signal"), "terminated");
    }
}
