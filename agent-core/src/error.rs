//! The one error of the traits. Its variants say what the caller does next.

use std::time::Duration;

/// A result with the agent's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a source, a backend or a template store could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Trying again cannot help. What concerns one run fails that run with this message, so the
    /// message names the input, the place and the remedy, and never holds a secret.
    #[error("{0}")]
    Permanent(String),
    /// Refused as things are now, but somebody may change them: a quota that is used up, a
    /// namespace that is not there yet. Worth trying again for a while, then as good as permanent.
    #[error("{0}")]
    Refused(String),
    /// Concerns this agent and no run: its configuration, its permissions, its credentials. Another
    /// agent may do what this one cannot, so runs stay queued until somebody mends it.
    #[error("{0}")]
    Agent(String),
    /// It may work later: connections, time-outs, overload.
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

    /// Whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Transient { .. } | Self::Refused(_) | Self::Agent(_)
        )
    }

    /// The pause that the other side asked for, if it did.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Permanent(_) | Self::Refused(_) | Self::Agent(_) => None,
            Self::Transient { retry_after, .. } => *retry_after,
        }
    }
}
