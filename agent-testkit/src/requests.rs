//! What a server was asked: counts by operation, and the last requests word for word.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct RequestRecord {
    /// When it arrived.
    pub at: Instant,
    /// What it asked for, in the words of the server's operation names.
    pub operation: String,
    /// The HTTP method.
    pub method: Method,
    /// Path and query.
    pub uri: Uri,
    /// All headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

#[derive(Debug, Default)]
struct Log {
    counts: BTreeMap<String, u64>,
    total: u64,
    keep: usize,
    last: VecDeque<RequestRecord>,
}

/// Counts requests and keeps the last ones when asked to.
#[derive(Debug, Default)]
pub struct Requests {
    log: Mutex<Log>,
}

impl Requests {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the last `count` requests from now on.
    pub fn keep(&self, count: usize) {
        let mut log = self.log();
        log.keep = count;
        while log.last.len() > count {
            log.last.pop_front();
        }
    }

    /// Notes a request that asks for `operations` (usually one).
    pub fn note<'a>(
        &self,
        operations: impl IntoIterator<Item = &'a str>,
        record: impl FnOnce() -> RequestRecord,
    ) {
        let mut log = self.log();
        log.total += 1;
        for operation in operations {
            match log.counts.get_mut(operation) {
                Some(count) => *count += 1,
                None => {
                    log.counts.insert(operation.to_owned(), 1);
                }
            }
        }
        if log.keep > 0 {
            if log.last.len() == log.keep {
                log.last.pop_front();
            }
            log.last.push_back(record());
        }
    }

    /// The number of requests by operation.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.log().counts.clone()
    }

    /// The number of requests for one operation.
    pub fn count(&self, operation: &str) -> u64 {
        self.log().counts.get(operation).copied().unwrap_or(0)
    }

    /// The number of all requests.
    pub fn total(&self) -> u64 {
        self.log().total
    }

    /// The requests that were kept, oldest first.
    pub fn last(&self) -> Vec<RequestRecord> {
        self.log().last.iter().cloned().collect()
    }

    /// Starts counting anew and forgets the kept requests.
    pub fn reset(&self) {
        let mut log = self.log();
        log.counts.clear();
        log.total = 0;
        log.last.clear();
    }
}
