//! What S3's refusals mean, and what a person can do about them.

use std::io;
use std::time::Duration;

use agent_core::Error;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError;
use tokio::time::timeout;

use super::{GetError, Object, status};
use crate::remote::{causes, chain};
use crate::shown::{printable, shown};

/// How long a message waits for the name of who was denied.
const WHO: Duration = Duration::from_secs(2);

/// An error for why an object is not there to be read.
pub(super) async fn explain(
    error: &GetError,
    object: Object<'_>,
    sts: &aws_sdk_sts::Client,
) -> Error {
    let cannot = format!("cannot read the job template {}", shown(object.location));
    let credentials = causes(error).find_map(|cause| cause.downcast_ref());
    if let Some(credentials) = credentials {
        return no_credentials(&cannot, credentials);
    }
    match error {
        SdkError::ServiceError(_) => answered(&cannot, error, object, sts).await,
        SdkError::ConstructionFailure(_) => Error::permanent(format!(
            "{cannot}: {}; check the bucket's name, the region and the endpoint",
            chain(error)
        )),
        _ => Error::transient(format!("{cannot}: S3 cannot be reached: {}", chain(error))),
    }
}

async fn answered(
    cannot: &str,
    error: &GetError,
    object: Object<'_>,
    sts: &aws_sdk_sts::Client,
) -> Error {
    let code = error.code().unwrap_or_default();
    let status = status(error).unwrap_or_default();
    let said = said(error, status);
    let Object { bucket, key, .. } = object;
    let message = match (code, status) {
        _ if is_passing(code, status) => {
            return Error::transient(format!("{cannot}: S3 answered {said}"));
        }
        ("NoSuchBucket", _) => format!(
            "{cannot}: there is no bucket {bucket:?}; check its name, and AWS_ENDPOINT_URL if it is set"
        ),
        ("NoSuchKey", _) | (_, 404) => format!(
            "{cannot}: there is no key {key:?} in the bucket {bucket:?}; check the key, letter case included"
        ),
        (
            "ExpiredToken"
            | "InvalidAccessKeyId"
            | "InvalidToken"
            | "RequestTimeTooSkewed"
            | "SignatureDoesNotMatch"
            | "TokenRefreshRequired",
            _,
        ) => format!(
            "{cannot}: S3 does not accept the agent's AWS credentials: {said}; renew them, and check this machine's clock"
        ),
        ("AccessDenied", _) | (_, 401 | 403) => format!(
            "{cannot}: access denied{}: {said}; allow it s3:GetObject on this key (without s3:ListBucket, a missing key looks the same)",
            principal(sts).await
        ),
        (_, 301 | 307) | ("AuthorizationHeaderMalformed", _) => format!(
            "{cannot}: the bucket {bucket:?} is in another region: {said}; set AWS_REGION to it"
        ),
        _ => format!("{cannot}: S3 answered {said}"),
    };
    Error::Permanent(message)
}

/// What S3 said, as far as it is for people.
fn said(error: &GetError, status: u16) -> String {
    let code = error.code().map(|code| format!(" {code}"));
    let message = error.message().map(|message| format!(": {message}"));
    printable(&format!(
        "{status}{}{}",
        code.unwrap_or_default(),
        message.unwrap_or_default()
    ))
}

fn is_passing(code: &str, status: u16) -> bool {
    let is_throttling = code.starts_with("Throttl") || code == "RequestLimitExceeded";
    let is_known = matches!(
        code,
        "RequestTimeout" | "SlowDown" | "IDPCommunicationError"
    );
    is_throttling || is_known || matches!(status, 408 | 429 | 500..)
}

/// Who is denied, if AWS says.
async fn principal(sts: &aws_sdk_sts::Client) -> String {
    match timeout(WHO, sts.get_caller_identity().send()).await {
        Ok(Ok(identity)) => identity
            .arn()
            .map_or_else(String::new, |arn| format!(" to {}", printable(arn))),
        _ => String::new(),
    }
}

fn no_credentials(cannot: &str, error: &CredentialsError) -> Error {
    let why = chain(error);
    let refused = sts_refusal(error);
    match (error, refused) {
        (CredentialsError::CredentialsNotLoaded(_), _) => Error::permanent(format!(
            "{cannot}: no AWS credentials found; tried the environment (AWS_ACCESS_KEY_ID), the profile (AWS_PROFILE, ~/.aws), the web identity (AWS_WEB_IDENTITY_TOKEN_FILE), the container (EKS Pod Identity, ECS) and the machine's metadata service"
        )),
        (CredentialsError::InvalidConfiguration(_), _) => Error::permanent(format!(
            "{cannot}: the settings for AWS credentials are not valid: {why}"
        )),
        (_, Some(refused)) => Error::permanent(format!(
            "{cannot}: AWS gives no credentials: {refused}; check the role, its trust policy and the service account's annotation"
        )),
        _ if lacks_file(error) => Error::permanent(format!(
            "{cannot}: a file for AWS credentials cannot be read: {why}; check AWS_WEB_IDENTITY_TOKEN_FILE, AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE"
        )),
        _ => Error::transient(format!("{cannot}: AWS credentials do not arrive: {why}")),
    }
}

/// What the token service said, unless it may be better later.
fn sts_refusal(error: &CredentialsError) -> Option<String> {
    let about = causes(error).find_map(|cause| {
        let web = cause.downcast_ref::<AssumeRoleWithWebIdentityError>();
        let role = cause.downcast_ref::<AssumeRoleError>();
        web.map(|e| e.meta()).or(role.map(|e| e.meta()))
    })?;
    let code = about.code()?;
    let is_internal = matches!(
        code,
        "InternalFailure" | "InternalError" | "ServiceUnavailable"
    );
    let message = about.message().unwrap_or_default();
    (!is_internal && !is_passing(code, 400)).then(|| printable(&format!("{code}: {message}")))
}

fn lacks_file(error: &CredentialsError) -> bool {
    let kinds = [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied];
    let mut found = causes(error).filter_map(|cause| cause.downcast_ref::<io::Error>());
    found.any(|error| kinds.contains(&error.kind()))
}
