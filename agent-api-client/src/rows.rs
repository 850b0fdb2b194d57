//! Rows of an answer, read one by one: one that cannot be read, or takes too much memory, is reduced to
//! what is needed to say so, and takes no other row with it.

use std::fmt;

use agent_core::clip;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::operations;

/// The longest row that is read: no Job of which a part is larger is taken by Kubernetes.
const MAX_ROW_BYTES: usize = 2 << 20;
/// The most values in a row: each takes some tens of bytes of memory, however short it is.
const MAX_ROW_VALUES: usize = 50_000;
/// The same for the task runs of a row, of which a mapped task may have thousands that are retried.
const MAX_TASKS_BYTES: usize = 4 << 20;
const MAX_TASKS_VALUES: usize = 200_000;
/// What a value takes in memory besides its text, about.
const VALUE_BYTES: usize = 72;
/// How deep what is left of a row may be nested, and how many values it may have.
const MAX_BARE_DEPTH: usize = 12;
const MAX_BARE_VALUES: usize = 2_000;
const MAX_BARE_TEXT: usize = 64 << 10;
/// How much the rows of one answer may weigh together. Those behind are left for the next question.
const MAX_ANSWER_WEIGHT: usize = 24 << 20;
/// How long the reason may be for which a row cannot be read, in bytes.
const MAX_REASON_BYTES: usize = 500;
/// Members of a row that say what is to be executed: not needed of a row that cannot be.
const DESCRIPTIONS: [&str; 4] = ["run_config", "storage", "environment", "cached_inputs"];

/// A row as it was read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row<R> {
    pub(crate) row: R,
    /// Why only a part of it could be read, if so.
    pub(crate) defect: Option<String>,
    /// Bytes of memory that it takes, about.
    pub(crate) weight: usize,
}

/// A kind of row.
pub(crate) trait RowKind: DeserializeOwned {
    /// How much the rows of one answer may weigh together; those behind are missing.
    const MAX_WEIGHT: usize = usize::MAX;

    /// Forgets what the agent does not need.
    fn slim(&mut self) {}
}

impl RowKind for operations::ReadyFlowRun {
    const MAX_WEIGHT: usize = MAX_ANSWER_WEIGHT;
}

impl RowKind for operations::ClaimedFlowRun {
    const MAX_WEIGHT: usize = MAX_ANSWER_WEIGHT;
}

impl RowKind for operations::BareFlowRun {}

impl RowKind for operations::EndedRun {}

impl RowKind for operations::RunState {
    fn slim(&mut self) {
        self.serialized_state
            .iter_mut()
            .for_each(|json| slim(&mut json.0));
    }
}

impl RowKind for operations::ClaimOfRun {
    fn slim(&mut self) {
        let own = self.serialized_state.iter_mut();
        let tasks = self.task_runs.iter_mut();
        let states = own.chain(tasks.filter_map(|task| task.serialized_state.as_mut()));
        states.for_each(|json| slim(&mut json.0));
    }
}

/// Reads each row of `texts`. Returns those that could be read at least in part.
pub(crate) fn read_rows<R: RowKind>(texts: &[&RawValue]) -> Vec<Row<R>> {
    let mut weight = 0;
    let mut rows = Vec::with_capacity(texts.len());
    for text in texts {
        let Some(mut row) = read_row::<R>(text.get()) else {
            continue;
        };
        row.row.slim();
        weight += row.weight;
        if weight > R::MAX_WEIGHT && !rows.is_empty() {
            break;
        }
        rows.push(row);
    }
    rows
}

