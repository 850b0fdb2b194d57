//! The API of a Kubernetes cluster with one scripted node.
//!
//! Objects live in memory; requests are answered, refused and streamed as a real API server does.
//! A node plays every Job through a [`Course`] that the test chooses, with the pods, statuses and
//! events that a real cluster would show.

mod admission;
mod api;
mod cluster;
mod course;
mod decode;
mod defaults;
mod discovery;
mod endpoint;
mod events;
mod kinds;
mod kubelet;
mod node;
mod object;
mod operations;
mod patch;
mod refused;
mod request;
mod selector;
mod store;
mod table;
mod validate;
mod watch;

pub use admission::Verdict;
pub use api::{KubernetesApi, KubernetesApiBuilder};
pub use cluster::{Creation, FLOW_RUN_LABEL};
pub use course::{Attempt, Course, PodEnd};
