//! Writes entries to flow-run logs in the background: in order, in batches, bounded in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backoff::Backoff;
use crate::{Error, FlowRunSource, LogEntry, LogLevel};

/// Entries per request; what one Prefect API request takes easily.
const BATCH: usize = 250;
/// Bytes of messages per request; the API refuses bodies over 5 MB.
const BATCH_BYTES: usize = 1 << 20;
/// Entries and bytes of messages that may wait; past either, those that matter least are dropped.
const WAITING: usize = 8192;
const WAITING_BYTES: usize = 8 << 20;
/// Entries that have waited for longer may have been written by another replica.
const STALE: Duration = Duration::from_secs(3);
/// How long another replica that has the same to say, and is alive, may take to say it: it writes for
/// [`STALE`] without a look at what is there, and what it has sent then may take its time.
const OTHERS: Duration = Duration::from_secs(12);
/// What comes on top at the most, so that two that wait for each other do not write together.
const JITTER: Duration = Duration::from_secs(4);
/// Failures of one batch, with successful looks at what is there between them, after which the batch
/// itself is suspected.
const SUSPECT: u32 = 5;
/// The same for a failure that shows that the source is there, and does not show whether it is the batch.
const SUSPECT_WHEN_UNCLEAR: u32 = 2;
/// The pauses between attempts at an entry that has failed by itself: others are written meanwhile.
const MIN_SUSPECT_PAUSE: Duration = Duration::from_secs(1);
const MAX_SUSPECT_PAUSE: Duration = Duration::from_secs(60);
/// Entries that have failed by themselves and are set aside.
const MAX_SUSPECTS: usize = 256;
/// How long an entry is tried that fails by itself while the source answers: longer than the time in
/// which a database comes back.
const HOPELESS: Duration = Duration::from_secs(900);
/// A source that has answered nothing about logs for so long is away, whatever the entries are.
const AWAY: Duration = Duration::from_secs(120);
/// How long the first entry of a batch waits for others.
const LINGER: Duration = Duration::from_millis(100);

/// An entry that waits to be written.
struct Item {
    entry: LogEntry,
    queued: Instant,
    /// Somebody else may have written it.
    doubtful: bool,
    /// How often it has failed by itself.
    failures: u32,
    settled: Box<dyn Settled>,
}

/// What waits for an entry: it is dropped when the entry was written, or cannot be.
pub(super) trait Settled: Send {
    /// Leaves an entry that somebody else may have written to them, if they see to it.
    fn leave(&self) -> bool {
        false
    }
}

impl Settled for oneshot::Sender<()> {}

impl Settled for () {}

impl Item {
    fn is_doubtful(&self) -> bool {
        self.doubtful || self.queued.elapsed() > STALE
    }
}

#[derive(Default)]
struct Waiting {
    items: VecDeque<Item>,
    bytes: usize,
    /// Entries that have failed by themselves, and when each is tried again.
    suspects: Vec<(Instant, Item)>,
    closed: bool,
    /// When the source has answered last.
    answered: Option<Instant>,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    filled: Notify,
    drained: Notify,
    /// Entries that are to be written later.
    later: TaskTracker,
    /// The end is near: what was to be later is now.
    ending: CancellationToken,
}

/// How long another replica is given to write what it has to say, too.
pub(super) fn others() -> Duration {
    OTHERS + JITTER.mul_f64(fastrand::f64())
}

/// Takes entries for the logs of flow runs. Cheap to clone.
#[derive(Clone)]
pub(super) struct LogSink(Arc<Queue>);

/// The task that writes what the [`LogSink`] took.
pub(super) struct LogWriter {
    queue: Arc<Queue>,
    task: JoinHandle<()>,
}

