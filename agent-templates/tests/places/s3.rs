//! What only S3 has: where credentials, region and endpoint come from, and who is denied.

use std::sync::{Arc, Mutex};

use agent_core::TemplateOrigin::Agent;
use axum::Router;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use crate::bench::{Bench, JOB, Kind, impatient, serve};
use crate::child;
use crate::proxy::Fault;
use crate::servers::stores;

tests![
    finds_credentials_in_the_environment,
    finds_everything_in_a_profile,
    takes_the_role_of_a_service_account,
    takes_what_eks_pod_identity_gives,
    takes_the_role_of_the_machine,
    says_where_it_looked_for_credentials,
    says_so_too_where_the_machine_does_not_answer,
    says_when_the_role_is_refused,
    says_when_the_token_is_missing,
    finds_a_bucket_in_another_region,
    names_who_is_denied,
];

const KEYS: [(&str, &str); 2] = [
    ("AWS_ACCESS_KEY_ID", "AKIATEST"),
    ("AWS_SECRET_ACCESS_KEY", "secret-of-the-test"),
];
const NO_MACHINE: (&str, &str) = ("AWS_EC2_METADATA_DISABLED", "true");
/// What every source of temporary credentials answers.
const TEMPORARY: &str = r#"{"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": "ASIATEST", "SecretAccessKey": "secret-of-the-test", "Token": "t", "RoleArn": "r", "Expiration": "2099-01-01T00:00:00Z"}"#;

async fn bench() -> (Bench, String) {
    let bench = Bench::new(Kind::S3).await;
    let endpoint = format!("http://{}", bench.proxy.address);
    (bench, endpoint)
}

async fn finds_credentials_in_the_environment() {
    let (bench, endpoint) = bench().await;
    for name in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"] {
        let environment = [KEYS[0], KEYS[1], NO_MACHINE, (name, &endpoint)];
        let found = child::read(&bench.location, Agent, &environment).await;
        assert_eq!(found.found(), JOB);
        let requests = bench.proxy.take().requests;
        assert!(requests[0].contains("/bucket-"), "{requests:?}");
    }
}

async fn finds_everything_in_a_profile() {
    let (bench, endpoint) = bench().await;
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: String| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let config = file(
        "config",
        format!(
            "[profile agent]\nregion = eu-west-1\nservices = here\n[services here]\ns3 =\n  endpoint_url = {endpoint}\n"
        ),
    );
    let credentials = file(
        "credentials",
        "[agent]\naws_access_key_id = AKIATEST\naws_secret_access_key = x\n".to_owned(),
    );
    let environment = [
        ("AWS_PROFILE", "agent"),
        ("AWS_CONFIG_FILE", &config),
        ("AWS_SHARED_CREDENTIALS_FILE", &credentials),
        NO_MACHINE,
    ];
    let found = child::read(&bench.location, Agent, &environment).await;
    assert_eq!(found.found(), JOB);
}

/// A file with the token of a service account, as EKS mounts it.
fn token() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "eyJhbGciOiJub25lIn0.e30.").expect("written");
    file
}

fn service_account<'a>(endpoint: &'a str, token: &'a str) -> [(&'a str, &'a str); 5] {
    [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/agent"),
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_REGION", "eu-central-1"),
        NO_MACHINE,
    ]
}

async fn takes_the_role_of_a_service_account() {
    let (bench, endpoint) = bench().await;
    let token = token();
    let token = token.path().display().to_string();
    let environment = service_account(&endpoint, &token);
    let found = child::read(&bench.location, Agent, &environment).await;
    assert_eq!(found.found(), JOB);
    let requests = bench.proxy.take().requests;
    assert_eq!(requests[0], "POST / HTTP/1.1", "the token service is asked");
}

async fn takes_what_eks_pod_identity_gives() {
    let (bench, endpoint) = bench().await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let agent = Router::new().fallback(move |uri: Uri, headers: HeaderMap| async move {
        let token = headers["authorization"].to_str().expect("text").to_owned();
        seen.lock()
            .expect("unpoisoned")
            .push((uri.to_string(), token));
        TEMPORARY
    });
    let address = format!("http://{}/v1/credentials", serve(agent).await);
    let token = token();
    let token = token.path().display().to_string();
    let environment = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", address.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token),
        ("AWS_ENDPOINT_URL", &endpoint),
        NO_MACHINE,
    ];
    let found = child::read(&bench.location, Agent, &environment).await;
    assert_eq!(found.found(), JOB);
    let (uri, token) = asked.lock().expect("unpoisoned").remove(0);
    assert_eq!(uri, "/v1/credentials");
    assert!(token.starts_with("eyJ"));
}

async fn takes_the_role_of_the_machine() {
    let (bench, endpoint) = bench().await;
    let metadata = Router::new().fallback(|uri: Uri, headers: HeaderMap| async move {
        let has_token = headers.get("x-aws-ec2-metadata-token").is_some();
        match uri.path() {
            "/latest/api/token" => {
                let life = [("x-aws-ec2-metadata-token-ttl-seconds", "21600")];
                (life, "a-token").into_response()
            }
            _ if !has_token => StatusCode::UNAUTHORIZED.into_response(),
            "/latest/meta-data/placement/region" => "eu-north-1".into_response(),
            path if path.ends_with("/agent-role") || path.ends_with("/agent-role/") => {
                TEMPORARY.into_response()
            }
            path if path.contains("security-credentials") => "agent-role".into_response(),
            _ => StatusCode::NOT_FOUND.into_response(),
        }
    });
    let machine = format!("http://{}", serve(metadata).await);
    let environment = [
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", machine.as_str()),
        ("AWS_ENDPOINT_URL", &endpoint),
    ];
    let found = child::read(&bench.location, Agent, &environment).await;
    assert_eq!(found.found(), JOB);
}

