//! A credential plugin of a kubeconfig: a program that prints a token or a certificate.

use std::fmt;
use std::process::Stdio;
use std::time::Duration;

use agent_core::shown::printable;
use agent_core::{LONGEST_MESSAGE, clip};
use jiff::Timestamp;
use kube::config::{ExecConfig, ExecInteractiveMode};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::yaml;

/// How long a plugin may take. It may ask a cloud, or a person to log in.
const PATIENCE: Duration = Duration::from_secs(30);

/// A plugin as a kubeconfig names it.
#[derive(Debug, Clone)]
pub(crate) struct Plugin {
    exec: Box<ExecConfig>,
    patience: Duration,
}

/// What a plugin has printed.
#[derive(Debug)]
pub(crate) struct Printed {
    pub(crate) token: Option<SecretString>,
    /// A certificate and its key, in PEM.
    pub(crate) identity: Option<(String, SecretString)>,
    pub(crate) expires: Option<Timestamp>,
}

impl fmt::Display for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let command = self.exec.command.as_deref().unwrap_or("without a command");
        write!(
            f,
            "the credential plugin {} of the kubeconfig",
            printable(command)
        )
    }
}

impl Plugin {
    pub(crate) fn new(exec: ExecConfig) -> Self {
        Self {
            exec: Box::new(exec),
            patience: PATIENCE,
        }
    }

    /// Runs the plugin, and ends it when it takes too long.
    ///
    /// # Errors
    /// A sentence that names the plugin, without anything that it printed as its answer.
    pub(crate) async fn run(&self) -> Result<Printed, String> {
        let mut command = self.command()?;
        let started = command.kill_on_drop(true).spawn();
        let child = started.map_err(|error| {
            let hint = self.exec.install_hint.as_deref().unwrap_or_default();
            format!("{self} cannot be started: {error}. {hint}")
                .trim_end_matches([' ', '.'])
                .to_owned()
        })?;
        // What is dropped here is killed.
        let output = tokio::time::timeout(self.patience, child.wait_with_output())
            .await
            .map_err(|_| {
                format!(
                    "{self} has printed no credentials within {} s and was stopped; run it by hand to see what it waits for",
                    self.patience.as_secs()
                )
            })?
            .map_err(|error| format!("{self} cannot be read: {error}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = clip(said.trim(), LONGEST_MESSAGE).into_owned();
            return Err(format!("{self} has failed ({}): {said}", output.status)
                .trim_end_matches([' ', ':'])
                .to_owned());
        }
        self.read(&output.stdout)
    }

    fn command(&self) -> Result<Command, String> {
        let name = self.exec.command.as_deref().filter(|name| !name.is_empty());
        let mut command = Command::new(name.ok_or_else(|| {
            "the kubeconfig has a user with a credential plugin without a command".to_owned()
        })?);
        command.args(self.exec.args.iter().flatten());
        for variable in self.exec.env.iter().flatten() {
            if let (Some(name), Some(value)) = (variable.get("name"), variable.get("value")) {
                command.env(name, value);
            }
        }
        let is_interactive = self.exec.interactive_mode != Some(ExecInteractiveMode::Never);
        let mut spec = json!({"interactive": is_interactive});
        if let Some(cluster) = &self.exec.cluster {
            spec["cluster"] = serde_json::to_value(cluster).unwrap_or_default();
        }
        let info = json!({
            "apiVersion": self.exec.api_version,
            "kind": "ExecCredential",
            "spec": spec,
        });
        command.env("KUBERNETES_EXEC_INFO", info.to_string());
        for name in self.exec.drop_env.iter().flatten() {
            command.env_remove(name);
        }
        let (input, errors) = match is_interactive {
            true => (Stdio::inherit(), Stdio::inherit()),
            false => (Stdio::null(), Stdio::piped()),
        };
        command.stdin(input).stderr(errors).stdout(Stdio::piped());
        Ok(command)
    }

    fn read(&self, printed: &[u8]) -> Result<Printed, String> {
        // The error might show a part of the token.
        let no = |what: &str| format!("{self} has printed {what}");
        let value: Value =
            yaml::parse(printed).map_err(|_| no("something that is no ExecCredential"))?;
        let status = &value["status"];
        let text = |member: &str| status[member].as_str().map(str::to_owned);
        let expires = text("expirationTimestamp")
            .map(|time| time.parse())
            .transpose()
            .map_err(|_| no("an expirationTimestamp that is no time"))?;
        let certificate = text("clientCertificateData").zip(text("clientKeyData"));
        let printed = Printed {
            token: text("token").map(SecretString::from),
            identity: certificate.map(|(certificate, key)| (certificate, SecretString::from(key))),
            expires,
        };
        match printed.token.is_none() && printed.identity.is_none() {
            true => Err(no("neither a token nor a certificate with its key")),
            false => Ok(printed),
        }
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn plugin(script: &str) -> Plugin {
        let exec = json!({"command": "sh", "args": ["-c", script], "interactiveMode": "Never"});
        Plugin {
            patience: Duration::from_secs(5),
            ..Plugin::new(serde_json::from_value(exec).expect("a plugin"))
        }
    }

    #[tokio::test]
    async fn a_token_and_its_end_are_read_from_json_and_yaml() {
        for printed in [
            r#"{"status": {"token": "t", "expirationTimestamp": "2030-01-01T00:00:00Z"}}"#,
            "status:\n  token: t\n  expirationTimestamp: \"2030-01-01T00:00:00Z\"\n",
        ] {
            let script = format!("cat <<'END'\n{printed}\nEND");
            let printed = plugin(&script).run().await.expect("a token");
            let token = printed.token.expect("one");
            assert_eq!(token.expose_secret(), "t");
            let expires = printed.expires.map(|time| time.to_string());
            assert_eq!(expires.as_deref(), Some("2030-01-01T00:00:00Z"));
        }
    }

    #[tokio::test]
    async fn what_goes_wrong_names_the_plugin_and_shows_no_token() {
        for (script, why) in [
            ("echo gone >&2; echo hush; exit 3", "exit status: 3): gone"),
            ("echo '{\"status\": \"hush'", "no ExecCredential"),
            ("echo '{\"status\": {\"hush\": 1}}'", "neither a token"),
            ("exec sleep 60", "no credentials within 5 s"),
        ] {
            let error = plugin(script).run().await.expect_err("it fails");
            assert!(error.contains("the credential plugin sh"), "{error}");
            assert!(error.contains(why) && !error.contains("hush"), "{error}");
        }
        let missing = json!({"command": "/no/such/plugin", "installHint": "install it"});
        let missing = Plugin::new(serde_json::from_value(missing).expect("a plugin"));
        let error = missing.run().await.expect_err("it fails");
        assert!(error.contains("/no/such/plugin") && error.contains("install it"));
    }
}
