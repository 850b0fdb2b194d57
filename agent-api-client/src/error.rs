//! Why a request to the Prefect API did not give what was asked for.

use std::fmt;
use std::time::Duration;

use agent_core::{LONGEST_MESSAGE, clip};

/// What the API says to a second claim, and to a state for a run that it does not know.
pub(crate) const UPDATE_FAILED: &str = "State update failed";

/// A failed request: what was asked, of which address, and what came back. Never holds the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The operation, for instance `get_runs_in_queue`.
    pub operation: &'static str,
    /// The API's address, without credentials.
    pub url: String,
    /// What came back.
    pub cause: Cause,
}

/// What came back instead of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// No connection: nothing can have happened at the other side.
    Connect(String),
    /// The connection broke or timed out after the request had been sent, or may have been: it
    /// may have taken effect.
    Broken(String),
    /// A status that tells of a passing state: 408, 429 and 5xx.
    Unavailable {
        /// The HTTP status.
        status: u16,
        /// What `Retry-After` asked for.
        retry_after: Option<Duration>,
    },
    /// Any other status that is not a success.
    Status {
        /// The HTTP status.
        status: u16,
        /// What the API said about it, if anything.
        message: String,
    },
    /// The key is missing, wrong or revoked.
    Unauthorized(String),
    /// A success without a usable GraphQL answer, such as the HTML page of a proxy.
    Malformed(String),
    /// The answer is larger than this many bytes.
    TooLarge(usize),
    /// `API_ERROR`: the API failed inside.
    Internal(String),
    /// The run has changed since its version was read.
    VersionConflict,
    /// The API understood and refused.
    Refused(String),
}

impl Cause {
    /// Whether the same request may succeed in a moment.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Connect(_)
                | Self::Broken(_)
                | Self::Unavailable { .. }
                | Self::Malformed(_)
                | Self::Internal(_)
        )
    }

    /// The outcome as metrics name it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Connect(_) => "unreachable",
            Self::Broken(_) => "broken",
            Self::Unavailable { status: 429, .. } => "throttled",
            Self::Unavailable { .. } => "unavailable",
            Self::Status { .. } => "status",
            Self::Unauthorized(_) => "unauthorized",
            Self::Malformed(_) => "malformed",
            Self::TooLarge(_) => "too_large",
            Self::Internal(_) => "internal",
            Self::VersionConflict => "conflict",
            Self::Refused(_) => "refused",
        }
    }

    /// Whether the request may have taken effect although no answer tells so.
    pub(crate) fn is_ambiguous(&self) -> bool {
        self.is_transient() && !matches!(self, Self::Connect(_))
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(why) => write!(f, "cannot connect: {why}"),
            Self::Broken(why) => write!(f, "no answer: {why}"),
            Self::Unavailable { status: 429, .. } => {
                f.write_str("HTTP status 429: the API asks to be called less often")
            }
            Self::Unavailable { status, .. } => {
                write!(f, "HTTP status {status}: the API is unavailable")
            }
            Self::Status { status, message } if message.is_empty() => {
                write!(f, "HTTP status {status}")
            }
            Self::Status { status, message } => write!(f, "HTTP status {status}: {message}"),
            Self::Unauthorized(why) => write!(
                f,
                "the API refused the key ({why}); check --key or PREFECT__CLOUD__API_KEY"
            ),
            Self::Malformed(why) => write!(f, "the answer is no GraphQL answer: {why}"),
            Self::TooLarge(bytes) => {
                write!(f, "the answer is larger than {} MiB", bytes >> 20)
            }
            Self::Internal(why) => write!(f, "the API failed: {why}"),
            Self::VersionConflict => {
                f.write_str("the run has changed meanwhile (VERSION_LOCKING_ERROR)")
            }
            Self::Refused(why) => f.write_str(why),
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: {}", self.operation, self.url, self.cause)
    }
}

impl std::error::Error for ApiError {}

/// The status of an answer to a request that is too large for the API, or for something before it.
const PAYLOAD_TOO_LARGE: u16 = 413;

/// For what concerns one run or one poll: only what the API itself refused is final.
impl From<ApiError> for agent_core::Error {
    fn from(error: ApiError) -> Self {
        let message = || clip(&error.to_string(), LONGEST_MESSAGE).into_owned();
        match &error.cause {
            Cause::Refused(why) if why.contains(UPDATE_FAILED) => Self::Permanent(message()),
            // Of one run's state.
            Cause::Refused(why) if why.contains("too large") => Self::Permanent(message()),
            Cause::Status { status, .. } if *status == PAYLOAD_TOO_LARGE => {
                Self::Permanent(message())
            }
            Cause::VersionConflict => Self::Permanent(message()),
            // The server uses the same words and the same code for what fails inside.
            Cause::Refused(_) => Self::Refused(message()),
            // A key, an address or a proxy that is not as it should be.
            Cause::Unauthorized(_) | Cause::Status { .. } => Self::Agent(message()),
            cause => Self::Transient {
                retry_after: cause.retry_after(),
                message: message(),
            },
        }
    }
}
