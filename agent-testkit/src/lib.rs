//! Servers on loopback for tests, the demo and benchmarks: a Prefect API and a Kubernetes API that
//! behave as the real ones do, word for word where clients read the words, and that go wrong on
//! demand in every way a network and a cluster can.
//!
//! The two APIs run in the process that starts them, on the ambient tokio runtime, on a free port of
//! 127.0.0.1 unless told otherwise, and stop when their handle is dropped. The handle looks into a
//! server and changes it without going through HTTP.
//!
//! | module | holds |
//! | --- | --- |
//! | [`prefect`] | the GraphQL API: runs, their states and logs, agents, the queue |
//! | [`kubernetes`] | the REST API: objects, watches, and a node that plays Jobs by script |
//! | [`faults`] | rules that say which operations go wrong, how and how often |
//! | [`serve`] | the HTTP server under both, which can be stopped and restarted |
//! | [`requests`] | counts of what was asked, and the last requests word for word |
//! | [`condition`] | waiting for a condition instead of sleeping |
//! | [`stores`] | real servers for files, from Python packages: S3, Google Cloud Storage, HTTP |
//! | [`clock`] | a clock that can be wrong, or run ahead |
//!
//! **[`prefect`]** answers what an agent sends, with the semantics of the open-source server: which
//! runs a queue poll finds, the lock on a second Submitted, refusals and their texts, the Lazarus
//! service. [`prefect::PrefectApiBuilder::cloud`] turns on what only Cloud does.
//! [`PrefectApi::sdl`] is the schema for a client's code generator.
//!
//! **[`kubernetes`]** keeps Jobs, pods, events, leases and a few more kinds; creates, patches and
//! deletes them with a real server's defaults, validation and garbage collection; lists them with
//! selectors and pages; watches them with bookmarks and expiry. Its node runs each Job through a
//! [`Course`]: success, failure, an image that cannot be pulled, a pod that no node takes, and so
//! on. `kubectl` works with [`KubernetesApi::kubeconfig_yaml`].
//!
//! **[`faults`]** belong to a server and can be added and removed at any time. An operation is named
//! as in the counts of requests: `set_flow_run_states`, `create jobs`, `watch pods`. Decisions
//! follow from a seed, and what was injected is counted.
//!
//! # Example
//!
//! A flow run whose Job succeeds and, as a flow does, reports so itself:
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use agent_testkit::{Course, Fault, FlowRunSeed, KubernetesApi, PrefectApi, Rule};
//! use serde_json::json;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let prefect = Arc::new(PrefectApi::start().await?);
//! let run = prefect.seed(FlowRunSeed::new().labels(["prod"]));
//!
//! let reports = prefect.clone();
//! let kubernetes = KubernetesApi::builder()
//!     .course(|_| Course::succeeds_after(Duration::from_millis(10)))
//!     .on_pod_finished(move |attempt, _end| {
//!         if let Some(run) = attempt.flow_run_id().and_then(|id| id.parse().ok()) {
//!             reports.set_state_named(run, "Success", "All reference tasks succeeded.");
//!         }
//!     })
//!     .start()
//!     .await?;
//! kubernetes.faults().add(Rule::new("create jobs", Fault::status(503)).times(1));
//!
//! // Here an agent would be started with `prefect.url()` and `kubernetes.url()`. In its place:
//! let job = json!({
//!     "metadata": {"name": "flow", "labels": {"prefect.io/flow_run_id": run}},
//!     "spec": {"template": {"spec": {
//!         "restartPolicy": "Never",
//!         "containers": [{"name": "flow", "image": "prefecthq/prefect:1.4.1"}],
//!     }}},
//! });
//! kubernetes.create("jobs", "default", job)?;
//!
//! prefect
//!     .wait_until(Duration::from_secs(5), |api| api.state(run).as_deref() == Some("Success"))
//!     .await?;
//! assert_eq!(kubernetes.creations_by_run()[&run.to_string()], 1);
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

pub mod clock;
pub mod condition;
pub mod faults;
pub mod kubernetes;
pub mod prefect;
pub mod requests;
pub mod serve;
pub mod stores;

pub use condition::TimedOut;
pub use faults::{Fault, Faults, Rule};
pub use kubernetes::{Attempt, Course, KubernetesApi, PodEnd, Verdict};
pub use prefect::{FlowRunSeed, PrefectApi};
