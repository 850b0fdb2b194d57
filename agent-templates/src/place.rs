//! A place that can be asked whether a template has changed, and what makes bytes a template.

use agent_core::{Error, Result, TemplateOrigin, async_trait};

use crate::shown::shown;

/// The largest template that is read, in bytes: about what the Kubernetes API takes.
pub const LARGEST: usize = 1 << 20;

/// What a place holds at a location.
#[derive(Debug)]
pub(crate) enum Fetched {
    /// What the tag stands for.
    NotModified,
    /// These bytes.
    Found {
        /// At most [`LARGEST`] of them.
        bytes: Vec<u8>,
        /// Stands for these bytes when the place is asked again; `None` when it cannot tell.
        tag: Option<String>,
    },
}

/// A place that holds templates.
#[async_trait]
pub(crate) trait Place: Send + Sync + 'static {
    /// Reads what is at the location, unless it is still what `known` stands for.
    async fn fetch(
        &self,
        location: &str,
        origin: TemplateOrigin,
        known: Option<&str>,
    ) -> Result<Fetched>;
}

/// The answer to a location whose scheme is not known here.
pub(crate) fn unsupported(location: &str) -> Error {
    Error::permanent(format!("Unsupported file scheme {}", shown(location)))
}

/// That a template is larger than [`LARGEST`].
pub(crate) fn too_large(location: &str, size: Option<u64>) -> Error {
    let size = size.map_or_else(String::new, |size| format!("{size} bytes, which is "));
    Error::permanent(format!(
        "the job template {} has {size}more than {LARGEST} bytes; make it smaller",
        shown(location)
    ))
}

/// Refuses what cannot be a template, whatever the place.
///
/// # Errors
/// When it is too large, or not UTF-8.
pub(crate) fn check(location: &str, bytes: &[u8]) -> Result<()> {
    if bytes.len() > LARGEST {
        return Err(too_large(location, Some(bytes.len() as u64)));
    }
    std::str::from_utf8(bytes).map(|_| ()).map_err(|error| {
        Error::permanent(format!(
            "the job template {} is not UTF-8 text: byte {} is not part of a character; save it as UTF-8",
            shown(location),
            error.valid_up_to()
        ))
    })
}