impl LogSink {
    pub(super) fn start(
        source: Arc<dyn FlowRunSource>,
        ended: CancellationToken,
    ) -> (Self, LogWriter) {
        let queue = Arc::<Queue>::default();
        let writer = Writer {
            source,
            queue: queue.clone(),
        };
        let task = tokio::spawn(async move {
            loop {
                let (writer, ended) = (writer.clone(), ended.clone());
                let run = async move { ended.run_until_cancelled(writer.run()).await };
                match tokio::spawn(run).await {
                    // What it had in hand is lost, the rest is not.
                    Err(error) if error.is_panic() => {
                        tracing::error!("The writer of flow-run logs failed and begins again");
                    }
                    _ => return,
                }
            }
        });
        (Self(queue.clone()), LogWriter { queue, task })
    }

    /// Hands over an entry. Waits only while errors alone fill the memory.
    pub(super) async fn write(&self, entry: LogEntry, settled: impl Settled + 'static) {
        self.put(entry, false, Box::new(settled)).await;
    }

    /// Hands over an entry that may as well be lost: when there is no room, it is.
    pub(super) fn write_soon(&self, entry: LogEntry) {
        let item = Item {
            entry,
            queued: Instant::now(),
            doubtful: false,
            failures: 0,
            settled: Box::new(()),
        };
        if self.0.lock().offer(item).is_none() {
            self.0.filled.notify_one();
        }
    }

    /// The same for an entry that is written unless it is there.
    pub(super) async fn write_if_missing(&self, entry: LogEntry, settled: impl Settled + 'static) {
        self.put(entry, true, Box::new(settled)).await;
    }

    /// The same later, when somebody else has had the time to write it.
    pub(super) fn write_if_missing_later(&self, entry: LogEntry, settled: impl Settled + 'static) {
        let sink = self.clone();
        let pause = sleep(others());
        self.0.later.spawn(async move {
            let _ = sink.0.ending.run_until_cancelled(pause).await;
            sink.write_if_missing(entry, settled).await;
        });
    }

    /// Hands over entries and waits until they are written, or cannot be.
    pub(super) async fn written(&self, entries: Vec<LogEntry>) {
        let mut settled = Vec::with_capacity(entries.len());
        for entry in entries {
            let (sender, receiver) = oneshot::channel::<()>();
            self.write(entry, sender).await;
            settled.push(receiver);
        }
        for one in settled {
            let _ = one.await;
        }
    }

    /// The same for one that is written unless it is there.
    pub(super) async fn written_if_missing(&self, entry: LogEntry) {
        let (sender, receiver) = oneshot::channel::<()>();
        self.write_if_missing(entry, sender).await;
        let _ = receiver.await;
    }

    async fn put(&self, entry: LogEntry, doubtful: bool, settled: Box<dyn Settled>) {
        let mut item = Item {
            entry,
            queued: Instant::now(),
            doubtful,
            failures: 0,
            settled,
        };
        loop {
            let drained = self.0.drained.notified();
            match self.0.lock().offer(item) {
                None => break,
                Some(back) => item = back,
            }
            drained.await;
        }
        self.0.filled.notify_one();
    }
}

