//! The client as a [`FlowRunSource`].

use std::collections::HashMap;
use std::time::Duration;

use agent_core::backoff::Backoff;
use agent_core::{
    Claim, Error, FlowRun, FlowRunId, FlowRunSource, LogEntry, Phase, Ready, ReadyQuery,
    Registration, Result, State, Work, async_trait,
};
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::client::{PrefectApi, without_nul};
use crate::error::{ApiError, Cause, UPDATE_FAILED};
use crate::operations::StateResult;
use crate::row::{FlowRunRow, TaskToken, Token};
use crate::state;

#[async_trait]
impl FlowRunSource for PrefectApi {
    fn now(&self) -> Timestamp {
        self.transport.now()
    }

    async fn register(&self) -> Result<Registration> {
        let mut registered = self.registered.lock().await;
        if let Some(registration) = &*registered {
            return Ok(registration.clone());
        }
        let registration = self
            .introduce()
            .await
            .map_err(|error| Error::permanent(format!("Error while contacting API: {error}")))?;
        *registered = Some(registration.clone());
        Ok(registration)
    }

    async fn ready(&self, query: ReadyQuery<'_>) -> Result<Ready> {
        let ids = self.queue(query.before).await?;
        let queued = ids.len();
        let new: Vec<String> = ids
            .into_iter()
            .filter(|id| !query.known.contains(id.as_str()))
            .take(query.limit)
            .collect();
        if new.is_empty() {
            return Ok(Ready {
                runs: Vec::new(),
                queued,
            });
        }
        let asked = new.len();
        let rows = self.rows(new).await?;
        if rows.len() < asked {
            tracing::debug!(
                "{} queued flow run(s) are not ready any more",
                asked - rows.len()
            );
        }
        let mut runs: Vec<FlowRun> = rows.into_iter().map(FlowRunRow::into_flow_run).collect();
        runs.sort_by_key(|run| run.due);
        Ok(Ready { runs, queued })
    }

    async fn reread(&self, run: &FlowRun) -> Result<Option<FlowRun>> {
        let rows = self.rows(vec![run.id.to_string()]).await?;
        Ok(rows.into_iter().next().map(FlowRunRow::into_flow_run))
    }

    async fn claim(&self, run: &FlowRun) -> Result<Claim> {
        let token: Token = serde_json::from_value(run.token.clone()).map_err(|error| {
            Error::permanent(format!("flow run {} has no token: {error}", run.id))
        })?;
        let scheduled = state::is_scheduled(&token.state);
        if !scheduled && token.tasks.is_empty() {
            return Ok(Claim::Lost("nothing of it is scheduled".to_owned()));
        }
        if scheduled {
            let claim = self.claim_run(run, &token).await?;
            if claim != Claim::Claimed {
                return Ok(claim);
            }
        }
        for task in &token.tasks {
            let submitted = state::submitted(&task.state, "Submitted for execution.", self.place());
            let mut backoff = self.backoff();
            let until = Instant::now() + self.settings.retry_for;
            loop {
                let state = submitted.clone();
                let result = self.set_task_run_state(&task.id, task.version, state).await;
                match self.outcome(result, &mut backoff, until).await? {
                    Outcome::Accepted => break,
                    Outcome::Declined(claim) => return Ok(claim),
                    Outcome::Unknown(_) => {}
                }
            }
        }
        Ok(Claim::Claimed)
    }

    async fn claim_to_fail(&self, run: &FlowRun) -> Result<Claim> {
        // Without what else the state holds, which may be what is refused.
        let token: Token = serde_json::from_value(run.token.clone()).unwrap_or_default();
        let tasks = token.tasks.into_iter().map(|task| TaskToken {
            state: state::bare(&task.state),
            ..task
        });
        let token = Token {
            version: token.version,
            state: state::bare(&token.state),
            tasks: tasks.collect(),
        };
        let bare = FlowRun {
            due: run.due,
            under_way: run.under_way,
            attempt: run.attempt.clone(),
            token: serde_json::to_value(token).unwrap_or_default(),
            ..FlowRun::new(run.id.clone(), "", Work::Unreadable(String::new()))
        };
        self.claim(&bare).await
    }