fn read_row<R: DeserializeOwned>(text: &str) -> Option<Row<R>> {
    let tasks = tasks_of(text);
    let (all, of_tasks) = (count_values(text), count_values(tasks));
    let (bytes, values) = (text.len() - tasks.len(), all - of_tasks);
    let defect = if bytes > MAX_ROW_BYTES {
        format!(
            "it takes {} KiB, and no more than {} KiB can become a Job",
            bytes >> 10,
            MAX_ROW_BYTES >> 10
        )
    } else if values > MAX_ROW_VALUES {
        format!("it has {values} values, and no more than {MAX_ROW_VALUES} are read")
    } else if tasks.len() > MAX_TASKS_BYTES || of_tasks > MAX_TASKS_VALUES {
        format!(
            "its task runs that are to be retried take {} KiB and have {of_tasks} values, and no more than {} KiB and {MAX_TASKS_VALUES} values are read",
            tasks.len() >> 10,
            MAX_TASKS_BYTES >> 10
        )
    } else {
        let reader = &mut serde_json::Deserializer::from_str(text);
        match serde_path_to_error::deserialize(reader) {
            Ok(row) => {
                let weight = text.len() + all * VALUE_BYTES;
                return Some(Row {
                    row,
                    defect: None,
                    weight,
                });
            }
            Err(error) => clip(&error.to_string(), MAX_REASON_BYTES).into_owned(),
        }
    };
    let mut left = MAX_BARE_VALUES;
    let bare = bare(text, 0, &mut left);
    match serde_json::from_value(bare) {
        Ok(row) => Some(Row {
            row,
            defect: Some(defect),
            weight: MAX_BARE_VALUES * VALUE_BYTES,
        }),
        Err(error) => {
            tracing::error!(%error, "A row of the API's answer cannot be read at all: {defect}");
            None
        }
    }
}

/// Returns the task runs in the text of a row; nothing if there are none.
fn tasks_of(text: &str) -> &str {
    #[derive(Deserialize)]
    struct Tasks<'a> {
        #[serde(borrow, default)]
        task_runs: Option<&'a RawValue>,
    }
    let read = serde_json::from_str::<Tasks<'_>>(text).ok();
    read.and_then(|row| row.task_runs).map_or("", RawValue::get)
}

/// Returns how many values a JSON text has at most, by its punctuation outside of strings.
fn count_values(text: &str) -> usize {
    let (mut count, mut quoted, mut escaped) = (0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' | b'[' | b'{' | b':' if !quoted => count += 1,
            _ => {}
        }
    }
    count
}

/// Returns what can be read of a value without a description of what is to be executed: what is nested
/// too deeply, too long or no JSON number is null.
fn bare(text: &str, depth: usize, left: &mut usize) -> Value {
    if *left == 0 {
        return Value::Null;
    }
    *left -= 1;
    match text.trim_start().as_bytes().first() {
        Some(b'{' | b'[') if depth > MAX_BARE_DEPTH => Value::Null,
        Some(b'{' | b'[') => serde_json::Deserializer::from_str(text)
            .deserialize_any(Bare { depth, left })
            .unwrap_or_default(),
        _ if text.len() > MAX_BARE_TEXT => Value::Null,
        _ => serde_json::from_str(text).unwrap_or_default(),
    }
}

/// Reads a list or an object as far as there may be values; what is behind is passed over.
struct Bare<'l> {
    depth: usize,
    /// How many values there may still be.
    left: &'l mut usize,
}

impl Bare<'_> {
    /// Returns what can be read of a part. No part takes more than half of what is left, so that those
    /// behind a large one have something, too.
    fn part(&mut self, text: &str) -> Value {
        let share = self.left.div_ceil(2);
        let mut left = share;
        let value = bare(text, self.depth + 1, &mut left);
        *self.left -= share - left;
        value
    }
}

impl<'de> Visitor<'de> for Bare<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list or an object")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while *self.left > 0
            && let Some(item) = list.next_element::<&RawValue>()?
        {
            items.push(self.part(item.get()));
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut object: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while *self.left > 0
            && let Some((name, value)) = object.next_entry::<String, &RawValue>()?
        {
            let value = match DESCRIPTIONS.contains(&name.as_str()) {
                true => Value::Null,
                false => self.part(value.get()),
            };
            members.insert(name, value);
        }
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Object(members))
    }
}

/// The rows in the data of an answer, unread.
#[derive(Deserialize)]
pub(crate) struct RawRows<'a> {
    #[serde(borrow)]
    pub(crate) flow_run: Vec<&'a RawValue>,
}

