//! A small file that says which runs this process is creating Jobs for. When the process is killed,
//! the next one reads there whose handling may have been the cause, takes these runs up one at a time
//! and after all others, and gives up one that was in flight at several deaths.
//!
//! The file is a table of records of equal size, one for each run in flight. A record is written in
//! place and never synced: it has to outlive the process, not the machine.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::FlowRunId;

/// Bytes of a record: a flag, the number of deaths in hexadecimal, the run's id, spaces, a newline.
const RECORD_BYTES: usize = 64;
const MAX_ID_BYTES: usize = RECORD_BYTES - 4;
/// Records that are read at the start; more runs are never in flight.
const MAX_RECORDS: usize = 4096;
/// Processes that may use the same path at the same time, each with a file of its own.
const MAX_FILES: u32 = 32;

/// The runs in flight, in memory and in the file.
#[derive(Debug, Default)]
pub(super) struct Journal {
    path: Option<PathBuf>,
    file: Option<File>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    records: HashMap<FlowRunId, Record>,
    free: Vec<usize>,
    /// Records that the file has room for so far.
    len: usize,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    place: usize,
    /// Deaths of a process while the run was in flight.
    deaths: u8,
}

/// A run in flight, until this is dropped.
#[derive(Debug)]
pub(super) struct InFlightMark<'a> {
    run: FlowRunId,
    journal: &'a Journal,
}

impl Journal {
    /// Opens a journal at `path`, to which a number is added: the first one that no living process
    /// uses. Without a file, which is a warning in the log, nothing is remembered.
    pub(super) fn open(path: Option<&Path>) -> Self {
        let Some(path) = path else {
            return Self::default();
        };
        match Self::try_open(path) {
            Ok(journal) => journal,
            Err(error) => {
                let path = path.display();
                tracing::warn!(%path, %error, "Cannot keep a journal of the runs in flight");
                Self::default()
            }
        }
    }

    fn try_open(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        for number in 0..MAX_FILES {
            let mut path = path.as_os_str().to_owned();
            path.push(format!(".{number}"));
            let path = PathBuf::from(path);
            let mut options = OpenOptions::new();
            let mut file = options
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(std::fs::TryLockError::WouldBlock) => continue,
                Err(std::fs::TryLockError::Error(error)) => return Err(error),
            }
            let mut text = Vec::new();
            let limit = (MAX_RECORDS * RECORD_BYTES) as u64;
            (&mut file).take(limit).read_to_end(&mut text)?;
            let journal = Self {
                path: Some(path),
                file: Some(file),
                inner: Mutex::default(),
            };
            journal.restore(&text)?;
            return Ok(journal);
        }
        Err(io::Error::other("all files are in use"))
    }

    /// Begins with those that the last process had in flight, each with one more death.
    fn restore(&self, text: &[u8]) -> io::Result<()> {
        let mut before: Vec<(FlowRunId, u8)> = text
            .chunks_exact(RECORD_BYTES)
            .filter_map(parse_record)
            .collect();
        before.dedup_by(|a, b| a.0 == b.0);
        if let Some(file) = &self.file {
            file.set_len(0)?;
        }
        for (run, deaths) in before {
            tracing::warn!(
                flow_run_id = %run, deaths,
                "The process ended while it was creating the Job of a flow run"
            );
            self.put(&run, deaths, b'S');
        }
        Ok(())
    }

    /// Returns how often a process has ended while the run was in flight.
    pub(super) fn deaths(&self, run: &FlowRunId) -> u8 {
        self.lock().records.get(run).map_or(0, |one| one.deaths)
    }

    /// Marks a run as in flight.
    pub(super) fn begin(&self, run: &FlowRunId) -> InFlightMark<'_> {
        let deaths = self.deaths(run);
        self.put(run, deaths, b'F');
        InFlightMark {
            run: run.clone(),
            journal: self,
        }
    }

    /// Forgets a run: its handling has ended, and not the process.
    pub(super) fn clear(&self, run: &FlowRunId) {
        let mut inner = self.lock();
        if let Some(record) = inner.records.remove(run) {
            inner.free.push(record.place);
            self.write(record.place, &[b' '; RECORD_BYTES]);
        }
    }

    fn put(&self, run: &FlowRunId, deaths: u8, flag: u8) {
        if self.file.is_none() || run.as_str().len() > MAX_ID_BYTES {
            return;
        }
        let mut inner = self.lock();
        let place = match inner.records.get(run) {
            Some(record) => record.place,
            None => inner.free.pop().unwrap_or_else(|| {
                inner.len += 1;
                inner.len - 1
            }),
        };
        inner.records.insert(run.clone(), Record { place, deaths });
        let mut record = [b' '; RECORD_BYTES];
        let text = format!("{}{deaths:02x}{run}", flag as char);
        record[..text.len()].copy_from_slice(text.as_bytes());
        record[RECORD_BYTES - 1] = b'\n';
        self.write(place, &record);
    }

    fn write(&self, place: usize, record: &[u8; RECORD_BYTES]) {
        if let Some(file) = &self.file
            && let Err(error) = file.write_all_at(record, (place * RECORD_BYTES) as u64)
        {
            tracing::debug!(%error, "Cannot write the journal of the runs in flight");
        }
    }

    /// Removes the file: nothing is in flight any more that the process could be blamed for.
    pub(super) fn remove(&self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InFlightMark<'_> {
    /// The run was not handled after all: what was known of it before stays.
    pub(super) fn put_back(self) {
        let deaths = self.journal.deaths(&self.run);
        if deaths > 0 {
            self.journal.put(&self.run, deaths, b'S');
            std::mem::forget(self);
        }
    }
}

