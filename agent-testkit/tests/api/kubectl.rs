//! The real `kubectl` against the server.

use std::process::Stdio;
use std::time::Duration;

use agent_testkit::{Course, KubernetesApi};
use hyper::http::Method;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::support::{Client, JOBS, SOON, job};

/// `kubectl` with a configuration for one server, or `None` where it is not installed.
struct Kubectl {
    home: std::path::PathBuf,
}

impl Kubectl {
    async fn new(api: &KubernetesApi) -> Option<Self> {
        let there = Command::new("kubectl")
            .args(["version", "--client"])
            .output()
            .await;
        if there.is_err() {
            eprintln!("skipped: kubectl is not on PATH");
            return None;
        }
        let home = std::env::temp_dir().join(format!("testkit-kubectl-{}", fastrand::u64(..)));
        std::fs::create_dir_all(&home).expect("a directory");
        std::fs::write(home.join("config"), api.kubeconfig_yaml()).expect("a kubeconfig");
        Some(Self { home })
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new("kubectl");
        command
            .args(arguments.split(' '))
            .env("HOME", &self.home)
            .env("KUBECONFIG", self.home.join("config"))
            .env_remove("HTTP_PROXY")
            .env_remove("http_proxy")
            .kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &str) -> String {
        let output = self.command(arguments).output();
        let output = tokio::time::timeout(Duration::from_secs(60), output).await;
        let output = output.expect("kubectl in time").expect("kubectl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{arguments}: {}{text}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }
}

impl Drop for Kubectl {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_gets_describes_watches_and_deletes() {
    let api = KubernetesApi::builder()
        .course(|attempt| match attempt.job.as_str() {
            "bad" => Course::image_pull_failure("manifest unknown"),
            _ => Course::succeeds_after(Duration::from_millis(1)).with_log("hello\n"),
        })
        .start()
        .await
        .unwrap();
    let Some(kubectl) = Kubectl::new(&api).await else {
        return;
    };
    let mut client = Client::connect(&api.url()).await;
    for name in ["good", "bad"] {
        client.send(Method::POST, JOBS, job(name)).await;
    }
    let complete = |api: &KubernetesApi| {
        api.objects("events")
            .iter()
            .any(|event| event["reason"] == "Completed")
    };
    api.wait_until(SOON, complete).await.unwrap();
    let back_off = |api: &KubernetesApi| {
        api.objects("events")
            .iter()
            .any(|event| event["reason"] == "BackOff")
    };
    api.wait_until(SOON, back_off).await.unwrap();

    let jobs = kubectl.run("get jobs").await;
    assert!(
        jobs.starts_with("NAME   STATUS     COMPLETIONS   DURATION   AGE\n"),
        "{jobs}"
    );
    assert!(jobs.contains("good   Complete   1/1"), "{jobs}");
    let pods = kubectl.run("get pods -A -o wide").await;
    assert!(
        pods.contains("Completed") && pods.contains("node-1"),
        "{pods}"
    );
    let events = kubectl.run("get events").await;
    assert!(
        events.contains("job/good") && events.contains("manifest unknown"),
        "{events}"
    );
    let yaml = kubectl.run("get job good -o yaml").await;
    assert!(
        yaml.contains("kind: Job") && yaml.contains("completionMode: NonIndexed"),
        "{yaml}"
    );
    let described = kubectl.run("describe job good").await;
    assert!(
        described.contains("1 Succeeded") && described.contains("Created pod: good-"),
        "{described}"
    );
    let described = kubectl.run("describe pods -l job-name=bad").await;
    assert!(described.contains("Back-off pulling image"), "{described}");
    let name = pods
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .find(|name| name.starts_with("good-"));
    assert_eq!(
        kubectl.run(&format!("logs {}", name.unwrap())).await,
        "hello\n"
    );

    let mut watching = kubectl
        .command("get jobs -w")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    for start in ["NAME", "bad", "good"] {
        let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line())
            .await
            .unwrap();
        assert!(line.unwrap().unwrap().starts_with(start));
    }
    client.send(Method::POST, JOBS, job("later")).await;
    let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line())
        .await
        .unwrap();
    assert!(line.unwrap().unwrap().starts_with("later"));
    watching.kill().await.unwrap();

    assert_eq!(
        kubectl.run("delete job good").await,
        "job.batch \"good\" deleted\n"
    );
    assert!(api.job("good").is_none());
    kubectl.run("delete jobs,pods --all").await;
    kubectl.run("delete events --all").await;
    assert_eq!(api.count("jobs") + api.count("pods"), 0);
}
