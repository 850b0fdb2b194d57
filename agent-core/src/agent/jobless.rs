//! Which of the runs that a poll has found have no job at all: asked once for many of them.
//!
//! What is asked is the same as for one run, and no less fresh than its reading: the question goes out
//! after the poll's answer, and counts only while that reading does without being repeated. In the time
//! between, a job can appear only by somebody's claim. One that was made since the poll makes the source
//! refuse ours, as it does whatever is known of jobs; one from before, whose job takes so long that the
//! run was scheduled again meanwhile, may as well make it after any look. A run that has a job, ended or
//! not, is looked at by itself just before its claim.

use std::collections::HashSet;

use tokio::sync::OnceCell;

use crate::{FlowRunId, JobBackend};

/// The most runs that share a question, as many as a poll takes in hand by default: an answer for more
/// of them could come too late for those that wait for it.
pub(super) const MOST: usize = 64;

/// Runs of one poll, and what the backend says of them when the first of them is about to be claimed.
#[derive(Debug)]
pub(super) struct Jobless {
    runs: Vec<FlowRunId>,
    answer: OnceCell<HashSet<FlowRunId>>,
}

impl Jobless {
    /// Of runs that were read just now.
    pub(super) fn new(runs: Vec<FlowRunId>) -> Self {
        Self {
            runs,
            answer: OnceCell::new(),
        }
    }

    /// Whether a run is known to have no job; `false` also when that could not be found out.
    pub(super) async fn has(&self, run: &FlowRunId, backend: &dyn JobBackend) -> bool {
        let ask = async || match backend.jobs(&self.runs).await {
            Ok(jobs) => {
                let without = self.runs.iter().filter(|run| !jobs.contains_key(*run));
                without.cloned().collect()
            }
            Err(error) => {
                tracing::debug!("Cannot tell which of many runs have a job: {error}");
                HashSet::new()
            }
        };
        self.answer.get_or_init(ask).await.contains(run)
    }
}
