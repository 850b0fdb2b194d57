//! In place of the Python agent: the same variables, and the Job that `render` promises.

use std::process::Output;

use agent_testkit::FlowRunSeed;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::world::{Agent, PATIENCE, World, free_port};

/// The variables of the Deployment that the Python agent prints for itself, in its order.
fn deployment(world: &World, port: u16) -> [(&'static str, String); 16] {
    let text = str::to_owned;
    [
        ("PREFECT__CLOUD__AGENT__AUTH_TOKEN", text("")),
        ("PREFECT__CLOUD__API", world.prefect.url()),
        ("NAMESPACE", text("flows")),
        ("IMAGE_PULL_SECRETS", text("")),
        ("PREFECT__CLOUD__AGENT__LABELS", text("['gpu', 'prod']")),
        ("JOB_MEM_REQUEST", text("")),
        ("JOB_MEM_LIMIT", text("")),
        ("JOB_CPU_REQUEST", text("")),
        ("JOB_CPU_LIMIT", text("")),
        ("IMAGE_PULL_POLICY", text("")),
        ("SERVICE_ACCOUNT_NAME", text("")),
        ("PREFECT__BACKEND", text("server")),
        (
            "PREFECT__CLOUD__AGENT__AGENT_ADDRESS",
            format!("http://:{port}"),
        ),
        ("PREFECT__CLOUD__API_KEY", text("")),
        ("PREFECT__CLOUD__TENANT_ID", text("")),
        (
            "PREFECT__CLOUD__AGENT__ENV_VARS",
            text(r#"{"REGION": "eu"}"#),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_variables_of_the_python_agents_deployment_are_enough() {
    let world = World::new().await;
    let port = free_port();
    let mut command = world.command();
    command.env_remove("PREFECT__BACKEND");
    command.env_remove("PREFECT__CLOUD__API");
    command.envs(deployment(&world, port));
    let run = world.prefect.seed(FlowRunSeed::new().labels(["prod"]));
    let agent = Agent::spawn(&mut command);
    let made = world
        .kubernetes
        .wait_until(PATIENCE, |api| api.creation_count() == 1)
        .await;
    assert!(made.is_ok(), "{}", agent.output());
    let creation = world.kubernetes.creations().remove(0);
    assert_eq!(creation.flow_run_id(), Some(run.to_string().as_str()));
    assert_eq!(creation.namespace, "flows");
    let job = world
        .kubernetes
        .objects("jobs")
        .into_iter()
        .next()
        .expect("there");
    let pod = &job["spec"]["template"]["spec"];
    let value = |name: &str| {
        let env = pod["containers"][0]["env"].as_array().expect("a list");
        let entry = env.iter().find(|entry| entry["name"] == name);
        entry.expect(name)["value"].clone()
    };
    assert_eq!(value("REGION"), "eu");
    assert_eq!(value("PREFECT__CLOUD__AGENT__LABELS"), "['gpu', 'prod']");
    assert_eq!(value("PREFECT__BACKEND"), "server");
    assert_eq!(pod["imagePullSecrets"], Value::Null);
    let health = format!("http://127.0.0.1:{port}/api/health");
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let answer = reqwest::get(health).await.expect("it answers");
    assert_eq!(answer.status().as_u16(), 200);
}

/// `agent-cli render` beside the agent, fed with a flow run.
async fn render(world: &World, args: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent-cli"));
    let mut child = command
        .env_clear()
        .env("HOME", world.path())
        .env("PREFECT__BACKEND", "server")
        .env("PREFECT__CLOUD__API", world.prefect.url())
        .current_dir(world.path())
        .args(["render", "--flow-run", "-"])
        .args(args)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).await.expect("it reads");
    drop(stdin);
    child.wait_with_output().await.expect("it ends")
}

/// The answer of the API to the agent's question for a run.
async fn asked(world: &World, run: &str) -> String {
    let query = format!(
        r#"query {{ flow_run(where: {{id: {{_eq: "{run}"}}}}) {{
            id version state serialized_state parameters scheduled_start_time run_config name
            flow {{ id name environment storage version core_version }}
            task_runs {{ id version task_id serialized_state }} }} }}"#
    );
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let body = json!({"query": query, "variables": "null"}).to_string();
    let answer = reqwest::Client::new().post(world.prefect.url()).body(body);
    let answer = answer.header("content-type", "application/json");
    let answer = answer.send().await.expect("it answers");
    answer.text().await.expect("a body")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_job_that_is_created_is_the_one_that_render_prints() {
    let world = World::new().await;
    let template = "metadata: {name: etl, annotations: {team: data}}\nspec:\n  backoffLimit: 2\n  template:\n    spec:\n      containers:\n      - {name: main, env: [{name: MODE, value: fast}]}\n";
    std::fs::write(world.path().join("job.yaml"), template).expect("written");
    let patch = "spec: {template: {spec: {priorityClassName: batch}}}\n";
    std::fs::write(world.path().join("patch.yaml"), patch).expect("written");
    let run_config = json!({"type": "KubernetesRun", "env": {"A": "1"}, "cpu_limit": "2"});
    let run = world
        .prefect
        .seed(FlowRunSeed::new().run_config(run_config));
    let row = asked(&world, &run.to_string()).await;
    let flags = ["--job-template", "job.yaml", "--job-patch", "patch.yaml"];
    let printed = render(&world, &[&flags[..], &["-o", "json"]].concat(), &row).await;
    let errors = String::from_utf8_lossy(&printed.stderr);
    assert!(printed.status.success(), "{errors}");
    let printed: Value = serde_json::from_slice(&printed.stdout).expect("JSON");

    let agent = world.start(&flags);
    let made = world
        .kubernetes
        .wait_until(PATIENCE, |api| api.creation_count() == 1)
        .await;
    assert!(made.is_ok(), "{}", agent.output());
    let job = world
        .kubernetes
        .objects("jobs")
        .into_iter()
        .next()
        .expect("there");
    assert_eq!(job["metadata"]["name"], printed["metadata"]["name"]);
    assert_eq!(
        job["metadata"]["annotations"],
        printed["metadata"]["annotations"]
    );
    let (made, promised) = (
        &job["spec"]["template"]["spec"],
        &printed["spec"]["template"]["spec"],
    );
    assert_eq!(made["priorityClassName"], "batch");
    for member in ["name", "env", "image", "args", "resources"] {
        assert_eq!(
            made["containers"][0][member],
            promised["containers"][0][member]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn render_refuses_with_the_text_that_the_run_would_fail_with() {
    let world = World::new().await;
    let run_config = json!({"type": "DockerRun"});
    let run = world
        .prefect
        .seed(FlowRunSeed::new().run_config(run_config));
    let row = asked(&world, &run.to_string()).await;
    let refused = render(&world, &[], &row).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stdout.is_empty());
    let message = String::from_utf8(refused.stderr).expect("text");
    let agent = world.start(&[]);
    let failure = world.fails(run, &agent).await;
    assert_eq!(message.trim_end(), format!("error: {failure}"));
}