impl LogWriter {
    /// Waits until everything is written; what comes later is lost. Gives up after `bound`.
    pub(super) async fn finish(self, bound: Duration) {
        let ending = async {
            self.queue.ending.cancel();
            self.queue.later.close();
            self.queue.later.wait().await;
            self.queue.lock().closed = true;
            self.queue.filled.notify_one();
            self.task.await
        };
        if timeout(bound, ending).await.is_err() {
            tracing::warn!("Some flow-run log entries could not be written before the end");
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Takes an item in, dropping what matters less when there is no room; gives the item back
    /// when it may neither be dropped nor has room.
    fn offer(&mut self, item: Item) -> Option<Item> {
        if self.closed {
            tracing::error!("The log writer has stopped; a flow-run log entry is lost");
            return None;
        }
        while self.items.len() >= WAITING || self.bytes >= WAITING_BYTES {
            let least = self.items.iter().map(|item| item.entry.level).min();
            let least = least.unwrap_or(LogLevel::Error).min(item.entry.level);
            if least == LogLevel::Error {
                return Some(item);
            }
            dropped(least, "memory");
            let mut levels = self.items.iter().map(|one| one.entry.level);
            let at = levels.position(|level| level == least)?;
            if let Some(item) = self.items.remove(at) {
                self.bytes -= item.entry.message.len();
            }
        }
        self.push(item);
        None
    }

    fn push(&mut self, item: Item) {
        self.bytes += item.entry.message.len();
        self.items.push_back(item);
        metrics::gauge!("prefect_agent_logs_waiting").set(self.items.len() as f64);
    }

    /// Sets an entry aside that has failed by itself; if there are many, it waits with the others.
    fn suspect(&mut self, mut item: Item) {
        if self.suspects.len() >= MAX_SUSPECTS {
            return self.push(item);
        }
        let doubled = MIN_SUSPECT_PAUSE.saturating_mul(1 << item.failures.min(10));
        item.failures += 1;
        let at = Instant::now() + doubled.min(MAX_SUSPECT_PAUSE);
        self.suspects.push((at, item));
    }

    /// Takes an entry whose time has come to be tried again.
    fn take_suspect(&mut self) -> Option<Item> {
        let (now, closed) = (Instant::now(), self.closed);
        let mut all = self.suspects.iter();
        let due = all.position(|(at, _)| closed || *at <= now)?;
        Some(self.suspects.swap_remove(due).1)
    }

    /// Returns when the next of these entries is tried again.
    fn next_suspect(&self) -> Option<Instant> {
        self.suspects.iter().map(|(at, _)| *at).min()
    }

    fn is_full(&self) -> bool {
        self.items.len() >= BATCH || self.bytes >= BATCH_BYTES
    }

    fn take(&mut self) -> Vec<Item> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(item) = self.items.front() {
            let size = item.entry.message.len();
            if batch.len() == BATCH || (bytes + size > BATCH_BYTES && !batch.is_empty()) {
                break;
            }
            bytes += size;
            batch.extend(self.items.pop_front());
        }
        self.bytes -= bytes;
        metrics::gauge!("prefect_agent_logs_waiting").set(self.items.len() as f64);
        batch
    }
}

fn dropped(level: LogLevel, why: &'static str) {
    metrics::counter!("prefect_agent_logs_dropped_total", "level" => level.name(), "reason" => why)
        .increment(1);
}

#[derive(Clone)]
struct Writer {
    source: Arc<dyn FlowRunSource>,
    queue: Arc<Queue>,
}

impl Writer {
    async fn run(self) {
        let mut backoff = None;
        let mut after_suspect = false;
        loop {
            let suspect = match after_suspect {
                true => None,
                false => self.queue.lock().take_suspect(),
            };
            after_suspect = suspect.is_some();
            let batch = match suspect {
                Some(item) => vec![item],
                None => match self.batch().await {
                    Some(batch) => batch,
                    None => return,
                },
            };
            self.queue.drained.notify_waiters();
            if batch.is_empty() || self.deliver(batch).await || after_suspect {
                backoff = None;
                continue;
            }
            // Nothing of it was written: it may be the source.
            let new = || Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
            sleep(backoff.get_or_insert_with(new).pause(None)).await;
        }
    }

    /// The next batch, once it is full or its first entry has waited for long enough; an empty one when
    /// an entry that was set aside is due, and `None` at the end.
    async fn batch(&self) -> Option<Vec<Item>> {
        loop {
            let suspect = {
                let waiting = self.queue.lock();
                if !waiting.items.is_empty() {
                    break;
                }
                if waiting.closed && waiting.suspects.is_empty() {
                    return None;
                }
                match waiting.closed {
                    true => Some(Instant::now()),
                    false => waiting.next_suspect(),
                }
            };
            let filled = self.queue.filled.notified();
            let Some(at) = suspect else {
                filled.await;
                continue;
            };
            if timeout_at(at, filled).await.is_err() {
                return Some(Vec::new());
            }
        }
        let deadline = Instant::now() + LINGER;
        loop {
            {
                let waiting = self.queue.lock();
                if waiting.closed || waiting.is_full() {
                    break;
                }
            }
            if timeout_at(deadline, self.queue.filled.notified())
                .await
                .is_err()
            {
                break;
            }
        }
        Some(self.queue.lock().take())
    }

