//! Tells the run's owner what was found: each finding once, whoever dies meanwhile.
//!
//! Before the words are written, the job is marked with who is about to write them; afterwards,
//! that they were. A mark whose owner has died is taken over after a while, and then the run's log
//! tells whether the words are there.

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::Supervisor;
use super::handle::AGAIN;
use super::table::Own;
use crate::failpoint;
use crate::observation::{Finding, JobState, Observation, Turn};
use crate::{LogEntry, Result};

/// How long the last output of a failed process may take to be read.
const OUTPUT: Duration = Duration::from_secs(5);
/// For how long it is tried to mark a job before it is put off: the runs of others are to fail first.
const BEGINS: Duration = Duration::from_secs(1);
/// How long what a teller has sent may take to arrive after it was taken for dead.
const ARRIVES: Duration = Duration::from_secs(2);
/// How long the writing of words is waited for; it goes on after that.
const WRITTEN: Duration = Duration::from_secs(2);
/// Jobs whose words are being written at the same time. More are told later: logs that cannot be
/// written hold up no run's end, and fill no memory.
pub(super) const TELLINGS: usize = 256;

/// Words that are being written.
#[derive(Debug)]
pub(super) struct Telling {
    keys: Vec<String>,
    /// Whether the job is marked with that.
    marked: bool,
    writing: JoinHandle<()>,
}

impl Supervisor {
    /// Tells what is new; for how long the rest is put off if not all of it was told.
    pub(super) async fn tell(
        &self,
        seen: &Observation,
        due: &[&Finding],
        own: &mut Own,
        teller: &str,
    ) -> Result<Option<Duration>> {
        if !self.is_told(seen, own).await {
            return Ok(Some(AGAIN));
        }
        let new = |finding: &&&Finding| !own.handled.contains(&finding.key);
        let due: Vec<&Finding> = due.iter().filter(new).copied().collect();
        if due.is_empty() {
            return Ok(None);
        }
        let Ok(permit) = self.tellings.clone().try_acquire_owned() else {
            return Ok(Some(AGAIN));
        };
        let turns = match seen.state {
            JobState::Gone => None,
            _ => self.begin(seen, &due, teller, false).await?,
        };
        let Some(turns) = turns else {
            // Without marks, of a job that is gone or may not be marked, the run's log has what was told.
            let entries = self.unwritten(&due).await?;
            own.telling = Some(self.write(entries, keys(&due), false, permit));
            return Ok((!self.is_told(seen, own).await).then_some(AGAIN));
        };
        let (mut ours, mut inherited, mut rest) = (Vec::new(), Vec::new(), None);
        for (finding, turn) in due.iter().zip(turns) {
            match turn {
                Turn::Unknown => inherited.push(*finding),
                // Taken over, but the answer was lost, or the run's log could not be read.
                Turn::Ours if own.theirs.contains_key(&finding.key) => inherited.push(*finding),
                Turn::Ours => ours.push(*finding),
                Turn::Told => _ = own.handled.insert(finding.key.clone()),
                Turn::Theirs => {
                    let first = own.theirs.entry(finding.key.clone());
                    let over = *first.or_insert_with(Instant::now) + self.shared.options.take_over;
                    match over.saturating_duration_since(Instant::now()) {
                        Duration::ZERO => inherited.push(*finding),
                        left => rest = Some(rest.unwrap_or(left).min(left)),
                    }
                }
            }
        }
        let mut entries = Vec::new();
        for finding in &ours {
            entries.extend(self.words(finding).await);
        }
        if !inherited.is_empty() {
            self.begin(seen, &inherited, teller, true).await?;
            sleep(ARRIVES).await;
            entries.extend(self.unwritten(&inherited).await?);
        }
        failpoint::reached("after-begin");
        ours.append(&mut inherited);
        own.telling = Some(self.write(entries, keys(&ours), true, permit));
        match self.is_told(seen, own).await {
            true => Ok(rest),
            false => Ok(Some(AGAIN)),
        }
    }

