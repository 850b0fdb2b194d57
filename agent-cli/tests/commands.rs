//! `render` and `config` as people run them.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use serde_json::Value;

fn run(dir: &Path, env: &[(&str, &str)], args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_agent-cli"))
        .env_clear()
        .env("HOME", dir)
        .envs(env.iter().copied())
        .current_dir(dir)
        .args(args)
        .output()
        .expect("the binary starts")
}

fn text(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).expect("text")
}

fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, text).expect("written");
    }
    dir
}

const RUN_CONFIG: &str = "type: KubernetesRun\nimage: acme/etl:1\nenv: {A: 'yes', B: '012'}\n";

#[test]
fn a_run_config_alone_renders_in_both_forms_to_the_same_job() {
    let dir = dir(&[("rc.yaml", RUN_CONFIG)]);
    let args = ["render", "--run-config", "rc.yaml"];
    let started = Instant::now();
    let yaml = run(dir.path(), &[], &args);
    let took = started.elapsed();
    assert!(yaml.status.success(), "{}", text(&yaml.stderr));
    let json = run(dir.path(), &[], &[&args[..], &["-o", "json"]].concat());
    let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    // Whether read with the ideas of YAML 1.1 of what is text, or with those of 1.2.
    let old = agent_k8s::yaml::parse(&yaml.stdout).expect("YAML 1.1");
    let new: Value = serde_yaml::from_slice(&yaml.stdout).expect("YAML 1.2");
    assert_eq!((&old, &new), (&json, &json));
    let container = &json["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "acme/etl:1");
    println!("render took {took:?}");
}

#[test]
fn render_says_what_is_wrong_with_its_input() {
    let dir = dir(&[
        ("rc.yaml", RUN_CONFIG),
        ("none.json", "[]"),
        ("odd.json", r#"{"id": "r", "flow": {"id": 5}}"#),
        ("bad.yaml", "spec:\n  template:\n    spec: [a]\n"),
        ("broken.json", "{"),
    ]);
    for (args, part) in [
        (
            &["--flow-run", "none.json"][..],
            "expected one flow run, found 0",
        ),
        (&["--flow-run", "odd.json"], "flow.id"),
        (&["--flow-run", "missing.json"], "cannot read missing.json"),
        (
            &["--flow-run", "broken.json"],
            "broken.json is neither JSON nor YAML",
        ),
        (
            &["--run-config", "rc.yaml", "--job-template", "bad.yaml"],
            "bad.yaml, line 3, column 11: spec.template.spec: expected a mapping, found a list",
        ),
        (
            &["--run-config", "rc.yaml", "--key", "hush"],
            "--api-tenant",
        ),
    ] {
        let output = run(dir.path(), &[], &[&["render"], args].concat());
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(part), "{message}");
        assert!(!message.contains("hush"), "{message}");
    }
    let usage = run(dir.path(), &[], &["render"]);
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn render_warns_of_what_kubernetes_will_refuse() {
    let template =
        "metadata: {annotations: {a: 1}}\nspec: {template: {spec: {containers: [{name: flow}]}}}\n";
    let dir = dir(&[("rc.yaml", RUN_CONFIG), ("job.yaml", template)]);
    let args = [
        "render",
        "--run-config",
        "rc.yaml",
        "--job-template",
        "job.yaml",
    ];
    let output = run(dir.path(), &[], &args);
    assert!(output.status.success());
    let warning = text(&output.stderr);
    assert!(
        warning.contains("warning: Kubernetes will refuse this Job: metadata.annotations"),
        "{warning}"
    );
}

#[test]
fn config_shows_each_value_its_origin_and_no_secret() {
    let dir = dir(&[
        (
            ".prefect/config.toml",
            "[cloud.agent]\nname = \"filed\"\n[cloud.agent.env_vars]\nPASSWORD = \"hush\"\n",
        ),
        (
            ".prefect/auth.toml",
            "[\"api.prefect.io\"]\napi_key = \"pcu_hush\"\ntenant_id = \"3f0d6b0e2c544b7c9f0e9d9f5a1c7e21\"\n",
        ),
    ]);
    let env = [("NAMESPACE", "flows")];
    let output = run(
        dir.path(),
        &env,
        &["config", "-l", "b", "-l", "a", "-o", "json"],
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let found = |name: &str| {
        let row = rows
            .as_array()
            .expect("a list")
            .iter()
            .find(|row| row["name"] == name);
        let row = row.unwrap_or_else(|| panic!("{name} in {rows}"));
        (
            row["value"].as_str().expect("text").to_owned(),
            row["origin"].as_str().expect("text").to_owned(),
        )
    };
    let file = |name: &str| dir.path().join(".prefect").join(name).display().to_string();
    assert_eq!(found("namespace"), ("flows".into(), "NAMESPACE".into()));
    assert_eq!(
        found("cloud.agent.labels"),
        ("['a', 'b']".into(), "--label".into())
    );
    assert_eq!(
        found("cloud.agent.name"),
        ("filed".into(), file("config.toml"))
    );
    assert_eq!(
        found("cloud.api_key"),
        ("*** (8 characters)".into(), file("auth.toml"))
    );
    assert_eq!(
        found("cloud.tenant_id"),
        (
            "3f0d6b0e-2c54-4b7c-9f0e-9d9f5a1c7e21".into(),
            file("auth.toml")
        )
    );
    assert_eq!(
        found("cloud.api"),
        ("https://api.prefect.io".into(), "default".into())
    );
    let table = text(&run(dir.path(), &env, &["config"]).stdout);
    assert!(
        table.contains("namespace") && !table.contains("hush"),
        "{table}"
    );
}

#[test]
fn a_wrong_setting_is_named_by_every_command() {
    let dir = dir(&[(".prefect/config.toml", "[cloud\n")]);
    for args in [&["config"][..], &["start"], &["render", "--flow-run", "x"]] {
        let output = run(dir.path(), &[], args);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(
            message.contains("config.toml is not valid TOML: line 1"),
            "{message}"
        );
    }
}

#[test]
fn a_flow_may_not_name_the_agents_files_unless_allowed() {
    let run_config = "type: KubernetesRun\njob_template_path: job.yaml\n";
    let template = "spec: {template: {spec: {containers: [{name: mine}]}}}\n";
    let dir = dir(&[
        ("rc.yaml", run_config),
        ("job.yaml", template),
        ("flows/job.yaml", template),
    ]);
    let args = ["render", "--run-config", "rc.yaml"];
    let own = run(dir.path(), &[], &args);
    assert!(own.status.success(), "{}", text(&own.stderr));
    assert!(text(&own.stderr).contains("warning: `start` refuses this template"));
    let refused = ["--allow-flow-template-scheme", "s3,agent"];
    let refused = run(dir.path(), &[], &[&args[..], &refused].concat());
    let message = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        message.contains("--allow-flow-template-scheme"),
        "{message}"
    );
    let within = ["--flow-template-dir", "flows"];
    let within = run(dir.path(), &[], &[&args[..], &within].concat());
    assert!(within.status.success(), "{}", text(&within.stderr));
    assert!(text(&within.stdout).contains("name: mine"));
    let wrong = ["--allow-template-scheme", "ftp"];
    let wrong = run(dir.path(), &[], &[&args[..], &wrong].concat());
    assert_eq!(wrong.status.code(), Some(2), "{}", text(&wrong.stderr));
}
