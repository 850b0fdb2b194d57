//! Waiting for a condition instead of sleeping: a server marks every change of what it holds, and
//! a test awaits a predicate over it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// The condition was not met in time.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the condition was not met within {0:?}")]
pub struct TimedOut(pub Duration);

/// A counter of changes that can be awaited.
#[derive(Clone, Debug)]
pub struct Changes {
    counter: Arc<watch::Sender<u64>>,
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            counter: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl Changes {
    /// Marks a change.
    pub fn mark(&self) {
        self.counter
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// A receiver that sees every later change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.counter.subscribe()
    }

    /// Returns as soon as `met` is true, looking again after every change.
    pub async fn wait_until(
        &self,
        timeout: Duration,
        mut met: impl FnMut() -> bool,
    ) -> Result<(), TimedOut> {
        let mut changes = self.subscribe();
        let wait = async {
            while !met() {
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(timeout, wait)
            .await
            .map_err(|_| TimedOut(timeout))
    }
}