impl Drop for InFlightMark<'_> {
    fn drop(&mut self) {
        self.journal.clear(&self.run);
    }
}

/// Returns the run of a record and how often a process has ended with it.
fn parse_record(record: &[u8]) -> Option<(FlowRunId, u8)> {
    let text = std::str::from_utf8(record).ok()?;
    let deaths = u8::from_str_radix(text.get(1..3)?, 16).ok()?;
    let run = text.get(3..)?.trim();
    let deaths = match text.as_bytes().first()? {
        b'F' => deaths.saturating_add(1),
        b'S' => deaths,
        _ => return None,
    };
    (!run.is_empty()).then(|| (run.into(), deaths))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path of a test's own, which goes with it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("prefect-agent-journal-{name}-{}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }

        fn open(&self) -> Journal {
            Journal::open(Some(&self.0.join("in-flight")))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_run_in_flight_at_a_death_is_known_to_the_next_process_and_others_are_not() {
        let folder = Folder::new("deaths");
        let (bad, good) = (FlowRunId::from("bad"), FlowRunId::from("good"));
        for deaths in 0..3 {
            let journal = folder.open();
            assert_eq!(journal.deaths(&bad), deaths);
            assert_eq!(journal.deaths(&good), 0);
            drop(journal.begin(&good));
            // Killed: nothing is cleared.
            std::mem::forget(journal.begin(&bad));
        }
    }

    #[test]
    fn one_that_waits_for_its_turn_is_not_blamed_again() {
        let folder = Folder::new("turn");
        let bad = FlowRunId::from("bad");
        std::mem::forget(folder.open().begin(&bad));
        drop(folder.open());
        let journal = folder.open();
        assert_eq!(journal.deaths(&bad), 1);
        drop(journal.begin(&bad));
        drop(journal);
        assert_eq!(folder.open().deaths(&bad), 0, "its handling has ended");
    }

    #[test]
    fn one_that_was_not_handled_is_not_absolved() {
        let folder = Folder::new("absolved");
        let bad = FlowRunId::from("bad");
        std::mem::forget(folder.open().begin(&bad));
        folder.open().begin(&bad).put_back();
        assert_eq!(folder.open().deaths(&bad), 1);
    }

    #[test]
    fn processes_at_the_same_time_have_files_of_their_own() {
        let folder = Folder::new("files");
        let run = FlowRunId::from("run");
        let (one, other) = (folder.open(), folder.open());
        let _mark = one.begin(&run);
        assert_eq!(other.deaths(&run), 0);
        assert_ne!(one.path, other.path);
    }

    #[test]
    fn without_a_file_nothing_is_remembered_and_nothing_fails() {
        let journal = Journal::open(Some(Path::new("/proc/none/in-flight")));
        let _mark = journal.begin(&"run".into());
        assert_eq!(journal.deaths(&"run".into()), 0);
    }
}