/// Returns of a state what an agent needs to know of it; the rest may be large.
fn slim(state: &mut Value) {
    let Value::Object(members) = state else {
        return;
    };
    members.retain(|name, _| {
        matches!(
            name.as_str(),
            "type" | "message" | "start_time" | "state" | "context"
        )
    });
    if let Some(context) = members.get_mut("context") {
        let place = context.get_mut("kubernetes").map(Value::take);
        *context = place.map_or(
            Value::Null,
            |place| serde_json::json!({"kubernetes": place}),
        );
    }
    if let Some(inner) = members.get_mut("state") {
        slim(inner);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::row::FlowRunRow;

    fn read(row: &str) -> Row<FlowRunRow> {
        read_row(row).expect("a row")
    }

    impl RowKind for FlowRunRow {
        const MAX_WEIGHT: usize = MAX_ANSWER_WEIGHT;
    }

    /// A row that waits for its start, with this as its run config.
    fn row(run_config: &str) -> String {
        let row = json!({
            "id": "r", "version": 3, "flow": {"id": "f", "name": "etl"}, "task_runs": [], "run_config": "HERE",
            "serialized_state": {"type": "Scheduled", "start_time": "2023-01-05T10:00:05+00:00"},
        });
        row.to_string().replace("\"HERE\"", run_config)
    }

    #[test]
    fn a_row_that_cannot_be_read_can_still_be_claimed_and_says_why() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        let wide = format!("[{}1]", "1,".repeat(MAX_ROW_VALUES));
        let long = format!("{:?}", "x".repeat(MAX_ROW_BYTES));
        for (config, reason) in [
            (deep.as_str(), "recursion limit"),
            ("1e999", "number out of range"),
            (&wide, "values"),
            (&long, "KiB"),
        ] {
            let read = read(&row(config));
            let defect = read.defect.expect("a reason");
            assert!(defect.contains(reason) && defect.len() < 600, "{defect}");
            assert_eq!(read.row.version, Some(3));
            let due = read.row.into_flow_run().due.map(|due| due.to_string());
            assert_eq!(due.as_deref(), Some("2023-01-05T10:00:05Z"));
        }
    }

    #[test]
    fn an_ordinary_row_is_read_whole() {
        let read = read(&row(
            r#"{"type": "KubernetesRun", "env": {"A": "[,{:\\\""}}"#,
        ));
        assert_eq!(read.defect, None);
        assert_eq!(read.row.run_config["type"], "KubernetesRun");
        assert!(read.weight < 5_000, "{}", read.weight);
    }

    #[test]
    fn a_state_that_is_nested_too_deeply_keeps_what_matters() {
        let deep = format!("{}1{}", r#"{"a":"#.repeat(300), "}".repeat(300));
        let text = format!(
            r#"{{"id": "r", "flow": {{"id": "f"}}, "serialized_state":
                {{"type": "Submitted", "context": {{"kubernetes": "here", "user": {deep}}},
                 "state": {{"type": "Scheduled", "start_time": "2023-01-05T10:00:05+00:00"}}}}}}"#
        );
        let read = read(&text);
        let state = &read.row.serialized_state;
        assert_eq!(crate::state::place(state), Some("here"));
        assert!(crate::state::wanted_time(state).is_some());
    }

    #[test]
    fn a_retry_of_thousands_of_mapped_task_runs_is_read_whole() {
        let state = json!({
            "type": "Retrying", "start_time": "2023-01-05T10:00:05+00:00", "run_count": 2,
            "message": "again", "context": {"tags": []}, "__version__": "1.4.1",
            "cached_inputs": {"x": {"type": "NoResultType", "__version__": "1.4.1"}},
            "_result": {"type": "NoResultType", "__version__": "1.4.1"},
        });
        let tasks: Vec<Value> = (0..3000)
            .map(|n| json!({"id": format!("t{n}"), "version": 2, "serialized_state": state}))
            .collect();
        let text = json!({
            "id": "r", "version": 3, "flow": {"id": "f", "name": "etl"}, "run_config": null,
            "serialized_state": {"type": "Running"}, "task_runs": tasks,
        });
        let read = read(&text.to_string());
        assert_eq!(read.defect, None);
        assert_eq!(read.row.task_runs.len(), 3000);
    }

    #[test]
    fn rows_beyond_the_memory_for_an_answer_are_left_for_later() {
        let text = row(&format!("{:?}", "x".repeat(1 << 20)));
        let text = RawValue::from_string(text).expect("JSON");
        let rows = read_rows::<FlowRunRow>(&vec![&*text; 64]);
        assert!((10..30).contains(&rows.len()), "{}", rows.len());
    }
}
