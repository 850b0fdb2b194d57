//! A few bytes as a large job template: what it costs has bounds.
#![no_main]

#[path = "builder.rs"]
mod builder;
#[path = "../../agent-k8s/tests/budgets/generate.rs"]
mod generate;

use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let text = generate::template(bytes);
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let began = Instant::now();
    let _ = builder::build(Some(text.as_bytes()), serde_json::Value::Null);
    let memory = ALLOCATED.peak_usage().saturating_sub(before);
    assert!(memory <= 64 << 20, "{memory} bytes");
    // Ten times the bound, for builds that are instrumented.
    assert!(began.elapsed() <= Duration::from_secs(10));
});
