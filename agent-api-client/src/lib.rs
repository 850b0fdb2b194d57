//! agent-api-client
