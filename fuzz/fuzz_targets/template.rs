//! Any bytes as a job template.
#![no_main]

#[path = "builder.rs"]
mod builder;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(job) = builder::build(Some(bytes), serde_json::Value::Null) {
        assert!(job["metadata"]["labels"].is_object());
        let _ = agent_k8s::manifest::check(&job);
        let text = agent_k8s::yaml::write(&job);
        assert_eq!(agent_k8s::yaml::parse(text.as_bytes()), Ok(job));
    }
});