    /// Writes a batch. One that is refused, or fails again and again, is halved, and an entry that fails
    /// by itself is set aside, so that it takes no other with it. Returns whether something was written;
    /// if nothing was, what is left of the batch waits with the others.
    async fn deliver(&self, batch: Vec<Item>) -> bool {
        let alone = batch.len() == 1;
        let mut batches = vec![batch];
        let mut written = false;
        let mut failed: Vec<Item> = Vec::new();
        while let Some(mut batch) = batches.pop() {
            let error = match self.try_deliver(&mut batch).await {
                Ok(()) => {
                    written = true;
                    continue;
                }
                Err(error) => error,
            };
            if batch.len() > 1 {
                let second = batch.split_off(batch.len() / 2);
                batches.extend([second, batch]);
                continue;
            }
            if error.is_transient() && !self.is_hopeless(&batch) {
                failed.append(&mut batch);
                if !written && failed.len() > 1 {
                    break;
                }
                continue;
            }
            for item in &batch {
                dropped(item.entry.level, "refused");
                let run = &item.entry.flow_run_id;
                tracing::error!("Lost an entry for the log of flow run {run}: {error}");
            }
        }
        let mut waiting = self.queue.lock();
        for item in failed {
            // By itself, or beside others that were written: it is the entry.
            match written || alone {
                true => waiting.suspect(item),
                false => waiting.push(item),
            }
        }
        let rest = batches.into_iter().rev().flatten();
        rest.for_each(|item| waiting.push(item));
        written
    }

    /// Writes a batch until it is there, refused, or suspected to be what makes it fail. After a
    /// failure that may pass it first looks which entries are there nevertheless; and so it does when
    /// they have waited for long, because this process may have been taken for dead, and another may
    /// have written them.
    async fn try_deliver(&self, batch: &mut Vec<Item>) -> crate::Result<()> {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
        let mut failures = 0;
        leave_to_others(batch);
        if batch.iter().any(Item::is_doubtful) {
            let late = Error::transient("the entries have waited for long");
            self.keep_unwritten(batch, &mut backoff, late).await?;
        }
        loop {
            leave_to_others(batch);
            if batch.is_empty() {
                return Ok(());
            }
            let entries: Vec<LogEntry> = batch.iter().map(|item| item.entry.clone()).collect();
            let began = Instant::now();
            let error = match self.source.write_logs(&entries).await {
                Ok(()) => {
                    self.answers();
                    for entry in &entries {
                        metrics::counter!("prefect_agent_logs_written_total", "level" => entry.level.name())
                            .increment(1);
                    }
                    return Ok(());
                }
                Err(error) if error.is_transient() => error,
                Err(error) => return Err(error),
            };
            tracing::warn!("Failed to write flow-run logs, will try again: {error}");
            failures += 1;
            if let Error::Refused(_) = error {
                // It was answered: what is there is there now.
                let mut at_once = Backoff::new(Duration::from_millis(1), Duration::from_secs(1));
                self.keep_unwritten(batch, &mut at_once, error.clone())
                    .await?;
                return match batch.is_empty() {
                    true => Ok(()),
                    false => Err(error),
                };
            }
            // What was slow and got no answer may take as long again to be there.
            sleep(began.elapsed()).await;
            self.keep_unwritten(batch, &mut backoff, error.clone())
                .await?;
            let suspect = match error {
                Error::Unclear { .. } => SUSPECT_WHEN_UNCLEAR,
                _ => SUSPECT,
            };
            if failures == suspect && !batch.is_empty() {
                return Err(error);
            }
        }
    }

    fn answers(&self) {
        self.queue.lock().answered = Some(Instant::now());
    }

    /// Whether entries have been tried for so long that they would fail for ever, although the source
    /// answers.
    fn is_hopeless(&self, batch: &[Item]) -> bool {
        let answered = self.queue.lock().answered;
        let answers = answered.is_some_and(|at| at.elapsed() < AWAY);
        let old = |item: &Item| item.queued.elapsed() > HOPELESS;
        answers && batch.iter().all(old)
    }

