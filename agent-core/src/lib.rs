//! The core of an agent that deploys flow runs as jobs: plain types, three traits, one loop.
//!
//! - [`flow_run`]: a [`FlowRun`] that is ready, or soon will be, and what is to be executed for it.
//! - [`run_config`]: how Prefect 1 describes the environment of a run.
//! - [`state`]: the [`State`] of a run, as far as an agent has to understand it.
//! - [`log`]: a [`LogEntry`] for the log of a flow run.
//! - [`source`]: [`FlowRunSource`], where runs come from and where their states and logs go.
//! - [`backend`]: [`JobBackend`], where runs are executed.
//! - [`template`]: [`TemplateStore`], where job templates are read from.
//! - [`error`]: the [`Error`] of all three traits, typed by what the caller does next.
//! - [`agent`]: the [`Agent`] itself: it polls a source, claims what is due and submits it to a
//!   backend, until it is told to stop.
//! - [`observation`]: what a backend sees of its jobs.
//! - [`shown`]: texts as messages may hold them, without credentials.
//! - [`backoff`]: pauses between attempts, with jitter.
//! - [`text`]: [`clip`], which cuts what others wrote to the length of a message.
//!
//! Nothing here speaks HTTP or knows Kubernetes: a service embeds the agent by implementing the
//! traits, or by taking the implementations of the crates beside this one.
#![warn(missing_docs)]

pub mod agent;
pub mod backend;
pub mod backoff;
pub mod error;
mod failpoint;
pub mod flow_run;
pub mod log;
mod moment;
pub mod observation;
pub mod run_config;
pub mod shown;
pub mod source;
pub mod state;
pub mod template;
pub mod text;

pub use async_trait::async_trait;

pub use agent::{Agent, AgentBuilder, AgentHealth, AgentStatus, Concern};
pub use backend::{JobBackend, JobRef, Submission};
pub use error::{Error, Result};
pub use flow_run::{Flow, FlowRun, FlowRunId, Work};
pub use log::{LogEntry, LogLevel};
pub use moment::Moment;
pub use observation::{Finding, JobState, Observation, Sighting, Turn};
pub use source::{Claim, FlowRunSource, Ready, ReadyQuery, Registration};
pub use state::{Phase, State};
pub use template::{Template, TemplateLocation, TemplateOrigin, TemplateStore};
pub use text::{LONGEST_MESSAGE, clip};