    /// Has words written.
    fn write(
        &self,
        entries: Vec<LogEntry>,
        keys: Vec<String>,
        marked: bool,
        permit: OwnedSemaphorePermit,
    ) -> Telling {
        let logs = self.shared.logs.clone();
        let writing = tokio::spawn(async move {
            logs.written(entries).await;
            drop(permit);
        });
        Telling {
            keys,
            marked,
            writing,
        }
    }

    /// Whether the words that are being written, if there are any, are written by now or in a moment;
    /// marks the job with that.
    async fn is_told(&self, seen: &Observation, own: &mut Own) -> bool {
        let Some(telling) = &mut own.telling else {
            return true;
        };
        if timeout(WRITTEN, &mut telling.writing).await.is_err() {
            return false;
        }
        failpoint::reached("after-write");
        if telling.marked {
            self.end(seen, &telling.keys).await;
        }
        failpoint::reached("after-told");
        for key in own.telling.take().into_iter().flat_map(|one| one.keys) {
            own.theirs.remove(&key);
            own.handled.insert(key);
        }
        true
    }

    /// Marks the findings as ours to tell, as far as they are; `None` when this agent may not mark
    /// the job.
    async fn begin(
        &self,
        seen: &Observation,
        findings: &[&Finding],
        teller: &str,
        take_over: bool,
    ) -> Result<Option<Vec<Turn>>> {
        let keys = keys(findings);
        let backend = &self.shared.backend;
        let begin = || backend.begin_telling(&seen.job, &keys, teller, take_over);
        let what = format!("Cannot note on Job {} what is told", seen.job);
        match self.insistently_for(BEGINS, &what, begin).await {
            Err(error) if !super::may_pass(&error) => Ok(None),
            turns => turns.map(Some),
        }
    }

    /// Marks the findings as told.
    async fn end(&self, seen: &Observation, keys: &[String]) {
        if keys.is_empty() {
            return;
        }
        let told = || self.shared.backend.told(&seen.job, keys);
        let what = format!("Cannot note on Job {} what was told", seen.job);
        // Refused, or the agent stops: the next process looks into the run's log.
        let _ = self.insistently(&what, told).await;
    }

    /// The entries of a finding, with the last output of its processes.
    async fn words(&self, finding: &Finding) -> Vec<LogEntry> {
        let mut entries = finding.logs.clone();
        for process in &finding.output_of {
            let reading = timeout(OUTPUT, self.shared.backend.output(process)).await;
            let output = match reading {
                Ok(Ok(output)) => output,
                Ok(Err(error)) => {
                    tracing::debug!("Cannot read the last output of {process}: {error}");
                    None
                }
                Err(_) => None,
            };
            if let (Some(output), Some(entry)) = (output, entries.first_mut()) {
                entry.message.push('\n');
                entry.message.push_str(&output);
            }
        }
        entries
    }

    /// Those entries of findings of a dead teller that it had not written.
    async fn unwritten(&self, findings: &[&Finding]) -> Result<Vec<LogEntry>> {
        let mut missing = Vec::new();
        for finding in findings {
            let logged = || self.shared.source.logged(&finding.logs);
            let reading = self.insistently("Cannot read the log of a flow run", logged);
            let there = match reading.await {
                // Rather twice than never.
                Err(error) if !super::may_pass(&error) => vec![false; finding.logs.len()],
                there => there?,
            };
            if there.iter().all(|there| *there) {
                continue;
            }
            let entries = self.words(finding).await.into_iter().zip(there);
            missing.extend(entries.filter_map(|(entry, there)| (!there).then_some(entry)));
        }
        Ok(missing)
    }
}

fn keys(findings: &[&Finding]) -> Vec<String> {
    findings.iter().map(|finding| finding.key.clone()).collect()
}
