//! The configuration of Prefect 1: files and `PREFECT__…` variables, each value with its origin.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde_json::{Map, Value};

use crate::python;

/// The process environment, as text.
pub type Environment = HashMap<String, String>;

/// The variables that the agent reads, or the libraries that it talks through, besides those with
/// a prefix of [`PREFIXES`].
const VARIABLES: [&str; 17] = [
    "CURL_CA_BUNDLE",
    "DELETE_FINISHED_JOBS",
    "FLOW_RUN_KEY_SECRET",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "HOME",
    "IMAGE_PULL_POLICY",
    "IMAGE_PULL_SECRETS",
    "KUBECONFIG",
    "KUBERNETES_SERVICE_HOST",
    "KUBERNETES_SERVICE_PORT",
    "NAMESPACE",
    "REQUESTS_CA_BUNDLE",
    "RUST_LOG",
    "SERVICE_ACCOUNT_NAME",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "STORAGE_EMULATOR_HOST",
];
const PREFIXES: [&str; 3] = ["PREFECT_", "JOB_", "AWS_"];

/// Whether a variable is one that the agent reads.
pub fn is_read(name: &str) -> bool {
    let is_proxy = name.to_ascii_lowercase().ends_with("_proxy");
    is_proxy || VARIABLES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// What Prefect sets when nobody else does.
const DEFAULTS: &[(&str, &str)] = &[
    ("backend", "cloud"),
    ("home_dir", "~/.prefect"),
    ("server.host", "http://localhost"),
    ("server.port", "4200"),
    ("server.endpoint", "${server.host}:${server.port}"),
    ("cloud.endpoint", "https://api.prefect.io"),
    ("cloud.api", "${${backend}.endpoint}"),
    ("cloud.graphql", "${cloud.api}/graphql"),
    ("cloud.request_timeout", "15"),
    ("cloud.send_flow_run_logs", "true"),
    ("cloud.agent.name", "agent"),
    ("cloud.agent.level", "INFO"),
    ("logging.level", "INFO"),
];

/// References within values are followed so often.
const REFERENCES: usize = 10;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A variable of the environment.
    Variable(String),
    /// A file.
    File(PathBuf),
    /// A flag.
    Flag(&'static str),
    /// The answer of the API.
    Api,
}

impl Origin {
    /// The place as an error names it: a file needs the setting's name beside it.
    pub fn of(&self, key: &str) -> String {
        match self {
            Self::File(path) => format!("{key} in {}", path.display()),
            Self::Default | Self::Api => key.to_owned(),
            Self::Variable(name) => name.clone(),
            Self::Flag(name) => (*name).to_owned(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Variable(name) => f.write_str(name),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Flag(name) => f.write_str(name),
            Self::Api => f.write_str("asked from the API"),
        }
    }
}

/// A value of the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// What Prefect takes it for.
    pub value: Value,
    /// The text it was read from, references resolved, if it was text.
    text: Option<String>,
    /// Where it came from.
    pub origin: Origin,
}

impl Setting {
    fn new(text: String, origin: Origin) -> Self {
        Self {
            value: typed(&text),
            text: Some(text),
            origin,
        }
    }

    /// The value as text; numbers and booleans as they were written. `None` for what counts as
    /// not given: nothing, an empty text, `None`.
    pub fn text(&self) -> Option<String> {
        match &self.value {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(self.text.clone().unwrap_or_else(|| other.to_string())),
        }
        .filter(|text| !text.is_empty())
    }
}

/// What Prefect takes a text for: a boolean, a Python literal, or text. Lists and mappings may be
/// JSON as well.
fn typed(text: &str) -> Value {
    match text.to_ascii_lowercase().as_str() {
        "true" => return Value::Bool(true),
        "false" => return Value::Bool(false),
        _ => {}
    }
    let json = || {
        let looks = text.starts_with(['[', '{']);
        looks.then(|| serde_json::from_str(text).ok()).flatten()
    };
    python::literal(text)
        .or_else(json)
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// The merged configuration.
#[derive(Debug, Clone, Default)]
pub struct Config {
    settings: BTreeMap<String, Setting>,
    environment: Environment,
    cwd: PathBuf,
}

impl Config {
    /// Reads the configuration for a process with this environment in this directory.
    ///
    /// # Errors
    /// Names the file, and the line, that cannot be read.
    pub fn load(environment: &Environment, cwd: &Path) -> Result<Self> {
        Self::load_for(None, environment, cwd)
    }

    /// The same for a backend that a flag names, on which other settings depend.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_for(backend: Option<&str>, environment: &Environment, cwd: &Path) -> Result<Self> {
        let mut config = Self {
            settings: DEFAULTS
                .iter()
                .map(|(key, text)| {
                    (
                        (*key).to_owned(),
                        Setting::new((*text).to_owned(), Origin::Default),
                    )
                })
                .collect(),
            environment: environment.clone(),
            cwd: cwd.to_owned(),
        };
        for (variable, default) in [
            ("PREFECT__USER_CONFIG_PATH", "~/.prefect/config.toml"),
            ("PREFECT__BACKEND_CONFIG_PATH", "~/.prefect/backend.toml"),
        ] {
            let path = environment.get(variable).map_or(default, String::as_str);
            let path = config.path(path);
            if let Some(table) = read_toml(&path)? {
                config.merge(&table, "", &Origin::File(path));
            }
        }
        for (name, text) in environment {
            let Some(rest) = name.strip_prefix("PREFECT__") else {
                continue;
            };
            let key = rest.to_lowercase().replace("__", ".");
            let text = config.expand(text);
            config
                .settings
                .insert(key, Setting::new(text, Origin::Variable(name.clone())));
        }
        if let Some(backend) = backend {
            let given = Setting::new(backend.to_owned(), Origin::Flag("--backend"));
            config.settings.insert("backend".to_owned(), given);
        }
        config.resolve();
        Ok(config)
    }

    /// A setting, if anybody set it.
    pub fn get(&self, key: &str) -> Option<&Setting> {
        self.settings.get(key)
    }

    /// A setting as text, if it is given and not empty.
    pub fn text(&self, key: &str) -> Option<String> {
        self.get(key)?.text()
    }

    /// Where a setting came from.
    pub fn origin(&self, key: &str) -> Origin {
        self.get(key)
            .map_or(Origin::Default, |setting| setting.origin.clone())
    }

    /// The entries of a table in a file, such as `[cloud.agent.env_vars]`.
    pub fn table(&self, key: &str) -> Map<String, Value> {
        let prefix = format!("{key}.");
        self.settings
            .iter()
            .filter_map(|(name, setting)| {
                let name = name.strip_prefix(&prefix)?;
                Some((name.to_owned(), setting.value.clone()))
            })
            .collect()
    }

    /// Where the entries of a table came from.
    pub fn origin_of_table(&self, key: &str) -> Origin {
        let prefix = format!("{key}.");
        let mut within = self.settings.range(prefix.clone()..);
        match within.next() {
            Some((name, setting)) if name.starts_with(&prefix) => setting.origin.clone(),
            _ => Origin::Default,
        }
    }

    /// A variable of the environment that is none of Prefect's.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str)
    }

    /// What the auth file says of an API address: key, tenant id, and the file.
    ///
    /// # Errors
    /// When the file is no TOML.
    pub fn auth(&self, api: &str) -> Result<(Option<String>, Option<String>, Origin)> {
        let home = self
            .text("home_dir")
            .unwrap_or_else(|| "~/.prefect".to_owned());
        let path = self.path(&home).join("auth.toml");
        let table = read_toml(&path)?;
        let entry = table.as_ref().and_then(|table| table.get(&auth_name(api)));
        let text = |member: &str| {
            let text = entry?.get(member)?.as_str()?;
            (!text.is_empty()).then(|| text.to_owned())
        };
        Ok((text("api_key"), text("tenant_id"), Origin::File(path)))
    }

    /// A path with `~` and variables expanded, from the working directory.
    fn path(&self, path: &str) -> PathBuf {
        self.cwd.join(self.expand(path))
    }

    fn merge(&mut self, table: &toml::Table, prefix: &str, origin: &Origin) {
        for (name, value) in table {
            let key = format!("{prefix}{name}");
            let setting = match value {
                toml::Value::Table(inner) => {
                    self.merge(inner, &format!("{key}."), origin);
                    continue;
                }
                toml::Value::String(text) => Setting::new(self.expand(text), origin.clone()),
                other => Setting {
                    value: serde_json::to_value(other).unwrap_or_default(),
                    text: None,
                    origin: origin.clone(),
                },
            };
            self.settings.insert(key, setting);
        }
    }

    /// Expands `$NAME`, `${NAME}` and a leading `~`; unknown names stay.
    fn expand(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            let after = &rest[at + 1..];
            let is_name = |c: char| c.is_alphanumeric() || c == '_';
            let (name, length) = match after.strip_prefix('{') {
                Some(inner) => match inner.find('}') {
                    Some(end) => (&inner[..end], end + 2),
                    None => ("", 0),
                },
                None => {
                    let end = after.find(|c| !is_name(c)).unwrap_or(after.len());
                    (&after[..end], end)
                }
            };
            match self.environment.get(name) {
                Some(value) if !name.is_empty() => out.push_str(value),
                _ => out.push_str(&rest[at..at + 1 + length]),
            }
            rest = &after[length..];
        }
        out.push_str(rest);
        match (out.strip_prefix('~'), self.environment.get("HOME")) {
            (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
                format!("{home}{rest}")
            }
            _ => out,
        }
    }

    /// Replaces `${section.key}` by what that key holds; unknown keys hold nothing.
    fn resolve(&mut self) {
        let keys: Vec<String> = self.settings.keys().cloned().collect();
        for key in keys {
            for _ in 0..REFERENCES {
                let Some(text) = self.settings[&key].text.clone() else {
                    break;
                };
                let Some((range, name)) = innermost(&text) else {
                    break;
                };
                let found = self.settings.get(name).cloned();
                let found = found.and_then(|found| match (&found.value, found.text) {
                    (Value::Null, _) => None,
                    (_, Some(text)) => Some(text),
                    (value, None) => Some(value.to_string()),
                });
                let text = format!(
                    "{}{}{}",
                    &text[..range.start],
                    found.unwrap_or_default(),
                    &text[range.end..]
                );
                if let Some(setting) = self.settings.get_mut(&key) {
                    *setting = Setting::new(text, setting.origin.clone());
                }
            }
        }
    }
}

