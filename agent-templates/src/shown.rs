//! Locations as messages may hold them: no credentials, no query, no control characters.

use agent_core::TemplateLocation;
use agent_core::shown::address;
pub(crate) use agent_core::shown::printable;

use crate::Scheme;

/// A location without what may be secret: the query, the fragment, and a user before the host.
pub fn shown(location: &str) -> String {
    let scheme = TemplateLocation::parse(location).scheme;
    let is_file = scheme.is_empty() || scheme.parse().is_ok_and(Scheme::is_file);
    match is_file && !location.contains("://") {
        true => printable(location),
        false => address(location),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_locations_are_shown_as_they_are() {
        for location in [
            "",
            "job.yaml?x#y",
            "agent:a@b/job.yaml",
            "s3://bucket/a b/ü+.yaml",
            "https://host:8080/job.yaml",
            "ftp://host/x",
            "c:job.yaml",
        ] {
            assert_eq!(shown(location), location);
        }
    }

    #[test]
    fn credentials_queries_and_control_characters_are_not() {
        for (location, expected) in [
            ("HTTPS://me:pw@host/a?sig=1#f", "HTTPS://…@host/a?…"),
            ("http:\\\\me:pw@host\\a", "http:\\\\…@host\\a"),
            ("http:me:p@w@host", "http:…@host"),
            ("s3://bucket/a?X-Amz-Signature=1", "s3://bucket/a?…"),
            ("ftp://me:pw@host/a#b", "ftp://…@host/a#…"),
            ("a\nb", "a\\nb"),
        ] {
            assert_eq!(shown(location), expected);
        }
    }
}
