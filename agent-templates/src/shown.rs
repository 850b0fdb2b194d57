//! Locations as messages may hold them: no credentials, no query, no control characters.

use agent_core::TemplateLocation;

use crate::Scheme;

/// The longest text that a message repeats, in characters.
const LONGEST: usize = 1000;

/// A location without what may be secret: the query, the fragment, and a user before the host.
pub(crate) fn shown(location: &str) -> String {
    let scheme = TemplateLocation::parse(location).scheme;
    let is_file = scheme.is_empty() || scheme.parse().is_ok_and(Scheme::is_file);
    if is_file {
        return printable(location);
    }
    let rest = &location[scheme.len() + 1..];
    let (rest, query) = match rest.find(['?', '#']) {
        Some(end) => (&rest[..end], &rest[end..=end]),
        None => (rest, ""),
    };
    let host = rest.len() - rest.trim_start_matches(['/', '\\']).len();
    let end = rest[host..]
        .find(['/', '\\'])
        .map_or(rest.len(), |n| n + host);
    let user = rest[host..end].rfind('@').map(|at| host + at);
    let hidden = |present: bool| if present { "…" } else { "" };
    printable(&format!(
        "{}:{}{}{}{query}{}",
        &location[..scheme.len()],
        &rest[..host],
        hidden(user.is_some()),
        &rest[user.unwrap_or(host)..],
        hidden(!query.is_empty()),
    ))
}

/// A text of which each line of a log holds a whole.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(LONGEST));
    for (count, c) in text.chars().enumerate() {
        match c {
            _ if count == LONGEST => {
                shown.push('…');
                break;
            }
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
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
        assert_eq!(shown(&"ä".repeat(5000)).chars().count(), LONGEST + 1);
    }
}
