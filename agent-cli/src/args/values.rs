//! The kinds of values that flags take.

use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use clap::ValueEnum;
use ipnet::IpNet;
use secrecy::SecretString;

/// The suffixes of Kubernetes quantities.
const SUFFIXES: [&str; 16] = [
    "", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei",
];

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// When the node does not have it.
    IfNotPresent,
    /// Never.
    Never,
}

impl fmt::Display for PullPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A duration such as `90s`, `5m`, `1h 30m` or `7d`; a day has 24 hours.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let parsed: Result<jiff::Span, _> = text.parse();
    parsed
        .and_then(|span| span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()))
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| "use a duration such as 90s, 5m, 1h or 7d".to_owned())
}

/// What is never shown.
pub(super) fn secret(text: &str) -> Result<SecretString, Infallible> {
    Ok(SecretString::from(text))
}

/// A range of addresses, or one address.
pub(super) fn net(text: &str) -> Result<IpNet, String> {
    let one = || text.parse::<IpAddr>().ok().map(IpNet::from);
    let net = text.parse().ok().or_else(one);
    net.ok_or_else(|| "use a range such as 10.20.0.0/16 or fd12:3456::/32".to_owned())
}

/// A Kubernetes quantity: a number, and a suffix or an exponent.
pub(super) fn quantity(text: &str) -> Result<String, String> {
    let wrong = || "use a quantity such as 512Mi, 0.5 or 500m".to_owned();
    let digits = text.trim_start_matches(['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', '.']);
    let (number, suffix) = text.split_at(text.len() - digits.len());
    let exponent = || {
        let rest = suffix.strip_prefix(['e', 'E'])?;
        rest.parse::<i8>().ok()
    };
    let counts = number.parse::<f64>().is_ok_and(f64::is_finite);
    if counts && (SUFFIXES.contains(&suffix) || exponent().is_some()) {
        return Ok(text.to_owned());
    }
    Err(wrong())
}

/// A duration that a Lease can hold.
pub(super) fn whole_seconds(text: &str) -> Result<Duration, String> {
    let given = duration(text)?;
    if given.subsec_nanos() != 0 || !(1..=600).contains(&given.as_secs()) {
        return Err("use whole seconds, from 1s to 10m".to_owned());
    }
    Ok(given)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn durations_may_be_of_seconds_up_to_weeks() {
        for (text, seconds) in [
            ("0s", 0),
            ("90s", 90),
            ("1h 30m", 5_400),
            ("7d", 604_800),
            ("1w 1d", 691_200),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "5", "soon", "-5m", "1 month"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_may_be_one_address() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("::1", "::1/128"),
        ] {
            assert_eq!(net(text).map(|net| net.to_string()), Ok(shown.to_owned()));
        }
        for bad in ["", "10.0.0.0/33", "flows", "10.0.0.0-10.0.0.9"] {
            assert!(net(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_are_not_shown_with_the_flags() {
        for line in [
            ["agent-cli", "start", "--key", "hush"],
            ["agent-cli", "install", "--key", "hush"],
        ] {
            let given = crate::args::Cli::try_parse_from(line).expect("it parses");
            assert!(!format!("{given:?}").contains("hush"), "{given:?}");
        }
    }

    #[test]
    fn quantities_are_what_kubernetes_takes() {
        for good in [
            "1", "0.5", "500m", "512Mi", "1e3", "1E-3", "100Ki", "2G", ".5", "1.",
        ] {
            assert_eq!(quantity(good), Ok(good.to_owned()));
        }
        for bad in ["", "Mi", "1 Gi", "1mi", "1.2.3", "-1", "1e", "1MB", "x1"] {
            assert!(quantity(bad).is_err(), "{bad}");
        }
    }
}
