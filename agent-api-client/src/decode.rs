//! Answers of the API as what they mean, without the requests: what benchmarks measure.

use std::collections::HashMap;

use agent_core::{FlowRun, FlowRunId, State};

use crate::error::Cause;
use crate::operations::{ReadyFlowRuns, RunStates};
use crate::row::FlowRunRow;
use crate::transport;

/// The flow runs in the answer about those that are ready.
///
/// # Errors
/// What the answer says instead.
pub fn ready(answer: &[u8]) -> Result<Vec<FlowRun>, Cause> {
    let rows = transport::interpret::<ReadyFlowRuns>(answer)?.flow_run;
    let rows = rows.into_iter().map(FlowRunRow::from);
    Ok(rows.map(FlowRunRow::into_flow_run).collect())
}

/// The states in the answer about those of many runs.
///
/// # Errors
/// What the answer says instead.
pub fn states(answer: &[u8]) -> Result<HashMap<FlowRunId, State>, Cause> {
    let rows = transport::interpret::<RunStates>(answer)?.flow_run;
    let state = |row: &crate::operations::RunState| (row.id.0.as_str().into(), row.state());
    Ok(rows.iter().map(state).collect())
}
