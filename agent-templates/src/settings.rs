//! What the owner of an agent decides about templates.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::Scheme;

/// Where templates may be read from, by whom, and how patiently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateSettings {
    /// Where relative paths start; the working directory by default.
    pub base: PathBuf,
    /// The schemes that the agent's own template may have (`--allow-template-scheme`); all by
    /// default.
    pub agent_schemes: BTreeSet<Scheme>,
    /// The schemes that templates named by flows may have (`--allow-flow-template-scheme`);
    /// [`Scheme::for_flows`] by default.
    pub flow_schemes: BTreeSet<Scheme>,
    /// The only directory whose files flows may name (`--flow-template-dir`). When it is given,
    /// relative paths of flows start there, plain paths, `file:` and `local:` are allowed below
    /// it, and paths or symbolic links that leave it are refused, `agent:` included.
    pub flow_dir: Option<PathBuf>,
    /// Ranges that flows may name HTTP addresses of although they are private or reserved
    /// (`--allow-flow-template-net`); none by default. Loopback, link-local addresses and a cloud's
    /// metadata service are opened only by a range that lies within theirs.
    pub flow_nets: Vec<IpNet>,
    /// Whether flows may name HTTP addresses that are private, reserved, loopback, link-local,
    /// unspecified or a cloud's metadata service, and whether their requests may go through the system's proxy,
    /// where such addresses cannot be told. Off by default.
    pub flow_private_http: bool,
    /// How long after a store last confirmed a template the copy at hand serves when the store
    /// cannot be reached (`--template-stale-ok`); 5 minutes by default.
    pub stale_ok: Duration,
    /// How long a copy serves before its store is asked whether it has changed; 1 second by
    /// default.
    pub fresh_for: Duration,
    /// How long reading or revalidating one template may take; 15 seconds by default.
    pub timeout: Duration,
    /// How long connecting to a store may take; 5 seconds by default.
    pub connect_timeout: Duration,
}

impl Default for TemplateSettings {
    fn default() -> Self {
        Self {
            base: PathBuf::from("."),
            agent_schemes: Scheme::all(),
            flow_schemes: Scheme::for_flows(),
            flow_dir: None,
            flow_nets: Vec::new(),
            flow_private_http: false,
            stale_ok: Duration::from_secs(5 * 60),
            fresh_for: Duration::from_secs(1),
            timeout: Duration::from_secs(15),
            connect_timeout: Duration::from_secs(5),
        }
    }
}
