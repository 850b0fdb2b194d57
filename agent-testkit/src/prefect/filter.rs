//! Whether a row matches a `where`, and which of two rows comes first.

use std::cmp::Ordering;
use std::collections::HashMap;

use jiff::Timestamp;
use uuid::Uuid;

use super::inputs::{
    Direction, FlowRunFilter, FlowRunOrder, IntComparison, LogFilter, StringComparison,
    TaskRunFilter, TimeComparison, UuidComparison,
};
use super::rows::{FlowRunRow, LogRow, TaskRunRow};
use super::scalars::{Id, Time};

/// Compares a column that may be null; as in SQL, null matches nothing but `_is_null`.
macro_rules! compare {
    ($name:ident, $comparison:ty, $operand:ty => $value:ty, $get:expr) => {
        fn $name(comparison: Option<&$comparison>, column: Option<&$value>) -> bool {
            let Some(wanted) = comparison else {
                return true;
            };
            if wanted.is_null.is_some_and(|null| null != column.is_none()) {
                return false;
            }
            let value_of: fn(&$operand) -> &$value = $get;
            let holds = |operand: Option<_>, test: fn(Ordering) -> bool| match (operand, column) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(operand), Some(column)) => test(column.cmp(value_of(operand))),
            };
            let contains =
                |list: &Vec<_>| column.map(|column| list.iter().any(|one| column == value_of(one)));
            holds(wanted.eq.as_ref(), Ordering::is_eq)
                && holds(wanted.neq.as_ref(), Ordering::is_ne)
                && holds(wanted.lt.as_ref(), Ordering::is_lt)
                && holds(wanted.lte.as_ref(), Ordering::is_le)
                && holds(wanted.gt.as_ref(), Ordering::is_gt)
                && holds(wanted.gte.as_ref(), Ordering::is_ge)
                && wanted
                    .within
                    .as_ref()
                    .is_none_or(|list| contains(list) == Some(true))
                && wanted
                    .without
                    .as_ref()
                    .is_none_or(|list| contains(list) == Some(false))
        }
    };
}

compare!(id_fits, UuidComparison, Id => Uuid, |id| &id.0);
compare!(text_fits, StringComparison, String => str, |text| text.as_str());
compare!(number_fits, IntComparison, i64 => i64, |number| number);
compare!(time_fits, TimeComparison, Time => Timestamp, |time| &time.0);

/// Whether `run` matches; `tasks` holds the task runs of all runs.
pub(crate) fn flow_run_matches(
    filter: &FlowRunFilter,
    run: &FlowRunRow,
    tasks: &HashMap<Uuid, TaskRunRow>,
) -> bool {
    let has_task = |wanted| {
        let mut of_run = run.task_runs.iter().filter_map(|id| tasks.get(id));
        of_run.any(|task| task_run_matches(wanted, task))
    };
    id_fits(filter.id.as_ref(), Some(&run.id))
        && id_fits(filter.tenant_id.as_ref(), Some(&run.tenant_id))
        && id_fits(filter.flow_id.as_ref(), Some(&run.flow.id))
        && id_fits(filter.agent_id.as_ref(), run.agent_id.as_ref())
        && text_fits(filter.name.as_ref(), Some(run.name.as_str()))
        && text_fits(filter.state.as_ref(), Some(run.state.as_str()))
        && number_fits(filter.version.as_ref(), Some(&run.version))
        && number_fits(
            filter.times_resurrected.as_ref(),
            Some(&run.times_resurrected),
        )
        && time_fits(filter.state_timestamp.as_ref(), Some(&run.state_timestamp))
        && time_fits(
            filter.state_start_time.as_ref(),
            run.state_start_time.as_ref(),
        )
        && time_fits(
            filter.scheduled_start_time.as_ref(),
            run.scheduled_start_time.as_ref(),
        )
        && time_fits(filter.heartbeat.as_ref(), run.heartbeat.as_ref())
        && time_fits(filter.updated.as_ref(), Some(&run.updated))
        && filter.task_runs.as_ref().is_none_or(has_task)
        && filter
            .all
            .iter()
            .flatten()
            .all(|one| flow_run_matches(one, run, tasks))
        && filter
            .any
            .as_ref()
            .is_none_or(|any| any.iter().any(|one| flow_run_matches(one, run, tasks)))
        && filter
            .not
            .as_ref()
            .is_none_or(|not| !flow_run_matches(not, run, tasks))
}

