//! Any JSON as a run config, with the built-in template.
#![no_main]

#[path = "builder.rs"]
mod builder;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(config) = serde_json::from_slice::<serde_json::Value>(bytes) else {
        return;
    };
    let has_template = config.get("job_template").is_some();
    if let Ok(job) = builder::build(None, config)
        && !has_template
    {
        assert_eq!(agent_k8s::manifest::check(&job), Ok(()));
    }
});
