//! The one error of the traits. Its variants say what the caller does next.

use std::time::Duration;

/// A result with the agent's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a source, a backend or a template store could not do what it was asked. Each variant says
/// whom the failure concerns, and by that what the caller does next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Concerns this run, and trying again cannot help. It fails the run with this message, so the
    /// message names the input, the place and the remedy, and never holds a secret.
    #[error("{0}")]
    Permanent(String),
    /// Concerns this run, which is refused as things are now; somebody may change them: a quota that
    /// is used up, a template that cannot be fetched. Tried again within the run's
    /// [budget](crate::AgentBuilder::submit_retry_budget), then as good as permanent.
    #[error("{0}")]
    Refused(String),
    /// A request about this run failed, and it does not show whether the run or the whole side is at
    /// fault: an internal error, no answer in time. It is the run's, as [`Refused`](Self::Refused)
    /// is, while the side does the same for others; it is the side's when it fails for all.
    #[error("{message}")]
    Unclear {
        /// What went wrong.
        message: String,
        /// How long the other side asked to be left alone.
        retry_after: Option<Duration>,
    },
    /// Concerns this agent: its permissions, credentials or configuration. No run fails by it; runs
    /// stay queued, for another replica may be able to do what this one may not.
    #[error("{0}")]
    Agent(String),
    /// Concerns the whole side, which is away or overloaded. Whoever asked waits and slows down; no
    /// run fails by it.
    #[error("{message}")]
    Transient {
        /// What went wrong, for the agent's own log.
        message: String,
        /// How long the other side asked to be left alone.
        retry_after: Option<Duration>,
    },
}

impl Error {
    /// A [`Error::Permanent`] with this message.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self::Permanent(message.into())
    }

    /// A [`Error::Transient`] with this message and no wish about the pause.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::Transient {
            message: message.into(),
            retry_after: None,
        }
    }

    /// A [`Error::Agent`] with this message.
    pub fn agent(message: impl Into<String>) -> Self {
        Self::Agent(message.into())
    }

    /// A [`Error::Unclear`] with this message and no wish about the pause.
    pub fn unclear(message: impl Into<String>) -> Self {
        Self::Unclear {
            message: message.into(),
            retry_after: None,
        }
    }

    /// Returns whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Permanent(_))
    }

    /// Returns the pause that the other side asked for, if it did.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unclear { retry_after, .. } | Self::Transient { retry_after, .. } => *retry_after,
            Self::Permanent(_) | Self::Refused(_) | Self::Agent(_) => None,
        }
    }
}
