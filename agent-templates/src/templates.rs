//! All places together: picks one by the scheme of a location, if who asks may use it.

use std::sync::Arc;

use agent_core::{
    Error, Result, Template, TemplateLocation, TemplateOrigin, TemplateStore, async_trait,
};

#[cfg(feature = "gcs")]
use crate::GcsTemplates;
#[cfg(feature = "http")]
use crate::HttpTemplates;
#[cfg(feature = "s3")]
use crate::S3Templates;
use crate::place::unsupported;
use crate::shown::shown;
use crate::{FileTemplates, Scheme, TemplateSettings};

/// Reads templates from every place that this build knows.
#[derive(Debug)]
pub struct Templates {
    settings: TemplateSettings,
    file: FileTemplates,
    #[cfg(feature = "http")]
    http: HttpTemplates,
    #[cfg(feature = "s3")]
    s3: S3Templates,
    #[cfg(feature = "gcs")]
    gcs: GcsTemplates,
}

impl Templates {
    /// The places as these settings want them. Nothing is connected to, and no credentials are
    /// looked for, before a template of that place is asked for.
    pub fn new(settings: TemplateSettings) -> Self {
        Self {
            file: FileTemplates::with_settings(&settings),
            #[cfg(feature = "http")]
            http: HttpTemplates::new(&settings),
            #[cfg(feature = "s3")]
            s3: S3Templates::new(&settings),
            #[cfg(feature = "gcs")]
            gcs: GcsTemplates::new(&settings),
            settings,
        }
    }

    /// Reads `s3:` with these instead.
    #[cfg(feature = "s3")]
    #[must_use]
    pub fn with_s3(self, s3: S3Templates) -> Self {
        Self { s3, ..self }
    }

    /// Reads `gs:` and `gcs:` with these instead.
    #[cfg(feature = "gcs")]
    #[must_use]
    pub fn with_gcs(self, gcs: GcsTemplates) -> Self {
        Self { gcs, ..self }
    }

    fn check(&self, scheme: Scheme, location: &str, origin: TemplateOrigin) -> Result<()> {
        let (schemes, flag) = match origin {
            TemplateOrigin::Agent => (&self.settings.agent_schemes, "--allow-template-scheme"),
            TemplateOrigin::Flow => (&self.settings.flow_schemes, "--allow-flow-template-scheme"),
        };
        let is_local = matches!(scheme, Scheme::File | Scheme::Local);
        let in_flow_dir = is_local && self.settings.flow_dir.is_some();
        if schemes.contains(&scheme) || origin == TemplateOrigin::Flow && in_flow_dir {
            return Ok(());
        }
        let shown = shown(location);
        let dir = if is_local {
            ", or --flow-template-dir"
        } else {
            ""
        };
        Err(Error::permanent(match origin {
            TemplateOrigin::Agent => format!(
                "the job template {shown} may not be read: the scheme {scheme} is not among those of {flag}"
            ),
            TemplateOrigin::Flow => format!(
                "the job template {shown} may not be read: flows may not name templates with the scheme {scheme}; the agent's owner can allow it with {flag}{dir}"
            ),
        }))
    }
}

#[async_trait]
impl TemplateStore for Templates {
    async fn load(&self, location: &str, origin: TemplateOrigin) -> Result<Arc<Template>> {
        let parts = TemplateLocation::parse(location);
        let scheme = Scheme::of(&parts).ok_or_else(|| unsupported(location))?;
        self.check(scheme, location, origin)?;
        match scheme {
            Scheme::File | Scheme::Local | Scheme::Agent => self.file.load(location, origin).await,
            #[cfg(feature = "http")]
            Scheme::Http | Scheme::Https => self.http.load(location, origin).await,
            #[cfg(feature = "s3")]
            Scheme::S3 => self.s3.load(location, origin).await,
            #[cfg(feature = "gcs")]
            Scheme::Gcs => self.gcs.load(location, origin).await,
            #[allow(unreachable_patterns, reason = "depends on the features")]
            scheme => Err(Error::permanent(format!(
                "the job template {} cannot be read: this agent is built without support for {scheme}",
                shown(location)
            ))),
        }
    }
}

#[cfg(test)]
mod tests;
