//! The kinds of places that hold templates, as allow lists name them.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use agent_core::TemplateLocation;

/// A kind of place, by the scheme of its locations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// A plain path, or `file:`.
    File,
    /// `local:`, a file like [`Scheme::File`].
    Local,
    /// `agent:`, a file where the agent runs, also when a flow names it.
    Agent,
    /// `http:`.
    Http,
    /// `https:`.
    Https,
    /// `s3:`.
    S3,
    /// `gs:`, also written `gcs:`.
    Gcs,
}

impl Scheme {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::File,
        Self::Local,
        Self::Agent,
        Self::Http,
        Self::Https,
        Self::S3,
        Self::Gcs,
    ];

    /// The scheme of a location; `None` when it is not one of these.
    pub fn of(location: &TemplateLocation<'_>) -> Option<Self> {
        match location.scheme.as_str() {
            "" => Some(Self::File),
            scheme => scheme.parse().ok(),
        }
    }

    /// Every scheme.
    pub fn all() -> BTreeSet<Self> {
        Self::ALL.into()
    }

    /// What flows may name unless the agent's owner says otherwise: everything but local paths.
    pub fn for_flows() -> BTreeSet<Self> {
        [Self::Agent, Self::Http, Self::Https, Self::S3, Self::Gcs].into()
    }

    /// Whether its templates are files on this machine.
    pub(crate) fn is_file(self) -> bool {
        matches!(self, Self::File | Self::Local | Self::Agent)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Local => "local",
            Self::Agent => "agent",
            Self::Http => "http",
            Self::Https => "https",
            Self::S3 => "s3",
            Self::Gcs => "gs",
        })
    }
}

/// That a text is not the name of a [`Scheme`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownScheme(String);

impl fmt::Display for UnknownScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is no scheme of templates; there are file, local, agent, http, https, s3, gs and gcs",
            self.0
        )
    }
}

impl std::error::Error for UnknownScheme {}

impl FromStr for Scheme {
    type Err = UnknownScheme;

    fn from_str(text: &str) -> Result<Self, UnknownScheme> {
        match text.to_ascii_lowercase().as_str() {
            "file" => Ok(Self::File),
            "local" => Ok(Self::Local),
            "agent" => Ok(Self::Agent),
            "http" => Ok(Self::Http),
            "https" => Ok(Self::Https),
            "s3" => Ok(Self::S3),
            "gs" | "gcs" => Ok(Self::Gcs),
            _ => Err(UnknownScheme(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_are_known_by_their_names() {
        for scheme in Scheme::ALL {
            assert_eq!(scheme.to_string().parse(), Ok(scheme));
        }
        assert_eq!("GCS".parse(), Ok(Scheme::Gcs));
        let error = "ftp".parse::<Scheme>().expect_err("unknown");
        assert!(error.to_string().contains("\"ftp\""), "{error}");
    }

    #[test]
    fn a_plain_path_counts_as_a_file_and_a_drive_letter_as_nothing() {
        let of = |text| Scheme::of(&TemplateLocation::parse(text));
        assert_eq!(of("job.yaml"), Some(Scheme::File));
        assert_eq!(of("LOCAL:job.yaml"), Some(Scheme::Local));
        assert_eq!(of("c:job.yaml"), None);
    }
}
