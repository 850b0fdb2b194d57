//! What only web servers have: dates, proxies, and addresses that flows may not name.

use std::sync::Arc;

use agent_core::TemplateOrigin::{Agent, Flow};
use agent_core::TemplateStore;
use agent_templates::{HttpTemplates, TemplateSettings, Templates};
use axum::Router;

use crate::bench::{JOB, impatient, serve};
use crate::child;
use crate::proxy::{Fault, Proxy};
use crate::servers::stores;

tests![
    revalidates_by_the_date_of_a_file,
    keeps_flows_away_from_the_agents_own_addresses,
    lets_flows_there_when_the_owner_says_so,
    does_not_lead_flows_through_a_proxy,
    keeps_a_signature_to_itself,
];

async fn revalidates_by_the_date_of_a_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("job.yaml");
    std::fs::write(&path, JOB).expect("written");
    let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let file = std::fs::File::options().append(true).open(&path);
    let aged = file.expect("opened").set_modified(hour_ago);
    aged.expect("aged");
    let server = stores().web(directory.path()).expect("a server");
    let proxy = Proxy::before(server.address()).await;
    let store = HttpTemplates::new(&impatient());
    let location = format!("http://{}/job.yaml", proxy.address);
    let first = store.load(&location, Agent).await.expect("there");
    let again = store.load(&location, Agent).await.expect("there");
    assert!(Arc::ptr_eq(&first, &again));
    std::fs::write(&path, "kind: Pod").expect("written");
    let changed = store.load(&location, Agent).await.expect("there");
    assert_eq!(changed.bytes, b"kind: Pod");
}

async fn keeps_flows_away_from_the_agents_own_addresses() {
    let app = Router::new().fallback(|| async { JOB });
    let server = serve(app).await;
    let proxy = Proxy::before(server).await;
    let templates = Templates::new(TemplateSettings::default());
    let port = proxy.address.port();
    for host in [
        "127.0.0.1",
        "localhost",
        "LOCALHOST",
        "127.1",
        "2130706433",
        "0x7f000001",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "user:secret@127.0.0.1",
    ] {
        let location = format!("http://{host}:{port}/job.yaml?token=secret");
        let error = templates.load(&location, Flow).await.expect_err(host);
        let text = error.to_string();
        assert!(!error.is_transient(), "{text}");
        let is_named = text.contains("loopback") || text.contains("unspecified");
        assert!(is_named && !text.contains("secret"), "{text}");
    }
    assert!(proxy.take().requests.is_empty());
    let own = format!("http://127.0.0.1:{port}/job.yaml");
    assert!(templates.load(&own, Agent).await.is_ok());
    let error = templates.load(&own, Flow).await;
    assert!(error.is_err(), "what the agent read is not for flows");
}

async fn lets_flows_there_when_the_owner_says_so() {
    let server = serve(Router::new().fallback(|| async { JOB })).await;
    let templates = Templates::new(TemplateSettings {
        flow_private_http: true,
        ..TemplateSettings::default()
    });
    let location = format!("http://localhost:{}/job.yaml", server.port());
    let found = templates.load(&location, Flow).await.expect("allowed");
    assert_eq!(found.bytes, JOB.as_bytes());
}

async fn does_not_lead_flows_through_a_proxy() {
    let way = Proxy::before(([127, 0, 0, 1], 1).into()).await;
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{JOB}",
        JOB.len()
    );
    way.set(Fault::Answer(answer));
    let address = format!("http://{}", way.address);
    let environment = [("HTTP_PROXY", address.as_str()), ("http_proxy", &address)];
    let location = "http://no-such-host.invalid/job.yaml";
    let own = child::read(location, Agent, &environment).await;
    assert_eq!(own.found(), JOB, "the agent's own goes through the proxy");
    assert!(!way.take().requests.is_empty());
    child::read(location, Flow, &environment).await.transient();
    let metadata = "http://169.254.169.254/latest/meta-data/";
    let error = child::read(metadata, Flow, &environment).await.permanent();
    assert!(error.contains("link-local"), "{error}");
    assert!(way.take().requests.is_empty());
}

async fn keeps_a_signature_to_itself() {
    let store = HttpTemplates::new(&impatient());
    let location = "http://user:secret@127.0.0.1:1/job.yaml?X-Amz-Signature=secret#secret";
    let error = store
        .load(location, Agent)
        .await
        .expect_err("nothing there");
    let text = error.to_string();
    assert!(!text.contains("secret"), "{text}");
    assert!(text.contains("http://…@127.0.0.1:1/job.yaml?…"), "{text}");
}
