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

/// Waits until somebody stops this process; what has happened, in a word.
pub(crate) async fn interrupted() -> Result<&'static str> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupted.recv() => Ok("interrupted"),
        _ = terminated.recv() => Ok("terminated"),
    }
}
