//! agent-templates
