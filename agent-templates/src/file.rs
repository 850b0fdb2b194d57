//! Templates on this machine.

use std::path::PathBuf;
use std::sync::Arc;

use agent_core::{
    Error, Result, Template, TemplateLocation, TemplateOrigin, TemplateStore, async_trait,
};

/// The largest template that is read, in bytes: far more than the API server takes.
pub const LARGEST: u64 = 1 << 20;

/// Reads templates from files, relative to a directory.
#[derive(Debug, Clone)]
pub struct FileTemplates {
    base: PathBuf,
}

impl FileTemplates {
    /// Relative paths start at `base`.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self { base: base.into() }
    }
}

#[async_trait]
impl TemplateStore for FileTemplates {
    async fn load(&self, location: &str, _: TemplateOrigin) -> Result<Arc<Template>> {
        let parts = TemplateLocation::parse(location);
        if !parts.is_local() && parts.scheme != "agent" {
            return Err(Error::permanent(format!(
                "Unsupported file scheme {location}"
            )));
        }
        if parts.path.is_empty() {
            return Err(Error::permanent(format!(
                "the job template {location:?} names no file"
            )));
        }
        let full = self.base.join(parts.path);
        let failed = |error: std::io::Error| {
            Error::permanent(format!("cannot read the job template {location}: {error}"))
        };
        let size = tokio::fs::metadata(&full).await.map_err(failed)?.len();
        if size > LARGEST {
            return Err(Error::permanent(format!(
                "the job template {location} has {size} bytes; at most {LARGEST} are read"
            )));
        }
        Ok(Arc::new(Template {
            location: location.to_owned(),
            bytes: tokio::fs::read(&full).await.map_err(failed)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reads_files_and_names_those_it_cannot_read() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("job.yaml"), "kind: Job").expect("written");
        let store = FileTemplates::new(dir.path());
        let found = store
            .load("job.yaml", TemplateOrigin::Agent)
            .await
            .expect("there");
        assert_eq!(found.bytes, b"kind: Job");
        let absolute = format!("file://{}", dir.path().join("job.yaml").display());
        assert!(store.load(&absolute, TemplateOrigin::Agent).await.is_ok());
        for missing in ["none.yaml", "ftp://host/x"] {
            let error = store
                .load(missing, TemplateOrigin::Flow)
                .await
                .expect_err("refused");
            assert!(error.to_string().contains(missing), "{error}");
        }
    }
}
