//! Flow runs as Kubernetes Jobs.
//!
//! - [`access`]: what the agent may do, and the Role for it.
//! - [`client`]: the way to the cluster.
//! - `credentials`, `plugin`: tokens that change, and the programs that print them.
//! - [`install`]: the agent's own objects in a cluster.
//! - [`manifest`]: the Job for a flow run, a pure function of template, run config and settings.
//! - [`backend`]: [`KubernetesBackend`], which creates Jobs and finds those that exist.
//! - `observe`: watches over Jobs, pods and events.
//! - `output`: what failed containers printed last.
//! - `pages`: lists that come in pages.
//! - `lease`: which of several replicas supervises.
//! - [`probe`]: whether a cluster has and allows what the agent needs.
//! - `reads`: types that are read in the place of whole objects.
//! - `weight`: what JSON values take in memory.
//! - [`yaml`]: YAML 1.1, in which job templates are written.
//! - `error`: what errors of the Kubernetes API mean for a flow run.
#![warn(missing_docs)]

pub mod access;
pub mod backend;
mod bounded;
pub mod client;
mod counted;
mod credentials;
mod error;
pub mod install;
mod lease;
pub mod manifest;
mod observe;
mod output;
mod pages;
mod plugin;
pub mod probe;
mod reads;
mod weight;
pub mod yaml;

pub use backend::KubernetesBackend;
pub use client::{Cluster, connect};
pub use manifest::{JobPatch, JobResources, KeySecret, Manifest, ManifestSettings, Manifests};
pub use observe::Graces;
