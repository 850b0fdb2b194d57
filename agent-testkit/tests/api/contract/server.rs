//! A Kubernetes, scripted or real, and a transcript of what it is asked and what it answers.

use std::collections::BTreeMap;
use std::time::Duration;

use agent_testkit::{Course, KubernetesApi};
use futures::{AsyncBufReadExt, Stream, StreamExt, TryStreamExt};
use http::{Method, Request};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Map, Value, json};

/// How long something may take that the cluster does by itself.
const PATIENCE: Duration = Duration::from_secs(120);
/// How the names of times end.
const TIMES: [&str; 3] = ["Timestamp", "Time", "edAt"];
/// What stands for the namespace in paths and in the transcript.
const NAMESPACE: &str = "NAMESPACE";

pub(super) struct Server {
    client: Client,
    namespace: String,
    steps: Vec<Value>,
    testkit: Option<KubernetesApi>,
}

/// An answer as it came.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
}

impl Server {
    /// The cluster of `CONTRACT_KUBECONFIG`, or else a testkit.
    pub(super) async fn start() -> Self {
        let namespace = format!("contract-{:08x}", fastrand::u32(..));
        let Some(path) = std::env::var_os("CONTRACT_KUBECONFIG") else {
            return Self::testkit(namespace).await;
        };
        let kubeconfig = Kubeconfig::read_from(path).expect("a kubeconfig");
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        let client = Client::try_from(config.expect("a config")).expect("a client");
        let server = Self {
            client,
            namespace: namespace.clone(),
            steps: Vec::new(),
            testkit: None,
        };
        let made = json!({"metadata": {"name": namespace}});
        let made = server.ask(Method::POST, "/api/v1/namespaces", made).await;
        assert_eq!(made.status, 201, "{}", made.body);
        let account = "/api/v1/namespaces/NAMESPACE/serviceaccounts/default";
        server.until(account, |answer| answer.status == 200).await;
        server
    }

    async fn testkit(namespace: String) -> Self {
        let testkit = KubernetesApi::builder()
            .namespace(&namespace)
            .watch_list()
            .course(|attempt| match attempt.job.as_str() {
                "exits" => Course::exits_with(3, Duration::from_millis(1)),
                "sleeps" => Course::hangs(),
                _ => Course::succeeds_after(Duration::from_millis(1)),
            })
            .start()
            .await
            .expect("a free port");
        let config = Config::new(testkit.url().parse().expect("a URL"));
        Self {
            client: Client::try_from(config).expect("a client"),
            namespace,
            steps: Vec::new(),
            testkit: Some(testkit),
        }
    }

    /// Sends a request; nothing of it is kept.
    pub(super) async fn ask(&self, method: Method, path: &str, body: Value) -> Answer {
        let body = match body {
            Value::Null => Vec::new(),
            body => body.to_string().into_bytes(),
        };
        self.send(method, path, "application/json", body).await
    }

    /// Sends a request with a body of any kind; nothing of it is kept.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: impl Into<Body>,
    ) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path.replace(NAMESPACE, &self.namespace))
            .header("content-type", content_type)
            .header("accept", "application/json")
            .body(body.into())
            .expect("a request");
        let response = self.client.send(request).await.expect("an answer");
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.expect("a body");
        let bytes = bytes.to_bytes();
        let text = || json!(String::from_utf8_lossy(&bytes));
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| text());
        Answer { status, body }
    }

    /// Keeps an answer in the transcript.
    pub(super) fn keep(&mut self, step: &str, answer: &Answer) {
        let body = self.plain(&answer.body);
        self.note(step, json!({"status": answer.status, "body": body}));
    }

    /// Keeps something that was seen.
    pub(super) fn note(&mut self, step: &str, seen: Value) {
        self.steps.push(json!({"step": step, "seen": seen}));
    }

    /// Sends a request and keeps the answer.
    pub(super) async fn step(
        &mut self,
        step: &str,
        method: Method,
        path: &str,
        body: Value,
    ) -> Answer {
        let answer = self.ask(method, path, body).await;
        self.keep(step, &answer);
        answer
    }

    /// Asks until the answer is the one that is waited for.
    pub(super) async fn until(&self, path: &str, met: impl Fn(&Answer) -> bool) -> Answer {
        let asking = async {
            loop {
                let answer = self.ask(Method::GET, path, Value::Null).await;
                if met(&answer) {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, asking).await;
        waited.unwrap_or_else(|_| panic!("{path} did not become what was waited for"))
    }

    /// The events of a watch, one JSON object each.
    pub(super) async fn watch(&self, path: &str) -> impl Stream<Item = Value> + use<> + Unpin {
        let request = Request::get(path.replace(NAMESPACE, &self.namespace))
            .body(Vec::new())
            .expect("a request");
        let lines = self.client.request_stream(request).await.expect("a watch");
        let lines = lines.lines().map_ok(|line| {
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
        });
        lines.map(|line| line.expect("a line")).boxed()
    }

    /// A value without what differs from one time to the next.
    pub(super) fn plain(&self, value: &Value) -> Value {
        plain("", value, &self.namespace)
    }

    /// Removes what was made; the transcript.
    pub(super) async fn finish(self) -> Vec<Value> {
        if self.testkit.is_none() {
            let path = "/api/v1/namespaces/NAMESPACE";
            self.ask(Method::DELETE, path, Value::Null).await;
        }
        self.steps
    }
}

/// A message without what shows only how the real server is written in Go: a value that it prints
/// as a struct, and what its parser of JSON says.
fn without_go(text: &str) -> String {
    if let Some((before, rest)) = text.split_once("Invalid value: {")
        && let Some((_, after)) = rest.rsplit_once("}: ")
    {
        return format!("{before}Invalid value: {{...}}: {after}");
    }
    match text.split_once(": invalid character ") {
        Some((before, _)) => before.to_owned(),
        None => text.to_owned(),
    }
}

fn plain(name: &str, value: &Value, namespace: &str) -> Value {
    match value {
        Value::Object(members) => {
            let members: BTreeMap<&String, &Value> = members.iter().collect();
            let kept = members
                .into_iter()
                .filter(|(name, _)| *name != "managedFields");
            let kept = kept.map(|(name, value)| (name.clone(), plain(name, value, namespace)));
            Value::Object(kept.collect::<Map<_, _>>())
        }
        Value::Array(elements) => elements
            .iter()
            .map(|element| plain(name, element, namespace))
            .collect(),
        Value::String(text) => {
            let changing = match name {
                "resourceVersion" if !text.is_empty() => Some("VERSION"),
                "continue" if !text.is_empty() => Some("CONTINUE"),
                "uid" | "controller-uid" | "batch.kubernetes.io/controller-uid" => Some("UID"),
                _ if TIMES.iter().any(|end| name.ends_with(end)) => Some("TIME"),
                _ => None,
            };
            let lasting = || without_go(&text.replace(namespace, NAMESPACE)).into();
            changing.map_or_else(lasting, Value::from)
        }
        other => other.clone(),
    }
}