async fn says_where_it_looked_for_credentials() {
    let (bench, endpoint) = bench().await;
    let environment = [("AWS_ENDPOINT_URL", endpoint.as_str()), NO_MACHINE];
    let error = child::read(&bench.location, Agent, &environment).await;
    let error = error.permanent();
    for tried in [
        "no AWS credentials found",
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "EKS Pod Identity",
        "metadata service",
    ] {
        assert!(error.contains(tried), "{tried}: {error}");
    }
    assert!(bench.proxy.take().requests.is_empty());
}

async fn says_so_too_where_the_machine_does_not_answer() {
    let (bench, endpoint) = bench().await;
    bench.proxy.set(Fault::Silent);
    let environment = [
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint.as_str()),
        ("AWS_ENDPOINT_URL", &endpoint),
    ];
    let error = child::read(&bench.location, Agent, &environment).await;
    let error = error.permanent();
    assert!(error.contains("no AWS credentials found"), "{error}");
}

async fn says_when_the_role_is_refused() {
    let sts = Router::new().fallback(|| async {
        (
            StatusCode::FORBIDDEN,
            "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>Not authorized to perform sts:AssumeRoleWithWebIdentity</Message></Error></ErrorResponse>",
        )
    });
    let endpoint = format!("http://{}", serve(sts).await);
    let token = token();
    let token = token.path().display().to_string();
    let environment = service_account(&endpoint, &token);
    let error = child::read("s3://bucket/job.yaml", Agent, &environment).await;
    let error = error.permanent();
    assert!(error.contains("Not authorized to perform sts"), "{error}");
    assert!(
        error.contains("check the role, its trust policy"),
        "{error}"
    );
}

async fn says_when_the_token_is_missing() {
    let environment = service_account("http://127.0.0.1:1", "/no/such/token");
    let error = child::read("s3://bucket/job.yaml", Agent, &environment).await;
    let error = error.permanent();
    assert!(error.contains("AWS_WEB_IDENTITY_TOKEN_FILE"), "{error}");
}

/// Answers those who sign for eu-west-1, and tells the others where the bucket is.
async fn far_away(headers: HeaderMap) -> Response {
    let signed = headers["authorization"].to_str().expect("text");
    if signed.contains("/eu-west-1/s3/aws4_request") {
        return JOB.into_response();
    }
    (
        StatusCode::MOVED_PERMANENTLY,
        [("x-amz-bucket-region", "eu-west-1")],
        "<Error><Code>PermanentRedirect</Code><Message>use the specified endpoint</Message></Error>",
    )
        .into_response()
}

async fn finds_a_bucket_in_another_region() {
    let server = serve(Router::new().fallback(far_away)).await;
    let bench = Bench::bare(Kind::S3, server, &impatient()).await;
    let location = "s3://far-away/job.yaml";
    for expected in [2, 1] {
        let found = bench.store.load(location, Agent).await.expect("found");
        assert_eq!(found.bytes, JOB.as_bytes());
        let requests = bench.proxy.take().requests;
        assert_eq!(requests.len(), expected, "the region is remembered");
    }
}

async fn names_who_is_denied() {
    // Making a bucket, a template, a user and its key is free; after that, policies count.
    let moto = stores().moto(&[("INITIAL_NO_AUTH_ACTION_COUNT", "4")]);
    let moto = moto.expect("a server");
    let bench = Bench::on(Kind::S3, moto.address(), &impatient()).await;
    let endpoint = format!("http://{}", moto.address());
    let ask = |body: &'static str| {
        let request = reqwest::Client::new().post(&endpoint);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let signed = "AWS4-HMAC-SHA256 Credential=AKIATEST/20200101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=0";
        request.header("authorization", signed).body(body).send()
    };
    let made = ask("Action=CreateUser&UserName=agent&Version=2010-05-08").await;
    assert!(made.expect("an answer").status().is_success());
    let key = ask("Action=CreateAccessKey&UserName=agent&Version=2010-05-08").await;
    let key = key.expect("an answer").text().await.expect("text");
    let part = |name: &str| {
        let (_, rest) = key.split_once(&format!("<{name}>")).expect(name);
        rest.split('<').next().expect(name).to_owned()
    };
    let credentials = [
        ("AWS_ACCESS_KEY_ID", part("AccessKeyId")),
        ("AWS_SECRET_ACCESS_KEY", part("SecretAccessKey")),
        ("AWS_ENDPOINT_URL", endpoint.clone()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
    ];
    let environment = credentials
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let error = child::read(&bench.location, Agent, &environment).await;
    let error = error.permanent();
    assert!(error.contains("access denied to arn:aws:iam::"), "{error}");
    assert!(error.contains(":user/agent"), "{error}");
    assert!(!error.contains(&part("SecretAccessKey")), "{error}");
}
