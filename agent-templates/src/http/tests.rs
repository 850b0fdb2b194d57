//! Where redirects and names may lead, and what a server can be asked about later.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::Router;
use axum::extract::Path;
use axum::http::header::LOCATION;
use axum::response::IntoResponse;
use axum::routing::get;
use reqwest::header::HeaderValue;

use super::*;

const FORBIDDEN: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A web server whose `/hop/N` redirects N times before the template, and whose `/to/…` redirects
/// to what follows.
async fn server() -> SocketAddr {
    let hop = |Path(left): Path<usize>| async move {
        let to = match left.checked_sub(1) {
            None | Some(0) => "/job.yaml".to_owned(),
            Some(left) => format!("/hop/{left}"),
        };
        (StatusCode::FOUND, [(LOCATION, to)])
    };
    let to = |Path(to): Path<String>| async move {
        (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, to)]).into_response()
    };
    let app = Router::new()
        .route("/job.yaml", get(|| async { "kind: Job" }))
        .route("/hop/{left}", get(hop))
        .route("/to/{*to}", get(to));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// Flows may go to 127.0.0.1 and to `good.test`, but not to 127.0.0.2, which is `evil.test` and
/// one of the addresses of `mixed.test`.
fn store() -> HttpTemplates {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let guard = Guard {
        judge: |ip| {
            let closed = guard::Closed {
                kind: "forbidden here",
                opened_within: None,
            };
            (ip == FORBIDDEN).then_some(closed)
        },
        open: Vec::new(),
        lookup: Arc::new(|name| {
            let good = IpAddr::V4(Ipv4Addr::LOCALHOST);
            let found = match name.as_str() {
                "good.test" => Ok(vec![good]),
                "evil.test" => Ok(vec![FORBIDDEN.into()]),
                "mixed.test" => Ok(vec![good, FORBIDDEN.into()]),
                _ => Err(std::io::Error::other("no such name")),
            };
            Box::pin(async { found })
        }),
    };
    HttpTemplates::guarded(&TemplateSettings::default(), Some(guard))
}

async fn refused(store: &HttpTemplates, location: &str) -> String {
    let error = store.load(location, TemplateOrigin::Flow).await;
    let error = error.expect_err(location);
    assert!(!error.is_transient(), "{error}");
    error.to_string()
}

#[tokio::test]
async fn five_redirects_are_followed_and_six_are_not() {
    let (server, store) = (server().await, store());
    let at = |hops| format!("http://{server}/hop/{hops}");
    let found = store.load(&at(5), TemplateOrigin::Flow).await;
    assert_eq!(found.expect("five").bytes, b"kind: Job");
    let error = refused(&store, &at(6)).await;
    assert!(error.contains("redirects more than 5 times"), "{error}");
}

#[tokio::test]
async fn a_redirect_cannot_lead_where_a_flow_may_not_go_itself() {
    let (server, store) = (server().await, store());
    for (to, why) in [
        ("http://127.0.0.2/secret", "127.0.0.2, which is forbidden"),
        ("http://evil.test/secret", "evil.test, which is forbidden"),
        ("http://0x7f.2/secret", "127.0.0.2, which is forbidden"),
        ("ftp://good.test/job.yaml", "not allowed, ftp"),
        ("file:///etc/hostname", "answered 307"),
    ] {
        let error = refused(&store, &format!("http://{server}/to/{to}")).await;
        assert!(error.contains(why), "{error}");
    }
    let good = format!(
        "http://{server}/to/http://good.test:{}/job.yaml",
        server.port()
    );
    let found = store.load(&good, TemplateOrigin::Flow).await;
    assert_eq!(found.expect("a good redirect").bytes, b"kind: Job");
}

#[tokio::test]
async fn a_name_is_refused_by_any_of_its_addresses() {
    let (server, store) = (server().await, store());
    for host in ["evil.test", "EVIL.test", "mixed.test"] {
        let error = refused(&store, &format!("http://{host}:{}/job.yaml", server.port())).await;
        assert!(error.contains("forbidden here"), "{error}");
    }
    let good = format!("http://good.test:{}/job.yaml", server.port());
    assert!(store.load(&good, TemplateOrigin::Flow).await.is_ok());
    let unknown = store.load("http://none.test/", TemplateOrigin::Flow).await;
    let error = unknown.expect_err("no such name");
    assert!(error.is_transient() && error.to_string().contains("no such name"));
}

#[tokio::test]
async fn the_agents_owner_may_go_anywhere() {
    let (server, store) = (server().await, store());
    let location = format!("http://localhost:{}/job.yaml", server.port());
    let found = store.load(&location, TemplateOrigin::Agent).await;
    assert_eq!(found.expect("the agent's own").bytes, b"kind: Job");
}

#[tokio::test]
async fn addresses_that_are_none_are_refused_without_their_secrets() {
    let store = store();
    for location in [
        "http://",
        "https://me:secret@:80/x?sig=secret",
        "http://a b/",
    ] {
        let error = refused(&store, location).await;
        assert!(error.contains("no valid address"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
    let error = refused(&store, "ftp://host/x").await;
    assert_eq!(error, "Unsupported file scheme ftp://host/x");
}

#[test]
fn a_date_is_trusted_only_when_its_second_is_over() {
    let headers = |pairs: &[(HeaderName, &'static str)]| -> HeaderMap {
        let pairs = pairs.iter().cloned();
        pairs
            .map(|(n, v)| (n, HeaderValue::from_static(v)))
            .collect()
    };
    let (early, late) = (
        "Tue, 24 Nov 2026 02:00:47 GMT",
        "Tue, 24 Nov 2026 02:00:48 GMT",
    );
    let aged = headers(&[(header::LAST_MODIFIED, early), (header::DATE, late)]);
    let tag_of_aged = tag(&aged).expect("old enough");
    assert_eq!(
        condition(&tag_of_aged),
        Some((header::IF_MODIFIED_SINCE, early))
    );
    let young = headers(&[(header::LAST_MODIFIED, early), (header::DATE, early)]);
    assert_eq!(tag(&young), None);
    let etag = headers(&[(header::ETAG, "W/\"a:b\""), (header::LAST_MODIFIED, early)]);
    let tag_of_etag = tag(&etag).expect("an ETag");
    assert_eq!(
        condition(&tag_of_etag),
        Some((header::IF_NONE_MATCH, "W/\"a:b\""))
    );
}

#[test]
fn overload_is_a_passing_failure_and_says_for_how_long() {
    let mut headers = HeaderMap::new();
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("7"));
    let error = answered("http://host/x", StatusCode::TOO_MANY_REQUESTS, &headers);
    assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
    for status in [400, 401, 403, 404, 410, 418, 304, 302] {
        let status = StatusCode::from_u16(status).expect("a status");
        let error = answered("http://host/x", status, &headers);
        assert!(!error.is_transient(), "{error}");
    }
}
