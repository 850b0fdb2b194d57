//! agent-k8s
