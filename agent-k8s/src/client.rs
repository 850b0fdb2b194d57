//! The way to the cluster: from inside it, or by a kubeconfig.

use std::time::Duration;

use agent_core::shown;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::bounded::Bounded;
use crate::counted::Counted;
use crate::credentials::{self, Credentials};

/// How long a connection to the API server may take.
const CONNECT: Duration = Duration::from_secs(10);

/// How long the kubeconfig's user may take to be made out.
const SET_UP: Duration = Duration::from_secs(30);

/// How long a connection may be silent while an answer is awaited. The API server says something on
/// every watch about once a minute, so a longer silence means that the connection is dead.
const SILENCE: Duration = Duration::from_secs(150);

/// A cluster that answered.
#[derive(Clone)]
pub struct Cluster {
    /// The client to talk to it.
    pub client: Client,
    /// The API server's address, for people.
    pub address: String,
    /// Digits that are the same for everybody who uses this cluster with the same certificate
    /// authority, from inside or from outside, and others for other clusters. Behind a proxy, and when the
    /// cluster gets a new authority, they are others, too.
    pub id: String,
    /// The API server's version, for instance `v1.33.1`.
    pub version: String,
}

/// Connects to the cluster that this process runs in, or else to the one of the current context
/// in `KUBECONFIG` or `~/.kube/config`, and asks for its version.
///
/// # Errors
/// A sentence that says which cluster was tried and why it cannot be used.
pub async fn connect() -> Result<Cluster, String> {
    let mut config = config().await?;
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    // Whoever asks decides what is tried again, and has to know of it: a creation that may have taken
    // effect is looked for first, and overload slows down all.
    config.default_retry = false;
    let address = shown::address(&config.cluster_url.to_string());
    let id = id(&config);
    let credentials = Credentials::take(&mut config.auth_info).await;
    let credentials =
        credentials.map_err(|error| format!("the cluster at {address} cannot be used: {error}"))?;
    let client = set_up(config, credentials, &address).await?;
    let asked = tokio::time::timeout(CONNECT, client.apiserver_version()).await;
    let version = match asked {
        Ok(Ok(version)) => version.git_version,
        Ok(Err(error)) => {
            return Err(format!(
                "the cluster at {address} cannot be used: {}",
                crate::error::reason(&error)
            ));
        }
        Err(_) => {
            return Err(format!(
                "the cluster at {address} did not answer within {} s",
                CONNECT.as_secs()
            ));
        }
    };
    Ok(Cluster {
        client,
        address: address.trim_end_matches('/').to_owned(),
        id,
        version,
    })
}

/// Sets up a client. An authentication provider of old may run a program meanwhile.
async fn set_up(config: Config, credentials: Credentials, address: &str) -> Result<Client, String> {
    let provider = config.auth_info.auth_provider.as_ref();
    let provider = provider.map_or_else(String::new, |provider| {
        format!(
            ", for the authentication provider {} does not answer",
            provider.name
        )
    });
    let build = tokio::task::spawn_blocking(move || ClientBuilder::try_from(config));
    let cannot = format!("cannot set up a client for the cluster at {address}");
    match tokio::time::timeout(SET_UP, build).await {
        Ok(Ok(Ok(builder))) => Ok(builder
            .with_layer(&credentials)
            .with_layer(&Bounded)
            .with_layer(&Counted)
            .build()),
        Ok(Ok(Err(error))) => Err(format!("{cannot}: {error}")),
        Ok(Err(_)) => Err(format!("{cannot}: its user cannot be made out")),
        Err(_) => Err(format!("{cannot} within {} s{provider}", SET_UP.as_secs())),
    }
}

/// Tells a cluster by the authority that vouches for it, which is its own as a rule, and by the path,
/// behind which a proxy may have many; by its address where anybody may vouch for it.
fn id(config: &Config) -> String {
    let mut hash = Sha256::new();
    match &config.root_cert {
        Some(certificates) => certificates.iter().for_each(|one| hash.update(one)),
        None => hash.update(config.cluster_url.authority().map_or("", |it| it.as_str())),
    }
    hash.update(config.cluster_url.path().trim_end_matches('/'));
    let digits = hash.finalize();
    digits[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

async fn config() -> Result<Config, String> {
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
        && std::env::var_os("KUBECONFIG").is_none()
    {
        return Config::incluster()
            .map_err(|error| format!("cannot use the cluster this process runs in: {error}"));
    }
    let nowhere = "no cluster is configured: not inside one, and";
    let mut kubeconfig = Kubeconfig::read().map_err(|error| {
        format!("{nowhere} there is no usable kubeconfig ({error}); set KUBECONFIG or create ~/.kube/config")
    })?;
    tidy(&mut kubeconfig);
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| format!("the kubeconfig cannot be used: {error}"))?;
    if let Some(token) = &config.auth_info.token {
        credentials::header(token, "the kubeconfig's user")?;
    }
    Ok(config)
}

/// Removes the line breaks that pasting leaves behind tokens and within certificates.
fn tidy(kubeconfig: &mut Kubeconfig) {
    let joined = |text: &str| text.split_whitespace().collect::<String>();
    for cluster in &mut kubeconfig.clusters {
        let cluster = cluster.cluster.as_mut();
        if let Some(data) = cluster.and_then(|it| it.certificate_authority_data.as_mut()) {
            *data = joined(data);
        }
    }
    for user in &mut kubeconfig.auth_infos {
        let Some(user) = &mut user.auth_info else {
            continue;
        };
        if let Some(token) = &mut user.token {
            *token = SecretString::from(token.expose_secret().trim());
        }
        if let Some(data) = &mut user.client_certificate_data {
            *data = joined(data);
        }
        if let Some(data) = &mut user.client_key_data {
            *data = SecretString::from(joined(data.expose_secret()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(url: &str, authority: Option<&[u8]>) -> String {
        let mut config = Config::new(url.parse().expect("an address"));
        config.root_cert = authority.map(|certificate| vec![certificate.to_vec()]);
        id(&config)
    }

    #[test]
    fn a_cluster_is_the_same_from_inside_and_outside_and_no_other_is() {
        let outside = cluster("https://203.0.113.7:6443", Some(b"its own"));
        assert_eq!(outside, cluster("https://10.96.0.1/", Some(b"its own")));
        assert_ne!(outside, cluster("https://10.96.0.1", Some(b"another")));
        let proxied = |path| cluster(&format!("https://proxy/k8s/{path}"), Some(b"the proxy's"));
        assert_ne!(proxied("one"), proxied("two"));
        let open = |host| cluster(&format!("http://{host}:8080"), None);
        assert_eq!(open("a"), open("a"));
        assert_ne!(open("a"), open("b"));
    }
}
