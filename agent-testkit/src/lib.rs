//! Servers on loopback for tests, the demo and benchmarks.

#![warn(missing_docs)]

pub mod clock;
pub mod condition;
pub mod faults;
pub mod kubernetes;
pub mod prefect;
pub mod requests;
pub mod serve;

pub use condition::TimedOut;
pub use faults::{Fault, Faults, Rule};
pub use kubernetes::{Attempt, Course, KubernetesApi, PodEnd};
pub use prefect::{FlowRunSeed, PrefectApi};
