//! Job templates from servers for files.

use std::net::SocketAddr;
use std::sync::Arc;

use agent_testkit::stores::{Store, Stores};
use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::world::{Flow, World};

const TEMPLATE: &str = "\
apiVersion: batch/v1
kind: Job
metadata:
  labels:
    template: TEMPLATE
spec:
  backoffLimit: 0
  template:
    spec:
      containers:
        - name: flow
          env:
            - name: STORED
              value: somewhere
";

/// A server, in a thread that may wait.
async fn store(
    world: &World,
    start: impl FnOnce(&Stores) -> Result<Store> + Send + 'static,
) -> Result<Store> {
    let folder = world.target.stores.clone();
    let started = tokio::task::spawn_blocking(move || start(&Stores::install(&folder)?));
    started.await?
}

/// Sends a request that is answered with success.
async fn send(to: SocketAddr, method: &str, path: &str, body: &str) -> Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).context("no HTTP")?;
    ensure!(status.starts_with('2'), "{method} {path}: {answer}");
    Ok(())
}

/// A run that names no template of its own gets the agent's.
async fn used(world: &World, location: &str, label: &str, env: &[(&str, &str)]) -> Result<()> {
    let flow = Flow::that("test \"$STORED\" = somewhere").with(json!({"job_template": null}));
    let run = world.seed(flow);
    let args = ["--job-template", location, "--keep-succeeded-jobs", "1h"];
    let mut agent = world.agent_with(&args, env)?;
    world.reaches(run, "Success").await?;
    let job = world.job(run).await?;
    let found = job.labels().get("template").map(String::as_str);
    ensure!(found == Some(label), "the Job's label is {found:?}");
    agent.stop().await
}

pub(super) async fn a_template_in_s3_is_used(world: Arc<World>) -> Result<()> {
    let s3 = store(&world, |stores| stores.moto(&[])).await?;
    let template = TEMPLATE.replace("TEMPLATE", "from-s3");
    send(s3.address(), "PUT", "/templates", "").await?;
    send(s3.address(), "PUT", "/templates/team/job.yaml", &template).await?;
    let endpoint = format!("http://{}", s3.address());
    let env = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "AKIATEST"),
        ("AWS_SECRET_ACCESS_KEY", "secret-of-the-test"),
    ];
    used(&world, "s3://templates/team/job.yaml", "from-s3", &env).await
}

pub(super) async fn a_template_in_google_cloud_storage_is_used(world: Arc<World>) -> Result<()> {
    let gcs = store(&world, Stores::gcs).await?;
    let template = TEMPLATE.replace("TEMPLATE", "from-gcs");
    let bucket = r#"{"name": "templates"}"#;
    send(gcs.address(), "POST", "/storage/v1/b?project=p", bucket).await?;
    let object = "/upload/storage/v1/b/templates/o?uploadType=media&name=team%2Fjob.yaml";
    send(gcs.address(), "POST", object, &template).await?;
    let host = gcs.address().to_string();
    let env = [("STORAGE_EMULATOR_HOST", host.as_str())];
    used(&world, "gs://templates/team/job.yaml", "from-gcs", &env).await
}
