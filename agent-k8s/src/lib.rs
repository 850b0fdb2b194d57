//! Flow runs as Kubernetes Jobs.
//!
//! - [`client`]: the way to the cluster.
//! - [`manifest`]: the Job for a flow run, a pure function of template, run config and settings.
//! - [`backend`]: [`KubernetesBackend`], which creates Jobs and finds those that exist.
//! - `observe`: watches over Jobs, pods and events.
//! - `output`: what failed containers printed last.
//! - `lease`: which of several replicas supervises.
//! - [`yaml`]: YAML 1.1, in which job templates are written.
//! - `error`: what errors of the Kubernetes API mean for a flow run.
#![warn(missing_docs)]

pub mod backend;
pub mod client;
mod counted;
mod error;
mod lease;
pub mod manifest;
mod observe;
mod output;
pub mod yaml;

pub use backend::KubernetesBackend;
pub use client::{Cluster, connect};
pub use manifest::{JobPatch, KeySecret, ManifestSettings, Manifests};
pub use observe::Graces;
