//! The example that embeds the agent does what its first lines say.

use std::process::Command;

#[test]
fn the_embedding_example_deploys_its_runs() {
    let output = Command::new(env!("CARGO"))
        .args([
            "run",
            "--quiet",
            "--package",
            "agent-core",
            "--example",
            "embed",
        ])
        .output()
        .expect("cargo runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for run in ["one", "two", "three"] {
        assert!(text.contains(&format!("running {run}")), "{text}");
        let log = format!("log of {run}: Submitted for execution: Job job-of-{run}");
        assert!(text.contains(&log), "{text}");
    }
    let source = include_str!("../examples/embed.rs");
    assert!(source.lines().count() < 60, "the example has grown");
}
