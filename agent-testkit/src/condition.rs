//! Waiting for a condition instead of sleeping: a server marks every change of what it holds, and
//! a test awaits a predicate over it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

const TOGETHER: Duration = Duration::from_millis(1);

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

    /// Returns as soon as `met` is true, looking again after every change; changes that follow each
    /// other within a millisecond are looked at together.
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
                tokio::time::sleep(TOGETHER).await;
            }
        };
        tokio::time::timeout(timeout, wait)
            .await
            .map_err(|_| TimedOut(timeout))
    }
}

/// Marks a change when it is dropped.
#[derive(Debug)]
pub(crate) struct MarkOnDrop(pub(crate) Changes);

impl Drop for MarkOnDrop {
    fn drop(&mut self) {
        self.0.mark();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_condition_is_looked_at_again_after_a_change_only() {
        let changes = Changes::default();
        let met = AtomicBool::new(false);
        let look = || met.load(Ordering::Relaxed);
        let soon = Duration::from_secs(5);
        let (waited, ()) = tokio::join!(changes.wait_until(soon, look), async {
            met.store(true, Ordering::Relaxed);
            changes.mark();
        });
        assert_eq!(waited, Ok(()));
        let briefly = Duration::from_millis(5);
        assert_eq!(
            changes.wait_until(briefly, || false).await,
            Err(TimedOut(briefly))
        );
    }
}
