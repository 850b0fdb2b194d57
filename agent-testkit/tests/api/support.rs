//! A client that sends exactly what a test says.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::http::{HeaderMap, Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }
}

/// One connection that is kept alive.
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
    headers: Vec<(String, String)>,
}

impl Client {
    pub(crate) async fn connect(url: &str) -> Self {
        let host = url.strip_prefix("http://").expect("an http URL");
        let stream = TcpStream::connect(host).await.expect("a server");
        let (sender, connection) = handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
        tokio::spawn(connection);
        Self {
            sender,
            headers: Vec::new(),
        }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) async fn start(
        &mut self,
        method: Method,
        path: &str,
        content_type: &str,
        body: impl Into<Bytes>,
    ) -> hyper::Result<Response<hyper::body::Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "testkit")
            .header("content-type", content_type);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        self.sender.ready().await?;
        let request = request
            .body(Full::new(body.into()))
            .expect("a valid request");
        self.sender.send_request(request).await
    }

    pub(crate) async fn try_send(
        &mut self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> hyper::Result<Answer> {
        let response = self.start(method, path, "application/json", body).await?;
        let (parts, body) = response.into_parts();
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.collect().await?.to_bytes(),
        })
    }

    pub(crate) async fn send(&mut self, method: Method, path: &str, body: Value) -> Answer {
        let body = match body {
            Value::Null => Vec::new(),
            other => other.to_string().into_bytes(),
        };
        let sent = self.try_send(method, path, body);
        let answered = tokio::time::timeout(SOON, sent).await.expect("no answer");
        answered.expect("the connection broke")
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.send(Method::GET, path, Value::Null).await
    }

    /// Sends a patch of the given content type.
    pub(crate) async fn patch(&mut self, path: &str, content_type: &str, body: Value) -> Answer {
        let response = self
            .start(Method::PATCH, path, content_type, body.to_string())
            .await
            .expect("an answer");
        let (parts, body) = response.into_parts();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.collect().await.expect("a body").to_bytes(),
        }
    }

    /// Opens a watch and gives its events one by one.
    pub(crate) async fn watch(mut self, path: &str) -> Watch {
        let response = self
            .start(Method::GET, path, "application/json", "")
            .await
            .expect("an answer");
        assert_eq!(response.status(), 200);
        Watch {
            body: response.into_body(),
            read: Vec::new(),
            _client: self,
        }
    }

    /// Sends a GraphQL document with its variables as text, as Prefect's own clients do.
    pub(crate) async fn graphql(&mut self, query: &str, variables: Value) -> Answer {
        let body = json!({"query": query, "variables": variables.to_string()});
        self.send(Method::POST, "/", body).await
    }
}

/// An open watch.
pub(crate) struct Watch {
    body: hyper::body::Incoming,
    read: Vec<u8>,
    _client: Client,
}

impl Watch {
    /// The next event, or `None` when the stream has ended.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("an event"));
            }
            let frame = tokio::time::timeout(SOON, self.body.frame())
                .await
                .expect("an event in time")?
                .ok()?;
            self.read.extend_from_slice(&frame.into_data().ok()?);
        }
    }

    /// The type and the name of the next event's object.
    pub(crate) async fn next_name(&mut self) -> Option<(String, String)> {
        let event = self.next().await?;
        let name = event["object"]["metadata"]["name"].as_str();
        let kind = event["type"].as_str().unwrap_or_default();
        Some((kind.into(), name.unwrap_or_default().into()))
    }
}

/// A Job that real clusters accept.
pub(crate) fn job(name: &str) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": name, "labels": {"app": "flow", "prefect.io/flow_run_id": format!("run-{name}")}},
        "spec": {"template": {
            "metadata": {"labels": {"app": "flow"}},
            "spec": {"restartPolicy": "Never", "containers": [{
                "name": "flow", "image": "prefecthq/prefect:1.4.1",
                "args": ["prefect", "execute", "flow-run"],
                "env": [{"name": "PREFECT__CONTEXT__FLOW_RUN_ID", "value": "r"}],
            }]},
        }},
    })
}

pub(crate) const JOBS: &str = "/apis/batch/v1/namespaces/default/jobs";
pub(crate) const PODS: &str = "/api/v1/namespaces/default/pods";
