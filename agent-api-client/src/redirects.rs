//! Where a redirect of the API may lead: nowhere but to the same server, with the same request.

use std::fmt;

use reqwest::redirect::Policy;
use reqwest::{StatusCode, Url};

/// How many redirects are followed.
const MOST_REDIRECTS: usize = 5;

/// Why a redirect is not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Misled {
    /// The HTTP status of the redirect.
    pub(crate) status: u16,
    why: Why,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Why {
    /// To another server, of this origin, which would get the key and what was sent.
    Elsewhere(String),
    /// The request would become one for a page.
    Reads(String),
    /// Too often.
    Endless,
}

impl fmt::Display for Misled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            Why::Elsewhere(origin) => write!(
                f,
                "it redirects to another server, {origin}, which is not followed because it would get the API key; if the API is there, set --api or PREFECT__CLOUD__API to its address"
            ),
            Why::Reads(path) => write!(
                f,
                "it redirects to {path}, with a status that turns the request into one for a page; set --api or PREFECT__CLOUD__API to the address where the API is now"
            ),
            Why::Endless => write!(
                f,
                "it redirects more than {MOST_REDIRECTS} times; check --api or PREFECT__CLOUD__API"
            ),
        }
    }
}

impl std::error::Error for Misled {}

impl Misled {
    /// The one that a failed request failed for.
    pub(crate) fn within(error: &reqwest::Error) -> Option<&Self> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(misled) = error.downcast_ref() {
                return Some(misled);
            }
            cause = error.source();
        }
        None
    }
}

/// Follows redirects that repeat the request on the same server; refuses all others.
pub(crate) fn policy() -> Policy {
    Policy::custom(
        |attempt| match judge(attempt.status(), attempt.previous(), attempt.url()) {
            None => attempt.follow(),
            Some(misled) => attempt.error(misled),
        },
    )
}

fn judge(status: StatusCode, previous: &[Url], next: &Url) -> Option<Misled> {
    let first = previous.first()?;
    let repeats = matches!(
        status,
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
    );
    let why = if first.origin() != next.origin() {
        Why::Elsewhere(next.origin().ascii_serialization())
    } else if !repeats {
        Why::Reads(next.path().chars().take(200).collect())
    } else if previous.len() > MOST_REDIRECTS {
        Why::Endless
    } else {
        return None;
    };
    let status = status.as_u16();
    Some(Misled { status, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, to: &str) -> Option<String> {
        let url = |text: &str| Url::parse(text).expect("an address");
        let status = StatusCode::from_u16(status).expect("a status");
        let first = url("https://api.example.com/graphql");
        judge(status, &[first], &url(to)).map(|misled| misled.to_string())
    }

    #[test]
    fn only_the_same_server_gets_the_request_again() {
        for status in [301, 302, 303, 307, 308] {
            for elsewhere in [
                "http://api.example.com/graphql",
                "https://api.example.com:8443/graphql",
                "https://example.com/graphql",
                "https://me:hush@evil.example.com/?token=hush",
            ] {
                let why = judged(status, elsewhere).expect("refused");
                assert!(why.contains("another server") && why.contains("--api"));
                assert!(!why.contains("hush"), "{why}");
            }
        }
        let why = judged(307, "https://me:hush@evil.example.com:1/").expect("refused");
        assert!(why.contains("https://evil.example.com:1,"), "{why}");
        for status in [307, 308] {
            assert_eq!(judged(status, "https://api.example.com:443/v2?a#b"), None);
        }
        for status in [301, 302, 303] {
            let why = judged(status, "https://api.example.com/v2?a#b").expect("refused");
            assert!(why.contains("to /v2, with a status"), "{why}");
        }
    }
}
