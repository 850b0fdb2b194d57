//! Any JSON as a row of the API's answer.
#![no_main]

use agent_api_client::FlowRunRow;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(row) = serde_json::from_slice(bytes) {
        let _ = FlowRunRow::from_json(&row).map(FlowRunRow::into_flow_run);
    }
});
