//! Which names Kubernetes takes, so that a wrong one is told before anything is applied.

use super::{Install, Key};

/// The longest DNS label.
const LABEL: usize = 63;
/// The longest DNS name.
const SUBDOMAIN: usize = 253;

impl Install {
    pub(super) fn check_names(&self) -> Result<(), String> {
        label("the name of the agent's objects", &self.name)?;
        label("the agent's namespace", &self.agent_namespace)?;
        label("the namespace of the Jobs", &self.namespace)?;
        subdomain("the Lease", &self.lease)?;
        if let Some(name) = &self.service_account {
            subdomain("the agent's service account", name)?;
        }
        if let Some(Key::Existing(secret)) = &self.key {
            subdomain("the Secret of the API key", &secret.name)?;
        }
        if let Some(map) = &self.job_template {
            subdomain("the ConfigMap of the job template", &map.name)?;
        }
        for name in &self.image_pull_secrets {
            subdomain("the image pull secret", name)?;
        }
        Ok(())
    }
}

fn label(what: &str, name: &str) -> Result<(), String> {
    if name.len() <= LABEL && is_label(name) {
        return Ok(());
    }
    Err(format!(
        "{what} is {name:?}; use at most {LABEL} lower-case letters, digits and `-`, with a letter or digit at both ends"
    ))
}

/// Whether a service account, a Secret or a ConfigMap can have a name.
///
/// # Errors
/// That `what` cannot, and why.
pub fn subdomain(what: &str, name: &str) -> Result<(), String> {
    if name.len() <= SUBDOMAIN && name.split('.').all(is_label) {
        return Ok(());
    }
    Err(format!(
        "{what} is {name:?}; use at most {SUBDOMAIN} lower-case letters, digits, `-` and `.`, with a letter or digit at both ends"
    ))
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}
