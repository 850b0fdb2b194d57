//! Writes entries to flow-run logs in the background, in batches and in order.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::{FlowRunSource, LogEntry};

/// Entries per request; what one Prefect API request takes easily.
const BATCH: usize = 250;
/// Entries that may wait; past that, whoever writes waits.
const WAITING: usize = 4096;
/// How long the first entry of a batch waits for others.
const LINGER: Duration = Duration::from_millis(50);

/// Takes entries for the logs of flow runs.
#[derive(Debug, Clone)]
pub(super) struct LogSink(mpsc::Sender<LogEntry>);

/// The task that writes what the [`LogSink`] took.
pub(super) struct LogWriter(JoinHandle<()>);

impl LogSink {
    pub(super) fn start(
        source: Arc<dyn FlowRunSource>,
        ended: CancellationToken,
    ) -> (Self, LogWriter) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let writer = tokio::spawn(async move {
            ended.run_until_cancelled(write(source, receiver)).await;
        });
        (Self(sender), LogWriter(writer))
    }

    /// Hands over an entry; waits while too many are waiting already.
    pub(super) async fn write(&self, entry: LogEntry) {
        if self.0.send(entry).await.is_err() {
            tracing::error!("The log writer has stopped; a flow-run log entry is lost");
        }
    }
}

impl LogWriter {
    /// Waits until everything is written; all sinks must be gone. Gives up after `bound`.
    pub(super) async fn finish(self, bound: Duration) {
        if tokio::time::timeout(bound, self.0).await.is_err() {
            tracing::warn!("Some flow-run log entries could not be written before the end");
        }
    }
}

async fn write(source: Arc<dyn FlowRunSource>, mut receiver: mpsc::Receiver<LogEntry>) {
    let mut batch = Vec::new();
    while receiver.recv_many(&mut batch, BATCH).await > 0 {
        // Whatever comes within the next moment shares the request.
        let deadline = tokio::time::Instant::now() + LINGER;
        while batch.len() < BATCH {
            match tokio::time::timeout_at(deadline, receiver.recv()).await {
                Ok(Some(entry)) => batch.push(entry),
                Ok(None) | Err(_) => break,
            }
        }
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
        loop {
            match source.write_logs(&batch).await {
                Ok(()) => break,
                Err(error) if error.is_transient() => {
                    tracing::warn!("Failed to write flow-run logs, will try again: {error}");
                    tokio::time::sleep(backoff.pause(error.retry_after())).await;
                }
                Err(error) => {
                    tracing::error!("Lost {} flow-run log entries: {error}", batch.len());
                    break;
                }
            }
        }
        batch.clear();
    }
}
