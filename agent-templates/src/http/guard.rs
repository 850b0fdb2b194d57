//! Which hosts flows may not reach through the agent: itself, its link, the metadata service of the
//! cloud it runs in, and all that is not the open internet, by whatever name or notation.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use futures::future::BoxFuture;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
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
                "flows may not read from {host}, which is {kind}, unless the agent's owner allows its range with --allow-flow-template-net or all with --allow-private-flow-templates"
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
    /// What an address belongs to, if it is refused.
    pub(crate) judge: fn(IpAddr) -> Option<Closed>,
    /// Ranges that are not refused.
    pub(crate) open: Vec<IpNet>,
    pub(crate) lookup: Lookup,
}

/// What an address that is refused belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed {
    pub(crate) kind: &'static str,
    /// What opens it lies within this range: nobody means the agent itself by `0.0.0.0/0`.
    pub(crate) opened_within: Option<IpNet>,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            judge: closed,
            open: Vec::new(),
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
        let ips = std::iter::once(ip).chain(inner(ip));
        for ip in ips {
            if let Some(closed) = (self.judge)(ip)
                && !self.is_open(ip, closed)
            {
                return Err(Refused::Private {
                    host: host.to_owned(),
                    kind: closed.kind,
                });
            }
        }
        Ok(())
    }

    fn is_open(&self, ip: IpAddr, closed: Closed) -> bool {
        self.open.iter().any(|net| {
            let is_meant = closed.opened_within.is_none_or(|range| range.contains(net));
            is_meant && net.contains(&ip)
        })
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

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(first: u16, second: u16, third: u16, last: u16, length: u8) -> IpNet {
    let address = Ipv6Addr::new(first, second, third, 0, 0, 0, 0, last);
    IpNet::V6(Ipv6Net::new_assert(address, length))
}

/// The agent's own surroundings, which are opened only by a range within them.
const OWN: [(IpNet, &str); 12] = [
    (v4(0, 0, 0, 0, 8), "unspecified"),
    (v4(127, 0, 0, 0, 8), "loopback"),
    (v4(169, 254, 0, 0, 16), "link-local"),
    (v4(100, 100, 100, 200, 32), METADATA),
    (v4(168, 63, 129, 16, 32), METADATA),
    (v4(192, 0, 0, 192, 32), METADATA),
    (v6(0, 0, 0, 0, 128), "unspecified"),
    (v6(0, 0, 0, 1, 128), "loopback"),
    (v6(0xfe80, 0, 0, 0, 10), "link-local"),
    (v6(0xfd00, 0xec2, 0, 0, 32), METADATA),
    (v6(0xfd20, 0xce, 0, 0, 32), METADATA),
    (v6(0xff01, 0, 0, 0, 16), "loopback"),
];
const METADATA: &str = "a cloud's metadata service";

/// What else is not the open internet.
const PRIVATE: [(IpNet, &str); 13] = [
    (v4(10, 0, 0, 0, 8), "private"),
    (v4(172, 16, 0, 0, 12), "private"),
    (v4(192, 168, 0, 0, 16), "private"),
    (v4(100, 64, 0, 0, 10), "private"),
    (v4(192, 0, 0, 0, 24), "reserved"),
    (v4(198, 18, 0, 0, 15), "private"),
    (v4(224, 0, 0, 0, 4), "multicast"),
    (v4(255, 255, 255, 255, 32), "broadcast"),
    (v4(240, 0, 0, 0, 4), "reserved"),
    (v6(0xfc00, 0, 0, 0, 7), "private"),
    (v6(0xfec0, 0, 0, 0, 10), "private"),
    (v6(0xff00, 0, 0, 0, 8), "multicast"),
    // Where a network translates to IPv4 addresses as it likes.
    (v6(0x64, 0xff9b, 1, 0, 48), "private"),
];

/// What an address belongs to, if flows may not reach it.
pub(crate) fn closed(ip: IpAddr) -> Option<Closed> {
    let own = OWN.iter().map(|(range, kind)| (range, kind, Some(*range)));
    let private = PRIVATE.iter().map(|(range, kind)| (range, kind, None));
    own.chain(private)
        .find(|(range, ..)| range.contains(&ip))
        .map(|(_, kind, opened_within)| Closed {
            kind,
            opened_within,
        })
}

/// The IPv4 addresses within an IPv6 address, which it may lead to.
fn inner(ip: IpAddr) -> Vec<IpAddr> {
    let IpAddr::V6(ip) = ip else {
        return Vec::new();
    };
    let pairs = match ip.segments() {
        // It and loopback have names of their own.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => vec![],
        // Compatible, mapped and translated; NAT64.
        [0, 0, 0, 0, 0 | 0xffff, 0, high, low]
        | [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => vec![(high, low)],
        // 6to4.
        [0x2002, high, low, ..] => vec![(high, low)],
        // Teredo: the server, and the client in disguise.
        [0x2001, 0, server_high, server_low, _, _, high, low] => {
            vec![(server_high, server_low), (!high, !low)]
        }
        // ISATAP.
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => vec![(high, low)],
        _ => vec![],
    };
    let address = |(high, low): (u16, u16)| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    pairs.into_iter().map(address).collect()
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
            ("http://10.0.0.1/", "private"),
            ("http://0xa.1/", "private"),
            ("http://172.16.0.1/", "private"),
            ("http://172.31.255.255/", "private"),
            ("http://192.168.1.1/", "private"),
            ("http://100.64.0.1/", "private"),
            ("http://100.127.255.255/", "private"),
            ("http://198.19.0.1/", "private"),
            ("http://192.0.0.8/", "reserved"),
            ("http://240.0.0.1/", "reserved"),
            ("http://224.0.0.1/", "multicast"),
            ("http://239.255.255.250/", "multicast"),
            ("http://255.255.255.255/", "broadcast"),
            ("http://[fc00::1]/", "private"),
            ("http://[fd12::1]/", "private"),
            ("http://[fec0::1]/", "private"),
            ("http://[ff02::1]/", "multicast"),
            ("http://[::ffff:10.0.0.1]/", "private"),
            ("http://[::ffff:0:10.0.0.1]/", "private"),
            ("http://[::10.0.0.1]/", "private"),
            ("http://[64:ff9b::192.168.0.1]/", "private"),
            ("http://[64:ff9b:1::8.8.8.8]/", "private"),
            ("http://[2002:c0a8:1::]/", "private"),
            ("http://[2001:0:808:808::f5ff:fffe]/", "private"),
            ("http://[2001:0:a00:1::f7f7:f7f7]/", "private"),
            ("http://[2001:db8::5efe:10.0.0.1]/", "private"),
            ("http://[2001:db8::200:5efe:127.0.0.1]/", "loopback"),
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
            "http://[2001:db8::1]/",
            "http://[2001:4860:4860::8888]/",
            "http://[64:ff9b::8.8.8.8]/",
            "http://8.8.8.8/",
            "http://9.255.255.255/",
            "http://11.0.0.0/",
            "http://172.15.0.1/",
            "http://172.32.0.1/",
            "http://192.169.0.1/",
            "http://100.63.255.255/",
            "http://100.128.0.1/",
            "http://223.255.255.255/",
            "http://localhost/",
        ] {
            let url = Url::parse(text).expect(text);
            assert_eq!(Guard::default().check(&url), Ok(()), "{text}");
        }
    }

    #[test]
    fn a_range_that_is_allowed_is_open_in_every_notation_and_no_other_is() {
        let guard = |ranges: &[&str]| Guard {
            open: ranges
                .iter()
                .map(|range| range.parse().expect("a range"))
                .collect(),
            ..Guard::default()
        };
        let is_open = |ranges: &[&str], host: &str| {
            let url = Url::parse(&format!("http://{host}/")).expect("an address");
            guard(ranges).check(&url).is_ok()
        };
        for (range, host) in [
            ("10.1.0.0/16", "10.1.2.3"),
            ("10.1.0.0/16", "[::ffff:10.1.2.3]"),
            ("fd12::/16", "[fd12::1]"),
            ("0.0.0.0/0", "192.168.0.1"),
            ("127.0.0.1/32", "127.0.0.1"),
            ("169.254.0.0/16", "169.254.169.254"),
            ("::1/128", "[::1]"),
        ] {
            assert!(is_open(&[range], host), "{range} {host}");
        }
        for (range, host) in [
            ("10.1.0.0/16", "10.2.0.1"),
            ("10.1.0.0/16", "[::ffff:10.2.0.1]"),
            ("0.0.0.0/0", "[fd12::1]"),
            ("0.0.0.0/0", "127.0.0.1"),
            ("0.0.0.0/0", "169.254.169.254"),
            ("100.64.0.0/10", "100.100.100.200"),
            ("::/0", "[::1]"),
            ("::/0", "[::ffff:127.0.0.1]"),
            ("fd00::/8", "[fd00:ec2::254]"),
        ] {
            assert!(!is_open(&[range], host), "{range} {host}");
        }
        assert!(is_open(&["10.0.0.0/8", "fc00::/7"], "[fd12::1]"));
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
