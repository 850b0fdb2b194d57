//! Which hosts flows may not reach through the agent: itself, its link, and the metadata service
//! of the cloud it runs in, by whatever name or notation.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use futures::future::BoxFuture;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::Host;

use crate::Scheme;

/// Turns a name into addresses.
pub(crate) type Lookup =
    Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// Why an address is not asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The host is where nobody should be led through the agent.
    Private { host: String, kind: &'static str },
    /// A redirect leads to such a scheme.
    Scheme(String),
    /// Too many redirects.
    Redirects(usize),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Private { host, kind } => write!(
                f,
                "flows may not read from {host}, which is {kind}, unless the agent's owner allows it with --allow-private-flow-templates"
            ),
            Self::Scheme(scheme) => {
                write!(f, "it redirects to a scheme that is not allowed, {scheme}")
            }
            Self::Redirects(most) => write!(f, "it redirects more than {most} times"),
        }
    }
}

impl std::error::Error for Refused {}

/// Checks hosts, and the addresses of their names when they are connected to.
#[derive(Clone)]
pub(crate) struct Guard {
    /// What an address is, if it is refused.
    pub(crate) judge: fn(IpAddr) -> Option<&'static str>,
    pub(crate) lookup: Lookup,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            judge: kind,
            lookup: Arc::new(|name| Box::pin(system(name))),
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard")
    }
}

async fn system(name: String) -> io::Result<Vec<IpAddr>> {
    let found = tokio::net::lookup_host((name, 0)).await?;
    Ok(found.map(|address| address.ip()).collect())
}

impl Guard {
    /// Checks an address whose host is a number: no name is looked up for it later.
    pub(crate) fn check(&self, url: &Url) -> Result<(), Refused> {
        let ip = match url.host() {
            Some(Host::Ipv4(ip)) => IpAddr::V4(ip),
            Some(Host::Ipv6(ip)) => IpAddr::V6(ip),
            Some(Host::Domain(_)) | None => return Ok(()),
        };
        self.check_ip(&ip.to_string(), ip)
    }

    fn check_ip(&self, host: &str, ip: IpAddr) -> Result<(), Refused> {
        match (self.judge)(ip) {
            Some(kind) => Err(Refused::Private {
                host: host.to_owned(),
                kind,
            }),
            None => Ok(()),
        }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        let name = name.as_str().to_owned();
        Box::pin(async move {
            let found = (guard.lookup)(name.clone()).await?;
            for ip in &found {
                guard.check_ip(&name, *ip)?;
            }
            let found = found.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(found) as Addrs)
        })
    }
}

/// Checks where a redirect leads.
pub(crate) fn check_redirect(
    to: &Url,
    allowed: &BTreeSet<Scheme>,
    guard: Option<&Guard>,
) -> Result<(), Refused> {
    let scheme = to.scheme();
    let is_web = matches!(scheme, "http" | "https");
    if !is_web || !scheme.parse().is_ok_and(|scheme| allowed.contains(&scheme)) {
        return Err(Refused::Scheme(scheme.to_owned()));
    }
    guard.map_or(Ok(()), |guard| guard.check(to))
}

/// What an address is, if flows may not reach it.
pub(crate) fn kind(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(ip) => kind_v4(ip),
        IpAddr::V6(ip) => kind_v6(ip),
    }
}

fn kind_v4(ip: Ipv4Addr) -> Option<&'static str> {
    match ip.octets() {
        [0, ..] => Some("unspecified"),
        [127, ..] => Some("loopback"),
        [169, 254, ..] => Some("link-local"),
        [100, 100, 100, 200] | [168, 63, 129, 16] | [192, 0, 0, 192] => {
            Some("a cloud's metadata service")
        }
        _ => None,
    }
}

fn kind_v6(ip: Ipv6Addr) -> Option<&'static str> {
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("unspecified"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
        [0xfe80..=0xfebf, ..] => Some("link-local"),
        [0xfd00, 0xec2, ..] | [0xfd20, 0xce, ..] => Some("a cloud's metadata service"),
        // An IPv4 address within: mapped, compatible, translated, 6to4.
        [0, 0, 0, 0, 0 | 0xffff, 0, high, low]
        | [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            kind_v4(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_own_addresses_are_told_in_every_notation() {
        for (text, expected) in [
            ("http://127.0.0.1/", "loopback"),
            ("http://127.1:8080/", "loopback"),
            ("http://0x7f.0.0.1/", "loopback"),
            ("http://2130706433/", "loopback"),
            ("http://０177.0.0.1/", "loopback"),
            ("http://[::1]/", "loopback"),
            ("http://[::ffff:127.0.0.1]/", "loopback"),
            ("http://[::ffff:7f00:1]/", "loopback"),
            ("http://[::127.0.0.1]/", "loopback"),
            ("http://[64:ff9b::127.0.0.1]/", "loopback"),
            ("http://[2002:7f00:1::]/", "loopback"),
            ("http://0/", "unspecified"),
            ("http://0.0.0.0/", "unspecified"),
            ("http://[::]/", "unspecified"),
            ("http://169.254.169.254/latest/meta-data/", "link-local"),
            ("http://[fe80::1]/", "link-local"),
            ("http://[febf::1]/", "link-local"),
            ("http://[::ffff:169.254.169.254]/", "link-local"),
            ("http://[fd00:ec2::254]/", "a cloud's metadata service"),
            ("http://100.100.100.200/", "a cloud's metadata service"),
        ] {
            let url = Url::parse(text).expect(text);
            match Guard::default().check(&url) {
                Err(Refused::Private { kind, .. }) => assert_eq!(kind, expected, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn other_addresses_are_nobodys_business() {
        for text in [
            "http://10.0.0.1/",
            "http://192.168.1.1/",
            "http://[fd12::1]/",
            "http://[2001:db8::1]/",
            "http://8.8.8.8/",
            "http://localhost/",
        ] {
            let url = Url::parse(text).expect(text);
            assert_eq!(Guard::default().check(&url), Ok(()), "{text}");
        }
    }

    #[test]
    fn redirects_stay_within_the_allowed_schemes() {
        let https = BTreeSet::from([Scheme::Https]);
        for (text, scheme) in [
            ("http://host/", "http"),
            ("ftp://host/", "ftp"),
            ("file:///etc/hostname", "file"),
        ] {
            let to = Url::parse(text).expect(text);
            let refused = check_redirect(&to, &https, None);
            assert_eq!(refused, Err(Refused::Scheme(scheme.to_owned())));
        }
        let to = Url::parse("file:///etc/hostname").expect("an address");
        assert!(check_redirect(&to, &Scheme::all(), None).is_err());
        let to = Url::parse("https://host/").expect("an address");
        assert_eq!(check_redirect(&to, &https, None), Ok(()));
    }
}
