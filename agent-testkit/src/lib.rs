//! agent-testkit
