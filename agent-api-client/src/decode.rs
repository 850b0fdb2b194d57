//! Answers of the API as what they mean, without the requests: what benchmarks measure.

use std::collections::HashMap;

use agent_core::{FlowRun, FlowRunId, State};

use crate::error::Cause;
use crate::operations::{ReadyFlowRun, RunState};
use crate::row::FlowRunRow;
use crate::rows::Row;
use crate::transport;

/// The flow runs in the answer about those that are ready.
///
/// # Errors
/// What the answer says instead.
pub fn ready(answer: &[u8]) -> Result<Vec<FlowRun>, Cause> {
    let rows = transport::interpret_rows::<ReadyFlowRun>(answer)?;
    let rows = rows.into_iter().map(FlowRunRow::from);
    Ok(rows.map(FlowRunRow::into_flow_run).collect())
}

/// The states in the answer about those of many runs.
///
/// # Errors
/// What the answer says instead.
pub fn states(answer: &[u8]) -> Result<HashMap<FlowRunId, State>, Cause> {
    let rows = transport::interpret_rows::<RunState>(answer)?;
    let state = |row: &Row<RunState>| (row.row.id.0.as_str().into(), row.row.state());
    Ok(rows.iter().map(state).collect())
}