/// Whether `log` matches.
pub(crate) fn log_matches(filter: &LogFilter, log: &LogRow) -> bool {
    text_fits(filter.name.as_ref(), log.name.as_deref())
        && text_fits(filter.level.as_ref(), log.level.as_deref())
        && text_fits(filter.message.as_ref(), log.message.as_deref())
        && time_fits(filter.timestamp.as_ref(), Some(&log.timestamp))
        && filter
            .any
            .as_ref()
            .is_none_or(|any| any.iter().any(|one| log_matches(one, log)))
}

/// Whether `task` matches.
pub(crate) fn task_run_matches(filter: &TaskRunFilter, task: &TaskRunRow) -> bool {
    id_fits(filter.id.as_ref(), Some(&task.id))
        && id_fits(filter.flow_run_id.as_ref(), Some(&task.flow_run_id))
        && id_fits(filter.task_id.as_ref(), Some(&task.task_id))
        && text_fits(filter.state.as_ref(), Some(task.state.as_str()))
        && number_fits(filter.version.as_ref(), Some(&task.version))
        && time_fits(filter.state_timestamp.as_ref(), Some(&task.state_timestamp))
        && time_fits(
            filter.state_start_time.as_ref(),
            task.state_start_time.as_ref(),
        )
        && time_fits(filter.heartbeat.as_ref(), task.heartbeat.as_ref())
        && filter
            .all
            .iter()
            .flatten()
            .all(|one| task_run_matches(one, task))
        && filter
            .any
            .as_ref()
            .is_none_or(|any| any.iter().any(|one| task_run_matches(one, task)))
        && filter
            .not
            .as_ref()
            .is_none_or(|not| !task_run_matches(not, task))
}

/// Which of two rows comes first by one `order_by`.
pub(crate) fn compare_rows(order: &FlowRunOrder, one: &FlowRunRow, other: &FlowRunRow) -> Ordering {
    by(order.id, Some(&one.id), Some(&other.id))
        .then_with(|| by(order.name, Some(&one.name), Some(&other.name)))
        .then_with(|| by(order.state, Some(&one.state), Some(&other.state)))
        .then_with(|| by(order.version, Some(&one.version), Some(&other.version)))
        .then_with(|| {
            let stamps = (Some(&one.state_timestamp), Some(&other.state_timestamp));
            by(order.state_timestamp, stamps.0, stamps.1)
        })
        .then_with(|| {
            let starts = (
                one.state_start_time.as_ref(),
                other.state_start_time.as_ref(),
            );
            by(order.state_start_time, starts.0, starts.1)
        })
        .then_with(|| {
            let starts = (
                one.scheduled_start_time.as_ref(),
                other.scheduled_start_time.as_ref(),
            );
            by(order.scheduled_start_time, starts.0, starts.1)
        })
        .then_with(|| {
            by(
                order.heartbeat,
                one.heartbeat.as_ref(),
                other.heartbeat.as_ref(),
            )
        })
        .then_with(|| by(order.updated, Some(&one.updated), Some(&other.updated)))
}

fn by<T: Ord>(direction: Option<Direction>, one: Option<&T>, other: Option<&T>) -> Ordering {
    let Some(direction) = direction else {
        return Ordering::Equal;
    };
    let (descending, nulls_first) = match direction {
        Direction::Asc | Direction::AscNullsLast => (false, false),
        Direction::AscNullsFirst => (false, true),
        Direction::Desc | Direction::DescNullsFirst => (true, true),
        Direction::DescNullsLast => (true, false),
    };
    match (one, other) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) if nulls_first => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) if nulls_first => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(one), Some(other)) if descending => other.cmp(one),
        (Some(one), Some(other)) => one.cmp(other),
    }
}
