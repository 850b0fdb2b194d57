//! Reads the states of runs, many in one request, when a decision needs them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::sleep;

use crate::{Error, FlowRunId, FlowRunSource, Result, State};

/// Runs whose states are asked in one request.
pub(super) const CHUNK: usize = 500;
/// How long a question waits for others.
const LINGER: Duration = Duration::from_millis(20);

/// Whose state is wanted, and where the answer goes.
type Question = (FlowRunId, oneshot::Sender<Result<Option<State>>>);

pub(super) struct States {
    source: Arc<dyn FlowRunSource>,
    questions: mpsc::UnboundedSender<Question>,
    asked: Mutex<mpsc::UnboundedReceiver<Question>>,
}

impl States {
    pub(super) fn new(source: Arc<dyn FlowRunSource>) -> Self {
        let (questions, asked) = mpsc::unbounded_channel();
        Self {
            source,
            questions,
            asked: Mutex::new(asked),
        }
    }

    /// The state of a run; `None` when the source does not know it.
    pub(super) async fn of(&self, run: &FlowRunId) -> Result<Option<State>> {
        let (sender, receiver) = oneshot::channel();
        let stopped = || Error::transient("the agent stops");
        let sent = self.questions.send((run.clone(), sender));
        sent.map_err(|_| stopped())?;
        receiver.await.map_err(|_| stopped())?
    }

    /// Answers the questions, for as long as it is polled.
    pub(super) async fn answer(&self) -> Infallible {
        let mut asked = self.asked.lock().await;
        let mut batch = Vec::new();
        loop {
            asked.recv_many(&mut batch, CHUNK).await;
            sleep(LINGER).await;
            while batch.len() < CHUNK
                && let Ok(question) = asked.try_recv()
            {
                batch.push(question);
            }
            let runs: Vec<FlowRunId> = batch.iter().map(|(run, _)| run.clone()).collect();
            let answer = self.source.states(&runs).await;
            for (run, sender) in batch.drain(..) {
                let answer = match &answer {
                    Ok(states) => Ok(states.get(&run).cloned()),
                    Err(error) => Err(error.clone()),
                };
                let _ = sender.send(answer);
            }
        }
    }

    /// The states of many runs, chunk by chunk.
    pub(super) async fn of_all(&self, runs: &[FlowRunId]) -> Result<HashMap<FlowRunId, State>> {
        let mut states = HashMap::new();
        for chunk in runs.chunks(CHUNK) {
            states.extend(self.source.states(chunk).await?);
        }
        Ok(states)
    }
}