/// The innermost reference in a text: its place and the key it names.
fn innermost(text: &str) -> Option<(std::ops::Range<usize>, &str)> {
    let end = text.match_indices('}').find_map(|(end, _)| {
        let start = text[..end].rfind("${")?;
        let name = &text[start + 2..end];
        (!name.contains(['{', '}', '$']) && !name.is_empty()).then_some((start, end))
    });
    let (start, end) = end?;
    Some((start..end + 1, &text[start + 2..end]))
}

fn read_toml(path: &Path) -> Result<Option<toml::Table>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(error) => {
            return Err(anyhow!(error).context(format!("cannot read {}", path.display())));
        }
    };
    // Only the place and the reason: the file may hold a key.
    let table: Result<toml::Table, toml::de::Error> = text.parse();
    table
        .map(Some)
        .map_err(|error| {
            let before = error
                .span()
                .and_then(|span| text.get(..span.start))
                .unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            anyhow!("line {line}: {}", error.message())
        })
        .with_context(|| format!("{} is not valid TOML", path.display()))
}

/// The name under which the auth file keeps an API: its host and port.
fn auth_name(api: &str) -> String {
    let rest = api.split_once("://").map_or(api, |(_, rest)| rest);
    let host = rest
        .split(['/', '?', '#'])
        .next()
        .unwrap_or(rest)
        .to_lowercase();
    let mut name = String::new();
    for c in host.chars() {
        if matches!(c, 'a'..='z' | '0'..='9' | '.' | '-') {
            name.push(c);
        } else if !name.ends_with('\0') {
            name.push('\0');
        }
    }
    name.replace('\0', "-").trim_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(
        variables: &[(&str, &str)],
        files: &[(&str, &str)],
    ) -> Result<(Config, tempfile::TempDir)> {
        let dir = tempfile::tempdir()?;
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a folder"))?;
            std::fs::write(path, text)?;
        }
        let mut environment: Environment = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        environment.insert("HOME".to_owned(), dir.path().display().to_string());
        Ok((Config::load(&environment, dir.path())?, dir))
    }

    #[test]
    fn later_sources_win_and_each_value_knows_its_own() {
        let files = [
            (
                ".prefect/config.toml",
                "[cloud.agent]\nname = \"filed\"\nlevel = \"DEBUG\"\n",
            ),
            (".prefect/backend.toml", "backend = \"server\"\n"),
        ];
        let variables = [
            ("PREFECT__CLOUD__AGENT__NAME", "named"),
            ("PREFECT__SERVER__PORT", "80"),
        ];
        let (config, _dir) = config(&variables, &files).expect("fine");
        assert_eq!(config.text("cloud.agent.name").as_deref(), Some("named"));
        assert_eq!(config.text("cloud.agent.level").as_deref(), Some("DEBUG"));
        assert_eq!(
            config.text("cloud.api").as_deref(),
            Some("http://localhost:80")
        );
        assert!(matches!(
            config.origin("cloud.agent.level"),
            Origin::File(_)
        ));
        assert_eq!(
            config.origin("cloud.agent.name").to_string(),
            "PREFECT__CLOUD__AGENT__NAME"
        );
    }

    #[test]
    fn a_broken_file_is_named_with_its_line_and_without_its_content() {
        let files = [(".prefect/config.toml", "[cloud]\napi_key = hush\n")];
        let error = format!("{:#}", config(&[], &files).expect_err("refused"));
        assert!(
            error.contains("config.toml") && error.contains("line 2"),
            "{error}"
        );
        assert!(!error.contains("hush"), "{error}");
    }

    #[test]
    fn auth_entries_are_named_after_the_host() {
        for (api, name) in [
            ("http://localhost:4200", "localhost-4200"),
            ("http://my_host:80/x", "my-host-80"),
            ("https://API.Prefect.IO", "api.prefect.io"),
            ("https://me:pw@host/", "me-pw-host"),
        ] {
            assert_eq!(auth_name(api), name);
        }
    }
}
