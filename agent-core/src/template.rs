//! Where job templates are read from.

use std::sync::Arc;

use async_trait::async_trait;

use crate::Result;

/// Who named the location of a template. A flow's author is trusted with less than the person
/// who runs the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TemplateOrigin {
    /// The agent's own settings.
    Agent,
    /// The run config of a flow.
    Flow,
}

/// The parts of a template's location, told apart as the Python agent does.
///
/// What follows `://` up to the next `/` is the host, or the bucket; a `?` or `#` ends the path, and
/// so does a `;` in the last part of a path without a scheme. Nothing is decoded.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TemplateLocation<'a> {
    /// In lower case; empty for a plain path.
    pub scheme: String,
    /// The host or bucket; empty when there is none.
    pub host: &'a str,
    /// The path, with the `/` that ended the host.
    pub path: &'a str,
}

impl<'a> TemplateLocation<'a> {
    /// Takes a location apart; every text is one.
    pub fn parse(location: &'a str) -> Self {
        let (scheme, rest) = match location.split_once(':') {
            Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_ascii_lowercase(), rest),
            _ => (String::new(), location),
        };
        let end = rest.find(['?', '#']).unwrap_or(rest.len());
        let (host, mut path) = match rest[..end].strip_prefix("//") {
            Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            None => ("", &rest[..end]),
        };
        if scheme.is_empty() {
            let last = path.rfind('/').map_or(0, |slash| slash + 1);
            path = match path[last..].find(';') {
                Some(semicolon) => &path[..last + semicolon],
                None => path,
            };
        }
        Self { scheme, host, path }
    }

    /// Whether it names a file where the location was written: a plain path, `file` or `local`.
    /// (`agent` names a file where the agent runs, also from a flow.)
    pub fn is_local(&self) -> bool {
        matches!(self.scheme.as_str(), "" | "file" | "local")
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// The content of a template as it was at its location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Where it was read from, for messages.
    pub location: String,
    /// The bytes found there: YAML, or JSON as a part of it.
    pub bytes: Vec<u8>,
}

/// A place, or several, that hold job templates.
#[async_trait]
pub trait TemplateStore: Send + Sync + 'static {
    /// Reads the template at `location`: a path, or an address with a scheme.
    ///
    /// A store that knows the template has not changed may return the same [`Arc`] again; callers
    /// may take that as "parsed before".
    ///
    /// # Errors
    /// [`crate::Error::Permanent`] when it is not there or may not be read, naming the location
    /// and the remedy; [`crate::Error::Transient`] when the place does not answer.
    async fn load(&self, location: &str, origin: TemplateOrigin) -> Result<Arc<Template>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_told_apart_as_the_python_agent_does() {
        for (location, scheme, host, path) in [
            ("job.yaml", "", "", "job.yaml"),
            ("/a;b/job.yaml;v=1", "", "", "/a;b/job.yaml"),
            ("job.yaml?x=1#y", "", "", "job.yaml"),
            ("my%20job;1:2.yaml", "", "", "my%20job"),
            ("AGENT:dir/job.yaml", "agent", "", "dir/job.yaml"),
            ("agent://dir/job.yaml", "agent", "dir", "/job.yaml"),
            ("file:///x;y", "file", "", "/x;y"),
            ("local://job.yaml", "local", "job.yaml", ""),
            ("s3://bucket/a b/ü+.yaml", "s3", "bucket", "/a b/ü+.yaml"),
            ("C:\\job.yaml", "c", "", "\\job.yaml"),
            ("", "", "", ""),
        ] {
            let parts = TemplateLocation::parse(location);
            let found = (parts.scheme.as_str(), parts.host, parts.path);
            assert_eq!(found, (scheme, host, path), "{location}");
        }
        assert!(TemplateLocation::parse("FILE:x").is_local());
        assert!(!TemplateLocation::parse("agent:x").is_local());
    }
}