    /// Looks, after a pause, which entries of a batch are in the logs, and takes these out, and those
    /// that are in the batch twice. When that cannot be found out for a while, it is an error, and the
    /// entries are doubtful from then on.
    async fn keep_unwritten(
        &self,
        batch: &mut Vec<Item>,
        backoff: &mut Backoff,
        why: Error,
    ) -> crate::Result<()> {
        let entries: Vec<LogEntry> = batch.iter().map(|item| item.entry.clone()).collect();
        let mut error = why;
        let mut looks = 0;
        let there = loop {
            sleep(backoff.pause(error.retry_after())).await;
            match self.source.logged(&entries).await {
                Ok(there) => break there,
                Err(again) if again.is_transient() => error = again,
                // A source that cannot tell: rather twice than never.
                Err(_) => break Vec::new(),
            }
            tracing::warn!("Cannot read which flow-run logs were written: {error}");
            looks += 1;
            if looks == SUSPECT {
                batch.iter_mut().for_each(|item| item.doubtful = true);
                return Err(error);
            }
        };
        self.answers();
        let mut there = there.into_iter();
        let mut kept: Vec<LogEntry> = Vec::new();
        batch.retain(|item| {
            let keep = !there.next().unwrap_or(false) && !kept.contains(&item.entry);
            if keep {
                kept.push(item.entry.clone());
            }
            keep
        });
        Ok(())
    }
}

/// Drops what is left to others.
fn leave_to_others(batch: &mut Vec<Item>) {
    batch.retain(|item| !item.is_doubtful() || !item.settled.leave());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(level: LogLevel, message: &str) -> Item {
        let entry = LogEntry {
            flow_run_id: "run".into(),
            name: "agent".to_owned(),
            message: message.to_owned(),
            level,
            timestamp: None,
        };
        Item {
            entry,
            queued: Instant::now(),
            doubtful: false,
            failures: 0,
            settled: Box::new(oneshot::channel().0),
        }
    }

    fn levels(waiting: &Waiting) -> [usize; 4] {
        use LogLevel::{Debug, Error, Info, Warning};
        let count = |level| {
            let items = waiting.items.iter();
            items.filter(|item| item.entry.level == level).count()
        };
        [Debug, Info, Warning, Error].map(count)
    }

    #[test]
    fn what_matters_least_is_dropped_first_and_errors_never() {
        let mut waiting = Waiting::default();
        for _ in 0..WAITING / 2 {
            assert!(waiting.offer(item(LogLevel::Debug, "")).is_none());
            assert!(waiting.offer(item(LogLevel::Info, "")).is_none());
        }
        for _ in 0..WAITING / 2 {
            assert!(waiting.offer(item(LogLevel::Error, "")).is_none());
        }
        assert_eq!(levels(&waiting), [0, WAITING / 2, 0, WAITING / 2]);
        assert!(waiting.offer(item(LogLevel::Debug, "")).is_none());
        assert_eq!(levels(&waiting), [0, WAITING / 2, 0, WAITING / 2]);
        for _ in 0..WAITING / 2 {
            assert!(waiting.offer(item(LogLevel::Error, "")).is_none());
        }
        assert_eq!(levels(&waiting), [0, 0, 0, WAITING]);
        assert!(
            waiting.offer(item(LogLevel::Error, "")).is_some(),
            "it has to wait"
        );
        assert!(waiting.offer(item(LogLevel::Warning, "")).is_none());
        assert_eq!(levels(&waiting), [0, 0, 0, WAITING]);
    }

    #[test]
    fn a_batch_is_bounded_in_entries_and_in_bytes() {
        let mut waiting = Waiting::default();
        for _ in 0..BATCH + 1 {
            waiting.offer(item(LogLevel::Info, "short"));
        }
        assert_eq!(waiting.take().len(), BATCH);
        let long = "x".repeat(BATCH_BYTES / 2 + 1);
        for _ in 0..3 {
            waiting.offer(item(LogLevel::Info, &long));
        }
        assert_eq!([2, 1, 1].map(|_| waiting.take().len()), [2, 1, 1]);
        assert_eq!(waiting.bytes, 0);
    }
}
