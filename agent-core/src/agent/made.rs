//! The jobs that this process has made a moment ago, of which it tells by itself.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a job may take to be seen after it was made.
const UNSEEN: Duration = Duration::from_secs(60);
/// Names that are kept before those which were never seen are looked for.
const MANY: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Made(Mutex<HashMap<String, Instant>>);

impl Made {
    pub(super) fn note(&self, job: &str) {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if made.len() >= MANY {
            made.retain(|_, at| at.elapsed() < UNSEEN);
        }
        made.insert(job.to_owned(), Instant::now());
    }

    /// Whether this process has made a job that is seen for the first time.
    pub(super) fn take(&self, job: &str) -> bool {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        made.remove(job).is_some()
    }
}