    async fn fail(&self, run: &FlowRunId, message: &str) -> Result<()> {
        let mut backoff = self.backoff();
        let until = Instant::now() + self.settings.retry_for;
        loop {
            let states = self.run_states(std::slice::from_ref(run)).await?;
            if states.iter().any(|row| row.state().is_finished()) {
                return Ok(());
            }
            let version = states.first().and_then(|row| row.version);
            let failed = state::failed(&without_nul(message));
            let error = match self.set_flow_run_state(run.as_str(), version, failed).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let pause = backoff.pause(error.cause.retry_after());
            // Changed by somebody since it was read: it is read again.
            let again = error.cause.is_transient() || error.cause == Cause::VersionConflict;
            if !again || Instant::now() + pause > until {
                return Err(error.into());
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn write_logs(&self, entries: &[LogEntry]) -> Result<()> {
        self.write_run_logs(entries)
            .await
            .map_err(|error| match &error.cause {
                // Too large, or not to the taste of something in front of the API.
                Cause::Status {
                    status: 400 | 413 | 414 | 422 | 431,
                    ..
                } => Error::permanent(error.to_string()),
                // A database that is away refuses all, one entry that it cannot hold only that.
                Cause::Broken(_) | Cause::Unavailable { .. } | Cause::Internal(_) => {
                    Error::Unclear {
                        message: error.to_string(),
                        retry_after: error.cause.retry_after(),
                    }
                }
                _ => error.into(),
            })
    }

    async fn logged(&self, entries: &[LogEntry]) -> Result<Vec<bool>> {
        Ok(PrefectApi::logged(self, entries).await?)
    }

    async fn ended_since(&self, since: Timestamp) -> Result<HashMap<FlowRunId, State>> {
        let rows = self.ended(since).await?;
        let ended = rows.into_iter().filter_map(|row| {
            let state = state::state(row.state.as_deref()?);
            Some((row.id.0.into(), state))
        });
        Ok(ended.collect())
    }

    async fn states(&self, runs: &[FlowRunId]) -> Result<HashMap<FlowRunId, State>> {
        let rows = self.run_states(runs).await?;
        Ok(rows
            .into_iter()
            .map(|row| (row.id.0.as_str().into(), row.state()))
            .collect())
    }

    async fn claimed(&self, age: Duration) -> Result<Vec<FlowRunId>> {
        let agent = self.agent()?;
        let now = self.now();
        let age = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
        let before = now.saturating_sub(age).unwrap_or(Timestamp::MIN);
        Ok(self.claimed_ids(agent, before).await?)
    }

    async fn claimed_runs(&self, runs: &[FlowRunId]) -> Result<Vec<FlowRun>> {
        let rows = self.claimed_rows(self.agent()?, runs).await?;
        Ok(rows.into_iter().map(FlowRunRow::into_claimed_run).collect())
    }
}

/// What a request to set a state came to.
enum Outcome {
    Accepted,
    Declined(Claim),
    /// A passing failure, after its pause; `true` when the request may have taken effect.
    Unknown(bool),
}

impl PrefectApi {
    /// The id under which this agent claims.
    fn agent(&self) -> Result<&str> {
        let agent = self.transport.agent();
        agent.ok_or_else(|| Error::permanent("the agent is not registered"))
    }

    async fn introduce(&self) -> std::result::Result<Registration, ApiError> {
        let tenant = self.tenant().await?;
        tracing::info!("Registering agent...");
        let agent_id = self.register_agent(&tenant).await?;
        tracing::info!("Registration successful!");
        self.hello().await?;
        Ok(Registration {
            agent_id,
            address: self.address().to_owned(),
            tenant,
        })
    }

    /// Claims a scheduled run. When an answer is lost, the run is read back: it is ours if it is
    /// Submitted by this agent for the start time at hand.
    async fn claim_run(&self, run: &FlowRun, token: &Token) -> Result<Claim> {
        let submitted = state::submitted(&token.state, "Submitted for execution", self.place());
        let mut backoff = self.backoff();
        let until = Instant::now() + self.settings.retry_for;
        let mut maybe_ours = false;
        loop {
            let state = submitted.clone();
            let result = self
                .set_flow_run_state(run.id.as_str(), token.version, state)
                .await;
            match self.outcome(result, &mut backoff, until).await {
                Ok(Outcome::Accepted) => return Ok(Claim::Claimed),
                Ok(Outcome::Declined(Claim::Lost(_))) if maybe_ours => {
                    return self.read_back(run, token).await.map(|found| {
                        found.unwrap_or_else(|| Claim::Lost("its claim was refused".to_owned()))
                    });
                }
                Ok(Outcome::Declined(claim)) => return Ok(claim),
                // Meanwhile the run may have been claimed and have ended, and a server that was
                // restarted remembers no claim.
                Ok(Outcome::Unknown(ambiguous)) => {
                    maybe_ours |= ambiguous;
                    match self.read_back(run, token).await? {
                        None => {}
                        Some(Claim::Claimed) if !maybe_ours => {
                            return Ok(Claim::Lost("another replica has it".to_owned()));
                        }
                        Some(found) => return Ok(found),
                    }
                }
                Err(error) if error.is_transient() => {
                    // The last word on a claim whose answers were all lost.
                    return match self.read_back(run, token).await {
                        Ok(Some(found)) => Ok(found),
                        _ => Err(error),
                    };
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Where this agent's jobs are, as its claims say.
    pub(crate) fn place(&self) -> Option<&str> {
        self.settings.place.as_deref()
    }

    /// What became of a claim; `None` when the run is still as it was before.
    async fn read_back(&self, run: &FlowRun, token: &Token) -> Result<Option<Claim>> {
        let rows = self.run_states(std::slice::from_ref(&run.id)).await?;
        let Some(row) = rows.into_iter().next() else {
            return Ok(Some(Claim::Lost(
                "the API does not know it any more".to_owned(),
            )));
        };
        let wanted = row
            .serialized_state
            .as_ref()
            .and_then(|json| state::wanted_time(&json.0));
        let same = run.due.is_none() || wanted == state::wanted_time(&token.state);
        let state = row.state();
        let claim = row.serialized_state.as_ref().map(|json| &json.0);
        let here = claim.and_then(state::place) == self.place();
        let by_us = here && row.agent_id.as_ref().map(|id| id.0.as_str()) == self.transport.agent();
        Ok(match state.phase {
            Phase::Scheduled if same => None,
            Phase::Submitted if same && by_us => Some(Claim::Claimed),
            _ => Some(Claim::Lost(format!("it is {} by now", state.name))),
        })
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(Duration::from_millis(100), Duration::from_secs(5))
    }

    /// Sorts out an answer; pauses after a passing failure while there is time left.
    async fn outcome(
        &self,
        result: std::result::Result<StateResult, ApiError>,
        backoff: &mut Backoff,
        until: Instant,
    ) -> Result<Outcome> {
        let error = match result {
            Ok(answer) if answer.status.as_deref() == Some("QUEUED") => {
                let why = answer.message.filter(|message| !message.is_empty());
                let why = why.unwrap_or_else(|| "a concurrency limit is reached".to_owned());
                return Ok(Outcome::Declined(Claim::StillQueued(why)));
            }
            Ok(_) => return Ok(Outcome::Accepted),
            Err(error) => error,
        };
        match &error.cause {
            Cause::VersionConflict => {
                let why = "it has changed meanwhile".to_owned();
                Ok(Outcome::Declined(Claim::Lost(why)))
            }
            Cause::Refused(why) if why.contains(UPDATE_FAILED) => {
                Ok(Outcome::Declined(Claim::Lost(why.clone())))
            }
            cause if cause.is_transient() => {
                let pause = backoff.pause(cause.retry_after());
                if Instant::now() + pause > until {
                    return Err(error.into());
                }
                tracing::debug!("{error}; trying again in {pause:?}");
                tokio::time::sleep(pause).await;
                Ok(Outcome::Unknown(cause.is_ambiguous()))
            }
            _ => Err(error.into()),
        }
    }
}
