//! What the places on the network share: gathering what arrives, and saying what went wrong.

use std::error::Error as StdError;

use agent_core::Result;

use crate::place::{LARGEST, too_large};
use crate::shown::printable;

/// Gathers what arrives of a template, as long as it is not too large.
#[derive(Debug, Default)]
pub(crate) struct Gathered(Vec<u8>);

impl Gathered {
    /// Nothing yet, of a template that says it has this size.
    ///
    /// # Errors
    /// When that is too large.
    pub(crate) fn announced(location: &str, size: Option<u64>) -> Result<Self> {
        match size {
            Some(size) if size > LARGEST as u64 => Err(too_large(location, Some(size))),
            _ => Ok(Self::default()),
        }
    }

    /// Adds a part.
    ///
    /// # Errors
    /// When it is too large with this part.
    pub(crate) fn push(&mut self, location: &str, part: &[u8]) -> Result<()> {
        if self.0.len() + part.len() > LARGEST {
            return Err(too_large(location, None));
        }
        self.0.extend_from_slice(part);
        Ok(())
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// An error with its causes, each said once.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    for cause in causes(error).skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    printable(&text)
}

/// Whether TLS can be spoken.
///
/// # Errors
/// What to do about it.
#[cfg(any(feature = "gcs", feature = "http"))]
pub(crate) fn check_provider() -> Result<(), String> {
    match rustls::crypto::CryptoProvider::get_default() {
        Some(_) => Ok(()),
        None => Err(
            "no crypto provider is installed; call rustls' CryptoProvider::install_default first"
                .to_owned(),
        ),
    }
}

/// An error, its cause, the cause of that, and so on.
pub(crate) fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}
