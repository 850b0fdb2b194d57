//! APIs behind TLS: verified, with a CA of one's own, with certificates of clients.

use std::sync::Arc;

use agent_testkit::PrefectApi;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::world::{Agent, World};

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// Somebody who issues certificates.
fn authority() -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    CertifiedIssuer::self_signed(params, key).expect("a certificate")
}

/// A certificate and its key for a name.
fn issued(issuer: &Issuer, name: &str) -> (rcgen::Certificate, KeyPair) {
    let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, issuer).expect("a certificate");
    (certificate, key)
}

/// The API behind TLS; its address. With `clients`, only whoever they vouch for may connect.
async fn behind_tls(prefect: &PrefectApi, issuer: &Issuer, clients: Option<&Issuer>) -> String {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (certificate, key) = issued(issuer, "localhost");
    let builder = match clients {
        None => ServerConfig::builder().with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(clients.der().clone()).expect("a certificate");
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
            ServerConfig::builder().with_client_cert_verifier(verifier.expect("a verifier"))
        }
    };
    let key = key.serialize_der().try_into().expect("a key");
    let config = builder.with_single_cert(vec![certificate.der().clone()], key);
    let acceptor = TlsAcceptor::from(Arc::new(config.expect("a configuration")));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let target = prefect.server().address();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut client = acceptor.accept(stream).await?;
                let mut server = TcpStream::connect(target).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    format!("https://localhost:{port}")
}

/// An agent for this address, with these variables and flags.
fn start(world: &World, url: &str, env: &[(&str, &str)], args: &[&str]) -> Agent {
    let mut command = world.command();
    command.env("PREFECT__CLOUD__API", url).args(args);
    command.envs(env.iter().copied());
    Agent::spawn(&mut command)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_nobody_vouches_for_is_refused_and_one_with_a_ca_of_ones_own_is_not() {
    let world = World::new().await;
    let issuer = authority();
    let url = behind_tls(&world.prefect, &issuer, None).await;
    std::fs::write(world.path().join("ca.pem"), issuer.pem()).expect("written");
    let (code, output) = start(&world, &url, &[], &[]).ended().await;
    assert_eq!(code, Some(1));
    assert!(
        output.contains("cannot connect") && output.contains("certificate"),
        "{output}"
    );
    start(&world, &url, &[], &["--api-ca", "ca.pem"])
        .prints("Waiting for flow runs")
        .await;
    for variable in [
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_FILE",
        "PREFECT__CLOUD__TLS__CA",
    ] {
        let path = world.path().join("ca.pem");
        let path = path.to_str().expect("text");
        start(&world, &url, &[(variable, path)], &[])
            .prints("Waiting for flow runs")
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_asks_for_a_certificate_gets_the_agents() {
    let world = World::new().await;
    let (issuer, clients) = (authority(), authority());
    let url = behind_tls(&world.prefect, &issuer, Some(&clients)).await;
    let (certificate, key) = issued(&clients, "agent");
    let identity = format!("{}{}", certificate.pem(), key.serialize_pem());
    std::fs::write(world.path().join("agent.pem"), identity).expect("written");
    std::fs::write(world.path().join("ca.pem"), issuer.pem()).expect("written");
    let (code, output) = start(&world, &url, &[], &["--api-ca", "ca.pem"])
        .ended()
        .await;
    assert_eq!(code, Some(1), "{output}");
    let args = ["--api-ca", "ca.pem", "--api-client-cert", "agent.pem"];
    start(&world, &url, &[], &args)
        .prints("Waiting for flow runs")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_without_certificates_are_named() {
    let world = World::new().await;
    std::fs::write(world.path().join("empty.pem"), "").expect("written");
    for (flag, file, says) in [
        ("--api-ca", "missing.pem", "missing.pem"),
        ("--api-ca", "empty.pem", "--api-ca"),
        ("--api-client-cert", "empty.pem", "--api-client-cert"),
    ] {
        let agent = start(&world, "https://localhost:1", &[], &[flag, file]);
        let (code, output) = agent.ended().await;
        assert_eq!(code, Some(1), "{output}");
        assert!(output.contains(says), "{output}");
    }
}
