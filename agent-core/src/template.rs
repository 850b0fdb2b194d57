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
